// SPDX-License-Identifier: Apache-2.0

//! `--service-address` and `--repair-conntrack`: the parsed endpoints, and the VIP endpoint of each Service. Invalid ones are in
//! `refused`, `auto` in `variables`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::values::{endpoint, service_address};
use super::*;
use crate::config::Service;
use proxy_serve::log::Remark;

fn service(cluster_ip: &str, vip: &str) -> Service {
    Service {
        cluster_ip: cluster_ip.parse().unwrap(),
        vip: vip.parse().unwrap(),
    }
}

#[test]
fn nothing_is_translated_unless_asked_for() {
    let config = accepted("--ip-address=10.96.0.2");
    assert!(config.services.is_empty() && config.repair.is_empty());
}

#[test]
fn a_service_goes_to_the_first_vip_of_its_family_and_the_matching_port() {
    let vips = "--ip-address=10.96.0.2,10.96.0.3,fd00::2,fd00::3";
    for (flags, want) in [
        (
            "--service-address=10.96.0.1",
            &[("10.96.0.1:443", "10.96.0.2:443")][..],
        ),
        // The same port, although it is not the first.
        (
            "--service-address=10.96.0.1 --port=8443,443",
            &[("10.96.0.1:443", "10.96.0.2:443")],
        ),
        (
            "--service-address 10.96.0.1:8443 --port=443,8443",
            &[("10.96.0.1:8443", "10.96.0.2:8443")],
        ),
        // Another port, but it can only be the one.
        (
            "--service-address=10.96.0.1 --port=8443",
            &[("10.96.0.1:443", "10.96.0.2:8443")],
        ),
        (
            "--service-address=fd00::1,10.96.0.1:443 --port=6443",
            &[
                ("[fd00::1]:443", "[fd00::2]:6443"),
                ("10.96.0.1:443", "10.96.0.2:6443"),
            ],
        ),
        (
            "--service-address=[fd00::1]:443 --service-address 10.96.0.9:8443 --port=443,8443",
            &[
                ("[fd00::1]:443", "[fd00::2]:443"),
                ("10.96.0.9:8443", "10.96.0.2:8443"),
            ],
        ),
        (
            "--service-address=10.96.0.1,10.96.0.1:8443 --port=443,8443",
            &[
                ("10.96.0.1:443", "10.96.0.2:443"),
                ("10.96.0.1:8443", "10.96.0.2:8443"),
            ],
        ),
    ] {
        let config = accepted(&format!("{vips} {flags}"));
        let want: Vec<_> = want.iter().map(|(from, to)| service(from, to)).collect();
        assert_eq!(config.services, want, "{flags}");
        assert!(config.log.remarks.is_empty(), "{flags}");
    }
}

#[test]
fn what_is_repaired_besides_is_not_translated() {
    let config = accepted(
        "--ip-address=10.96.0.2 --service-address=10.96.0.1 \
         --repair-conntrack=10.96.0.10:53,[fd00::a]:53 --repair-conntrack 10.96.0.1:443,fd00::1",
    );
    let repair: Vec<_> = config.repair.iter().map(ToString::to_string).collect();
    assert_eq!(repair, ["10.96.0.10:53", "[fd00::a]:53", "[fd00::1]:443"]);
    assert_eq!(config.services.len(), 1);
    // Alone; and the port counts.
    let config = accepted("--ip-address=10.96.0.2 --repair-conntrack=10.96.0.1,10.96.0.1:80");
    assert_eq!(config.repair.len(), 2);
    assert!(config.services.is_empty());
}

