// SPDX-License-Identifier: Apache-2.0

//! Caches which clients' certificates have been verified. An API server opens a connection for each tunnel and presents
//! the same certificate each time, so the CA's signature need not be verified again for each connection. Every
//! handshake still proves that the client has the certificate's key.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// The time for which a chain is not verified again. For the same time an expiry of the certificate goes unnoticed, as
/// with a clock that is slow by that much.
const KEPT: Duration = Duration::from_secs(10);

/// The maximum number of cached chains. Only few clients open a connection for each tunnel.
const MOST: usize = 16;

/// A chain that was verified, and the time of the verification.
#[derive(Debug)]
struct Known {
    chain: Vec<CertificateDer<'static>>,
    at: UnixTime,
}

/// A verifier that delegates to another verifier and caches its positive results.
#[derive(Debug)]
pub(super) struct Remembering {
    verifier: Arc<dyn ClientCertVerifier>,
    /// The cached chains, the oldest first.
    known: Mutex<VecDeque<Known>>,
}

impl Remembering {
    pub(super) fn new(verifier: Arc<dyn ClientCertVerifier>) -> Arc<Self> {
        Arc::new(Self {
            verifier,
            known: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Known>> {
        // No code panics while it holds the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_known(&self, chain: &[&CertificateDer<'_>], now: UnixTime) -> bool {
        // If the clock was set back, no entry counts as recent.
        let is_recent = |known: &Known| {
            let age = now.as_secs().checked_sub(known.at.as_secs());
            age.is_some_and(|age| age < KEPT.as_secs())
        };
        let is_same = |known: &Known| known.chain.iter().eq(chain.iter().copied());
        let known = self.known();
        known.iter().any(|known| is_same(known) && is_recent(known))
    }

    fn remember(&self, chain: &[&CertificateDer<'_>], at: UnixTime) {
        let chain = chain.iter().map(|one| (*one).clone().into_owned());
        let chain: Vec<_> = chain.collect();
        let mut known = self.known();
        known.retain(|known| known.chain != chain);
        while known.len() >= MOST {
            known.pop_front();
        }
        known.push_back(Known { chain, at });
    }
}

impl ClientCertVerifier for Remembering {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
        if self.is_known(&chain, now) {
            return Ok(ClientCertVerified::assertion());
        }
        let verified = self
            .verifier
            .verify_client_cert(end_entity, intermediates, now)?;
        self.remember(&chain, now);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::CertificateError;

    use super::*;

    /// A verifier that accepts chains whose first certificate begins with this byte, and counts its calls.
    #[derive(Debug)]
    struct Counting(u8, AtomicUsize);

    impl ClientCertVerifier for Counting {
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }

        fn verify_client_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            self.1.fetch_add(1, Ordering::Relaxed);
            if end_entity.first() == Some(&self.0) {
                Ok(ClientCertVerified::assertion())
            } else {
                Err(CertificateError::UnknownIssuer.into())
            }
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(CertificateError::BadSignature.into())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(CertificateError::BadSignature.into())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    }

    #[test]
    fn a_chain_is_verified_once_in_a_while() {
        let counting = Arc::new(Counting(1, AtomicUsize::new(0)));
        let remembering = Remembering::new(Arc::clone(&counting) as _);
        let verify = |certificate: &[u8], intermediates: &[CertificateDer<'_>], seconds: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let before = counting.1.load(Ordering::Relaxed);
            let end_entity = CertificateDer::from(certificate);
            let verified = remembering.verify_client_cert(&end_entity, intermediates, now);
            let is_asked = counting.1.load(Ordering::Relaxed) > before;
            (verified.is_ok(), is_asked)
        };
        let other = CertificateDer::from(vec![9]);
        let none: &[CertificateDer<'_>] = &[];
        assert_eq!(verify(&[1, 2], none, 100), (true, true));
        assert_eq!(verify(&[1, 2], none, 109), (true, false));
        // Another certificate, and another chain with the same certificate, are verified.
        assert_eq!(verify(&[1, 3], none, 109), (true, true));
        assert_eq!(verify(&[1, 2], &[other], 109), (true, true));
        // A cached chain is verified again after its time has passed, and after the clock was set back.
        assert_eq!(verify(&[1, 2], none, 110), (true, true));
        assert_eq!(verify(&[1, 2], none, 90), (true, true));
        // A rejection is not cached.
        assert_eq!(verify(&[2], none, 110), (false, true));
        assert_eq!(verify(&[2], none, 110), (false, true));
        for number in 0..50 {
            assert_eq!(verify(&[1, 2, number], none, 110), (true, true));
        }
        assert_eq!(remembering.known().len(), MOST);
        assert_eq!(verify(&[1, 2, 49], none, 111), (true, false));
    }
}
