use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::document::without_secrets;
use super::plan::{Plan, plan};
use super::settings::{Reading, Role, Settings};
use super::*;

const TEMPLATE: &str =
    include_str!("../../../../image-builder/layers/bramble/recipes/agent/files/bramble.toml");
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@laptop";

const GOOD: &str = r#"
hostname = "node2"
role = "worker 192.168.1.102"
token = "abc123.0123456789abcdef"
cluster_secret = "abcdefghijklmnopqrstuvwxyz"
timezone = "Europe/Helsinki"
[ssh]
keys = ["KEY"]
[wifi]
country = "FI"
ssid = "Käffchen \"5\""
password = "pass\"word1"
[network]
address = ["192.168.1.103/24", "fd00::3/64"]
gateway = "192.168.1.1"
dns = ["192.168.1.1"]
[labels]
"example.org/disk" = "usb"
[registries."10.0.0.5:5000"]
insecure = true
[registries."docker.io"]
mirrors = ["10.0.0.5:5000"]
username = "me"
password = "secret"
"#;

fn good() -> String {
    GOOD.replace("KEY", KEY)
}

fn read_text(text: &str) -> Reading {
    settings::read(text, &|zone| zone == "Europe/Helsinki")
}

fn problems(text: &str) -> Vec<String> {
    read_text(text).problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_template_as_it_is_says_nothing() {
    let reading = read_text(TEMPLATE);
    assert_eq!((reading.problems, reading.settings), (Vec::new(), Settings::default()));
}

#[test]
fn the_template_with_its_lines_set_is_understood() {
    let mut seen = std::collections::HashSet::new();
    let lines = TEMPLATE.lines().map(|line| match line.strip_prefix('#') {
        // A comment begins with "# "; of two ways to set a key the later one is left out.
        Some(setting) if !setting.starts_with(' ') => {
            let key = setting.split(" =").next().unwrap_or_default();
            if key.starts_with('[') {
                seen.clear()
            }
            if seen.insert(key.to_owned()) { setting } else { "" }
        }
        _ => "",
    });
    let text: Vec<&str> = lines.collect();
    let text = text.join("\n").replace("ssh-ed25519 AAAA... you@laptop", KEY);
    let expected = ["is for a worker", "wifi.password: must have 8"];
    let found = problems(&text.replace("token = \"\"", "token = \"a.b\""));
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_whole_file_is_read() {
    let reading = read_text(&good());
    assert_eq!(reading.problems, []);
    let settings = reading.settings;
    assert_eq!(settings.role, Some(Role::Worker("192.168.1.102".parse().unwrap())));
    assert_eq!(settings.ssh_keys, [KEY]);
    assert_eq!(settings.wifi.unwrap().ssid, "Käffchen \"5\"");
    assert_eq!(settings.network.unwrap().addresses.len(), 2);
    assert_eq!(settings.labels["example.org/disk"], "usb");
    assert_eq!(settings.registries["docker.io"].mirrors, ["10.0.0.5:5000"]);
}

#[test]
fn all_mistakes_are_told_with_line_and_field() {
    let text = "hostname = \"Node 1\"\nrole = \"boss\"\ntimezone = \"Moon\"\nhostnmae = 1\nconsole = \"yes\"\n\
                [wifi]\nssid = \"x\"\npassword = \"short\"\n[network]\naddress = \"192.168.1.5\"\n\
                [registries.\"http://x/\"]\n[labels]\nx = 7\n[ssh]\nkeys = [\"ssh-ed25519 AAAA\"]\n";
    let found = problems(text);
    let expected = [
        "line 1: hostname: ",
        "line 2: role: ",
        "line 3: timezone: ",
        "line 4: hostnmae: is not known here",
        "line 5: console: must be true or false, not string",
        "line 6: wifi.country: is missing",
        "line 8: wifi.password: ",
        "line 10: network.address: ",
        "line 11: registries.http://x/: ",
        "line 13: labels.x: must be a text in quotes, not integer",
        "line 15: ssh.keys: is not whole",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} is not {expected}");
    }
}

#[test]
fn what_is_not_toml_is_told_beside_what_is_wrong() {
    let found = problems("hostname = node1\nrole = \"boss\"\n");
    assert!(found.iter().any(|problem| problem.starts_with("line 1: ")), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("line 2: role: ")), "{found:?}");
}

#[test]
fn addresses_that_cannot_be_are_refused() {
    for bad in
        ["192.168.1.0/24", "192.168.1.255/24", "127.0.0.1/8", "0.0.0.0/0", "224.0.0.1/24", "::1/128", "x"]
    {
        assert_eq!(problems(&format!("[network]\naddress = \"{bad}\"\n")).len(), 1, "{bad}");
    }
    let outside = problems("[network]\naddress = \"10.0.1.2/24\"\ngateway = \"10.0.2.1\"\n");
    assert!(outside[0].contains("not in the network"), "{outside:?}");
    assert_eq!(
        problems("[network]\naddress = \"10.0.1.2/24\"\ngateway = [\"10.0.1.1\", \"fe80::1\"]\n"),
        [""; 0]
    );
}

