// SPDX-License-Identifier: Apache-2.0

//! The properties of a certificate that decide whether a peer accepts it, for troubleshooting: names, validity, usage.
//! The handshake decides whether a peer actually accepts it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

use super::{TlsError, certificates, read};

// The extended key usages of RFC 5280, section 4.2.1.12.
const SERVER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const ANY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

/// The properties of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The subject, in the format of RFC 4514.
    pub subject: String,
    /// The DNS names and addresses of the extension `subjectAltName`. For a server, clients compare them with the name
    /// that they dial.
    pub names: Vec<String>,
    /// The addresses that are among `names` as DNS names only. Clients compare an address with IP entries only, so they
    /// refuse the certificate of a server that they reach by such an address.
    pub unusable_names: Vec<String>,
    /// The start of the validity, in Unix time.
    pub begins: Duration,
    /// The end of the validity, in Unix time.
    pub ends: Duration,
    /// True if a server may present the certificate.
    pub is_for_servers: bool,
    /// True if a client may present the certificate.
    pub is_for_clients: bool,
}

impl Facts {
    /// Returns the properties of every certificate in a file, in order. The first certificate of a chain is the peer's
    /// own.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains no certificate. `location` is the end of the message,
    /// such as `--x says where it is`.
    pub fn of_file(path: &Path, location: &'static str) -> Result<Vec<Self>, TlsError> {
        let text = read("certificate", path, location)?;
        let list = certificates("certificate", path, &text)?;
        let facts = list.iter().map(|certificate| {
            Self::read(certificate).map_err(|source| TlsError::Certificate {
                path: path.to_owned(),
                source,
            })
        });
        facts.collect()
    }

    fn read(certificate: &CertificateDer<'_>) -> Result<Self, x509_cert::der::Error> {
        let certificate = Certificate::from_der(certificate)?.tbs_certificate;
        let entries = match certificate.get()? {
            Some((_, SubjectAltName(entries))) => entries,
            None => Vec::new(),
        };
        let (unusable, usable): (Vec<_>, Vec<_>) = entries.iter().partition(
            |entry| matches!(entry, GeneralName::DnsName(name) if name.as_str().parse::<IpAddr>().is_ok()),
        );
        let usable: Vec<String> = usable.into_iter().filter_map(name).collect();
        let unusable = unusable.into_iter().filter_map(name);
        // Without the extension every usage is permitted.
        let usage = certificate.get::<ExtendedKeyUsage>()?;
        let is_for = |wanted: ObjectIdentifier| {
            usage.as_ref().is_none_or(|(_, ExtendedKeyUsage(usages))| {
                usages.iter().any(|usage| [wanted, ANY].contains(usage))
            })
        };
        Ok(Self {
            subject: certificate.subject.to_string(),
            names: entries.iter().filter_map(name).collect(),
            unusable_names: unusable.filter(|name| !usable.contains(name)).collect(),
            begins: certificate.validity.not_before.to_unix_duration(),
            ends: certificate.validity.not_after.to_unix_duration(),
            is_for_servers: is_for(SERVER),
            is_for_clients: is_for(CLIENT),
        })
    }
}

fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};

    use super::*;

    fn facts(names: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> Result<Vec<Facts>, TlsError> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "a");
        params.extended_key_usages = usages.to_vec();
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2026, 1, 3);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let path = std::env::temp_dir().join(format!(
            "facts-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::write(&path, certificate.pem() + &certificate.pem()).unwrap();
        let facts = Facts::of_file(&path, "--x says where it is");
        fs::remove_file(&path).unwrap();
        facts
    }

    #[test]
    fn names_times_and_usage() {
        let names = ["tunnel.example", "192.0.2.1", "fd00::1"];
        let found = facts(&names, &[ExtendedKeyUsagePurpose::ServerAuth]).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].names, names);
        assert!(found[0].unusable_names.is_empty());
        assert!(found[0].subject.contains("CN=a"), "{}", found[0].subject);
        assert_eq!(found[0].begins.as_secs(), 1_767_312_000);
        assert_eq!(
            found[0].ends.saturating_sub(found[0].begins).as_secs(),
            86_400
        );
        assert!(found[0].is_for_servers && !found[0].is_for_clients);
    }

    #[test]
    fn addresses_as_dns_names() {
        let of = |entries: &[SanType]| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = entries.to_vec();
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            Facts::read(certificate.der()).unwrap().unusable_names
        };
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let address = SanType::IpAddress("192.0.2.1".parse().unwrap());
        assert_eq!(of(&[dns("192.0.2.1"), dns("a.example")]), ["192.0.2.1"]);
        assert!(of(&[dns("192.0.2.1"), address]).is_empty());
    }

    #[test]
    fn without_the_extension_every_usage_is_allowed() {
        let found = &facts(&[], &[]).unwrap()[0];
        assert!(found.is_for_servers && found.is_for_clients);
        assert!(found.names.is_empty());
        let any = facts(&[], &[ExtendedKeyUsagePurpose::Any]).unwrap();
        assert!(any[0].is_for_clients);
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        let missing = Facts::of_file(Path::new("/nowhere"), "--x says where it is").unwrap_err();
        let text = missing.to_string();
        assert!(text.contains("/nowhere") && text.contains("--x"), "{text}");
    }
}
