//! What must be done for the settings to hold: files, links and the role. Pure.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::settings::{Network, Role, Settings, Wifi};

/// The agent's settings.
pub const AGENT: &str = "etc/bramble/config.toml";
const KEYS: &str = "etc/ssh/authorized_keys/root";
const WIFI: &str = "etc/bramble/wifi.conf";
const NETWORK: &str = "etc/systemd/network/10-bramble.network";
const NO_CONSOLE: &str = "etc/bramble/no-console";

/// A file to be, or not to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Below the root.
    pub path: &'static str,
    /// What is in it; `None`: there is no such file.
    pub content: Option<String>,
    /// Permissions.
    pub mode: u32,
}

/// What is left to do once the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// What the node becomes.
    pub role: Option<Role>,
    /// For a worker.
    pub token: Option<String>,
}

/// All that is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The node's name.
    pub hostname: String,
    /// Files, each on its own.
    pub files: Vec<File>,
    /// `/etc/localtime`.
    pub localtime: String,
    /// For later.
    pub setup: Setup,
}

/// Makes the plan. `unique` is a word that no other node has.
///
/// # Errors
/// If the agent's settings cannot be written as TOML.
pub fn plan(settings: &Settings, unique: &str) -> Result<Plan, toml::ser::Error> {
    let hostname = settings.hostname.clone().unwrap_or_else(|| format!("bramble-{unique}"));
    let hosts =
        format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n");
    let keys = (!settings.ssh_keys.is_empty()).then(|| settings.ssh_keys.join("\n") + "\n");
    let network = settings.network.as_ref().map(|network| network_file(network, settings.wifi.is_some()));
    let file = |path, content, mode| File { path, content, mode };
    let files = vec![
        file("etc/hostname", Some(format!("{hostname}\n")), 0o644),
        file("etc/hosts", Some(hosts), 0o644),
        file(AGENT, Some(agent(settings)?), 0o600),
        file(KEYS, keys, 0o644),
        file(WIFI, settings.wifi.as_ref().map(wifi_file), 0o600),
        file(NETWORK, network, 0o644),
        file(NO_CONSOLE, (settings.console == Some(false)).then(String::new), 0o644),
    ];
    let zone = settings.timezone.as_deref().unwrap_or("Etc/UTC");
    Ok(Plan {
        hostname,
        files,
        localtime: format!("../usr/share/zoneinfo/{zone}"),
        setup: Setup { role: settings.role, token: settings.token.clone() },
    })
}

/// The part of the settings that is the agent's.
#[derive(Serialize)]
struct Agent<'a> {
    /// Without a default route the agent cannot tell which of its addresses the others should use.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_secret: Option<&'a str>,
    labels: &'a std::collections::BTreeMap<String, String>,
    registries: &'a std::collections::BTreeMap<String, super::settings::Registry>,
}

fn agent(settings: &Settings) -> Result<String, toml::ser::Error> {
    let network = settings.network.as_ref();
    let agent = Agent {
        address: network.and_then(|network| network.addresses.first()).map(|net| net.addr()),
        cluster_secret: settings.cluster_secret.as_deref(),
        labels: &settings.labels,
        registries: &settings.registries,
    };
    Ok(format!("# Written at first boot from bramble.toml; yours to edit.\n{}", toml::to_string(&agent)?))
}

/// wpa_supplicant's. The name as hexadecimal digits: it may have any bytes.
fn wifi_file(wifi: &Wifi) -> String {
    let ssid = wifi.ssid.bytes().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    // A key of 64 digits is for WPA2 only; a passphrase is for WPA3 as well. Nothing is special between the quotes.
    let secret = if wifi.password.len() == 64 {
        format!("psk={}\n  key_mgmt=WPA-PSK", wifi.password)
    } else {
        format!("psk=\"{}\"\n  key_mgmt=WPA-PSK SAE\n  ieee80211w=1", wifi.password)
    };
    let country = &wifi.country;
    format!("country={country}\nnetwork={{\n  ssid={ssid}\n  scan_ssid=1\n  {secret}\n}}\n")
}

fn network_file(network: &Network, wifi: bool) -> String {
    let name = if wifi { "wlan*" } else { "eth* en*" };
    let mut text =
        format!("[Match]\nName={name}\n\n[Network]\nMulticastDNS=yes\nLLMNR=no\nIPv6AcceptRA=yes\n");
    let lines = [
        ("Address", network.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ("Gateway", network.gateways.iter().map(ToString::to_string).collect()),
        ("DNS", network.dns.iter().map(ToString::to_string).collect()),
    ];
    for (key, values) in lines {
        values.iter().for_each(|value| {
            let _ = writeln!(text, "{key}={value}");
        });
    }
    text
}
