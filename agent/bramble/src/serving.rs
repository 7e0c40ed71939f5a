//! The API's serving certificate: signed on this node as soon as its replica holds the CA, and again whenever a member
//! or an address comes or goes, so that any node may be the one that a client's stream ends at.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use cluster::join::ClusterSettings;
use cluster::pki::{self, Authority, Pair};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use store::Kv;

use crate::roster::{CA, Roster};

/// What rustls asks for a certificate at each handshake.
#[derive(Debug, Default)]
pub struct Certificate {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Certificate {
    /// One that never changes.
    pub fn fixed(pair: &Pair) -> Result<Arc<Self>> {
        let certificate = Self::default();
        certificate.set(pair)?;
        Ok(Arc::new(certificate))
    }

    /// Whether there is one yet.
    pub fn ready(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set(&self, pair: &Pair) -> Result<()> {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(pki::certified(pair)?);
        Ok(())
    }

    /// Keeps it up to date for ever.
    pub async fn follow(
        self: Arc<Self>,
        kv: Arc<dyn Kv>,
        roster: Roster,
        settings: ClusterSettings,
        key: String,
    ) {
        let mut members = roster.subscribe();
        loop {
            // Watched before it is read: a CA that arrives in between is not missed.
            let news = kv.watch(CA, kv.revision());
            if let Err(error) = authority(&*kv).and_then(|ca| self.sign(&ca, &roster, &settings, &key)) {
                tracing::debug!(error = format!("{error:#}"), "no serving certificate yet");
            }
            let Ok(mut news) = news else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            tokio::select! {
                changed = members.changed() => if changed.is_err() { return },
                arrived = news.next() => if arrived.is_none() {
                    // The replica was replaced by a snapshot: look again soon.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                },
            }
        }
    }

    fn sign(&self, ca: &Authority, roster: &Roster, settings: &ClusterSettings, key: &str) -> Result<()> {
        let members = roster.get();
        let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        let qualified = format!("kubernetes.default.svc.{}", settings.domain);
        let names: Vec<&str> = names.into_iter().chain([qualified.as_str()]).collect();
        let mut addresses: Vec<IpAddr> = vec![
            Ipv4Addr::LOCALHOST.into(),
            std::net::Ipv6Addr::LOCALHOST.into(),
            settings.api_address().into(),
        ];
        addresses.extend(members.iter().flat_map(|m| m.addresses.iter().copied()));
        self.set(&ca.sign_api(key, &names, &addresses)?)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The CA, from this node's replica.
pub fn authority(kv: &dyn Kv) -> Result<Authority> {
    let record = kv.get(CA).context("this node's replica does not hold the CA")?;
    Ok(Authority::load(serde_json::from_slice(&record.value)?)?)
}
