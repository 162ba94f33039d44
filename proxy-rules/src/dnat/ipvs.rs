// SPDX-License-Identifier: Apache-2.0

//! IPVS, from the kernel's list of services and their servers. Reading the list does not load the module.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Finding, Findings, Unread};

/// The list is per network namespace. The file is missing if IPVS is not loaded.
const PATH: &str = "/proc/thread-self/net/ip_vs";

/// Returns true if IPVS has at least one service in this network namespace.
pub fn is_used() -> bool {
    // The list starts with three lines of headings.
    fs::read_to_string(PATH).is_ok_and(|list| list.lines().count() > 3)
}

/// Adds the services of IPVS that send connections to the VIPs.
pub fn find(vips: &[IpAddr], findings: &mut Findings) {
    match fs::read_to_string(PATH) {
        Ok(list) => findings.found.extend(parse(&list, vips)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => findings.unread.push(Unread::new("IPVS", error)),
    }
}

/// Parses the list: a line for each service, followed by a line that begins with `->` for each of its servers.
pub(super) fn parse(list: &str, vips: &[IpAddr]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut service = String::new();
    for line in list.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["->", server, ..] => {
                let Some(server) = address(server) else {
                    continue;
                };
                if vips.contains(&server.ip()) {
                    found.push(Finding {
                        place: format!("IPVS service {service}"),
                        vip: server.ip(),
                        port: Some(server.port()),
                    });
                }
            }
            ["FWM", mark, ..] => service = format!("of firewall mark 0x{mark}"),
            [protocol, virtual_address, ..] => {
                service = match address(virtual_address) {
                    Some(address) => format!("{protocol} {address}"),
                    None => String::new(),
                };
            }
            _ => {}
        }
    }
    found
}

/// Parses an address such as `0A600001:01BB` or `[fd00:0096:…:0001]:01BB`, with the port in hexadecimal digits in both
/// cases (`ip_vs_info_seq_show` of `net/netfilter/ipvs/ip_vs_ctl.c`).
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let ip = match ip.strip_prefix('[') {
        Some(v6) => IpAddr::V6(v6.strip_suffix(']')?.parse().ok()?),
        None if ip.len() == 8 => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?)),
        None => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0A600002:01BB      Masq    1      0          0
  -> C0A86401:192B      Masq    1      0          0
TCP  [fd00:0096:0000:0000:0000:0000:0000:0001]:01BB rr
  -> [fd00:0096:0000:0000:0000:0000:0000:0002]:01BB      Local   1      0          0
FWM  00000007 rr
  -> 0A600002:20FB      Route   1      0          0
";

    #[test]
    fn servers_that_are_vips_are_found_with_their_service() {
        let vips = ["10.96.0.2", "fd00:96::2"].map(|vip| vip.parse().unwrap());
        let found: Vec<_> = parse(LIST, &vips).iter().map(Finding::to_string).collect();
        assert_eq!(
            found,
            [
                "IPVS service TCP 10.96.0.1:443, to 10.96.0.2:443",
                "IPVS service TCP [fd00:96::1]:443, to [fd00:96::2]:443",
                "IPVS service of firewall mark 0x00000007, to 10.96.0.2:8443",
            ]
        );
        assert!(parse(LIST, &["10.96.0.3".parse().unwrap()]).is_empty());
        assert!(parse("", &vips).is_empty());
    }

    proptest! {
        #[test]
        fn any_list_is_read(list in "((TCP|FWM|->|[A-F0-9:\\[\\]]{0,12}|.)[ \n]?){0,40}") {
            let _ = parse(&list, &[[10, 96, 0, 2].into()]);
        }
    }
}
