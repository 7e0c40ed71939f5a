//! From locked packages and recipes to the files that a person flashes.

use crate::cache::{Cache, style};
use crate::kernel::Modules;
use crate::lock::{Lock, LockedDeb};
use crate::project::{LoadedBoard, LoadedRecipe, Project};
use crate::sbom::{self, Crate};
use crate::schema::{Layout, Role};
use crate::system::{self, Given, Unpacked};
use crate::tree::Tree;
use crate::{boot, card, ext4, fat, hash, initramfs, squashfs};
use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar};
use slots::Slot;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// zstd of the whole image: what is in it is compressed already, so more costs minutes and gives a percent.
const IMAGE_LEVEL: i32 = 9;

/// Everything that a bake takes.
#[derive(Debug)]
pub struct Bake<'a> {
    /// The inputs.
    pub project: &'a Project,
    /// The board.
    pub board: &'a LoadedBoard,
    /// Its lock.
    pub lock: &'a Lock,
    /// Where the packages are.
    pub cache: &'a Cache,
    /// Version, time, agent.
    pub given: &'a Given,
    /// `/init` of the initramfs.
    pub init: &'a Path,
    /// Crates of the agent and of `/init`, for the SBOM.
    pub crates: &'a [Crate],
    /// Folder for what is made.
    pub out: &'a Path,
    /// Where progress is shown.
    pub progress: &'a MultiProgress,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Baked {
    /// The image.
    pub image: PathBuf,
    /// All files made, with their sizes.
    pub files: Vec<(PathBuf, u64)>,
}

