//! `image-builder bundle`: the update bundle, out of a finished image.
//!
//! A bundle holds what slot A of the image holds, so an updated card and a freshly flashed one run the same bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bundle::{Entry, FORMAT, Manifest, ROOT, SigningKey};
use clap::Args;
use fatfs::Dir;
use slots::{Range, Slot};

use crate::boot_partition::{BootPartition, Window, table};

/// Where a slot's folder is read no deeper.
const MAX_DEPTH: usize = 3;

/// What `bundle` takes.
#[derive(Debug, Args)]
pub struct Bundle {
    /// The finished image (.img).
    image: PathBuf,
    /// The board that it was baked for (rpi-3).
    #[arg(long)]
    board: String,
    /// Debian's name of its architecture.
    #[arg(long)]
    arch: String,
    /// The system's version.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
    /// The key to sign with (`image-builder update-key` makes one).
    #[arg(long)]
    key: PathBuf,
    /// Where to write it; IMAGE with .update in place of .img if left out.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// What `update-key` takes.
#[derive(Debug, Args)]
pub struct UpdateKey {
    /// The private key's file. The public one is written beside it, as FILE with .pub.pem at its end, and belongs into
    /// `/etc/bramble/update-keys` of the image.
    file: PathBuf,
}

/// Makes a bundle.
///
/// # Errors
/// If the image is not one of ours, or something cannot be read or written; then there is no bundle.
pub fn run(args: &Bundle) -> Result<()> {
    let key = read_key(&args.key)?;
    let output = args.output.clone().unwrap_or_else(|| args.image.with_extension("update"));
    let about = About { board: &args.board, arch: &args.arch, version: &args.version };
    let manifest = make(&args.image, &about, &key, &output)?;
    println!(
        "{}: version {} for {}, {} files",
        output.display(),
        args.version,
        args.board,
        manifest.files.len()
    );
    Ok(())
}

/// Reads a key to sign with.
fn read_key(path: &Path) -> Result<SigningKey> {
    let named = path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| named.clone())?;
    Ok(SigningKey::from_pem(&named, &text)?)
}

/// Makes a key.
///
/// # Errors
/// If it cannot be written, or there is one already: a lost key is a fleet that can no longer be updated.
pub fn make_key(args: &UpdateKey) -> Result<()> {
    let (key, text) = SigningKey::generate()?;
    let mut options = fs::OpenOptions::new();
    let named = || args.file.display().to_string();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&args.file).with_context(named)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(named)?;
    let public = args.file.with_extension("pub.pem");
    fs::write(&public, key.public_pem()).with_context(|| public.display().to_string())?;
    println!("{}: keep it secret and keep a copy of it", args.file.display());
    println!("{}: belongs into the image, in /etc/bramble/update-keys", public.display());
    Ok(())
}

/// What the bundle says that it is.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Board configuration.
    pub board: &'a str,
    /// Debian's architecture.
    pub arch: &'a str,
    /// Version.
    pub version: &'a str,
}

/// Writes the bundle of an image to `output`, whole or not at all.
///
/// # Errors
/// If the image is not one of ours, or something cannot be read or written.
pub fn make(image: &Path, about: &About<'_>, key: &SigningKey, output: &Path) -> Result<Manifest> {
    let named = || image.display().to_string();
    let card = File::open(image).with_context(named)?;
    let root = squashfs(&card).with_context(named)?;
    let boot = BootPartition::open(&card).with_context(named)?;
    let folder =
        boot.root().open_dir(Slot::A.folder()).with_context(|| format!("{}: no slot-a/", named()))?;
    let mut paths = Vec::new();
    walk(&folder, "", 0, &mut paths)?;
    paths.sort();
    let mut files = Vec::new();
    for path in &paths {
        files.push(bundle::measure(&format!("boot/{path}"), folder.open_file(path)?)?);
    }
    files.push(bundle::measure(ROOT, Part { card: &card, range: root })?);
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: about.version.to_owned(),
        board: about.board.to_owned(),
        arch: about.arch.to_owned(),
        files,
    };
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let to = tempfile::NamedTempFile::new_in(parent).with_context(|| parent.display().to_string())?;
    bundle::write(
        BufWriter::new(to.as_file()),
        &manifest,
        key,
        |entry: &Entry| -> io::Result<Box<dyn Read + '_>> {
            Ok(match entry.boot_path() {
                Some(path) => Box::new(folder.open_file(path)?),
                None => Box::new(Part { card: &card, range: root }),
            })
        },
    )?;
    to.as_file().sync_all()?;
    fs::set_permissions(to.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    to.persist(output).with_context(|| output.display().to_string())?;
    Ok(manifest)
}

