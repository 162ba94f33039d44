// SPDX-License-Identifier: Apache-2.0

//! `deploy/tunnel/README.md`: its scripts run and make the files that its other commands use, and its values are those
//! of the chart.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use tests::dir::Dir;
use tests::manifests::{Tool, of_kind, repository};
use tests::{cmd, fences};

use super::site::{chart, kustomize};

const CHART: &str = "deploy/tunnel/helm/konnectivity";
const SCRIPT: &str = "deploy/tunnel/certificates/make-certificates.sh";

fn readme() -> Result<String> {
    let path = repository().join("deploy/tunnel/README.md");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn commands(text: &str) -> Vec<Vec<String>> {
    let blocks = fences::commands(text);
    let lines = blocks.iter().flat_map(|block| block.lines());
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    lines.map(words).collect()
}

/// Runs the script as the page has it; the commands that create Secrets find its files. `tests/docs` checks the other
/// commands together with those of all pages.
#[test]
fn its_secrets_are_of_files_that_the_script_makes() -> Result<()> {
    let directory = Dir::new()?;
    let mut secrets = 0;
    for words in commands(&readme()?) {
        let line = words.join(" ");
        if words[0] == SCRIPT {
            let mut script = Command::new(repository().join(SCRIPT));
            script.args(&words[1..]).current_dir(directory.path());
            cmd::run(&mut script, "").with_context(|| line.clone())?;
        }
        for word in &words {
            let Some((name, path)) = word
                .strip_prefix("--from-file=")
                .and_then(|file| file.split_once('='))
            else {
                continue;
            };
            ensure!(["tls.crt", "tls.key", "ca.crt"].contains(&name), "{line}");
            ensure!(directory.path().join(path).is_file(), "{line}: no {path}");
            secrets += 1;
        }
    }
    ensure!(secrets > 8, "only {secrets} files of Secrets");
    Ok(())
}

/// The Secrets that the page creates have the names that pods mount.
#[test]
fn its_secrets_are_those_that_are_mounted() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-readme-secrets")? else {
        return Ok(());
    };
    let mut made: Vec<String> = Vec::new();
    for words in commands(&readme()?) {
        let at = words.iter().position(|word| word == "generic");
        made.extend(at.map(|at| words[at + 1].clone()));
    }
    made.sort();
    made.dedup();
    let mut mounted = Vec::new();
    for directory in ["agent", "server"] {
        let objects = kustomize(&tool, directory)?;
        let (_, workload) = of_kind(&objects, "Deployment").next().context("none")?;
        let volumes = workload.pointer("/spec/template/spec/volumes");
        let volumes = volumes.and_then(|volumes| volumes.as_array());
        for volume in volumes.into_iter().flatten() {
            mounted.extend(volume["secret"]["secretName"].as_str().map(str::to_owned));
        }
    }
    mounted.sort();
    ensure!(made == mounted, "{made:?} are made, {mounted:?} mounted");
    Ok(())
}

#[test]
fn its_values_are_the_charts() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-readme-values")? else {
        return Ok(());
    };
    let text = readme()?;
    ensure!(text.contains(&format!(" {CHART} -f values.yaml")));
    let mut rendered = 0;
    for fences::Block {
        language,
        text: block,
        ..
    } in fences::blocks(&text)
    {
        if language != "yaml" || !block.starts_with("# values.yaml") {
            continue;
        }
        for values in tool.yaml(&block)? {
            let objects = chart(&tool, &values)?;
            ensure!(of_kind(&objects, "Deployment").count() == 1, "{block}");
            rendered += 1;
        }
    }
    ensure!(rendered == 2, "{rendered} sets of values");
    Ok(())
}

/// `prepare-node.sh` makes a certificate for the names, and a kubeconfig for a user without groups, whose certificate
/// the cluster's CA has signed.
#[test]
fn the_files_of_a_node() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-node")? else {
        return Ok(());
    };
    let directory = Dir::new()?;
    let run = |line: &str, input: &str| {
        let mut command = Command::new("bash");
        command.args(["-euc", line]).current_dir(directory.path());
        command.env("ROOT", directory.path());
        cmd::run(&mut command, input)
    };
    let script = repository().join("deploy/tunnel/certificates/prepare-node.sh");
    let script = format!("{} tunnel.example,192.0.2.1", script.display());
    let refused = format!("{:#}", run(&script, "").expect_err("no files of kubeadm's"));
    ensure!(refused.contains("etc/kubernetes/pki/ca.crt"), "{refused}");
    run(
        "mkdir -p etc/kubernetes/pki var/lib; cd etc/kubernetes/pki; openssl req -x509 -nodes -newkey ec \
         -pkeyopt ec_paramgen_curve:P-256 -subj /CN=kubernetes -addext keyUsage=keyCertSign -keyout ca.key -out ca.crt",
        "",
    )?;
    run(&script, "")?;
    // A second run replaces the files.
    run(&script, "")?;

    let of_node = directory.path().join("etc/kubernetes/konnectivity");
    let names = run(
        "openssl x509 -in etc/kubernetes/konnectivity/tls.crt -noout -ext subjectAltName",
        "",
    )?;
    ensure!(
        names.contains("DNS:tunnel.example, IP Address:192.0.2.1"),
        "{names}"
    );
    let verify = |file: &str, purpose: &str| {
        let line =
            format!("openssl verify -CAfile etc/kubernetes/pki/ca.crt -purpose {purpose} {file}");
        run(&line, "").with_context(|| line.clone())
    };
    verify("etc/kubernetes/konnectivity/tls.crt", "sslserver")?;
    let text = fs::read_to_string(of_node.join("kubeconfig"))?;
    let kubeconfig = &tool.yaml(&text)?[0];
    let user = &kubeconfig["users"][0]["user"];
    for (value, file) in [
        (&user["client-certificate-data"], "user.crt"),
        (&user["client-key-data"], "user.key"),
        (
            &kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"],
            "found-ca.crt",
        ),
    ] {
        let value = value.as_str().with_context(|| format!("no {file}"))?;
        run(&format!("base64 -d >{file}"), value)?;
    }
    verify("user.crt", "sslclient")?;
    run("cmp found-ca.crt etc/kubernetes/pki/ca.crt", "")?;
    let subject = run(
        "openssl x509 -in user.crt -noout -subject -nameopt RFC2253",
        "",
    )?;
    ensure!(
        subject.trim() == "subject=CN=system:konnectivity-server",
        "{subject}"
    );
    let keys =
        "diff <(openssl x509 -in user.crt -noout -pubkey) <(openssl pkey -in user.key -pubout)";
    run(keys, "")?;
    check_owners(&of_node, directory.path())
}

/// Checks that the pod's user can read the files and create the socket.
fn check_owners(of_node: &Path, root: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    for file in ["tls.crt", "tls.key", "kubeconfig"] {
        let found = fs::metadata(of_node.join(file))?;
        let is_good = found.gid() == 65532 && found.mode() & 0o777 == 0o640;
        ensure!(
            is_good,
            "{file}: {:o} of group {}",
            found.mode(),
            found.gid()
        );
    }
    let left = fs::read_dir(of_node)?.count();
    ensure!(left == 3, "{left} files");
    let socket = fs::metadata(root.join("var/lib/konnectivity"))?;
    if socket.uid() != 65532 || socket.mode() & 0o777 != 0o750 {
        bail!(
            "the socket's directory: {:o} of {}",
            socket.mode(),
            socket.uid()
        );
    }
    Ok(())
}