#[test]
fn secrets_are_blanked_in_place() {
    let text = good();
    let reading = read_text(&text);
    let blank = without_secrets(&text, &reading.secrets);
    assert_eq!(blank.len(), text.len());
    for secret in ["0123456789abcdef", "abcdefghijklmnop", "word1", "secret\""] {
        assert!(text.contains(secret) && !blank.contains(secret), "{secret}");
    }
    let again = read_text(&blank);
    assert!(again.secrets.is_empty());
    assert_eq!(again.settings.hostname, reading.settings.hostname);
}

fn planned(text: &str) -> Plan {
    plan(&read_text(text).settings, "0a1b2c").unwrap()
}

fn content<'a>(plan: &'a Plan, path: &str) -> Option<&'a str> {
    plan.files.iter().find(|file| file.path == path).unwrap().content.as_deref()
}

#[test]
fn the_plan_of_a_whole_file() {
    let plan = planned(&good());
    assert_eq!(plan.hostname, "node2");
    assert_eq!(plan.localtime, "../usr/share/zoneinfo/Europe/Helsinki");
    let wifi = content(&plan, "etc/bramble/wifi.conf").unwrap();
    assert!(wifi.contains("ssid=4bc3a4666663"), "{wifi}");
    assert!(wifi.contains("psk=\"pass\"word1\"\n"), "{wifi}");
    let network = content(&plan, "etc/systemd/network/10-bramble.network").unwrap();
    assert!(network.contains("Name=wlan*") && network.contains("Address=fd00::3/64"), "{network}");
    let agent: toml::Table = content(&plan, plan::AGENT).unwrap().parse().unwrap();
    assert_eq!(agent["address"].as_str(), Some("192.168.1.103"));
    assert_eq!(agent["registries"]["docker.io"]["password"].as_str(), Some("secret"));
    assert!(plan.files.iter().all(|file| !file.path.starts_with('/')));
}

#[test]
fn the_plan_of_nothing_undoes() {
    let plan = planned("");
    assert_eq!(plan.hostname, "bramble-0a1b2c");
    assert_eq!(plan.setup, Setup::default());
    for absent in ["etc/ssh/authorized_keys/root", "etc/bramble/wifi.conf", "etc/bramble/no-console"] {
        assert_eq!(content(&plan, absent), None, "{absent}");
    }
}

#[test]
fn a_layers_defaults_give_way() {
    let defaults =
        read_text("hostname = \"x\"\ntimezone = \"Europe/Helsinki\"\n[labels]\na = \"1\"\nb = \"1\"\n");
    let merged = read_text("hostname = \"y\"\n[labels]\nb = \"2\"\n").settings.or(defaults.settings);
    assert_eq!(merged.hostname.as_deref(), Some("y"));
    assert_eq!(merged.timezone.as_deref(), Some("Europe/Helsinki"));
    assert_eq!((merged.labels["a"].as_str(), merged.labels["b"].as_str()), ("1", "2"));
}

/// A system and a boot partition in a folder.
struct Card(tempfile::TempDir);

impl Card {
    fn new(text: Option<&str>) -> Self {
        let card = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(card.root().join("etc")).unwrap();
        fs::create_dir_all(card.root().join("usr/share/zoneinfo/Europe")).unwrap();
        fs::write(card.root().join("usr/share/zoneinfo/Europe/Helsinki"), "").unwrap();
        fs::write(card.root().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::create_dir(card.boot()).unwrap();
        if let Some(text) = text {
            fs::write(card.boot().join("bramble.toml"), text).unwrap();
        }
        card
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("root")
    }

    fn boot(&self) -> std::path::PathBuf {
        self.0.path().join("boot")
    }

    fn go(&self) -> Result<Option<String>> {
        read_once(&self.boot(), &self.root(), false)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).unwrap_or_default()
    }

    fn exists(&self, path: &str) -> bool {
        self.0.path().join(path).exists()
    }
}

#[test]
fn a_file_is_applied_once() {
    let card = Card::new(Some(&good()));
    assert_eq!(card.go().unwrap().as_deref(), Some("node2"));
    assert_eq!(card.text("root/etc/hostname"), "node2\n");
    assert!(card.text("root/var/lib/bramble-first-boot/setup.json").contains("192.168.1.102"));
    assert!(!card.text("boot/bramble.toml").contains("word1"), "secrets are gone");
    assert!(card.text("boot/bramble.toml").contains("Helsinki"), "the rest is not");
    fs::write(card.root().join("etc/hostname"), "mine\n").unwrap();
    assert_eq!(card.go().unwrap(), None);
    assert_eq!(card.text("root/etc/hostname"), "mine\n");
    assert!(!card.exists("boot/bramble-errors.txt"));
}

