//! Whom a TLS client believes: those that a bundle vouches for, those that the system knows, or, where upstream does
//! so too, anybody.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Bundles that are remembered.
const MAX_KNOWN: usize = 64;
/// Certificates of one bundle.
const MAX_CERTIFICATES: usize = 256;

/// Client configurations; kept, so that a server that is asked again need not prove itself anew in full.
#[derive(Default)]
pub(crate) struct Trust {
    known: Mutex<HashMap<Vec<u8>, Arc<ClientConfig>>>,
    anybody: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// Believes those that a PEM bundle vouches for; an empty one: those that the system knows.
    pub fn by(&self, bundle: &[u8]) -> Result<Arc<ClientConfig>, String> {
        let find = |map: &HashMap<Vec<u8>, Arc<ClientConfig>>| map.get(bundle).cloned();
        if let Some(config) = find(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(config);
        }
        let certificates = if bundle.is_empty() { system()? } else { read(bundle)? };
        let config = Arc::new(client(Arc::new(Bundle::new(certificates)?)));
        let mut map = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= MAX_KNOWN {
            map.clear();
        }
        map.insert(bundle.to_vec(), Arc::clone(&config));
        Ok(config)
    }

    /// Believes anybody: for pods and services that are reached through the API, whose certificates nobody can know.
    pub fn anybody(&self) -> Arc<ClientConfig> {
        Arc::clone(self.anybody.get_or_init(|| Arc::new(client(Arc::new(Anybody(provider()))))))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client(verifier: Arc<dyn ServerCertVerifier>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider());
    #[expect(clippy::expect_used, reason = "the provider is a constant that has all of these versions")]
    let builder = builder.with_safe_default_protocol_versions().expect("known versions");
    builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

fn read(bundle: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bundle).take(MAX_CERTIFICATES).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned()),
        Err(error) => Err(format!("unable to load root certificates: {error}")),
    }
}

fn system() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err("this host knows no certificate authorities: give a caBundle".to_owned());
    }
    Ok(found.certs)
}

/// Believes what is signed by one of these certificates, and each of them as a server's own: people give a webhook a
/// self-signed certificate, which calls itself an authority.
#[derive(Debug)]
struct Bundle {
    usual: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl Bundle {
    fn new(own: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(own.iter().cloned());
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let usual = usual.map_err(|error| format!("unable to load root certificates: {error}"))?;
        Ok(Self { usual, own })
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.usual.verify_server_cert(certificate, between, name, stapled, now) {
            Err(_) if self.own.contains(certificate) && is_valid(certificate, now) => {
                let parsed = ParsedCertificate::try_from(certificate)?;
                rustls::client::verify_server_name(&parsed, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

fn is_valid(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| {
        let validity = parsed.validity();
        (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
    })
}

/// Believes every certificate, but not that somebody else than its owner shows it.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_is_none_is_refused() {
        let why = Trust::default().by(b"no certificate").unwrap_err();
        assert_eq!(why, "unable to load root certificates: unable to parse bytes as PEM block");
    }
}
