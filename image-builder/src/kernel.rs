//! The kernel's files in a tree: which version, which modules are kept, and in which order an initramfs loads them.

use crate::deb::decompress;
use crate::tree::{Kind, Node, Tree};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::process::Command;

const MODULES: &str = "usr/lib/modules";
const MAX_MODULE: u64 = 64 * 1024 * 1024;

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    /// `6.12.48+deb13-arm64`.
    pub version: String,
    /// Module name (with `_`, never `-`) to its file's path below the version's folder.
    files: BTreeMap<String, String>,
    /// File to the files that must be loaded before it, nearest last.
    needs: BTreeMap<String, Vec<String>>,
    /// Module name to the files that it asks to be loaded first without needing their symbols (`softdep`): ext4 looks
    /// its checksum up by name when it mounts.
    asks: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

/// What depmod makes, as texts.
#[derive(Clone, Copy, Debug, Default)]
struct Indexes<'a> {
    dep: &'a str,
    softdep: &'a str,
    alias: &'a str,
    builtin: &'a str,
}

/// Why a keep-list is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the kernel has no module {0:?}, nor is it built in")]
pub struct Unknown(String);

impl Modules {
    /// Reads the one kernel of a tree, where it has one.
    pub fn of(tree: &Tree) -> Result<Option<Self>> {
        let versions: BTreeSet<&str> =
            tree.below(MODULES).filter_map(|(p, _)| p[MODULES.len() + 1..].split('/').next()).collect();
        let version = match versions.into_iter().collect::<Vec<_>>()[..] {
            [version] => version.to_owned(),
            [] => return Ok(None),
            ref many => bail!("more than one kernel is in the image: {}", many.join(", ")),
        };
        let folder = format!("{MODULES}/{version}");
        let made = depmod(tree, &version)?;
        let text = |name: &str| std::str::from_utf8(made.get(name).map_or(&[][..], Vec::as_slice));
        let builtin = tree.read(&format!("{folder}/modules.builtin")).unwrap_or_default();
        let indexes = Indexes {
            dep: text("modules.dep")?,
            softdep: text("modules.softdep")?,
            alias: text("modules.alias")?,
            builtin: std::str::from_utf8(builtin)?,
        };
        Self::parse(version, indexes).map(Some)
    }

    fn parse(version: String, indexes: Indexes<'_>) -> Result<Self> {
        let (mut files, mut needs) = (BTreeMap::new(), BTreeMap::new());
        for line in indexes.dep.lines() {
            let (file, needed) = line.split_once(':').with_context(|| format!("modules.dep: {line:?}"))?;
            files.insert(module_name(file), file.to_owned());
            needs.insert(file.to_owned(), needed.split_whitespace().rev().map(str::to_owned).collect());
        }
        let asks = soft_dependencies(indexes, &files);
        let builtin = indexes.builtin.lines().map(module_name).collect();
        Ok(Self { version, files, needs, asks, builtin })
    }

    /// Files of the modules that a name or a glob means, without what they need. None for what is built in.
    pub fn find(&self, wanted: &str) -> Result<Vec<&str>, Unknown> {
        if wanted.contains(['*', '?', '/', '[']) {
            let pattern = format!("kernel/{}", wanted.trim_start_matches('/'));
            let unknown = || Unknown(wanted.to_owned());
            let glob =
                globset::GlobBuilder::new(&pattern).literal_separator(true).build().map_err(|_| unknown())?;
            let matcher = glob.compile_matcher();
            let found: Vec<&str> =
                self.files.values().map(String::as_str).filter(|f| matcher.is_match(f)).collect();
            return if found.is_empty() { Err(unknown()) } else { Ok(found) };
        }
        let name = wanted.replace('-', "_");
        match self.files.get(&name) {
            Some(file) => Ok(vec![file]),
            None if self.builtin.contains(&name) => Ok(Vec::new()),
            None => Err(Unknown(wanted.to_owned())),
        }
    }

    /// Those files with all that they need or ask for, each after what it needs, each once.
    pub fn load_order<'a>(&'a self, files: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for file in files {
            self.visit(file, &mut seen, &mut order);
        }
        order
    }

    /// Depth is bounded by the number of modules: none is visited twice.
    fn visit<'a>(&'a self, file: &'a str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<&'a str>) {
        if seen.insert(file) {
            let asked = self.asks.get(&module_name(file)).into_iter().flatten();
            for before in asked.chain(self.needs.get(file).into_iter().flatten()) {
                self.visit(before, seen, order);
            }
            order.push(file);
        }
    }

    /// Where a module's file is in the tree.
    pub fn path(&self, file: &str) -> String {
        format!("{MODULES}/{}/{file}", self.version)
    }

    /// Drops every module but these, and lays the indexes that modprobe reads.
    pub fn keep(&self, tree: &mut Tree, kept: &BTreeSet<&str>) -> Result<()> {
        let kernel = self.path("kernel/");
        let folder = self.path("");
        tree.retain(|path, node| {
            !path.starts_with(&kernel)
                || node.kind == Kind::Directory && kept_below(path, &folder, kept)
                || kept.contains(&path[folder.len()..])
        });
        for (name, bytes) in depmod(tree, &self.version)? {
            tree.insert(&self.path(&name), Node::file(bytes, 0o644))?;
        }
        Ok(())
    }
}

