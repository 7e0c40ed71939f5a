//! Puts the root file system together: packages first, then what their maintainer scripts would have done, then the
//! recipes, and last what follows from all of that (accounts, enabled units, module indexes).

use crate::deb;
use crate::kernel::Modules;
use crate::project::{LoadedBoard, LoadedRecipe, Project, compile_glob};
use crate::schema::{DirectoryEntry, FileEntry, image_path, octal_mode};
use crate::tree::{Kind, Node, Tree};
use crate::units;
use crate::users::Accounts;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// What is given to a bake from outside.
#[derive(Clone, Debug)]
pub struct Given {
    /// The image's version.
    pub version: String,
    /// The time that every file bears, seconds since 1970.
    pub epoch: u32,
    /// The agent's binary.
    pub agent: Option<PathBuf>,
    /// Public keys (PEM) of those whose updates the cards take.
    pub update_keys: Vec<PathBuf>,
}

/// The packages, unpacked: the kernel's and the firmware's apart, since only parts of them go on the root.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// What goes on the root, the kernel's modules included.
    pub root: Tree,
    /// The kernel package's other files.
    pub kernel: Tree,
    /// The firmware package.
    pub firmware: Tree,
}

/// Folders that are there before any package.
const SKELETON: [(&str, u16); 8] = [
    ("usr/bin", 0o755),
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("boot", 0o755),
    ("data", 0o755),
];

/// Links that are there before any package: Debian's merged /usr, and the two that base-files' script makes.
const LINKS: [(&str, &str); 5] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
];

impl Unpacked {
    /// With nothing but the skeleton.
    pub fn new() -> Result<Self> {
        let mut unpacked = Self::default();
        for tree in [&mut unpacked.root, &mut unpacked.kernel] {
            for folder in ["usr/bin", "usr/sbin", "usr/lib"] {
                tree.insert(folder, Node::directory(0o755))?;
            }
            for (path, target) in LINKS {
                tree.insert(path, Node::symlink(target))?;
            }
        }
        for (path, mode) in SKELETON {
            unpacked.root.insert(path, Node::directory(mode))?;
        }
        Ok(unpacked)
    }

    /// Unpacks one package.
    pub fn add(&mut self, board: &LoadedBoard, name: &str, bytes: &[u8]) -> Result<()> {
        if name == board.board.firmware.package.get_ref() {
            return deb::unpack(bytes, &mut self.firmware);
        }
        if !name.starts_with("linux-image-") {
            return deb::unpack(bytes, &mut self.root);
        }
        deb::unpack(bytes, &mut self.kernel)?;
        let modules: Vec<(String, Node)> =
            self.kernel.below("usr/lib/modules").map(|(p, n)| (p.to_owned(), n.clone())).collect();
        for (path, node) in modules {
            self.root.insert(&path, node)?;
        }
        self.kernel.remove("usr/lib/modules");
        Ok(())
    }
}

/// Applies the recipes to the unpacked packages.
pub fn compose(
    project: &Project,
    board: &LoadedBoard,
    given: &Given,
    modules: Option<&Modules>,
    tree: &mut Tree,
) -> Result<()> {
    let recipes: Vec<&LoadedRecipe> = project.recipes(board).collect();
    drop_unwanted(tree, &recipes)?;
    for recipe in &recipes {
        lay_recipe(project, board, given, recipe, tree).with_context(|| format!("recipe {}", recipe.name))?;
    }
    lay_defaults(tree, &recipes)?;
    lay_update_keys(tree, &given.update_keys)?;
    bundle_certificates(tree)?;
    let mut accounts = Accounts::from_tree(tree)?;
    accounts.apply_sysusers(tree)?;
    accounts.write(tree)?;
    for recipe in &recipes {
        own_recipe(recipe, &accounts, tree)?;
    }
    set_units(tree, &recipes)?;
    modules.map_or(Ok(()), |modules| keep_modules(modules, tree, &recipes))
}