#[test]
fn a_wrong_file_changes_nothing_and_is_told_on_the_card() {
    let card = Card::new(Some("hostname = \"node1\"\nrole = \"boss\"\n"));
    assert!(card.go().unwrap_err().to_string().contains("line 2: role: "));
    assert!(card.text("boot/bramble-errors.txt").contains("line 2: role: "));
    assert!(!card.exists("root/etc/hostname") && !card.exists("root/var"));
    fs::write(card.boot().join("bramble.toml"), "hostname = \"node1\"\n").unwrap();
    assert_eq!(card.go().unwrap().as_deref(), Some("node1"));
    assert!(!card.exists("boot/bramble-errors.txt"), "what was mended is not told any more");
}

#[test]
fn a_power_cut_before_the_card_is_blanked_is_mended() {
    let card = Card::new(Some(&good()));
    card.go().unwrap();
    fs::write(card.boot().join("bramble.toml"), good()).unwrap();
    assert_eq!(card.go().unwrap(), None);
    assert!(!card.text("boot/bramble.toml").contains("word1"));
    assert!(!card.exists("boot/bramble-errors.txt"), "it is the file that was read");
}

#[test]
fn a_later_change_is_told() {
    let card = Card::new(Some("hostname = \"node1\"\n"));
    card.go().unwrap();
    fs::write(card.boot().join("bramble.toml"), "hostname = \"node9\"\n").unwrap();
    assert_eq!(card.go().unwrap(), None);
    assert!(card.text("boot/bramble-errors.txt").contains("--again"));
    assert_eq!(read_once(&card.boot(), &card.root(), true).unwrap().as_deref(), Some("node9"));
    assert!(!card.exists("boot/bramble-errors.txt"));
}

#[test]
fn a_card_without_the_file_gets_a_name() {
    let card = Card::new(None);
    assert_eq!(card.go().unwrap().as_deref(), Some("bramble-012345"));
}

#[test]
fn what_editors_do_to_a_file_is_named() {
    let wide: Vec<u8> =
        [0xff, 0xfe].into_iter().chain("x = 1".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let cases: [(&str, &[u8], &str); 4] = [
        ("bramble.toml.txt", b"", "rename it"),
        ("bramble.toml", &wide, "UTF-16"),
        ("bramble.toml", b"# a\nhostname = \"\xe4\"\n", "line 2"),
        ("bramble.toml", &[b'#'; 70_000], "longer than"),
    ];
    for (name, content, expected) in cases {
        let card = Card::new(None);
        fs::write(card.boot().join(name), content).unwrap();
        let error = card.go().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let card = Card::new(Some("\u{feff}hostname = \"node1\"\r\n"));
    assert_eq!(card.go().unwrap().as_deref(), Some("node1"), "a byte order mark and CRLF are fine");
}

#[test]
fn check_needs_no_card() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.toml");
    fs::write(&file, "role = \"boss\"\n").unwrap();
    assert!(check(&file, Path::new("/nowhere")).unwrap_err().to_string().contains("line 1: role"));
    fs::write(&file, "role = \"master\"\n").unwrap();
    check(&file, Path::new("/nowhere")).unwrap();
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in "(\\PC|\n|\"|=|\\[|\\]){0,200}") {
        let reading = read_text(&text);
        let blank = without_secrets(&text, &reading.secrets);
        prop_assert_eq!(blank.len(), text.len());
    }

    #[test]
    fn a_password_never_stays(password in "[ -~]{8,63}") {
        let quoted = toml::Value::String(password.clone()).to_string();
        let text = format!("[wifi]\ncountry = \"FI\"\nssid = \"x\"\npassword = {quoted}\n");
        let reading = read_text(&text);
        prop_assert_eq!(&reading.problems, &[]);
        prop_assert_eq!(&reading.settings.wifi.unwrap().password, &password);
        let blank = without_secrets(&text, &reading.secrets);
        prop_assert!(!blank.contains(&quoted));
        prop_assert!(read_text(&blank).secrets.is_empty());
    }
}

#[test]
fn a_mirror_may_say_how_it_is_asked() {
    let text = |mirror: &str| format!("[registries.\"docker.io\"]\nmirrors = [\"{mirror}\"]\n");
    for good in ["10.0.0.9:5000", "http://10.0.0.9:5000", "https://mirror.example"] {
        assert!(read_text(&text(good)).problems.is_empty(), "{good}");
    }
    for bad in ["ftp://10.0.0.9", "http://", "http://a b"] {
        assert!(!read_text(&text(bad)).problems.is_empty(), "{bad}");
    }
}
