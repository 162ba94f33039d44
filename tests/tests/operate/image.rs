// SPDX-License-Identifier: Apache-2.0

//! The container image runs the agent with each backend, on real traffic: with only the contents of the image, entered
//! with chroot in the node's network namespace.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::all_paths::everything_works;
use tests::degraded_host::Missing;
use tests::image::{Image, Root};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, cmd};

/// The path of the sidecar's executable in its own image, and beside the agent.
const SIDECAR: [&str; 2] = [
    "/apiserver-proxy-sidecar",
    "/usr/bin/apiserver-proxy-sidecar",
];

/// Runs `body` with the image unpacked on a node, or records why it cannot.
fn with_image(test: &str, body: impl FnOnce(&Node, &Image, &Root) -> Result<()>) {
    let image = Image::given("PROXY_AGENT_IMAGE", test).expect("reading the image");
    let Some(image) = image else {
        return;
    };
    Node::test(Topology::Veth, |node| {
        let root = image.unpack(node.dir())?;
        body(node, &image, &root)
    });
}

/// Checks that the agent works and logs `words`, and that the image can also remove the agent's objects.
fn works(node: &Node, root: &Root, command: Command, words: &[&str]) -> Result<()> {
    let agent = node.spawn(command)?;
    agent.wait_until_ready()?;
    let log = agent.log();
    for word in words {
        ensure!(log.contains(word), "no `{word}` in the log");
    }
    let proxy = Proxy::start(node)?;
    everything_works(node)?;
    drop((agent, proxy));
    let mut cleanup = node.netns.command(&root.entrypoint);
    cleanup
        .arg("cleanup")
        .arg(format!("--bpffs={}", node.agent_bpffs().display()))
        .arg(format!("--run-dir={}", node.run_dir().display()));
    root.enter(&mut cleanup)?;
    let output = cmd::run(&mut cleanup, "")?;
    ensure!(
        output
            .trim_end()
            .ends_with("no objects of proxy-agent are left"),
        "{output}"
    );
    Ok(())
}

fn with_backend(test: &str, kube_proxy: KubeProxy, backend: &str, words: &[&str]) {
    with_image(test, |node, _, root| {
        kube_proxy.install(&node.netns)?;
        let command = root.agent_command(node, &root.entrypoint, &[backend])?;
        works(node, root, command, words)
    });
}

#[test]
fn ebpf() {
    with_backend(
        "image_ebpf",
        KubeProxy::Nftables,
        "--backend=ebpf",
        &["backend ebpf"],
    );
}

#[test]
fn nftables() {
    with_backend(
        "image_nftables",
        KubeProxy::Nftables,
        "--backend=nftables",
        &["backend nftables"],
    );
}

#[test]
fn iptables_legacy() {
    with_backend(
        "image_iptables_legacy",
        KubeProxy::IptablesLegacy,
        "--backend=iptables",
        &["flavour: legacy", "use ipset to distinguish connections"],
    );
}

#[test]
fn iptables_nft() {
    with_backend(
        "image_iptables_nft",
        KubeProxy::IptablesNft,
        "--backend=iptables",
        &["flavour: nft", "use ipset to distinguish connections"],
    );
}

/// The sidecar's unchanged manifest: its arguments after the image's entry point or after the name of the executable in
/// the sidecar's own image, with `NET_ADMIN` only, without bpf(2), and without a BPF file system.
#[test]
fn the_sidecars_manifest() {
    with_image("image_sidecar", |node, _, root| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let link = if node.has_dummy_links()? {
            "apiserver-proxy"
        } else {
            "lo"
        };
        let interface = format!("--interface={link}");
        let bpffs = format!("--bpffs={}", node.dir().join("none/v1").display());
        let unprivileged = |program: &str, args: &[&str]| -> Result<Command> {
            let args = [args, &[&interface, "--port=443", &bpffs]].concat();
            let mut command = root.agent_command(node, program, &args)?;
            Missing::BpfPermission.apply(&mut command);
            Missing::CapabilitiesButNetAdmin.apply(&mut command);
            Ok(command)
        };
        for program in [&*root.entrypoint, SIDECAR[0], SIDECAR[1]] {
            let output = node.run(unprivileged(program, &["--daemon=false"])?)?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{program}: {stderr}");
            let shown = node.netns.exec(&format!("ip -o address show dev {link}"))?;
            for family in Family::ALL {
                let vip = format!(" {}/", family.vip());
                ensure!(shown.contains(&vip), "{program}: no{vip} in {shown}");
            }
        }
        let command = unprivileged(SIDECAR[0], &["--cleanup=true"])?;
        works(node, root, command, &["backend nftables"])
    });
}

/// No link in the image leads out of it, and root owns everything.
#[test]
fn links_and_owners() {
    with_image("image_links", |_, image, root| {
        let found = cmd::run(
            Command::new("find").arg(root.directory()).args([
                "-xdev", "(", "-xtype", "l", "-o", "-not", "-uid", "0", "-o", "-not", "-gid", "0",
                "-o", "-perm", "/6000", ")",
            ]),
            "",
        )?;
        // Absolute links lead somewhere else as long as the image is not the root.
        let dangling: Vec<&str> = found
            .lines()
            .filter(|path| !is_absolute_link(root, Path::new(path)))
            .collect();
        ensure!(dangling.is_empty(), "{dangling:#?}");
        println!("the image has {} compressed bytes", image.size());
        Ok(())
    });
}

fn is_absolute_link(root: &Root, path: &Path) -> bool {
    std::fs::read_link(path).is_ok_and(|target| {
        let inside = target
            .strip_prefix("/")
            .map(|path| root.directory().join(path));
        inside.is_ok_and(|path| path.exists())
    })
}

/// Other tools can read the image: when skopeo copies it, it checks each digest and converts the manifest.
#[test]
fn other_tools_take_it() {
    with_image("image_tools", |node, image, _| {
        let layout = format!("oci:{}", image.layout().display());
        let inspected = cmd::run(Command::new("skopeo").args(["inspect", &layout]), "")?;
        for wanted in ["org.opencontainers.image.version", "linux"] {
            ensure!(inspected.contains(wanted), "no {wanted} in {inspected}");
        }
        let copy = node.dir().join("docker.tar");
        let copy = format!("docker-archive:{}:proxy-agent:test", copy.display());
        let policy = ["--insecure-policy", "copy", "--quiet", &layout, &copy];
        cmd::run(Command::new("skopeo").args(policy), "")?;
        cmd::run(Command::new("skopeo").args(["inspect", &copy]), "").map(drop)
    });
}
