// SPDX-License-Identifier: Apache-2.0

//! Each eBPF program alone: `BPF_PROG_TEST_RUN` of those that a running agent has loaded, with packets
//! that concern it and packets that do not.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use self::cases::{Case, cases};
use self::packet::Packet;
use super::Effort;
use super::clock::{self, Instructions};
use super::host::Host;
use super::result::Program;
use super::variant::Variant;
use tests::Family;
use tests::bpf;

mod cases;
mod packet;

/// Runs in a series: some milliseconds.
const REPEAT: u32 = 50_000;

/// A case of an agent's loaded program.
struct Loaded {
    case: Case,
    program: bpf::Program,
    result: Program,
}

/// Measures.
///
/// # Errors
/// When a program's verdict is not what it should be, or the kernel refuses.
pub fn run(effort: Effort, mut progress: impl FnMut(&str)) -> Result<Vec<Program>> {
    let mut results = Vec::new();
    for variant in [Variant::Ebpf, Variant::Service] {
        progress(&format!("programs: {variant}"));
        let host = Host::new(variant, &[])?;
        let programs = programs(&host)?;
        let families = if effort.short { 1 } else { 2 };
        for family in Family::ALL.into_iter().take(families) {
            let cases = cases(variant, family);
            let loaded = cases.into_iter().map(|case| load(case, variant, &programs));
            let mut loaded = loaded.collect::<Result<Vec<_>>>()?;
            if results.is_empty() {
                results.push(empty(effort.rounds)?);
            }
            host.node.netns.run(|| series(&mut loaded, effort.rounds))?;
            results.extend(loaded.into_iter().map(|loaded| loaded.result));
        }
    }
    Ok(results)
}

/// The time of a run of a program that does nothing.
fn empty(rounds: usize) -> Result<Program> {
    let program = bpf::Program::empty()?;
    let (length, machine_code) = program.sizes()?;
    let packet = Packet::syn(packet::client(Family::V4, 1), packet::stranger(Family::V4));
    let run = || Ok(f64::from(program.run(packet.bytes(), REPEAT)?.1));
    Ok(Program {
        name: "an empty program".to_owned(),
        packet: "IPv4: any".to_owned(),
        length,
        machine_code,
        nanoseconds: (0..rounds).map(|_| run()).collect::<Result<_>>()?,
        instructions: None,
    })
}

/// The ids of the programs that the agent of a node has loaded, as its state file lists them.
fn programs(host: &Host) -> Result<BTreeMap<String, u32>> {
    let path = host.node.run_dir().join("state.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let state: serde_json::Value = serde_json::from_str(&text)?;
    Ok(serde_json::from_value(state["programs"].clone())?)
}

fn load(case: Case, variant: Variant, programs: &BTreeMap<String, u32>) -> Result<Loaded> {
    let id = programs
        .get(case.program)
        .with_context(|| format!("the agent has not loaded {}", case.program))?;
    let program = bpf::Program::open(*id)?;
    let (length, machine_code) = program.sizes()?;
    let with = if variant == Variant::Service {
        ", --service-address"
    } else {
        ""
    };
    Ok(Loaded {
        result: Program {
            name: format!("{}{with}", case.program),
            packet: format!("IPv{}: {}", case.packet.version(), case.about),
            length,
            machine_code,
            nanoseconds: Vec::new(),
            instructions: None,
        },
        program,
        case,
    })
}

/// In the namespace of the node: the programs look for the proxy's socket there.
fn series(loaded: &mut [Loaded], rounds: usize) -> Result<()> {
    clock::pin(clock::processor())?;
    for round in 0..=rounds {
        for Loaded {
            case,
            program,
            result,
        } in &mut *loaded
        {
            let packet = case.packet.bytes();
            let (verdict, nanoseconds) = program.run(packet, REPEAT)?;
            let nanoseconds = f64::from(nanoseconds);
            ensure!(
                verdict == case.verdict,
                "{}, {}: the verdict is {verdict}, {} was expected",
                result.name,
                result.packet,
                case.verdict
            );
            if round > 0 {
                result.nanoseconds.push((nanoseconds * 10.0).round() / 10.0);
            }
        }
    }
    let Some(counter) = Instructions::open(clock::processor()) else {
        return Ok(());
    };
    for one in loaded {
        let before = counter.read()?;
        one.program.run(one.case.packet.bytes(), REPEAT)?;
        let count = counter.read()? - before;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let per_run = count as f64 / f64::from(REPEAT);
        one.result.instructions = Some(per_run.round());
    }
    Ok(())
}