fn drop_unwanted(tree: &mut Tree, recipes: &[&LoadedRecipe]) -> Result<()> {
    let globs = |pick: fn(&LoadedRecipe) -> &Vec<Spanned<String>>| -> Result<Vec<globset::GlobMatcher>> {
        let all = recipes.iter().flat_map(|r| pick(r));
        all.map(|glob| compile_glob(glob.get_ref()).map_err(|m| anyhow!(m))).collect()
    };
    let (remove, keep) = (globs(|r| &r.recipe.remove)?, globs(|r| &r.recipe.keep)?);
    let matches = |globs: &[globset::GlobMatcher], path: &str| globs.iter().any(|g| g.is_match(path));
    tree.retain(|path, _| !matches(&remove, path) || matches(&keep, path));
    Ok(())
}

fn lay_recipe(
    project: &Project,
    board: &LoadedBoard,
    given: &Given,
    loaded: &LoadedRecipe,
    tree: &mut Tree,
) -> Result<()> {
    let recipe = &loaded.recipe;
    for source in &recipe.trees {
        lay_folder(&loaded.source(source)?, "", tree)?;
    }
    if !recipe.sysusers.is_empty() {
        let lines: Vec<&str> = recipe.sysusers.iter().map(|l| l.get_ref().as_str()).collect();
        let path = format!("usr/lib/sysusers.d/image-{}.conf", loaded.name.replace('/', "-"));
        tree.insert(&path, Node::file((lines.join("\n") + "\n").into_bytes(), 0o644))?;
    }
    for unit in &recipe.units.install {
        let (path, name) = unit_source(project, loaded, unit)?;
        let bytes = std::fs::read(&path)
            .map_err(|e| loaded.document.error(unit.span(), format!("{}: {e}", path.display())))?;
        tree.insert(&format!("usr/lib/systemd/system/{name}"), Node::file(bytes, 0o644))?;
    }
    for entry in &recipe.directories {
        let mode = mode_of(entry.mode.as_ref(), 0o755);
        let path = inner(entry.path.get_ref());
        tree.insert(path, Node::directory(mode))
            .map_err(|e| loaded.document.error(entry.path.span(), e.to_string()))?;
    }
    for file in &recipe.files {
        let bytes = file_bytes(loaded, file, board, given)?;
        let mode = mode_of(file.mode.as_ref(), 0o644);
        let laid = tree.insert(inner(file.path.get_ref()), Node::file(bytes, mode));
        laid.map_err(|e| loaded.document.error(file.path.span(), e.to_string()))?;
    }
    for link in &recipe.symlinks {
        let laid = tree.insert(inner(link.path.get_ref()), Node::symlink(&*link.target));
        laid.map_err(|e| loaded.document.error(link.path.span(), e.to_string()))?;
    }
    for image in &recipe.images {
        let path = loaded.files.join(image.archive.get_ref());
        let bytes = std::fs::read(&path)
            .map_err(|e| loaded.document.error(image.archive.span(), format!("{}: {e}", path.display())))?;
        let own_name = path.file_name().and_then(|n| n.to_str()).unwrap_or("image.tar");
        let name = image.name.as_deref().unwrap_or(own_name);
        crate::schema::plain_path(name).map_err(|m| loaded.document.error(image.archive.span(), m))?;
        tree.insert(&format!("usr/share/bramble/images/{name}"), Node::file(bytes, 0o644))?;
    }
    Ok(())
}

/// The tree's spelling of a path that was checked when its recipe was read.
fn inner(path: &str) -> &str {
    image_path(path).unwrap_or(path)
}

fn mode_of(mode: Option<&Spanned<String>>, default: u16) -> u16 {
    mode.and_then(|m| octal_mode(m.get_ref()).ok()).unwrap_or(default)
}

/// A unit of the repository (`repo:x.service`) or of the recipe.
fn unit_source(
    project: &Project,
    loaded: &LoadedRecipe,
    unit: &Spanned<String>,
) -> Result<(PathBuf, String)> {
    let text = unit.get_ref();
    let path = match text.strip_prefix("repo:") {
        Some(name) => {
            let name = crate::schema::plain_path(name).map_err(|m| loaded.document.error(unit.span(), m))?;
            project.root().join("systemd").join(name)
        }
        None => loaded.source(unit)?,
    };
    let name = path.file_name().and_then(|n| n.to_str()).context("a unit without a name")?.to_owned();
    Ok((path, name))
}