/// All files of a folder, as paths below it.
fn walk(folder: &Dir<'_, Window<'_>>, prefix: &str, depth: usize, paths: &mut Vec<String>) -> Result<()> {
    ensure!(depth <= MAX_DEPTH, "the image's slot-a/ is too deep: {prefix}");
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == "." || name == ".." {
            continue;
        }
        let path = format!("{prefix}{name}");
        if entry.is_dir() {
            walk(&entry.to_dir(), &format!("{path}/"), depth + 1, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// The squashfs in slot A: its superblock says how long it is.
fn squashfs(card: &File) -> Result<Range> {
    let range = table(card)?.root(Slot::A);
    let mut superblock = [0; 48];
    card.read_exact_at(&mut superblock, range.start)?;
    let used = superblock[40..].try_into().map(u64::from_le_bytes)?;
    if &superblock[..4] != b"hsqs" || used > range.len {
        bail!("its slot A has no squashfs");
    }
    // Its last block is read whole by the kernel.
    Ok(Range { start: range.start, len: used.next_multiple_of(4096).min(range.len) })
}

/// A range of a card, read from its start.
struct Part<'a> {
    card: &'a File,
    range: Range,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.range.len).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.card.read_at(&mut buffer[..want], self.range.start)?;
        self.range.start += got as u64;
        self.range.len -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing_card::{self, CMDLINE, rootfs};

    #[derive(Default)]
    struct Names(Vec<(String, Vec<u8>)>);

    impl bundle::Sink for Names {
        type Error = anyhow::Error;
        fn accept(&mut self, _: &Manifest) -> Result<()> {
            Ok(())
        }
        fn chunk(&mut self, file: &Entry, _: u64, bytes: &[u8]) -> Result<()> {
            match self.0.last_mut().filter(|(name, _)| *name == file.name) {
                Some((_, content)) => content.extend_from_slice(bytes),
                None => self.0.push((file.name.clone(), bytes.to_vec())),
            }
            Ok(())
        }
        fn complete(&mut self, _: &Entry) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bundle_is_what_slot_a_is() {
        let folder = tempfile::tempdir().unwrap();
        let image = testing_card::write(folder.path());
        let (key, _) = SigningKey::generate().unwrap();
        let about = About { board: "rpi-3", arch: "arm64", version: "0.2.0" };
        let output = folder.path().join("x.update");
        make(&image, &about, &key, &output).unwrap();
        let first = fs::read(&output).unwrap();
        make(&image, &about, &key, &output).unwrap();
        assert!(fs::read(&output).unwrap() == first, "reproducible");

        let mut keys = bundle::TrustedKeys::default();
        keys.add("test", &key.public_pem()).unwrap();
        let mut names = Names::default();
        let manifest = bundle::read(first.as_slice(), &keys, &mut names).unwrap();
        assert_eq!((manifest.board.as_str(), manifest.version.as_str()), ("rpi-3", "0.2.0"));
        let found: Vec<&str> = names.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, ["boot/cmdline.txt", "boot/overlays/a.dtbo", "boot/vmlinuz", "root.squashfs"]);
        assert_eq!(names.0[0].1, CMDLINE);
        assert_eq!(names.0[3].1, rootfs());
    }

    #[test]
    fn another_file_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("x.img");
        fs::write(&image, [0; 1024]).unwrap();
        let (key, _) = SigningKey::generate().unwrap();
        let about = About { board: "rpi-3", arch: "arm64", version: "0.2.0" };
        let error = make(&image, &about, &key, &folder.path().join("y")).unwrap_err();
        assert!(format!("{error:#}").contains("partition table"), "{error:#}");
        assert!(!folder.path().join("y").exists());
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let args = UpdateKey { file: folder.path().join("update.pem") };
        make_key(&args).unwrap();
        let text = fs::read_to_string(&args.file).unwrap();
        SigningKey::from_pem("x", &text).unwrap();
        assert!(make_key(&args).is_err());
        assert_eq!(fs::read_to_string(&args.file).unwrap(), text);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&args.file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert!(folder.path().join("update.pub.pem").exists());
    }
}
