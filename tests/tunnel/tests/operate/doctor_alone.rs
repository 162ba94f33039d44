// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-server doctor` and `konnectivity-agent doctor` where no such program runs, without flags.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::Tunnel;

/// The exit code of a warning.
const WARNINGS: i32 = 3;

/// The flags that the doctor lacks are no fault of the program's command line.
#[test]
fn the_program_must_be_started() -> Result<()> {
    let tunnel = Tunnel::new()?;
    for part in [Part::Server, Part::Agent] {
        let output = tunnel.run(&part.of(Make::Ours)?, &["doctor", "--output=json"])?;
        ensure!(output.status.code() == Some(WARNINGS), "{output:?}");
        let found: Value = serde_json::from_slice(&output.stdout)?;
        let checks = found["checks"].as_array().context("no checks")?;
        let verdicts: Vec<_> = checks
            .iter()
            .map(|check| (&check["id"], &check["verdict"]))
            .collect();
        ensure!(
            verdicts
                == [
                    (&Value::from("process"), &Value::from("warning")),
                    (&Value::from("flags"), &Value::from("not-applicable")),
                ],
            "{found:#}"
        );
        let remedy = checks[0]["remedy"].as_str().unwrap_or_default();
        ensure!(remedy.starts_with("start it"), "{found:#}");
    }
    Ok(())
}
