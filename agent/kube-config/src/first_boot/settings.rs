//! What `bramble.toml` may say, checked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use base64::Engine;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::document::{Findings, Found, Problem, Table};

/// No first-boot file is longer.
pub const MAX_FILE: u64 = 64 * 1024;
/// As the agent has it.
const MIN_SECRET: usize = 26;

/// What the file says. `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The node's name.
    pub hostname: Option<String>,
    /// What the node becomes.
    pub role: Option<Role>,
    /// For a worker: what `enable-master` printed.
    pub token: Option<String>,
    /// The secret of a batch of cards.
    pub cluster_secret: Option<String>,
    /// A name below `/usr/share/zoneinfo`.
    pub timezone: Option<String>,
    /// A shell on the screen.
    pub console: Option<bool>,
    /// Lines for `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// The Wi-Fi network.
    pub wifi: Option<Wifi>,
    /// A fixed address.
    pub network: Option<Network>,
    /// The Kubernetes node's labels.
    pub labels: BTreeMap<String, String>,
    /// Registries by host.
    pub registries: BTreeMap<String, Registry>,
}

/// What a node becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The first node of a new cluster.
    Master,
    /// A node of the cluster that this address belongs to.
    Worker(IpAddr),
}

/// A Wi-Fi network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wifi {
    /// Two letters: which channels are allowed.
    pub country: String,
    /// Its name.
    pub ssid: String,
    /// Its passphrase, or the key as 64 hexadecimal digits.
    pub password: String,
}

/// A fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// With their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Routers.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
}

/// A registry, in the agent's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Registry {
    /// Plain HTTP is allowed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Asked first, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// A file as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it says; of use when there are no problems.
    pub settings: Settings,
    /// What is wrong with it, in the order of the file.
    pub problems: Vec<Problem>,
    /// Where its secrets are.
    pub secrets: Vec<Range<usize>>,
}

/// Reads and checks a file. `zone` says whether a time zone is known.
pub fn read(text: &str, zone: &dyn Fn(&str) -> bool) -> Reading {
    let (mut findings, table) = Findings::parse(text);
    let f = &mut findings;
    let mut root = Table::root(&table);
    let mut settings = Settings {
        hostname: root.string(f, "hostname").and_then(|name| hostname(f, name)),
        timezone: root.string(f, "timezone").and_then(|name| timezone(f, name, zone)),
        console: root.boolean(f, "console").map(|found| found.value),
        ..Settings::default()
    };
    let asked = root.string(f, "role");
    settings.role = asked.as_ref().and_then(|asked| role(f, asked));
    let given = root.string(f, "token").inspect(|given| f.secret(given));
    settings.token = given.and_then(|given| token(f, given, settings.role));
    let secret = root.string(f, "cluster_secret").inspect(|secret| f.secret(secret));
    settings.cluster_secret = secret.and_then(|secret| cluster_secret(f, secret));
    settings.ssh_keys = root.table(f, "ssh").map(|table| ssh(f, table)).unwrap_or_default();
    settings.wifi = root.table(f, "wifi").and_then(|table| wifi(f, table));
    settings.network = root.table(f, "network").and_then(|table| network(f, table));
    settings.labels = root.table(f, "labels").map(|table| labels(f, &table)).unwrap_or_default();
    settings.registries = root.table(f, "registries").map(|table| registries(f, &table)).unwrap_or_default();
    root.finish(f);
    let Findings { mut problems, secrets, .. } = findings;
    problems.sort_by_key(|problem| problem.line);
    Reading { settings, problems, secrets }
}

impl Settings {
    /// These, and others for what they do not say.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        let keys = if self.ssh_keys.is_empty() { others.ssh_keys } else { self.ssh_keys };
        Self {
            hostname: self.hostname.or(others.hostname),
            role: self.role.or(others.role),
            token: self.token.or(others.token),
            cluster_secret: self.cluster_secret.or(others.cluster_secret),
            timezone: self.timezone.or(others.timezone),
            console: self.console.or(others.console),
            ssh_keys: keys,
            wifi: self.wifi.or(others.wifi),
            network: self.network.or(others.network),
            labels: others.labels.into_iter().chain(self.labels).collect(),
            registries: others.registries.into_iter().chain(self.registries).collect(),
        }
    }
}

/// Notes a problem and gives nothing.
fn refuse<T, U>(f: &mut Findings<'_>, found: &Found<T>, what: impl Into<String>) -> Option<U> {
    f.wrong(found, what);
    None
}

fn hostname(f: &mut Findings<'_>, name: Found<String>) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let text = name.value.as_str();
    if text.is_empty() {
        return None;
    }
    let ends = |byte: Option<u8>| byte.is_some_and(plain);
    let fits = text.len() <= 63
        && text.bytes().all(|byte| plain(byte) || byte == b'-')
        && ends(text.bytes().next())
        && ends(text.bytes().last());
    if !fits {
        return refuse(
            f,
            &name,
            "use lower-case letters, digits and \"-\" (not first or last), at most 63 in all",
        );
    }
    if ["localhost", "kubernetes"].contains(&text) {
        return refuse(f, &name, "is the name of something else already; take another");
    }
    Some(name.value)
}