/// Contents of a file entry.
pub fn file_bytes(
    loaded: &LoadedRecipe,
    file: &FileEntry,
    board: &LoadedBoard,
    given: &Given,
) -> Result<Vec<u8>> {
    let bytes = if let Some(source) = &file.source {
        let path = loaded.source(source)?;
        std::fs::read(&path).with_context(|| path.display().to_string())?
    } else if let Some(text) = &file.text {
        text.clone().into_bytes()
    } else {
        let path = given.agent.as_ref().context("this recipe takes the agent's binary: say --agent FILE")?;
        std::fs::read(path).with_context(|| path.display().to_string())?
    };
    if !file.substitute {
        return Ok(bytes);
    }
    let text = String::from_utf8(bytes).with_context(|| format!("{}: is no text", file.path.get_ref()))?;
    let values = [
        ("@VERSION@", given.version.clone()),
        ("@BOARD@", board.name.clone()),
        ("@ARCH@", board.board.arch.to_string()),
        ("@EPOCH@", given.epoch.to_string()),
    ];
    Ok(values.iter().fold(text, |text, (name, value)| text.replace(name, value)).into_bytes())
}

/// Copies a folder of the host. Of its permissions only the execute bit counts: the rest is the umask's.
pub fn lay_folder(folder: &Path, into: &str, tree: &mut Tree) -> Result<()> {
    let read = || std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>();
    let mut entries = read().with_context(|| folder.display().to_string())?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().into_string().map_err(|n| anyhow!("{}: not UTF-8", n.display()))?;
        let path = if into.is_empty() { name } else { format!("{into}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            tree.insert(&path, Node::directory(0o755))?;
            lay_folder(&entry.path(), &path, tree)?;
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path())?;
            tree.insert(&path, Node::symlink(target.to_str().context("a link's target is not UTF-8")?))?;
        } else if !kind.is_file() {
            bail!("{}: neither a file, a folder nor a link", entry.path().display());
        } else {
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            let bytes = std::fs::read(entry.path())?;
            tree.insert(&path, Node::file(bytes, if executable { 0o755 } else { 0o644 }))?;
        }
    }
    Ok(())
}

/// All recipes' settings in one file.
fn lay_defaults(tree: &mut Tree, recipes: &[&LoadedRecipe]) -> Result<()> {
    let mut settings = toml::Table::new();
    for recipe in recipes {
        merge(&mut settings, &recipe.recipe.settings);
    }
    if !settings.is_empty() {
        let text = toml::to_string(&settings)?;
        tree.insert("usr/share/bramble/defaults.toml", Node::file(text.into_bytes(), 0o644))?;
    }
    Ok(())
}

fn lay_update_keys(tree: &mut Tree, keys: &[PathBuf]) -> Result<()> {
    for key in keys {
        let name = key.file_name().and_then(|n| n.to_str()).with_context(|| key.display().to_string())?;
        let text = std::fs::read_to_string(key).with_context(|| key.display().to_string())?;
        if !text.contains("-----BEGIN PUBLIC KEY-----") {
            bail!("{}: is no public key in PEM form", key.display());
        }
        tree.insert(&format!("etc/bramble/update-keys/{name}"), Node::file(text.into_bytes(), 0o644))?;
    }
    Ok(())
}

