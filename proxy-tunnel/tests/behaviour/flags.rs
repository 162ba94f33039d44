// SPDX-License-Identifier: Apache-2.0

//! Every flag of upstream's programs, and of the sidecar, with its default: facts §3. Where upstream's programs are
//! built, `tests/tunnel` compares their flags.

use std::process::Command;

use super::process::{AGENT, CLIENT, SERVER, SIDECAR, TARGET};

/// The flags of klog, which all programs have.
const KLOG: &str = "vmodule= logtostderr=true log-file= log-file-max-size=1800 log-dir= alsologtostderr=false \
     alsologtostderrthreshold=0 stderrthreshold=2 legacy-stderr-threshold-behavior=true add-dir-header=false \
     skip-headers=false skip-log-headers=false one-output=false log-backtrace-at=:0";

/// The flags of each program. `*` marks hidden flags, for old manifests. `backend-dial-timeout` is off in upstream,
/// which has no sidecar.
const FLAGS: [(&str, &str); 5] = [
    (
        SERVER,
        "v=4 server-cert= server-key= server-ca-cert= cluster-cert= cluster-key= cluster-ca-cert= mode=grpc \
         uds-name= delete-existing-uds-file=true server-port=8090 agent-port=8091 health-port=8092 \
         admin-port=8095 server-bind-address= agent-bind-address= health-bind-address= \
         admin-bind-address=127.0.0.1 keepalive-time=1h0m0s frontend-keepalive-time=1h0m0s \
         enable-profiling=false enable-contention-profiling=false server-id= server-count=1 agent-namespace= \
         agent-service-account= authentication-audience= kubeconfig= kubeconfig-qps=0 kubeconfig-burst=0 \
         kube-api-content-type=application/vnd.kubernetes.protobuf proxy-strategies=default cipher-suites= \
         tls-min-version= xfr-channel-size=10 frontend-write-channel-size=10 enable-lease-controller=false \
         lease-namespace=kube-system lease-label=k8s-app=konnectivity-server graceful-shutdown-timeout=0s \
         backend-dial-timeout=10s warn-on-channel-limit=false",
    ),
    (
        AGENT,
        "v=4 agent-cert= agent-key= ca-cert= proxy-server-host=127.0.0.1 proxy-server-port=8091 alpn-proto= \
         health-server-host= health-server-port=8093 admin-bind-address=127.0.0.1 admin-server-port=8094 \
         enable-profiling=false enable-contention-profiling=false agent-id= agent-identifiers= \
         sync-interval=1s sync-interval-cap=10s probe-interval=1s keepalive-time=1h0m0s \
         service-account-token-path= sync-forever=false xfr-channel-size=150 count-server-leases=false \
         lease-namespace=kube-system lease-label-selector=k8s-app=konnectivity-server *lease-label= \
         server-count-source=default kubeconfig= kube-api-content-type=application/vnd.kubernetes.protobuf \
         warn-on-channel-limit=false",
    ),
    (
        CLIENT,
        "v=4 client-cert= client-key= ca-cert= request-proto=http request-host=localhost request-port=8000 \
         request-path=success proxy-host=localhost proxy-port=8090 proxy-uds= mode=grpc \
         user-agent=test-client test-requests=1 test-delay=0 after-delay=0 close-idle-conn=true \
         enable-http2-healthchecks=true",
    ),
    (TARGET, "v=0 server-port=8000"),
    (
        SIDECAR,
        "v=2 listen= tenants-config= allow-destination= max-connections=4096 health-port=8096 \
         health-bind-address= client-cert= client-key= ca-cert= proxy-host=localhost proxy-port=8090 proxy-uds= \
         proxy-server-name= mode=grpc",
    ),
];

/// Returns the description of a flag in a help text, on one line.
fn described(help: &str, name: &str) -> Option<String> {
    let is_its_own = |line: &&str| {
        let line = line.trim_start();
        let line = line.strip_prefix("-v, ").unwrap_or(line);
        let rest = line
            .strip_prefix("--")
            .and_then(|line| line.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with([' ', '[']))
    };
    let mut lines = help.lines().skip_while(|line| !is_its_own(line));
    // The description may begin in the flag's own line; its further lines are indented further than flags.
    let mut text = lines.next()?.to_owned();
    for line in lines.take_while(|line| line.starts_with("          ")) {
        text.push(' ');
        text.push_str(line.trim());
    }
    Some(text)
}

#[test]
fn each_of_upstreams_with_its_default() {
    for (program, flags) in FLAGS {
        let flags = flags.split_whitespace().chain(KLOG.split_whitespace());
        let mut all = Vec::new();
        let output = Command::new(program).arg("--help").output().unwrap();
        let help = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        for flag in flags {
            let hidden = flag.strip_prefix('*');
            let flag = hidden.unwrap_or(flag);
            all.push(format!("--{flag}"));
            let (name, default) = flag.split_once('=').unwrap();
            let text = described(&help, name);
            if hidden.is_some() {
                continue;
            }
            let text = text.unwrap_or_else(|| panic!("{program} has no --{name}: {help}"));
            let shown = text
                .split_once("[default: ")
                .map(|(_, rest)| rest.split_once(']').unwrap().0);
            let shown = shown.unwrap_or_default().trim_matches('"');
            // Flags that are off show no default.
            let is_off = matches!(default, "false" | ":0");
            let is_same = shown == default || (shown.is_empty() && is_off);
            assert!(
                is_same,
                "--{name} has the default `{shown}`, not `{default}`"
            );
        }
        // The program prints its help only if it accepts all flags before this one.
        let output = Command::new(program)
            .args(&all)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{program} {all:?}: {output:?}");
        // pflag's syntax: a value as a separate word, and switches with and without a value.
        let words = [
            "--v",
            "2",
            "-v",
            "2",
            "-v=2",
            "--logtostderr",
            "--logtostderr=false",
            "--help",
        ];
        let output = Command::new(program).args(words).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        for unknown in ["--log_dir=/x", "--logtostderr=maybe", "--v=x"] {
            let output = Command::new(program).arg(unknown).output().unwrap();
            assert_eq!(
                output.status.code(),
                Some(1),
                "{program} {unknown}: {output:?}"
            );
            let complaint = String::from_utf8_lossy(&output.stderr);
            let flag = unknown.split('=').next().unwrap();
            assert!(complaint.contains(flag), "{program} {unknown}: {complaint}");
        }
    }
}
