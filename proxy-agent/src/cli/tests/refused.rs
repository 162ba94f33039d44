// SPDX-License-Identifier: Apache-2.0

//! Invalid command lines: each fails with exit code 2 and a message that names flag and value.

use super::*;

/// The message for an invalid line.
fn refused(line: &[&str]) -> String {
    let line = ["proxy-agent"].iter().chain(line);
    let error = run(try_parse_from(line)).expect_err("the line is bad");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

/// Takes lines of flag, value and what is wrong with it.
fn each_is_refused(lines: &[(&str, &str, &str)]) {
    for (flag, value, reason) in lines {
        let bad = format!("{flag}={value}");
        let message = if *flag == "--ip-address" {
            refused(&[&bad])
        } else {
            refused(&["--ip-address=10.96.0.2", &bad])
        };
        assert!(message.contains(flag), "{bad}: {message}");
        assert!(message.contains(&format!("'{value}'")), "{bad}: {message}");
        assert!(message.contains(reason), "{bad}: {message}");
    }
}

#[test]
fn bad_values_are_refused_with_flag_and_value() {
    each_is_refused(&[
        ("--ip-address", "", "not an IP address"),
        ("--ip-address", "localhost", "not an IP address"),
        ("--ip-address", "10.96.0.256", "not an IP address"),
        ("--ip-address", "fe80::1%lo", "not an IP address"),
        ("--ip-address", "10.96.0.2/32", "prefix length"),
        ("--ip-address", "0.0.0.0", "unspecified"),
        ("--ip-address", "::", "unspecified"),
        ("--ip-address", "127.0.0.1", "loopback"),
        ("--ip-address", "::1", "loopback"),
        ("--ip-address", "224.0.0.1", "multicast"),
        ("--ip-address", "ff02::1", "multicast"),
        ("--ip-address", "255.255.255.255", "broadcast"),
        ("--ip-address", "::ffff:10.96.0.2", "IPv4-mapped"),
        ("--ip-address", "fe80::1", "link-local"),
        ("--port", "0", "1 to 65535"),
        ("--port", "65536", "1 to 65535"),
        ("--port", "-1", "1 to 65535"),
        ("--port", "+1", "1 to 65535"),
        ("--port", "https", "1 to 65535"),
        ("--port", "", "1 to 65535"),
        ("--listen", "9465", "127.0.0.1:9465"),
        ("--listen", "localhost:9465", "127.0.0.1:9465"),
        ("--listen", "127.0.0.1", "127.0.0.1:9465"),
        ("--listen", "127.0.0.1:0", "127.0.0.1:9465"),
        ("--listen", ":0", "127.0.0.1:9465"),
        ("--listen", "10.96.0.2:443", "the proxy's port"),
        ("--listen", "0.0.0.0:443", "the proxy's port"),
        ("--interface", "", "empty"),
        ("--interface", "apiserver-proxy1", "16 bytes"),
        ("--interface", "a/b", "slash"),
        ("--interface", "a b", "space"),
        ("--interface", "\u{e0}", "space"),
        ("--interface", "a:b", "colon"),
        ("--interface", "a%d", "percent"),
        ("--interface", "..", "no link"),
        ("--proxy-upstream", "apiserver", "not an IP address"),
        ("--proxy-upstream", "", "not an IP address"),
        ("--proxy-upstream", "192.0.2.1:0", "1 to 65535"),
        ("--proxy-upstream", "127.0.0.1", "loopback"),
        ("--proxy-upstream", "[::1]:443", "loopback"),
        ("--proxy-upstream", "224.0.0.1", "multicast"),
        ("--proxy-upstream", "0.0.0.0", "unspecified"),
        ("--proxy-upstream", "10.96.0.2", "one of --ip-address"),
        ("--proxy-upstream", "10.96.0.2:6443", "one of --ip-address"),
        ("--guard", "lo", "own packets"),
        ("--guard", "a/b", "slash"),
        ("--allow-from", "10.0.0.1/8", "10.0.0.0/8"),
        ("--allow-from", "10.0.0.0/33", "not a network"),
        ("--allow-from", "everybody", "not a network"),
        ("--allow-from", "::ffff:10.0.0.0/104", "IPv4-mapped"),
        ("--sync-interval", "0", "out of bounds"),
        ("--sync-interval", "0s", "out of bounds"),
        ("--sync-interval", "-1m", "out of bounds"),
        ("--sync-interval", "999us", "out of bounds"),
        ("--sync-interval", "8760h0m1s", "out of bounds"),
        ("--sync-interval", "60", "unit"),
        ("--sync-interval", "1d", "unit 'd'"),
        ("--sync-interval", "3000000h", "too long"),
        ("--sync-interval", "soon", "not a duration"),
        ("--backend", "nft", "possible values: auto, ebpf"),
        ("--accept-rules", "yes", "possible values"),
        ("--tc-attach", "xdp", "possible values"),
        ("--log-format", "xml", "possible values"),
        ("--max-connections", "1023", "1024..=16777216"),
        ("--max-connections", "16777217", "1024..=16777216"),
        ("--max-connections", "-5", "1024..=16777216"),
        ("--bpffs", "bpf", "absolute"),
        ("--bpffs", "/", "absolute"),
        ("--run-dir", "./run", "absolute"),
        ("--v", "high", "invalid digit"),
        ("--v", "2147483648", "not in"),
        ("--vmodule", "link", "PATTERN=LEVEL"),
        ("--vmodule", "link=-1", "-1"),
        ("--stderrthreshold", "4", "severity"),
        ("--log_file_max_size", "-1", "invalid digit"),
        ("--daemon", "no", "true or false"),
        ("--cleanup", "2", "true or false"),
        ("--setup-iptables", "on", "true or false"),
    ]);
}

#[test]
fn bad_endpoints_are_refused_with_flag_and_value() {
    each_is_refused(&[
        ("--service-address", "", "not an IP address"),
        ("--service-address", "kubernetes", "not an IP address"),
        ("--service-address", "AUTO", "not an IP address"),
        ("--service-address", "kubernetes:443", "not an IP address"),
        ("--service-address", "[10.96.0.1]:443", "not an IP address"),
        ("--service-address", "[fd00::1", "not an IP address"),
        ("--service-address", "[fd00::1]443", "not an IP address"),
        ("--service-address", "[fd00::1%lo]:443", "not an IP address"),
        ("--service-address", "10.96.0.0/16", "not an IP address"),
        ("--service-address", "10.96.0.1:", "'' is not a TCP port"),
        ("--service-address", "10.96.0.1:0", "'0' is not a TCP port"),
        (
            "--service-address",
            "10.96.0.1:https",
            "'https' is not a TCP port",
        ),
        ("--service-address", "[fd00::1]:65536", "1 to 65535"),
        ("--service-address", "[fd00::1]:+1", "1 to 65535"),
        ("--service-address", "0.0.0.0:443", "unspecified"),
        ("--service-address", "127.0.0.1", "loopback"),
        ("--service-address", "[::1]:443", "loopback"),
        ("--service-address", "224.0.0.1", "multicast"),
        ("--service-address", "255.255.255.255", "broadcast"),
        ("--service-address", "fe80::1", "link-local"),
        ("--service-address", "::ffff:10.96.0.1", "IPv4-mapped"),
        // There is no VIP endpoint left for them.
        ("--service-address", "10.96.0.2", "one of --ip-address"),
        ("--service-address", "10.96.0.2:80", "one of --ip-address"),
        (
            "--service-address",
            "fd00::1",
            "an IPv6 address to --ip-address",
        ),
        ("--repair-conntrack", "", "not an IP address"),
        ("--repair-conntrack", "auto", "not an IP address"),
        ("--repair-conntrack", "10.96.0.1:x", "'x' is not a TCP port"),
        ("--repair-conntrack", "[ff02::1]:80", "multicast"),
        ("--repair-conntrack", "10.96.0.2:443", "one of --ip-address"),
    ]);
}

#[test]
fn negative_values_apart_from_their_flag_are_values() {
    for flag in ["--port", "--sync-interval", "--max-connections"] {
        let message = refused(&["--ip-address=10.96.0.2", flag, "-1"]);
        assert!(message.contains(&format!("'-1' for '{flag}")), "{message}");
    }
}

#[test]
fn what_is_given_twice_is_refused() {
    for line in [
        &["--ip-address=10.96.0.2,fd00::2,10.96.0.2"][..],
        &["--ip-address=10.96.0.2", "--ip-address", "10.96.0.2"],
    ] {
        let message = refused(line);
        assert!(
            message.contains("'10.96.0.2' for '--ip-address'"),
            "{message}"
        );
    }
    // Two spellings of one address.
    let message = refused(&["--ip-address=fd00::2,FD00:0::2"]);
    assert!(
        message.contains("'fd00::2' for '--ip-address'"),
        "{message}"
    );
    for flag in ["--service-address", "--repair-conntrack"] {
        // Two spellings of one endpoint.
        let twice = format!("{flag}=10.96.0.1,10.96.0.1:443");
        let message = refused(&["--ip-address=10.96.0.2", &twice]);
        assert!(
            message.contains(&format!("'10.96.0.1:443' for '{flag}'")),
            "{message}"
        );
        assert!(message.contains("more than once"), "{message}");
    }
    let message = refused(&["--ip-address=10.96.0.2", "--port=443,443"]);
    assert!(message.contains("'443' for '--port'"), "{message}");
}

#[test]
fn services_without_a_vip_endpoint_are_refused() {
    // The port is ambiguous.
    for value in ["10.96.0.1", "10.96.0.1:443"] {
        let service = format!("--service-address={value}");
        let message = refused(&["--ip-address=10.96.0.2", "--port=6443,8443", &service]);
        assert!(
            message.contains(&format!("'{value}' for '--service-address'")),
            "{message}"
        );
        assert!(
            message.contains("443 is not among the values of --port"),
            "{message}"
        );
    }
    // One after the other up to the limit.
    let ports: Vec<_> = (1..=5).map(|port| format!("10.96.0.1:{port}")).collect();
    let services = format!("--service-address={}", ports.join(","));
    let message = refused(&["--ip-address=10.96.0.2", &services]);
    assert!(
        message.contains("'10.96.0.1:5' for '--service-address'"),
        "{message}"
    );
    assert!(message.contains("at most 4"), "{message}");
    let message = refused(&["--ip-address=fd00::2", "--service-address=10.96.0.1"]);
    assert!(
        message.contains("an IPv4 address to --ip-address"),
        "{message}"
    );
}

#[test]
fn lines_that_are_wrong_as_a_whole() {
    assert!(refused(&[]).contains("--ip-address"));
    assert!(refused(&["--ip-address=10.96.0.2", "--nope"]).contains("--nope"));
    assert!(refused(&["--ip-address=10.96.0.2,"]).contains("'' for '--ip-address"));
    assert!(refused(&["--ip-address"]).contains("--ip-address"));
    // The control character itself is not shown.
    assert!(refused(&["--ip-address=10.96.0.2", "--interface=a\u{b}b"]).contains("a space"));
    let message = refused(&["--ip-address=10.96.0.2", "--daemon", "false"]);
    assert!(message.contains("--daemon=false"), "{message}");
}

#[test]
fn more_endpoints_than_the_map_holds_are_refused() {
    let ports: Vec<_> = (1..=128).map(|port: u16| port.to_string()).collect();
    let ports = format!("--port={}", ports.join(","));
    accepted(&format!("--ip-address=10.96.0.2,10.96.0.3 {ports}"));
    let message = refused(&["--ip-address=10.96.0.2,10.96.0.3,10.96.0.4", &ports]);
    assert!(message.contains("3 for --ip-address"), "{message}");
    assert!(message.contains("128 for --port"), "{message}");
    assert!(message.contains("256"), "{message}");
}

#[test]
fn an_upstream_stands_beside_other_flags() {
    let refused = |flags: &[&str]| refused(&[&["--ip-address=10.96.0.2"], flags].concat());
    let of_service = refused(&[
        "--service-address=10.96.0.1",
        "--proxy-upstream=192.0.2.1,10.96.0.1:6443",
    ]);
    assert!(of_service.contains("'10.96.0.1:6443'"), "{of_service}");
    assert!(of_service.contains("--service-address"), "{of_service}");
    let of_repair = refused(&[
        "--repair-conntrack=10.96.0.9:443",
        "--proxy-upstream=10.96.0.9",
    ]);
    assert!(of_repair.contains("--repair-conntrack"), "{of_repair}");
    let twice = refused(&[
        "--proxy-upstream=192.0.2.1",
        "--proxy-upstream=192.0.2.1:443",
    ]);
    assert!(twice.contains("more than once"), "{twice}");
    let off = refused(&["--proxy-upstream=off,192.0.2.1"]);
    assert!(off.contains("'off'") && off.contains("combined"), "{off}");
}