impl Bake<'_> {
    /// Bakes. Nothing in `out` is touched before all of it is made.
    pub fn run(&self) -> Result<Baked> {
        let layout = self.project.layout(&self.board.board.layout)?;
        fs::create_dir_all(self.out).with_context(|| self.out.display().to_string())?;
        // Beside the results, so that moving them there cannot fail half-way for want of room.
        let scratch = tempfile::Builder::new().prefix(".bake-").tempdir_in(self.out)?;
        let recipes: Vec<&LoadedRecipe> = self.project.recipes(self.board).collect();
        let mut unpacked = self.unpack()?;
        let step = self.step("kernel modules and initramfs");
        let modules = Modules::of(&unpacked.root)?;
        let init = fs::read(self.init).with_context(|| self.init.display().to_string())?;
        let epoch = self.given.epoch;
        let archive = initramfs::build(&unpacked.root, modules.as_ref(), &recipes, &init, epoch)?;
        let slot = boot::slot_files(self.board, &recipes, &unpacked, archive, Slot::A)?;
        step.finish_and_clear();
        system::compose(self.project, self.board, self.given, modules.as_ref(), &mut unpacked.root)?;
        let bar = self.bar("packing the root file system", unpacked.root.size());
        squashfs::write(&unpacked.root, epoch, &scratch.path().join("root.squashfs"), &bar)?;
        bar.finish_and_clear();
        let step = self.step("boot and data partitions");
        let firmware = boot::partition(self.board, &recipes, self.given, &unpacked.firmware, &slot)?;
        self.write_file_systems(&layout, &recipes, &firmware, scratch.path())?;
        step.finish_and_clear();
        self.assemble(&layout, scratch.path())?;
        self.publish(scratch.path())
    }

    fn unpack(&self) -> Result<Unpacked> {
        let debs: Vec<&LockedDeb> = self.lock.debs_of(&self.board.name).collect();
        let bar = self.bar("", debs.iter().map(|d| d.size).sum());
        let mut unpacked = Unpacked::new()?;
        for deb in debs {
            bar.set_message(format!("unpacking {}", deb.name));
            let bytes = self.cache.read(deb)?;
            unpacked.add(self.board, &deb.name, &bytes).with_context(|| deb.file_name())?;
            bar.inc(deb.size);
        }
        bar.finish_and_clear();
        Ok(unpacked)
    }

    fn bar(&self, what: &'static str, size: u64) -> ProgressBar {
        let bar = self.progress.add(ProgressBar::new(size));
        bar.set_style(style("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"));
        bar.set_message(what);
        bar
    }

    fn step(&self, what: &'static str) -> ProgressBar {
        let bar = self.progress.add(ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {elapsed} {msg}"));
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn write_file_systems(
        &self,
        layout: &Layout,
        recipes: &[&LoadedRecipe],
        firmware: &Tree,
        scratch: &Path,
    ) -> Result<()> {
        let epoch = self.given.epoch;
        for partition in &layout.partitions {
            let size = u64::from(*partition.size_mib.get_ref()) * 1024 * 1024;
            match partition.role.get_ref() {
                Role::Boot => {
                    let path = scratch.join("boot.fat");
                    fat::write(firmware, &partition.label, size, self.id("boot"), epoch, &path)?;
                }
                Role::Data => {
                    let path = scratch.join("data.ext4");
                    ext4::write(&folders(recipes), &partition.label, size, &self.uuid("data"), epoch, &path)?;
                }
                Role::RootA | Role::RootB => {}
            }
        }
        Ok(())
    }

    fn assemble(&self, layout: &Layout, scratch: &Path) -> Result<()> {
        let (boot, root, data) =
            (scratch.join("boot.fat"), scratch.join("root.squashfs"), scratch.join("data.ext4"));
        let parts = card::Parts { boot: &boot, root: &root, data: &data };
        let image = scratch.join("img");
        let step = self.step("card image and block map");
        let ranges = card::write(layout, self.id("disk"), &parts, &image)?;
        fs::write(scratch.join("bmap"), card::block_map(&image, &ranges)?)?;
        step.finish_and_clear();
        let bar = self.bar("compressing the card image", fs::metadata(&image)?.len());
        card::compress(&image, &scratch.join("img.zst"), IMAGE_LEVEL, &bar)?;
        bar.finish_and_clear();
        let bom = sbom::document(self.board, self.lock, self.given, self.crates)?;
        fs::write(scratch.join("sbom.json"), bom)?;
        fs::remove_file(boot)?;
        Ok(fs::remove_file(data)?)
    }

    /// Moves what was made to its names.
    fn publish(&self, scratch: &Path) -> Result<Baked> {
        let stem = format!("bramble-{}-{}", self.board.name, self.given.version);
        let place = |ending: &str| self.out.join(format!("{stem}.{ending}"));
        let mut sums = String::new();
        for ending in ["img", "img.zst", "bmap", "sbom.json"] {
            let (sum, _) = hash::sha256_reader(fs::File::open(scratch.join(ending))?)?;
            sums += &format!("{sum}  {stem}.{ending}\n");
        }
        fs::write(scratch.join("sha256"), sums)?;
        let mut files = Vec::new();
        for (from, ending) in [
            ("img", "img"),
            ("img.zst", "img.zst"),
            ("bmap", "bmap"),
            ("sbom.json", "sbom.json"),
            ("sha256", "sha256"),
        ] {
            let target = place(ending);
            fs::rename(scratch.join(from), &target).with_context(|| target.display().to_string())?;
            files.push((target.clone(), fs::metadata(&target)?.len()));
        }
        Ok(Baked { image: place("img"), files })
    }

    /// A number that is always the same for the same board, and another one for another purpose.
    fn id(&self, purpose: &str) -> u32 {
        crc32fast::hash(format!("bramble {} {purpose}", self.board.name).as_bytes())
    }

    fn uuid(&self, purpose: &str) -> String {
        uuid_of(&format!("bramble {} {purpose}", self.board.name))
    }
}

/// A UUID (of the kind that is free in its bits, version 8) that a text alone decides.
pub fn uuid_of(text: &str) -> String {
    let h = hash::sha256(text.as_bytes());
    format!("{}-{}-8{}-8{}-{}", &h[..8], &h[8..12], &h[13..16], &h[17..20], &h[20..32])
}

fn folders(recipes: &[&LoadedRecipe]) -> Vec<ext4::Folder> {
    let entries = recipes.iter().flat_map(|r| &r.recipe.data_directories);
    let folder = |entry: &crate::schema::DirectoryEntry| ext4::Folder {
        path: entry.path.get_ref().clone(),
        mode: entry.mode.as_ref().and_then(|m| crate::schema::octal_mode(m.get_ref()).ok()).unwrap_or(0o755),
        uid: 0,
        gid: 0,
    };
    entries.map(folder).collect()
}

#[cfg(test)]
mod tests;
