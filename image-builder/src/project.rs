//! The repository's inputs together: a board, its suite and layout, and the recipes of all layers that apply to it,
//! every one of them checked.

use crate::resolve::Request;
use crate::schema::{
    Arch, Board, DirectoryEntry, Document, Error, FileEntry, LayerConfig, Layout, Recipe, Role, Suite, When,
    image_path, octal_mode, plain_path,
};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Where everything is.
#[derive(Debug)]
pub struct Project {
    root: PathBuf,
    layers: Vec<Layer>,
}

/// A layer, read.
#[derive(Debug)]
pub struct Layer {
    /// Its folder.
    pub dir: PathBuf,
    /// `layer.toml`.
    pub config: LayerConfig,
    /// In the order of their paths.
    pub recipes: Vec<LoadedRecipe>,
}

/// A recipe, read and checked.
#[derive(Debug)]
pub struct LoadedRecipe {
    /// `web` or `web/armhf`, for messages.
    pub name: String,
    /// For errors that name its lines.
    pub document: Document,
    /// The recipe.
    pub recipe: Recipe,
    /// Where the files are that it names.
    pub files: PathBuf,
    /// The layer's folder.
    layer: PathBuf,
}

/// A board with its own file.
#[derive(Debug)]
pub struct LoadedBoard {
    /// Its file's name without `.toml`.
    pub name: String,
    /// For errors that name its lines.
    pub document: Document,
    /// The board.
    pub board: Board,
}

impl Project {
    /// Reads the repository's own layer and the user's, in that order.
    pub fn open(root: &Path, more_layers: &[PathBuf]) -> Result<Self> {
        let own = root.join("image-builder/layers/bramble");
        let layers =
            std::iter::once(&own).chain(more_layers).map(|dir| Layer::open(dir)).collect::<Result<_>>()?;
        Ok(Self { root: root.to_owned(), layers })
    }

    /// The repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A board by its name, or by a path to its file.
    pub fn board(&self, name: &str) -> Result<LoadedBoard> {
        let path = if name.ends_with(".toml") {
            PathBuf::from(name)
        } else {
            self.root.join("board-configs").join(format!("{name}.toml"))
        };
        if !path.exists() {
            let known = self.board_names()?.join(", ");
            bail!("no board is called {name:?}: {} is not there; there are {known}", path.display());
        }
        let document = Document::read(&path)?;
        let board: Board = document.parse()?;
        check_board(&document, &board)?;
        let name = path.file_stem().and_then(|s| s.to_str()).context("board without a name")?.to_owned();
        Ok(LoadedBoard { name, document, board })
    }

    /// All boards' names.
    pub fn board_names(&self) -> Result<Vec<String>> {
        let names = sorted_files(&self.root.join("board-configs"))?;
        Ok(names.iter().filter_map(|p| Some(p.file_stem()?.to_str()?.to_owned())).collect())
    }

    /// The board's suite, with its keyring's path.
    pub fn suite(&self, name: &str) -> Result<(Suite, PathBuf)> {
        let path = self.root.join("image-builder/suites").join(format!("{name}.toml"));
        let suite: Suite = Document::read(&path)?.parse()?;
        let keyring = path.parent().unwrap_or(Path::new("")).join(suite.keyring.get_ref());
        Ok((suite, keyring))
    }

    /// The board's layout.
    pub fn layout(&self, name: &str) -> Result<Layout> {
        let path = self.root.join("image-builder/layouts").join(format!("{name}.toml"));
        let document = Document::read(&path)?;
        let layout: Layout = document.parse()?;
        check_layout(&document, &layout)?;
        Ok(layout)
    }

    /// The lock that goes with the board, unless another one is named.
    pub fn lock_path(&self, suite: &str, arch: Arch) -> PathBuf {
        self.root.join("image-builder/locks").join(format!("{suite}-{arch}.toml"))
    }

    /// The recipes that apply to the board, in order.
    pub fn recipes<'a>(&'a self, board: &'a LoadedBoard) -> impl Iterator<Item = &'a LoadedRecipe> {
        self.layers.iter().flat_map(|layer| &layer.recipes).filter(|r| applies(&r.recipe.when, board))
    }

    /// What the board asks of Debian.
    pub fn request(&self, board: &LoadedBoard) -> Request {
        let mut request = Request::default();
        request.packages.insert(board.board.kernel.get_ref().clone());
        request.packages.insert(board.board.firmware.package.get_ref().clone());
        for loaded in self.recipes(board) {
            request.packages.extend(loaded.recipe.packages.iter().map(|p| p.get_ref().clone()));
            request.exclude.extend(loaded.recipe.exclude.iter().map(|p| p.get_ref().clone()));
        }
        request
    }

