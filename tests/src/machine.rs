//! What a cluster could leave behind on the machine it ran on.

use std::collections::BTreeSet;
use std::process::Command;

/// One line for everything that a cluster might add to a machine, take away or change.
const LOOK_AROUND: &str = r#"
ls /run/netns 2>/dev/null | sed 's/^/namespace /'
ip -o link | sed -E 's/^[0-9]+: ([^ ]+) <([^>]*)>.*/link \1 \2/'
ip -o addr | awk '{print "address", $2, $3, $4}'
{ ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; } | sed 's/^/route /'
nft list ruleset | sed 's/^/nft /'
awk '{print "mount", $5, $4}' /proc/self/mountinfo
awk '$3 ~ /^cgroup2?$/ {print $2}' /proc/self/mounts | sort -u |
  while read -r mount; do find "$mount" -type d -printf 'cgroup %p\n'; done
find /run /var/lib -xdev -printf 'file %y %p\n'
find /etc -xdev -printf 'file %y %p %s %T@\n'
find /tmp /var/tmp -maxdepth 1 -iname '*bramble*' -printf 'file %y %p\n'
grep -H . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/* /proc/sys/net/netfilter/* /proc/sys/kernel/hostname \
  2>/dev/null | sed 's/^/setting /'
true
"#;

/// The folder of all clusters.
const LABS: &str = "/var/lib/bramble-lab";

/// What was there at one moment.
pub struct Machine {
    ours: String,
    lines: BTreeSet<String>,
    others: Vec<String>,
}

impl Machine {
    /// Looks around. What belongs to other clusters that are up is left out of comparisons.
    pub fn look(ours: &str) -> Self {
        let output = Command::new("bash").args(["-c", LOOK_AROUND]).output().expect("bash starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("link lo"), "{text}");
        let folders = std::fs::read_dir(LABS).into_iter().flatten().flatten();
        let names = folders.map(|f| f.file_name().to_string_lossy().trim_matches('.').replace(".lock", ""));
        let others = names.filter(|name| name != ours && name != "run-netns-is-ours").collect();
        Self { ours: ours.to_owned(), lines: text.lines().map(str::to_owned).collect(), others }
    }

    /// What is here and was not before, and what was before and is not here.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let others: Vec<&String> = self.others.iter().chain(&before.others).collect();
        let foreign = |line: &str| {
            let of = |name: &str| {
                ["netns/", "namespace ", "bramble-lab/", "bramble-lab/."]
                    .iter()
                    .any(|place| line.contains(&format!("{place}{name}")))
            };
            // What all clusters share goes with the last of them.
            let shared = ["bramble-lab", "/run/netns", "/run/netns /netns", "bramble-lab/.run-netns-is-ours"]
                .iter()
                .any(|end| line.ends_with(end));
            !of(&self.ours) && (others.iter().any(|name| of(name)) || (shared && !others.is_empty()))
        };
        let new = self.lines.difference(&before.lines).map(|line| format!("new: {line}"));
        let gone = before.lines.difference(&self.lines).map(|line| format!("gone: {line}"));
        new.chain(gone).filter(|line| !foreign(line)).collect()
    }
}

/// The machine's own IPv4 networks, as addresses and lengths of prefixes.
pub fn networks() -> Vec<(u32, u32)> {
    let line = "ip -4 -o addr | awk '{print $4}'; ip -4 route | awk '$1 ~ /^[0-9]/ {print $1}'";
    let output = Command::new("bash").args(["-c", line]).output().expect("bash starts");
    String::from_utf8_lossy(&output.stdout).lines().map(network).collect()
}

/// `192.168.1.0/24`.
pub fn network(text: &str) -> (u32, u32) {
    let (address, length) = text.trim().split_once('/').unwrap_or((text.trim(), "32"));
    let address: std::net::Ipv4Addr = address.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    (address.into(), length.parse().unwrap_or_else(|e| panic!("{text}: {e}")))
}

/// Whether two networks have an address in common.
pub fn overlap(a: (u32, u32), b: (u32, u32)) -> bool {
    let shorter = a.1.min(b.1);
    let mask = u32::MAX.checked_shl(32 - shorter).unwrap_or(0);
    a.0 & mask == b.0 & mask
}
