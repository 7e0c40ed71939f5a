//! Signs the certificate signing requests that were approved, on the leader, which has the CA.

use std::sync::Arc;

use cluster::pki::{Asked, MASTERS_GROUP, NODE_PREFIX, NODES_GROUP, Purpose};
use futures::{StreamExt, pin_mut};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    CertificateSigningRequestStatus,
};
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use store::Kv;

use crate::serving::authority;

/// How long a certificate is good unless a shorter time was asked for: as long as upstream's.
const YEAR: i64 = 365 * 24 * 3600;

/// Signs for as long as it runs.
pub async fn run(kv: Arc<dyn Kv>, client: Client) {
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let news = watcher(requests.clone(), watcher::Config::default()).default_backoff().applied_objects();
    pin_mut!(news);
    while let Some(request) = news.next().await {
        match request {
            Ok(request) => settle(&*kv, &requests, request).await,
            Err(error) => tracing::debug!(%error, "signing requests cannot be followed"),
        }
    }
}

/// Signs one request, if it is for us and approved.
async fn settle(
    kv: &dyn Kv,
    requests: &Api<CertificateSigningRequest>,
    mut request: CertificateSigningRequest,
) {
    if !is_due(&request) {
        return;
    }
    let name = request.metadata.name.clone().unwrap_or_default();
    let status = request.status.get_or_insert_with(Default::default);
    match sign(kv, &request.spec) {
        Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
        Err(why) => fail(status, why),
    }
    if let Err(error) = requests.replace_status(&name, &PostParams::default(), &request).await {
        // Changed meanwhile: the watch brings it again.
        tracing::debug!(request = name, %error, "cannot be settled yet");
    }
}

fn is_due(request: &CertificateSigningRequest) -> bool {
    let status = request.status.as_ref();
    let has = |kind: &str| status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind);
    let issued = status.and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty());
    SIGNERS.contains(&request.spec.signer_name.as_str())
        && has("Approved")
        && !has("Denied")
        && !has("Failed")
        && !issued
}

fn fail(status: &mut CertificateSigningRequestStatus, why: String) {
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: "Failed".into(),
        status: "True".into(),
        reason: Some("SignerValidationFailure".into()),
        message: Some(why),
        ..CertificateSigningRequestCondition::default()
    });
}

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const SIGNERS: [&str; 3] = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING];

fn sign(kv: &dyn Kv, spec: &CertificateSigningRequestSpec) -> Result<String, String> {
    let text = std::str::from_utf8(&spec.request.0).map_err(|_| "the request is not PEM")?;
    let asked = Asked::read(text).map_err(|e| e.to_string())?;
    let usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let purpose = check(&spec.signer_name, &asked, &usages)?;
    let seconds = spec.expiration_seconds.map_or(YEAR, i64::from).min(YEAR);
    let ca = authority(kv).map_err(|e| format!("{e:#}"))?;
    ca.grant(asked, purpose, seconds).map_err(|e| e.to_string())
}

/// What each signer signs, and what for.
fn check(signer: &str, asked: &Asked, usages: &[&str]) -> Result<Purpose, String> {
    let (purpose, wanted) = match signer {
        KUBELET_SERVING => (Purpose::Server, "server auth"),
        _ => (Purpose::Client, "client auth"),
    };
    let known = |usage: &&str| ["digital signature", "key encipherment", wanted].contains(usage);
    if !usages.iter().all(known) || !usages.contains(&wanted) {
        return Err(format!("usages did not match {wanted:?} with digital signature and key encipherment"));
    }
    if signer == CLIENT {
        let mastery = asked.groups.iter().any(|group| group == MASTERS_GROUP);
        return if mastery {
            Err(format!("use of {CLIENT} signer with {MASTERS_GROUP} group is not allowed"))
        } else {
            Ok(purpose)
        };
    }
    if asked.groups != [NODES_GROUP] || !asked.user.starts_with(NODE_PREFIX) {
        return Err(format!(
            "the subject must be of the group {NODES_GROUP} alone, and its name begin with {NODE_PREFIX}"
        ));
    }
    match (signer, asked.names) {
        (KUBELET_SERVING, 0) => Err("DNS or IP subjectAltName is required".into()),
        (KUBELET_CLIENT, 1..) => Err("subjectAltNames are not allowed".into()),
        _ => Ok(purpose),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signer_signs_what_it_is_for() {
        let asked = |user: &str, group: &str, names| Asked::of(user, &[group], names);
        let client = ["digital signature", "client auth"];
        let serving = ["digital signature", "key encipherment", "server auth"];
        assert!(check(CLIENT, &asked("eve", "people", 0), &client).is_ok());
        assert!(check(CLIENT, &asked("eve", "people", 0), &serving).is_err());
        assert!(check(CLIENT, &asked("eve", MASTERS_GROUP, 0), &client).is_err());
        assert!(check(KUBELET_CLIENT, &asked("system:node:n1", NODES_GROUP, 0), &client).is_ok());
        assert!(check(KUBELET_CLIENT, &asked("system:node:n1", NODES_GROUP, 1), &client).is_err());
        assert!(check(KUBELET_CLIENT, &asked("eve", NODES_GROUP, 0), &client).is_err());
        assert!(check(KUBELET_SERVING, &asked("system:node:n1", NODES_GROUP, 1), &serving).is_ok());
        assert!(check(KUBELET_SERVING, &asked("system:node:n1", NODES_GROUP, 0), &serving).is_err());
    }
}