fn role(f: &mut Findings<'_>, role: &Found<String>) -> Option<Role> {
    let words: Vec<&str> = role.value.split_whitespace().collect();
    match words.as_slice() {
        [] => None,
        ["master"] => Some(Role::Master),
        ["worker", address] => match address.parse() {
            Ok(address) => Some(Role::Worker(address)),
            Err(_) => refuse(f, role, format!("{address:?} is no IP address")),
        },
        _ => refuse(f, role, "must be \"master\", \"worker <ip>\" or nothing"),
    }
}

fn token(f: &mut Findings<'_>, token: Found<String>, role: Option<Role>) -> Option<String> {
    if token.value.is_empty() {
        return None;
    }
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let whole = token.value.split_once('.').is_some_and(|(id, secret)| plain(id) && plain(secret));
    if !whole {
        return refuse(
            f,
            &token,
            "must be as `kube-config token` prints it: two words with a dot between them",
        );
    }
    if !matches!(role, Some(Role::Worker(_))) {
        return refuse(
            f,
            &token,
            "is for a worker: set role = \"worker <ip>\" as well, or take the token out",
        );
    }
    Some(token.value)
}

fn cluster_secret(f: &mut Findings<'_>, secret: Found<String>) -> Option<String> {
    match secret.value.trim().len() {
        0 => None,
        length if length < MIN_SECRET => {
            refuse(f, &secret, format!("is too short: at least {MIN_SECRET} characters"))
        }
        _ => Some(secret.value),
    }
}

fn timezone(f: &mut Findings<'_>, name: Found<String>, known: &dyn Fn(&str) -> bool) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+/".contains(&byte);
    let text = name.value.as_str();
    if text.is_empty() {
        return None;
    }
    if !text.bytes().all(plain) || text.starts_with('/') || text.len() > 64 || !known(text) {
        return refuse(f, &name, "is no time zone: write it as in \"Europe/Helsinki\" or \"Etc/UTC\"");
    }
    Some(name.value)
}

fn ssh(f: &mut Findings<'_>, mut table: Table<'_, '_>) -> Vec<String> {
    let keys = table.strings(f, "keys").into_iter().filter_map(|key| ssh_key(f, key)).collect();
    table.finish(f);
    keys
}