#[test]
fn a_backend_that_does_not_translate_is_warned_about() {
    let line = "--ip-address=10.96.0.2 --service-address=10.96.0.1";
    for (flags, name) in [
        ("--backend=iptables", Some("backend iptables")),
        ("--backend=none", Some("backend none")),
        ("--setup-iptables", Some("backend iptables")),
        ("--setup-iptables=false", Some("backend none")),
        ("--setup-iptables=false --backend=ebpf", None),
        ("--backend=auto", None),
    ] {
        let config = accepted(&format!("{line} {flags}"));
        assert_eq!(config.services.len(), 1, "{flags}");
        match (&config.log.remarks[..], name) {
            ([Remark::Warning(text)], Some(name)) => {
                assert!(text.contains(name), "{flags}: {text}");
                assert!(text.contains("--service-address"), "{flags}: {text}");
            }
            (remarks, name) => assert!(remarks.is_empty() && name.is_none(), "{flags}"),
        }
    }
    let config = accepted("--ip-address=10.96.0.2 --repair-conntrack=10.96.0.1 --backend=none");
    assert!(config.log.remarks.is_empty());
}

/// An address that a Service can have.
fn unicast() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| IpAddr::from(Ipv4Addr::from(octets))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
        // A small range, so that some collide.
        (0_u8..8).prop_map(|last| IpAddr::from([10, 96, 0, last])),
        (0_u128..8).prop_map(|last| IpAddr::from(Ipv6Addr::from_bits((0xfd00 << 112) | last))),
    ]
    .prop_filter("unicast", |address| {
        values::vip(&address.to_string()).is_ok()
    })
}

fn joined<T: Display>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    values.join(",")
}

proptest! {
    #[test]
    fn endpoints_are_read_as_they_are_written(address in unicast(), port in 1_u16..) {
        let written = SocketAddr::new(address, port);
        prop_assert_eq!(endpoint(&written.to_string()).unwrap().address, written);
        let alone = endpoint(&address.to_string()).unwrap();
        prop_assert_eq!(alone.address, SocketAddr::new(address, 443));
        prop_assert_eq!(alone.text, address.to_string());
    }

    #[test]
    fn no_text_panics_and_what_is_read_can_be_a_service(
        text in prop_oneof![any::<String>(), r"[0-9a-f:.\[\]%/+-]{0,24}", r"\[[0-9a-f:]{2,8}\]:?[0-9]{0,6}"],
    ) {
        if let Ok(read) = endpoint(&text) {
            prop_assert!(values::vip(&read.address.ip().to_string()).is_ok());
            prop_assert_ne!(read.address.port(), 0);
            prop_assert_eq!(&read.text, &text);
            prop_assert!(service_address(&text).is_ok());
        }
    }

    #[test]
    fn each_service_has_a_vip_endpoint(
        vips in proptest::collection::vec(unicast(), 1..4),
        ports in proptest::collection::vec(440_u16..446, 1..4),
        services in proptest::collection::vec((unicast(), 440_u16..446), 0..4),
        repair in proptest::collection::vec((unicast(), 440_u16..446), 0..4),
    ) {
        let mut line = vec![
            "proxy-agent".to_owned(),
            format!("--ip-address={}", joined(&vips)),
            format!("--port={}", joined(&ports)),
        ];
        for (flag, endpoints) in [("service-address", &services), ("repair-conntrack", &repair)] {
            let endpoints = endpoints.iter().copied().map(SocketAddr::from);
            line.extend(endpoints.map(|endpoint| format!("--{flag}={endpoint}")));
        }
        match run(try_parse_from(line)) {
            Err(error) => prop_assert_eq!(error.exit_code(), 2),
            Ok(config) => {
                prop_assert_eq!(config.services.len(), services.len());
                for (index, Service { cluster_ip, vip }) in config.services.iter().enumerate() {
                    let is_alike = |other: &Service| other.cluster_ip == *cluster_ip;
                    prop_assert!(!config.services[..index].iter().any(is_alike));
                    prop_assert!(vips.contains(&vip.ip()) && ports.contains(&vip.port()));
                    prop_assert!(!vips.contains(&cluster_ip.ip()));
                    prop_assert_eq!(vip.is_ipv4(), cluster_ip.is_ipv4());
                    prop_assert!(!config.repair.contains(cluster_ip));
                }
            }
        }
    }
}
