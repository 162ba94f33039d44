// SPDX-License-Identifier: Apache-2.0

//! The subject of a certificate: the fields of its name, and the URIs among its alternative names. The handshake
//! verifies that the certificate is genuine.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{
    Ia5StringRef, ObjectIdentifier, PrintableStringRef, TeletexStringRef, Utf8StringRef,
};
use x509_cert::der::{Decode as _, Error, Tag, Tagged as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

// Attributes of X.520, with the names from RFC 5280 (appendix A.1).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const ORGANIZATIONAL_UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");

/// The names in a certificate. A field may occur several times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The values of the field O.
    pub organizations: Vec<String>,
    /// The values of the field OU.
    pub organizational_units: Vec<String>,
    /// The values of the field CN.
    pub common_names: Vec<String>,
    /// The URIs of the extension `subjectAltName`.
    pub uris: Vec<String>,
}

impl Subject {
    /// Parses the names in a certificate. Text is omitted unless its encoding is UTF-8 or one of those in RFC 5280 that
    /// have one byte per character.
    ///
    /// # Errors
    /// Returns an error if the certificate is not valid X.509, or if the extension is malformed or occurs twice.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let certificate = Certificate::from_der(certificate)?.tbs_certificate;
        let mut subject = Self::default();
        for attribute in certificate.subject.0.iter().flat_map(|set| set.0.iter()) {
            let names = match attribute.oid {
                COMMON_NAME => &mut subject.common_names,
                ORGANIZATION => &mut subject.organizations,
                ORGANIZATIONAL_UNIT => &mut subject.organizational_units,
                _ => continue,
            };
            names.extend(text(attribute));
        }
        if let Some((_, SubjectAltName(names))) = certificate.get()? {
            subject.uris = names
                .into_iter()
                .filter_map(|name| match name {
                    GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
                    _ => None,
                })
                .collect();
        }
        Ok(subject)
    }
}

fn text(attribute: &AttributeTypeAndValue) -> Option<String> {
    let value = &attribute.value;
    let text = match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok()?.to_string(),
        Tag::PrintableString => value
            .decode_as::<PrintableStringRef<'_>>()
            .ok()?
            .to_string(),
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().ok()?.to_string(),
        Tag::TeletexString => value.decode_as::<TeletexStringRef<'_>>().ok()?.to_string(),
        _ => return None,
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType};

    use super::*;

    #[test]
    fn all_names_are_read() {
        let mut params = CertificateParams::new(vec!["dns.example".to_owned()]).unwrap();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "konnectivity-agent");
        name.push(DnType::OrganizationName, "shöot-a");
        let unit = DnValue::PrintableString("cluster one".try_into().unwrap());
        name.push(DnType::OrganizationalUnitName, unit);
        name.push(DnType::CountryName, "DE");
        params.distinguished_name = name;
        for uri in ["spiffe://a/ns/b", "urn:x"] {
            let uri = SanType::URI(uri.try_into().unwrap());
            params.subject_alt_names.push(uri);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let subject = Subject::read(certificate.der()).unwrap();
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            subject,
            Subject {
                organizations: list(&["shöot-a"]),
                organizational_units: list(&["cluster one"]),
                common_names: list(&["konnectivity-agent"]),
                uris: list(&["spiffe://a/ns/b", "urn:x"]),
            }
        );
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        Subject::read(&CertificateDer::from(vec![0x30, 0])).unwrap_err();
    }
}