    /// The requests of all boards of a suite and architecture.
    pub fn requests(&self, suite: &str, arch: Arch) -> Result<BTreeMap<String, Request>> {
        let mut requests = BTreeMap::new();
        for name in self.board_names()? {
            let board = self.board(&name)?;
            if board.board.suite == suite && board.board.arch == arch {
                requests.insert(name, self.request(&board));
            }
        }
        Ok(requests)
    }
}

impl Layer {
    /// Reads a layer and all its recipes.
    pub fn open(dir: &Path) -> Result<Self> {
        let config: LayerConfig = Document::read(&dir.join("layer.toml"))?.parse()?;
        let mut recipes = Vec::new();
        let folder = dir.join("recipes");
        let entries = if folder.exists() { sorted_entries(&folder)? } else { Vec::new() };
        for entry in entries {
            if entry.is_dir() {
                for path in sorted_files(&entry)? {
                    recipes.push(LoadedRecipe::read(dir, &folder, &path)?);
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), config, recipes })
    }
}

impl LoadedRecipe {
    fn read(layer: &Path, folder: &Path, path: &Path) -> Result<Self> {
        let document = Document::read(path)?;
        let recipe: Recipe = document.parse()?;
        let name = path.strip_prefix(folder).unwrap_or(path).with_extension("").display().to_string();
        let files = path.parent().unwrap_or(folder).join("files");
        let loaded = Self { name, document, recipe, files, layer: layer.to_owned() };
        loaded.check()?;
        Ok(loaded)
    }

    /// The file that a `source` names: inside the recipe's `files/`, and where links are on the way, inside the layer.
    pub fn source(&self, source: &Spanned<String>) -> Result<PathBuf, Error> {
        let plain = plain_path(source.get_ref()).map_err(|m| self.document.error(source.span(), m))?;
        let path = self.files.join(plain);
        if !path.exists() {
            let message = format!("{} is not there", path.display());
            return Err(self.document.error(source.span(), message));
        }
        let inside =
            |path: &Path| Some(path.canonicalize().ok()?.starts_with(self.layer.canonicalize().ok()?));
        if inside(&path) != Some(true) {
            let message = format!("{} leads out of the layer", path.display());
            return Err(self.document.error(source.span(), message));
        }
        Ok(path)
    }

    fn check(&self) -> Result<(), Error> {
        let recipe = &self.recipe;
        for file in &recipe.files {
            self.check_file(file, image_path)?;
        }
        for file in &recipe.boot_files {
            self.check_file(file, plain_path)?;
        }
        for directory in recipe.directories.iter().chain(&recipe.permissions) {
            self.check_directory(directory, image_path)?;
        }
        for directory in &recipe.data_directories {
            self.check_directory(directory, plain_path)?;
            if let Some(name) = directory.owner.as_ref().or(directory.group.as_ref()) {
                return Err(self.document.error(name.span(), "folders of the data partition are root's"));
            }
        }
        for link in &recipe.symlinks {
            self.spanned(&link.path, image_path)?;
        }
        for glob in recipe.remove.iter().chain(&recipe.keep) {
            self.spanned(glob, compile_glob)?;
        }
        for tree in &recipe.trees {
            self.source(tree)?;
        }
        for patch in &recipe.patches {
            self.source(&patch.source)?;
        }
        for image in recipe.images.iter().filter(|i| !Path::new(i.archive.get_ref()).is_absolute()) {
            self.source(&image.archive)?;
        }
        for unit in recipe.units.install.iter().filter(|u| !u.get_ref().starts_with("repo:")) {
            self.source(unit)?;
        }
        let words = recipe.cmdline.iter().chain(&recipe.config_txt);
        words.map(|w| self.spanned(w, one_line)).collect::<Result<Vec<_>, _>>()?;
        Ok(())
    }

    fn check_file(&self, file: &FileEntry, path: fn(&str) -> Result<&str, String>) -> Result<(), Error> {
        self.spanned(&file.path, path)?;
        self.check_mode(file.mode.as_ref())?;
        if let Some(source) = &file.source {
            self.source(source)?;
        }
        if let Some(input) = &file.input {
            self.spanned(input, |name| {
                if name == "agent" {
                    Ok(())
                } else {
                    Err(format!("no input is called {name:?}: there is \"agent\""))
                }
            })?;
        }
        let given = [file.source.is_some(), file.text.is_some(), file.input.is_some()];
        if given.iter().filter(|g| **g).count() != 1 {
            let message = "exactly one of `source`, `text` and `input` says what is in the file";
            return Err(self.document.error(file.path.span(), message));
        }
        Ok(())
    }

