//! The cluster's CA, the certificates it signs, and TLS configurations made of them.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name that only API serving certificates carry: clients inside the cluster ask for it whatever address they
/// dialled, so addresses may change and a plain worker cannot pose as the API.
pub const API_NAME: &str = "kubernetes.default.svc";
/// The group of nodes (Kubernetes' node authorizer).
pub const NODES_GROUP: &str = "system:nodes";
/// The group of administrators.
pub const MASTERS_GROUP: &str = "system:masters";
/// A node's user name is this and its name.
pub const NODE_PREFIX: &str = "system:node:";
/// ALPN protocol of Raft streams.
pub const ALPN_RAFT: &[u8] = b"bramble-raft/1";

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Making or signing a certificate.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A PEM text.
    #[error("PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// TLS does not take a key or certificate.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The client verifier cannot be made.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A peer's certificate that cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
}

/// A certificate and its key, PEM.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair(…)")
    }
}

/// A new private key, PEM (ECDSA P-256: every client library takes it).
pub fn new_key() -> Result<String, PkiError> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// SHA-256 of a private key's public half, hex: a node's identity.
pub fn fingerprint(key: &str) -> Result<String, PkiError> {
    Ok(hex(&KeyPair::from_pem(key)?.subject_public_key_info()))
}

/// Who a certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Common name: the user.
    pub user: String,
    /// Organizations: the groups.
    pub groups: Vec<String>,
    /// SHA-256 of the public key, hex.
    pub key: String,
}

impl Subject {
    /// The node's name, for a node's certificate.
    pub fn node(&self) -> Option<&str> {
        self.groups.iter().any(|g| g == NODES_GROUP).then(|| self.user.strip_prefix(NODE_PREFIX)).flatten()
    }

    /// Reads a verified peer certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let (_, x509) = X509Certificate::from_der(certificate).map_err(|_| PkiError::Unreadable)?;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).ok();
        let user = x509.subject().iter_common_name().find_map(text).ok_or(PkiError::Unreadable)?;
        let groups = x509.subject().iter_organization().filter_map(text).collect();
        Ok(Self { user, groups, key: hex(x509.public_key().raw) })
    }
}

fn hex(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect()
}

