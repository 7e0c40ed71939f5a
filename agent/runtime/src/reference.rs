//! Image references: their full form, and where each may be asked for. Pure.

use oci_client::Reference;

use crate::api::{Error, RegistryAuth};
use crate::config::Registries;

/// Longer ones are refused unread.
const MAX_REFERENCE: usize = 512;

/// Parses a reference and fills in `docker.io`, `library/` and `latest`.
pub(crate) fn parse(reference: &str) -> Result<Reference, Error> {
    let fail = |why: String| Error::InvalidReference {
        reference: reference.chars().take(MAX_REFERENCE).collect(),
        why,
    };
    if reference.len() > MAX_REFERENCE {
        return Err(fail(format!("longer than {MAX_REFERENCE} bytes")));
    }
    reference.parse::<Reference>().map_err(|e| fail(e.to_string()))
}

/// `registry/repository:tag`, unless the reference is by digest.
pub(crate) fn tag(reference: &Reference) -> Option<String> {
    match (reference.tag(), reference.digest()) {
        (Some(tag), None) => Some(format!("{}/{}:{tag}", reference.registry(), reference.repository())),
        _ => None,
    }
}

/// `registry/repository@digest`.
pub(crate) fn digest(reference: &Reference, digest: &str) -> String {
    format!("{}/{}@{digest}", reference.registry(), reference.repository())
}

/// One place to ask for an image.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) insecure: bool,
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) auth: Option<RegistryAuth>,
    pub(crate) ca_file: Option<std::path::PathBuf>,
}

/// Where to ask, mirrors first. Credentials of a pull go to the registry it names, never to a mirror.
pub(crate) fn endpoints(
    reference: &Reference,
    registries: &Registries,
    auth: Option<RegistryAuth>,
) -> Vec<Endpoint> {
    let own = registries.hosts.get(reference.registry()).cloned().unwrap_or_default();
    let mut endpoints: Vec<Endpoint> =
        own.mirrors.iter().map(|url| mirror(url, reference.repository(), registries)).collect();
    endpoints.push(Endpoint {
        insecure: own.insecure,
        host: reference.resolve_registry().to_owned(),
        repository: reference.repository().to_owned(),
        auth: auth.or(own.auth),
        ca_file: own.ca_file,
    });
    endpoints
}

fn mirror(url: &str, repository: &str, registries: &Registries) -> Endpoint {
    let (scheme, rest) = url.split_once("://").map_or((None, url), |(scheme, rest)| (Some(scheme), rest));
    let rest = rest.trim_end_matches('/');
    let (host, repository) = match rest.split_once('/') {
        Some((host, prefix)) => (host, format!("{prefix}/{repository}")),
        None => (rest, repository.to_owned()),
    };
    let known = registries.hosts.get(host);
    Endpoint {
        // Without a scheme it is as its own entry says.
        insecure: scheme.map_or_else(|| known.is_some_and(|r| r.insecure), |scheme| scheme == "http"),
        host: host.to_owned(),
        repository,
        auth: known.and_then(|r| r.auth.clone()),
        ca_file: known.and_then(|r| r.ca_file.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Registry;

    #[test]
    fn short_names_get_their_defaults() {
        for (given, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("luxas/nginx", "docker.io/luxas/nginx:latest"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
            ("localhost/x", "localhost/x:latest"),
        ] {
            assert_eq!(tag(&parse(given).unwrap()).as_deref(), Some(full), "{given}");
        }
        assert!(parse("UPPER case").is_err());
        assert!(parse(&"a".repeat(4096)).is_err());
    }

    #[test]
    fn mirrors_come_first_and_do_not_see_credentials() {
        let mut registries = Registries::default();
        registries.hosts.insert(
            "docker.io".into(),
            Registry {
                mirrors: [
                    "http://10.0.0.9:5000",
                    "https://m/cache/",
                    "plain:5000",
                    "https://plain:5000",
                    "other:5000",
                ]
                .map(String::from)
                .to_vec(),
                ..Default::default()
            },
        );
        let plain = Registry { insecure: true, ..Default::default() };
        registries.hosts.insert("plain:5000".into(), plain);
        let auth = RegistryAuth { username: "u".into(), password: "p".into() };
        let got = endpoints(&parse("nginx").unwrap(), &registries, Some(auth));
        let seen: Vec<_> = got
            .iter()
            .map(|e| (e.insecure, e.host.as_str(), e.repository.as_str(), e.auth.is_some()))
            .collect();
        assert_eq!(
            seen,
            [
                (true, "10.0.0.9:5000", "library/nginx", false),
                (false, "m", "cache/library/nginx", false),
                (true, "plain:5000", "library/nginx", false),
                (false, "plain:5000", "library/nginx", false),
                (false, "other:5000", "library/nginx", false),
                (false, "index.docker.io", "library/nginx", true),
            ]
        );
    }
}