fn merge(into: &mut toml::Table, from: &toml::Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

/// What update-ca-certificates would make.
fn bundle_certificates(tree: &mut Tree) -> Result<()> {
    let certificates: Vec<&[u8]> = tree
        .below("usr/share/ca-certificates")
        .filter(|(path, _)| path.ends_with(".crt"))
        .filter_map(|(path, _)| tree.read(path))
        .collect();
    if certificates.is_empty() {
        return Ok(());
    }
    let bundle: Vec<u8> = certificates.iter().flat_map(|c| [c.trim_ascii_end(), b"\n"].concat()).collect();
    tree.insert("etc/ssl/certs/ca-certificates.crt", Node::file(bundle, 0o644))?;
    Ok(())
}

/// Owners, once all accounts are known, and permissions of what packages brought.
fn own_recipe(loaded: &LoadedRecipe, accounts: &Accounts, tree: &mut Tree) -> Result<()> {
    let recipe = &loaded.recipe;
    let number = |name: &Option<Spanned<String>>, find: &dyn Fn(&str) -> Option<u32>, what: &str| {
        let find = |name: &Spanned<String>| {
            let unknown = || {
                loaded.document.error(name.span(), format!("the image has no {what} {:?}", name.get_ref()))
            };
            find(name.get_ref()).ok_or_else(unknown)
        };
        name.as_ref().map(find).transpose()
    };
    let mut own = |path: &Spanned<String>, mode: Option<u16>, owner, group| -> Result<()> {
        let uid = number(owner, &|n| accounts.uid(n), "user")?;
        let gid = number(group, &|n| accounts.gid(n), "group")?;
        let gone = || loaded.document.error(path.span(), format!("{} is not in the image", path.get_ref()));
        let node = tree.get_mut(inner(path.get_ref())).ok_or_else(gone)?;
        (node.uid, node.gid) = (uid.unwrap_or(node.uid), gid.unwrap_or(node.gid));
        node.mode = mode.unwrap_or(node.mode);
        Ok(())
    };
    for file in &recipe.files {
        own(&file.path, None, &file.owner, &file.group)?;
    }
    let entry_mode = |entry: &DirectoryEntry| entry.mode.as_ref().map(|m| mode_of(Some(m), 0));
    for entry in recipe.directories.iter().chain(&recipe.permissions) {
        own(&entry.path, entry_mode(entry), &entry.owner, &entry.group)?;
    }
    Ok(())
}

fn set_units(tree: &mut Tree, recipes: &[&LoadedRecipe]) -> Result<()> {
    let mut preset = String::new();
    for loaded in recipes {
        let wanted = &loaded.recipe.units;
        let error = |unit: &Spanned<String>, message| loaded.document.error(unit.span(), message);
        for unit in &wanted.enable {
            units::enable(tree, unit.get_ref()).map_err(|m| error(unit, m))?;
            preset += &format!("enable {}\n", unit.get_ref());
        }
        for unit in &wanted.mask {
            units::mask(tree, unit.get_ref()).map_err(|m| error(unit, m))?;
        }
        if let Some(unit) = &wanted.default {
            units::set_default(tree, unit.get_ref()).map_err(|m| error(unit, m))?;
        }
    }
    if tree.get("usr/lib/systemd").is_some() {
        let text = format!("# What the image's recipes enable.\n{preset}disable *\n");
        tree.insert("usr/lib/systemd/system-preset/00-image.preset", Node::file(text.into_bytes(), 0o644))?;
    }
    Ok(())
}

fn keep_modules(modules: &Modules, tree: &mut Tree, recipes: &[&LoadedRecipe]) -> Result<()> {
    let mut files = Vec::new();
    for loaded in recipes {
        for wanted in &loaded.recipe.kernel.modules {
            let found = modules.find(wanted.get_ref());
            files.extend(found.map_err(|e| loaded.document.error(wanted.span(), e.to_string()))?);
        }
    }
    let kept: BTreeSet<&str> = modules.load_order(files).into_iter().collect();
    modules.keep(tree, &kept)
}

/// The one file of a tree with this name, wherever it is.
pub fn find_file<'a>(tree: &'a Tree, name: &str) -> Result<&'a [u8]> {
    let suffix = format!("/{name}");
    let is_file =
        |(path, node): &(&str, &Node)| path.ends_with(&suffix) && matches!(node.kind, Kind::File(_));
    let mut found = tree.iter().filter(is_file);
    match (found.next(), found.next()) {
        (Some((path, _)), None) => tree.read(path).with_context(|| path.to_owned()),
        (None, _) => bail!("no file is called {name}"),
        (Some((one, _)), Some((other, _))) => bail!("more than one file is called {name}: {one} and {other}"),
    }
}
