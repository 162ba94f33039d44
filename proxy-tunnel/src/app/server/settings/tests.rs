// SPDX-License-Identifier: Apache-2.0

//! Tests the flags, their defaults, and rejected values, as upstream's server 0.36.0 has them.

use super::super::super::read_flags;
use proxy_serve::listen::unix::Existing;

use super::*;

const UNIX: [&str; 4] = [
    "--uds-name=/x",
    "--server-port=0",
    "--cluster-cert=c",
    "--cluster-key=k",
];

fn read(words: &[&str]) -> Result<Settings> {
    Settings::new(&read_flags(words)?)
}

fn error(words: &[&str]) -> String {
    format!("{:#}", read(words).unwrap_err())
}

fn with(words: &[&str]) -> Vec<String> {
    UNIX.iter().chain(words).map(ToString::to_string).collect()
}

fn unix(words: &[&str]) -> Result<Settings> {
    let words = with(words);
    read(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn unix_error(words: &[&str]) -> String {
    format!("{:#}", unix(words).unwrap_err())
}

#[test]
fn defaults() {
    let settings = unix(&[]).unwrap();
    assert_eq!(settings.mode, Mode::Grpc);
    assert_eq!(settings.count, 1);
    assert_eq!(settings.id.len(), 36);
    assert_eq!(settings.keepalive.0, Duration::from_hours(1));
    assert_eq!(settings.dial_timeout, Some(Duration::from_secs(10)));
    assert_eq!(settings.graceful, Duration::ZERO);
    assert_eq!(settings.strategies, [Strategy::Default]);
    assert!(settings.leases.is_none() && settings.account.is_none());
    assert_eq!(settings.health, Bind::Every(8092));
    assert_eq!(settings.admin, Bind::One("127.0.0.1:8095".parse().unwrap()));
    assert_eq!(settings.agents.0, Bind::Every(8091));
    let off = unix(&["--backend-dial-timeout=0s"]).unwrap();
    assert_eq!(off.dial_timeout, None);
}

/// All flags that upstream's test suite passes, in the same form.
#[test]
fn the_suites_command_line() {
    let settings = read(&[
        "--admin-bind-address=127.0.0.1",
        "--admin-port=40001",
        "--agent-bind-address=127.0.0.1",
        "--agent-namespace=",
        "--agent-port=40002",
        "--agent-service-account=",
        "--authentication-audience=",
        "--backend-dial-timeout=0s",
        "--cipher-suites=",
        "--cluster-ca-cert=ca",
        "--cluster-cert=cert",
        "--cluster-key=key",
        "--delete-existing-uds-file=true",
        "--enable-contention-profiling=false",
        "--enable-lease-controller=false",
        "--enable-profiling=false",
        "--frontend-keepalive-time=1h0m0s",
        "--graceful-shutdown-timeout=0s",
        "--health-bind-address=127.0.0.1",
        "--health-port=40003",
        "--keepalive-time=1h0m0s",
        "--kube-api-content-type=application/vnd.kubernetes.protobuf",
        "--kubeconfig=",
        "--kubeconfig-burst=0",
        "--kubeconfig-qps=0",
        "--lease-label=k8s-app=konnectivity-server",
        "--lease-namespace=kube-system",
        "--mode=http-connect",
        "--proxy-strategies=default",
        "--server-bind-address=",
        "--server-ca-cert=",
        "--server-cert=",
        "--server-count=2",
        "--server-id=some",
        "--server-key=",
        "--server-port=0",
        "--tls-min-version=",
        "--uds-name=/tmp/uds",
        "--xfr-channel-size=10",
        "--frontend-write-channel-size=0",
        "--warn-on-channel-limit",
    ])
    .unwrap();
    assert_eq!(settings.id, "some");
    assert_eq!(settings.mode, Mode::HttpConnect);
    assert!(matches!(
        settings.frontend,
        Frontend::Unix(_, Existing::Remove)
    ));
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (words, want) in [
        (
            &["--uds-name=/x", "--cluster-cert=c", "--cluster-key=k"][..],
            "--server-port=0",
        ),
        (
            &["--cluster-cert=c", "--cluster-key=k"],
            "--server-cert and --server-key",
        ),
        (&["--server-cert=c"], "--server-cert needs --server-key"),
        (&["--server-cert=c", "--server-key=k"], "--server-ca-cert"),
        (
            &["--uds-name=/x", "--server-port=0"],
            "--cluster-cert and --cluster-key",
        ),
        (
            &["--uds-name=/x", "--server-port=0", "--server-ca-cert=c"],
            "--uds-name excludes",
        ),
    ] {
        let error = error(words);
        assert!(error.contains(want), "{words:?}: {error}");
    }
    for (words, want) in [
        (&["--mode=socks"][..], "grpc or http-connect"),
        (&["--agent-port=80"], "--agent-port"),
        (&["--agent-port=49152"], "--agent-port"),
        (&["--agent-namespace=a"], "belong together"),
        (
            &[
                "--agent-namespace=a",
                "--agent-service-account=b",
                "--authentication-audience=c",
                "--cluster-ca-cert=d",
            ],
            "--cluster-ca-cert excludes",
        ),
        (
            &["--proxy-strategies=random"],
            "unknown proxy strategy: random",
        ),
        (&["--proxy-strategies="], "at least one strategy"),
        (
            &["--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"],
            "CBC",
        ),
        (&["--tls-min-version=VersionTLS10"], "VersionTLS12"),
        (&["--xfr-channel-size=0"], "--xfr-channel-size"),
        (
            &["--frontend-write-channel-size=-1"],
            "--frontend-write-channel-size",
        ),
        (&["--keepalive-time=0s"], "--keepalive-time"),
        (
            &["--graceful-shutdown-timeout=-1s"],
            "--graceful-shutdown-timeout",
        ),
        (&["--backend-dial-timeout=-1s"], "--backend-dial-timeout"),
        (&["--keepalive-time=60"], "--keepalive-time"),
        (&["--enable-contention-profiling"], "--enable-profiling"),
        (
            &["--enable-lease-controller", "--lease-label=x"],
            "--lease-label",
        ),
        (&["--log_dir=/tmp"], "--log_dir"),
    ] {
        let error = unix_error(words);
        assert!(error.contains(want), "{words:?}: {error}");
    }
}

#[test]
fn strategies_are_a_list() {
    let settings = unix(&["--proxy-strategies=destHost,defaultRoute,default"]).unwrap();
    let want = [
        Strategy::DestHost,
        Strategy::DefaultRoute,
        Strategy::Default,
    ];
    assert_eq!(settings.strategies, want);
}