fn ssh_key(f: &mut Findings<'_>, key: Found<String>) -> Option<String> {
    let text = key.value.trim();
    let mut words = text.split(' ');
    let (kind, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if text.contains("PRIVATE KEY") {
        return refuse(
            f,
            &key,
            "is a private key: give the public one, the line in the file that ends in .pub",
        );
    }
    let known =
        ["ssh-ed25519", "ssh-rsa", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"];
    if !known.contains(&kind) && !kind.starts_with("ecdsa-sha2-nistp") {
        return refuse(
            f,
            &key,
            "must be one line that begins with ssh-ed25519, ssh-rsa or ecdsa-sha2-nistp...",
        );
    }
    // The kind is once more inside: a line that was cut or wrapped does not have it whole.
    let whole = base64::engine::general_purpose::STANDARD.decode(data).is_ok_and(|bytes| {
        let length = u32::try_from(kind.len()).unwrap_or_default().to_be_bytes();
        bytes.len() > 4 + kind.len() + 16 && bytes[..4] == length && bytes[4..].starts_with(kind.as_bytes())
    });
    if !whole || text.chars().any(char::is_control) {
        return refuse(f, &key, "is not whole: copy the line in the file that ends in .pub");
    }
    Some(text.to_owned())
}

fn wifi(f: &mut Findings<'_>, mut table: Table<'_, '_>) -> Option<Wifi> {
    let (country, ssid) = (table.string(f, "country"), table.string(f, "ssid"));
    let password = table.string(f, "password").inspect(|password| f.secret(password));
    let missing = [("country", &country), ("ssid", &ssid), ("password", &password)];
    for (key, found) in missing {
        if found.is_none() && !table.keys().any(|have| have.value == key) {
            table.missing(f, key, "is missing: Wi-Fi needs country, ssid and password");
        }
    }
    table.finish(f);
    let country = country.and_then(|country| {
        let fits = country.value.len() == 2 && country.value.bytes().all(|byte| byte.is_ascii_uppercase());
        if fits {
            Some(country.value)
        } else {
            refuse(f, &country, "must be two capital letters, as in \"FI\"")
        }
    });
    let ssid = ssid.and_then(|ssid| {
        let fits = (1..=32).contains(&ssid.value.len());
        if fits { Some(ssid.value) } else { refuse(f, &ssid, "must have 1 to 32 bytes") }
    });
    let password = password.and_then(|password| {
        let text = &password.value;
        let phrase = (8..=63).contains(&text.len()) && text.bytes().all(|byte| (32..127).contains(&byte));
        let key = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if phrase || key {
            Some(password.value)
        } else {
            refuse(
                f,
                &password,
                "must have 8 to 63 plain characters (or be the key as 64 hexadecimal digits)",
            )
        }
    });
    Some(Wifi { country: country?, ssid: ssid?, password: password? })
}

fn network(f: &mut Findings<'_>, mut table: Table<'_, '_>) -> Option<Network> {
    let given = table.strings(f, "address");
    let (gateway, dns) = (table.strings(f, "gateway"), table.strings(f, "dns"));
    if given.is_empty() {
        table.missing(
            f,
            "address",
            "is missing: write it with its prefix length, as in \"192.168.1.102/24\"",
        );
    }
    table.finish(f);
    let addresses: Vec<IpNet> = given.iter().filter_map(|found| address(f, found)).collect();
    let mut plain = |list: Vec<Found<String>>| -> Vec<(Found<String>, IpAddr)> {
        list.into_iter()
            .filter_map(|found| match found.value.parse() {
                Ok(ip) => Some((found, ip)),
                Err(_) => refuse(f, &found, format!("{:?} is no IP address", found.value)),
            })
            .collect()
    };
    let (gateways, dns) = (plain(gateway), plain(dns));
    for (found, ip) in &gateways {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if !link_local && !addresses.is_empty() && !addresses.iter().any(|net| net.contains(ip)) {
            f.wrong(found, format!("{ip} is not in the network of network.address"));
        }
    }
    let only = |list: Vec<(Found<String>, IpAddr)>| list.into_iter().map(|(_, ip)| ip).collect();
    (!addresses.is_empty()).then(|| Network { addresses, gateways: only(gateways), dns: only(dns) })
}

fn address(f: &mut Findings<'_>, found: &Found<String>) -> Option<IpNet> {
    let Ok(net) = found.value.parse::<IpNet>() else {
        let what =
            format!("{:?} is no address with a prefix length, as in \"192.168.1.102/24\"", found.value);
        return refuse(f, found, what);
    };
    let small = net.prefix_len() + 1 >= net.max_prefix_len();
    let ip = net.addr();
    if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
        return refuse(f, found, format!("{ip} cannot be a node's address"));
    }
    if !small && (ip == net.network() || (ip.is_ipv4() && ip == net.broadcast())) {
        return refuse(f, found, format!("{ip} is the network itself: give the node's own address"));
    }
    Some(net)
}

fn labels(f: &mut Findings<'_>, table: &Table<'_, '_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for key in table.keys() {
        let Some(value) = table.any_string(f, &key.value) else { continue };
        let (prefix, name) = key.value.rsplit_once('/').unwrap_or(("x", &key.value));
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        if name.is_empty()
            || !word(name)
            || prefix.is_empty()
            || prefix.len() > 253
            || !prefix.bytes().all(plain)
        {
            f.wrong(&key, "is no label: letters, digits, \"-\", \"_\" and \".\", at most 63, as in \"example.org/disk\"");
        } else if !word(&value.value) {
            f.wrong(&value, "a label's value has letters, digits, \"-\", \"_\" and \".\", at most 63");
        } else {
            labels.insert(key.value, value.value);
        }
    }
    labels
}

/// A label's name or value: plain characters, a letter or digit at both ends, or nothing.
fn word(text: &str) -> bool {
    let end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && end(text.bytes().next())
        && end(text.bytes().last())
}

fn registries(f: &mut Findings<'_>, table: &Table<'_, '_>) -> BTreeMap<String, Registry> {
    let mut registries = BTreeMap::new();
    for host in table.keys() {
        if !is_host(&host.value) {
            f.wrong(
                &host,
                "is no registry: write host or host:port, in quotes, as in [registries.\"10.0.0.5:5000\"]",
            );
            continue;
        }
        let Some(mut inner) = table.any_table(f, &host.value) else { continue };
        let (insecure, mirrors) = (inner.boolean(f, "insecure"), inner.strings(f, "mirrors"));
        let username = inner.string(f, "username");
        let password = inner.string(f, "password").inspect(|password| f.secret(password));
        if username.is_none()
            && let Some(password) = &password
        {
            f.wrong(password, "needs a username beside it");
        }
        for mirror in mirrors.iter().filter(|mirror| !is_mirror(&mirror.value)) {
            f.wrong(mirror, "is no registry: write host or host:port, with http:// before it for plain HTTP");
        }
        inner.finish(f);
        let given =
            |found: Option<Found<String>>| found.map(|found| found.value).filter(|text| !text.is_empty());
        let registry = Registry {
            insecure: insecure.is_some_and(|found| found.value),
            mirrors: mirrors.into_iter().map(|found| found.value).collect(),
            username: given(username),
            password: given(password),
        };
        registries.insert(host.value, registry);
    }
    registries
}

/// A registry; as in config.toml, a scheme may say how it is asked.
fn is_mirror(url: &str) -> bool {
    match url.split_once("://") {
        Some((scheme, host)) => ["http", "https"].contains(&scheme) && is_host(host),
        None => is_host(url),
    }
}

fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
}