/// A subject, back-dated and long-lived: a Pi boots with the clock of its last shutdown, or of 1970.
fn params(user: &str, groups: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.not_before = rcgen::date_time_ymd(2016, 1, 1);
    params.not_after = rcgen::date_time_ymd(2056, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params
}

fn names(dns: &[&str], addresses: &[IpAddr]) -> Result<Vec<SanType>, PkiError> {
    let mut all = Vec::with_capacity(dns.len() + addresses.len());
    for name in dns {
        all.push(SanType::DnsName((*name).try_into()?));
    }
    all.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
    Ok(all)
}

/// A certificate authority that can sign.
#[derive(Debug)]
pub struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new CA for a cluster.
    pub fn create(cluster_id: &str) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(&format!("bramble-{cluster_id}"), &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Self::load(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Takes up a stored CA.
    pub fn load(pair: Pair) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate, KeyPair::from_pem(&pair.key)?)?;
        Ok(Self { pair, issuer })
    }

    /// The CA's certificate and key.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Signs a node's request. Only its public key is taken from it; all names are ours.
    pub fn sign_node(&self, csr: &str, name: &str) -> Result<(String, String), PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)?;
        let mut node = params(&format!("{NODE_PREFIX}{name}"), &[NODES_GROUP]);
        // No addresses: a node claims its own, and could claim a master's.
        node.subject_alt_names = names(&[name], &[])?;
        node.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        request.params = node;
        let key = hex(&request.public_key.subject_public_key_info());
        Ok((request.signed_by(&self.issuer)?.pem(), key))
    }

    /// The API's serving certificate for a key: every name and address under which clients may come.
    pub fn sign_api(&self, key: &str, dns: &[&str], addresses: &[IpAddr]) -> Result<Pair, PkiError> {
        let pair = KeyPair::from_pem(key)?;
        let mut all = vec!["kubernetes", "kubernetes.default", API_NAME, "localhost", "bramble.local"];
        all.extend(dns.iter().filter(|n| !n.is_empty()));
        let mut api = params("kube-apiserver", &[]);
        api.subject_alt_names = names(&all, addresses)?;
        api.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(Pair { certificate: api.signed_by(&pair, &self.issuer)?.pem(), key: key.to_owned() })
    }

    /// A client certificate for a user, with a new key.
    pub fn sign_client(&self, user: &str, groups: &[&str]) -> Result<Pair, PkiError> {
        let key = KeyPair::generate()?;
        let mut client = params(user, groups);
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(Pair { certificate: client.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

/// What a granted certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To show who calls.
    Client,
    /// To show who answers.
    Server,
}

/// What a signing request asks for, as its holder wrote it.
#[derive(Default)]
pub struct Asked {
    /// The user.
    pub user: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Names and addresses it asks to be.
    pub names: usize,
    params: Option<CertificateSigningRequestParams>,
}

impl Asked {
    /// One that asks for this, and holds no key to grant it to.
    pub fn of(user: &str, groups: &[&str], names: usize) -> Self {
        Self {
            user: user.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            names,
            params: None,
        }
    }

    /// Reads a PEM request, whose signature is checked.
    pub fn read(request: &str) -> Result<Self, PkiError> {
        let params = CertificateSigningRequestParams::from_pem(request)?;
        let text = |value: &rcgen::DnValue| match value {
            rcgen::DnValue::Utf8String(text) => Some(text.clone()),
            rcgen::DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
            _ => None,
        };
        let mut asked = Self { names: params.params.subject_alt_names.len(), ..Self::default() };
        for (kind, value) in params.params.distinguished_name.iter() {
            match (kind, text(value)) {
                (DnType::CommonName, Some(user)) => asked.user = user,
                (DnType::OrganizationName, Some(group)) => asked.groups.push(group),
                _ => {}
            }
        }
        asked.params = Some(params);
        Ok(asked)
    }
}

impl Authority {
    /// Grants a signing request: its own names, our dates and usages.
    pub fn grant(&self, asked: Asked, purpose: Purpose, seconds: i64) -> Result<String, PkiError> {
        let Some(mut request) = asked.params else { return Err(PkiError::Unreadable) };
        let mut granted = params("", &[]);
        granted.distinguished_name = request.params.distinguished_name;
        granted.subject_alt_names = request.params.subject_alt_names;
        granted.extended_key_usages = vec![match purpose {
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let now = std::time::SystemTime::now();
        // Those who look at it may have a clock that is behind.
        granted.not_before = (now - std::time::Duration::from_secs(300)).into();
        granted.not_after =
            (now + std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0))).into();
        request.params = granted;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

/// A signing request for a key, PEM. It names nobody: the CA decides the names.
pub fn request(key: &str) -> Result<String, PkiError> {
    Ok(CertificateParams::default().serialize_request(&KeyPair::from_pem(key)?)?.pem()?)
}

/// A certificate and key as rustls serves them.
pub fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>, PkiError> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    Ok(Arc::new(CertifiedKey::new(chain, provider().key_provider.load_private_key(key)?)))
}

/// The only crypto provider: ring (it builds for armv7).
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &str) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
    Ok(Arc::new(roots))
}

/// A server that asks for client certificates of this CA (and names it in the handshake, which some clients need),
/// but also lets in clients without one: who they are is decided per request.
pub fn server(
    ca: &str,
    certificates: Arc<dyn ResolvesServerCert>,
    require_client: bool,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, PkiError> {
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider());
    if !require_client {
        verifier = verifier.allow_unauthenticated();
    }
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build()?)
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client that trusts this CA only and shows the given certificate.
pub fn client(ca: &str, pair: &Pair, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, PkiError> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client for a join: TLS 1.3, any certificate. Nothing is trusted until [`crate::join`]'s proof has been checked.
pub fn joiner() -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider())))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes any certificate, but still checks that the peer holds its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Authority {
        Authority::load(Authority::create("test").unwrap().pair().clone()).unwrap()
    }

    #[test]
    fn a_node_gets_our_names_not_its_own() {
        let key = new_key().unwrap();
        let mut forged = params("admin", &[MASTERS_GROUP]);
        forged.subject_alt_names = names(&[API_NAME], &[]).unwrap();
        let csr = forged.serialize_request(&KeyPair::from_pem(&key).unwrap()).unwrap().pem().unwrap();
        let (pem, id) = authority().sign_node(&csr, "node2").unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let subject = Subject::of(&der).unwrap();
        assert_eq!(subject.node(), Some("node2"));
        assert_eq!(subject.groups, [NODES_GROUP]);
        assert_eq!(subject.key, fingerprint(&key).unwrap());
        assert_eq!(subject.key, id);
        let (_, x509) = X509Certificate::from_der(&der).unwrap();
        let sans = format!("{:?}", x509.subject_alternative_name().unwrap().unwrap().value);
        assert!(sans.contains("node2") && !sans.contains(API_NAME), "{sans}");
    }

    #[test]
    fn an_admin_is_no_node() {
        let pair = authority().sign_client("kubernetes-admin", &[MASTERS_GROUP]).unwrap();
        let subject =
            Subject::of(&CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()).unwrap();
        assert_eq!(subject.user, "kubernetes-admin");
        assert_eq!(subject.groups, [MASTERS_GROUP]);
        assert_eq!(subject.node(), None);
    }

    #[test]
    fn what_is_granted_is_what_was_asked_for() {
        let key = KeyPair::generate().unwrap();
        let csr = params("eve", &["people"]).serialize_request(&key).unwrap().pem().unwrap();
        let asked = Asked::read(&csr).unwrap();
        assert_eq!(
            (asked.user.as_str(), asked.groups.as_slice(), asked.names),
            ("eve", &["people".to_owned()][..], 0)
        );
        let pem = authority().grant(asked, Purpose::Client, 3600).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(Subject::of(&der).unwrap().user, "eve");
        let (_, x509) = X509Certificate::from_der(&der).unwrap();
        let lasts = x509.validity().not_after.timestamp() - x509.validity().not_before.timestamp();
        assert!((3600..4000).contains(&lasts), "{lasts}");
        assert!(!x509.is_ca() && Asked::read("junk").is_err());
    }

    /// A whole handshake in memory: who is let in by whom.
    fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Option<Subject>, rustls::Error> {
        let name = ServerName::try_from(API_NAME).unwrap();
        let mut c = rustls::ClientConnection::new(client, name).unwrap();
        let mut s = rustls::ServerConnection::new(server).unwrap();
        let mut wire = Vec::new();
        while c.is_handshaking() || s.is_handshaking() {
            wire.clear();
            while c.wants_write() {
                c.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                s.read_tls(&mut rest).unwrap();
                s.process_new_packets()?;
            }
            wire.clear();
            while s.wants_write() {
                s.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                c.read_tls(&mut rest).unwrap();
                c.process_new_packets()?;
            }
        }
        let (mut one, mut two) = ([0; 32], [1; 32]);
        c.export_keying_material(&mut one, crate::join::LABEL, None).unwrap();
        s.export_keying_material(&mut two, crate::join::LABEL, None).unwrap();
        assert_eq!(one, two);
        Ok(s.peer_certificates().map(|chain| Subject::of(&chain[0]).unwrap()))
    }

    #[derive(Debug)]
    struct One(Arc<CertifiedKey>);
    impl ResolvesServerCert for One {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    #[test]
    fn only_this_cluster_is_let_in() {
        let (ours, other) = (authority(), Authority::create("other").unwrap());
        let ca = &ours.pair().certificate;
        let api = ours.sign_api(&new_key().unwrap(), &["node1"], &[]).unwrap();
        let serve = |require| server(ca, Arc::new(One(certified(&api).unwrap())), require, &[]).unwrap();
        let admin = ours.sign_client("admin", &[MASTERS_GROUP]).unwrap();
        let who = shake(client(ca, &admin, &[]).unwrap(), serve(true)).unwrap().unwrap();
        assert_eq!(who.user, "admin");
        assert_eq!(shake(joiner().unwrap(), serve(false)).unwrap(), None);
        assert!(shake(joiner().unwrap(), serve(true)).is_err());
        let stranger = other.sign_client("admin", &[MASTERS_GROUP]).unwrap();
        assert!(shake(client(ca, &stranger, &[]).unwrap(), serve(false)).is_err());
        // A node's certificate does not carry the API's name: a worker cannot pose as a master.
        let key = new_key().unwrap();
        let (node, _) = ours.sign_node(&request(&key).unwrap(), "node3").unwrap();
        let posing = Pair { certificate: node, key };
        let fake = server(ca, Arc::new(One(certified(&posing).unwrap())), false, &[]).unwrap();
        assert!(shake(client(ca, &admin, &[]).unwrap(), fake).is_err());
    }
}
