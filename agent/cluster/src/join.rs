//! The mutual proof that comes before a join.
//!
//! Neither side has a certificate that the other could check yet, only a secret in common: one that the image builder
//! baked on the cards of a batch, or a token printed by `kube-config enable-master`. The joiner opens TLS to the
//! address it was given without trusting the certificate, and both sides derive the same value from the channel
//! (RFC 5705 exporter; a machine in the middle has two channels, hence two values). First the server proves that it
//! knows the secret by an HMAC over that value, then the joiner does the same over the value and its request. A wrong
//! or hostile host therefore learns nothing that helps it, and is refused before the joiner sends its name or key.
//!
//! Secrets are at least [`MIN_SECRET`] characters long: an HMAC may be captured and guessed at off line.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::members::Member;

/// Characters that a secret has at least: 26 of base 36 are 134 bits.
pub const MIN_SECRET: usize = 26;
/// The id by which the baked secret goes.
pub const BAKED: &str = "baked";
/// Bytes derived from the TLS channel.
pub const BINDING: usize = 32;
/// The exporter's label.
pub const LABEL: &[u8] = b"EXPORTER-bramble-join-1";

/// A secret with the name by which the two sides speak of it. Written `<id>.<secret>`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Which secret: [`BAKED`], or six characters.
    pub id: String,
    /// The secret itself.
    pub secret: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({}.…)", self.id)
    }
}

/// What is wrong with a token as written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No dot, or odd characters.
    #[error("a token looks like abcdef.<{MIN_SECRET} or more letters and digits>")]
    Form,
    /// Too short to be safe.
    #[error("the secret has {0} characters; it needs at least {MIN_SECRET}")]
    Short(usize),
}

impl Token {
    /// A new random token.
    pub fn generate() -> Self {
        Self { id: random(6), secret: random(MIN_SECRET) }
    }

    /// The baked secret of a card.
    pub fn baked(secret: &str) -> Result<Self, TokenError> {
        let secret = secret.trim();
        if secret.len() < MIN_SECRET {
            return Err(TokenError::Short(secret.len()));
        }
        Ok(Self { id: BAKED.to_owned(), secret: secret.to_owned() })
    }

    /// Reads `<id>.<secret>`.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (id, secret) = text.trim().split_once('.').ok_or(TokenError::Form)?;
        let plain =
            |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !plain(id) || id.len() > 16 || !plain(secret) || secret.len() > 128 {
            return Err(TokenError::Form);
        }
        if secret.len() < MIN_SECRET {
            return Err(TokenError::Short(secret.len()));
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

/// Random lower-case letters and digits.
fn random(length: usize) -> String {
    use rand::Rng;
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..length).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char).collect()
}

/// Which side speaks: the two proofs can never be mistaken for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The node that is asked.
    Server,
    /// The node that wants in.
    Joiner,
}

/// One side's proof over the channel's value and, for the joiner, its request.
pub fn proof(side: Side, secret: &str, binding: &[u8; BINDING], request: &[u8]) -> Vec<u8> {
    mac(side, secret, binding, request).finalize().into_bytes().to_vec()
}

/// Checks the other side's proof, in constant time.
pub fn verify(side: Side, secret: &str, binding: &[u8; BINDING], request: &[u8], proof: &[u8]) -> bool {
    mac(side, secret, binding, request).verify_slice(proof).is_ok()
}

fn mac(side: Side, secret: &str, binding: &[u8; BINDING], request: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of any length.
    #[allow(clippy::expect_used)]
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes any key length");
    mac.update(match side {
        Side::Server => b"bramble join 1: server\0",
        Side::Joiner => b"bramble join 1: joiner\0",
    });
    mac.update(binding);
    mac.update(request);
    mac
}

/// The server's answer to `GET /bramble/v1/join?token=<id>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`proof`] of the server, base64.
    pub proof: String,
}

/// What a joiner asks for, in `POST /bramble/v1/join`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Which secret.
    pub token: String,
    /// The node's name: a DNS label.
    pub name: String,
    /// The node's certificate signing request, PEM.
    pub csr: String,
    /// Addresses at which the other nodes reach it.
    pub addresses: Vec<std::net::IpAddr>,
    /// Whether it may become a voter.
    pub vote: bool,
    /// [`Member::format`].
    #[serde(default)]
    pub format: u32,
}

/// The request with the joiner's proof over its exact bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignedRequest {
    /// A [`Request`] as JSON text.
    pub request: String,
    /// [`proof`] of the joiner, base64.
    pub proof: String,
}

/// What the cluster gives a node that was let in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster's id.
    pub cluster_id: String,
    /// The cluster CA's certificate, PEM.
    pub ca: String,
    /// The node's certificate, PEM.
    pub certificate: String,
    /// The node's own record (name, Raft id).
    pub member: Member,
    /// All members as of now.
    pub members: Vec<Member>,
    /// Network ranges and names that every node of the cluster shares.
    pub settings: ClusterSettings,
    /// The server's clock, seconds since the epoch: a Pi has none of its own.
    pub now: i64,
}

/// What is the same on every node of a cluster, fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// All pods' addresses.
    pub cluster_cidr: ipnet::Ipv4Net,
    /// All services' addresses.
    pub service_cidr: ipnet::Ipv4Net,
    /// The DNS domain.
    pub domain: String,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        let net = |a, b, prefix| ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, 0, 0), prefix);
        Self { cluster_cidr: net(10, 1, 16), service_cidr: net(10, 0, 24), domain: "cluster.local".into() }
    }
}

impl ClusterSettings {
    /// The address of the API's service: the first of the range.
    pub fn api_address(&self) -> std::net::Ipv4Addr {
        self.nth_service(1)
    }

    /// The address of cluster DNS: the tenth of the range, as it always was.
    pub fn dns_address(&self) -> std::net::Ipv4Addr {
        self.nth_service(10)
    }

    fn nth_service(&self, n: u32) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::from_bits(self.service_cidr.network().to_bits().saturating_add(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_side_convinces_only_the_other() {
        let (one, two) = ([1; BINDING], [2; BINDING]);
        let server = proof(Side::Server, "secret", &one, b"");
        assert!(verify(Side::Server, "secret", &one, b"", &server));
        // Played back as a joiner's, over another channel, or with another secret, it is worth nothing.
        assert!(!verify(Side::Joiner, "secret", &one, b"", &server));
        assert!(!verify(Side::Server, "secret", &two, b"", &server));
        assert!(!verify(Side::Server, "other", &one, b"", &server));
        assert!(!verify(Side::Server, "secret", &one, b"", &server[..31]));
        let joiner = proof(Side::Joiner, "secret", &one, b"{\"name\":\"a\"}");
        assert!(!verify(Side::Joiner, "secret", &one, b"{\"name\":\"b\"}", &joiner));
    }

    #[test]
    fn tokens_are_read_and_refused() {
        let token = Token::generate();
        assert_eq!(Token::parse(&token.to_string()), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        assert_eq!(Token::parse("nodot"), Err(TokenError::Form));
        assert_eq!(Token::parse("abc.short"), Err(TokenError::Short(5)));
        assert_eq!(Token::baked("0123"), Err(TokenError::Short(4)));
    }

    #[test]
    fn service_addresses() {
        let settings = ClusterSettings::default();
        assert_eq!(settings.api_address().to_string(), "10.0.0.1");
        assert_eq!(settings.dns_address().to_string(), "10.0.0.10");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,80}") {
            let _ = Token::parse(&text);
        }
    }
}