    fn check_directory(
        &self,
        entry: &DirectoryEntry,
        path: fn(&str) -> Result<&str, String>,
    ) -> Result<(), Error> {
        self.spanned(&entry.path, path)?;
        self.check_mode(entry.mode.as_ref())
    }

    fn check_mode(&self, mode: Option<&Spanned<String>>) -> Result<(), Error> {
        mode.map_or(Ok(()), |mode| self.spanned(mode, octal_mode).map(drop))
    }

    fn spanned<'a, T>(
        &self,
        value: &'a Spanned<String>,
        check: impl FnOnce(&'a str) -> Result<T, String>,
    ) -> Result<T, Error> {
        check(value.get_ref()).map_err(|message| self.document.error(value.span(), message))
    }
}

/// A glob over the tree's own spelling of paths (without the leading `/`).
pub fn compile_glob(glob: &str) -> Result<globset::GlobMatcher, String> {
    let relative =
        glob.strip_prefix('/').ok_or_else(|| format!("{glob:?} is not absolute: begin it with /"))?;
    let glob = globset::GlobBuilder::new(relative).literal_separator(true).build();
    glob.map(|g| g.compile_matcher()).map_err(|e| e.to_string())
}

fn one_line(text: &str) -> Result<&str, String> {
    if text.chars().any(char::is_control) || text.trim().is_empty() {
        return Err(format!("{text:?} is not one line"));
    }
    Ok(text)
}

fn applies(when: &When, board: &LoadedBoard) -> bool {
    let features = &board.board.features;
    (when.arch.is_empty() || when.arch.contains(&board.board.arch))
        && (when.boards.is_empty() || when.boards.contains(&board.name))
        && when.features.iter().all(|f| features.contains(f))
        && !when.without.iter().any(|f| features.contains(f))
}

fn check_board(document: &Document, board: &Board) -> Result<(), Error> {
    let single = |name: &Spanned<String>| {
        plain_path(name.get_ref())
            .and_then(|p| if p.contains('/') { Err(format!("{p:?} is no plain file name")) } else { Ok(()) })
            .map_err(|m| document.error(name.span(), m))
    };
    board.dtbs.iter().try_for_each(|dtb| single(&dtb.file))?;
    board.firmware.files.iter().try_for_each(single)?;
    let lines = board.cmdline.iter().chain(&board.config_txt);
    lines
        .map(|l| one_line(l.get_ref()).map_err(|m| document.error(l.span(), m)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(())
}

fn check_layout(document: &Document, layout: &Layout) -> Result<(), Error> {
    let sectors = slots::COPIES.map(|at| at / 512);
    if layout.boot_state_sectors.get_ref().map(u64::from) != sectors {
        let message =
            format!("the boot state is in sectors {} and {}: /init knows no others", sectors[0], sectors[1]);
        return Err(document.error(layout.boot_state_sectors.span(), message));
    }
    let mut end = 1;
    let mut seen = Vec::new();
    for partition in &layout.partitions {
        let (start, size) = (*partition.start_mib.get_ref(), *partition.size_mib.get_ref());
        if start < end {
            let message = format!("begins at {start} MiB, inside what is before it (free from {end} MiB)");
            return Err(document.error(partition.start_mib.span(), message));
        }
        if size == 0 || start.checked_add(size).is_none_or(|end| end > 1 << 20) {
            return Err(document.error(partition.size_mib.span(), "is no size that a card can have"));
        }
        end = start + size;
        seen.push(*partition.role.get_ref());
    }
    if seen != [Role::Boot, Role::RootA, Role::RootB, Role::Data] {
        return Err(document.error(0..0, "the partitions are not boot, root-a, root-b, data, in this order"));
    }
    Ok(())
}

fn sorted_entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || std::fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = read().with_context(|| format!("{}: cannot be read", dir.display()))?;
    paths.sort();
    Ok(paths)
}

fn sorted_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = sorted_entries(dir)?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "toml"));
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Lock;

    #[test]
    fn our_own_recipes_are_sound_and_locked() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let project = Project::open(&root, &[]).unwrap();
        for name in project.board_names().unwrap() {
            let board = project.board(&name).unwrap();
            project.layout(&board.board.layout).unwrap();
            let path = project.lock_path(&board.board.suite, board.board.arch);
            let lock = Lock::read(&path).unwrap();
            let fits = lock.answers(&name, &project.request(&board));
            assert!(fits, "the recipes' packages changed: run `image-builder lock {name}`");
        }
    }
}