/// The `pre:` part of `softdep NAME pre: A B post: C`. A and B are modules or exact aliases of some; what is neither is
/// built in, or not there.
fn soft_dependencies(
    indexes: Indexes<'_>,
    files: &BTreeMap<String, String>,
) -> BTreeMap<String, Vec<String>> {
    let mut aliases: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for line in indexes.alias.lines() {
        if let ["alias", alias, module] = line.split_whitespace().collect::<Vec<_>>()[..] {
            aliases.entry(alias).or_default().extend(files.get(&module.replace('-', "_")));
        }
    }
    let mut asks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in indexes.softdep.lines() {
        let mut words = line.split_whitespace();
        let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { continue };
        let before = words.skip_while(|w| *w != "pre:").skip(1).take_while(|w| *w != "post:");
        let found = before.flat_map(|wanted| match files.get(&wanted.replace('-', "_")) {
            Some(file) => vec![file],
            None => aliases.get(wanted).cloned().unwrap_or_default(),
        });
        asks.entry(name.replace('-', "_")).or_default().extend(found.cloned());
    }
    asks
}

fn kept_below(path: &str, folder: &str, kept: &BTreeSet<&str>) -> bool {
    let prefix = format!("{}/", &path[folder.len()..]);
    kept.range(&*prefix..).next().is_some_and(|k| k.starts_with(&prefix))
}

/// `kernel/net/ipv4/ip-tunnel.ko.xz` is the module `ip_tunnel`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// Bytes of a module, uncompressed.
pub fn module_bytes(tree: &Tree, path: &str) -> Result<Vec<u8>> {
    let packed = tree.read(path).with_context(|| format!("{path} is not in the image"))?;
    let mut bytes = Vec::new();
    decompress(path, packed)?.take(MAX_MODULE).read_to_end(&mut bytes).with_context(|| path.to_owned())?;
    Ok(bytes)
}

/// Runs depmod(8) over a copy of the modules' folder. Gives the indexes it made, by name.
fn depmod(tree: &Tree, version: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let scratch = tempfile::tempdir()?;
    let folder = format!("{MODULES}/{version}");
    let base = scratch.path().join("lib/modules").join(version);
    for (path, _) in tree.below(&folder) {
        if let Some(bytes) = tree.read(path) {
            let target = base.join(&path[folder.len() + 1..]);
            std::fs::create_dir_all(target.parent().unwrap_or(&base))?;
            std::fs::write(target, bytes)?;
        }
    }
    let mut command = Command::new("depmod");
    command.arg("-b").arg(scratch.path()).arg(version);
    command.env("PATH", crate::tools::search_path());
    crate::tools::run(&mut command, "kmod")?;
    read_indexes(&base)
}

fn read_indexes(base: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut indexes = BTreeMap::new();
    for entry in std::fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("modules.") {
            indexes.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(indexes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        let dep = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
                   kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\nkernel/net/a/x-y.ko.xz: kernel/lib/crc16.ko.xz\n\
                   kernel/crypto/crc32c_generic.ko.xz:\n";
        let softdep = "# made by depmod\nsoftdep ext4 pre: crc32c gone post: x-y\n";
        let alias = "alias crc32c crc32c_generic\nalias fs-ext4 ext4\n";
        let builtin = "kernel/drivers/char/random.ko\n";
        Modules::parse("6.12".into(), Indexes { dep, softdep, alias, builtin }).unwrap()
    }

    #[test]
    fn names_and_globs_are_found() {
        let modules = modules();
        assert_eq!(modules.find("ext4").unwrap(), ["kernel/fs/ext4/ext4.ko.xz"]);
        assert_eq!(modules.find("x_y").unwrap(), modules.find("x-y").unwrap());
        assert_eq!(modules.find("net/**").unwrap(), ["kernel/net/a/x-y.ko.xz"]);
        assert!(modules.find("random").unwrap().is_empty());
        for unknown in ["etx4", "sound/**", "net/*"] {
            assert_eq!(modules.find(unknown), Err(Unknown(unknown.to_owned())));
        }
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_once() {
        let modules = modules();
        let files = [modules.find("ext4").unwrap(), modules.find("x-y").unwrap()].concat();
        assert_eq!(
            modules.load_order(files),
            [
                "kernel/crypto/crc32c_generic.ko.xz",
                "kernel/lib/crc16.ko.xz",
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz",
                "kernel/net/a/x-y.ko.xz"
            ]
        );
    }
}
