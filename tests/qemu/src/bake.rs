//! Images that only a test wants: of another board, or with a layer of a user's, baked as its owner would. The programs
//! are those that `hack/image rpi-3` made before. And container images for that board, made of Debian's busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// What the container image says that [`with_layer`] puts on the card.
pub const GREETING: &str = "hello from a layer";
const GREETING_ARCHIVE: &str = "recipes/probe/files/greeting.tar";
const BOARD: &str = "rpi-3";
const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Bakes `rpi-3` with a copy of a layer of this package, and with a container image made of the layer's
/// `busybox-static`. Gives a folder and the image in it; `BRAMBLE_LAYER_IMAGE` is one that was baked before.
pub fn with_layer(layer: &str) -> Result<(TempDir, PathBuf)> {
    let folder = folder()?;
    if let Some(image) = std::env::var_os("BRAMBLE_LAYER_IMAGE") {
        return Ok((folder, image.into()));
    }
    let layer = fetched(layer, folder.path())?;
    greeting(folder.path(), &layer.join(GREETING_ARCHIVE))?;
    let image = bake(BOARD, &[&layer], folder.path())?;
    Ok((folder, image))
}

/// A copy of a layer of this package in `folder`, locked, its packages in the cache.
fn fetched(layer: &str, folder: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(layer);
    let copy = folder.join("layer");
    run(Command::new("cp").arg("-r").arg(&source).arg(&copy))?;
    // Who locks wants to see what the layer names; it is made of what is fetched.
    let archive = copy.join(GREETING_ARCHIVE);
    fs::create_dir_all(archive.parent().context("a folder")?)?;
    fs::write(&archive, [])?;
    for verb in ["lock", "fetch"] {
        run(image_builder(verb)?.arg(BOARD).arg("--layer").arg(&copy))?;
    }
    Ok(copy)
}

/// Bakes a 64-bit board's image. Gives a folder and the image in it.
pub fn image_of(board: &str) -> Result<(TempDir, PathBuf)> {
    let folder = folder()?;
    run(image_builder("fetch")?.arg(board))?;
    let image = bake(board, &[], folder.path())?;
    Ok((folder, image))
}

fn folder() -> Result<TempDir> {
    let place = crate::out().join("qemu");
    fs::create_dir_all(&place)?;
    Ok(tempfile::Builder::new().prefix("bramble-bake-").tempdir_in(&place)?)
}

fn bake(board: &str, layers: &[&Path], out: &Path) -> Result<PathBuf> {
    let programs = crate::out().join("cross").join(TARGET).join("image").canonicalize();
    let programs = programs.with_context(|| format!("no programs: hack/image {BOARD} first"))?;
    let mut command = image_builder("bake")?;
    command.arg(board);
    layers.iter().for_each(|layer| {
        command.arg("--layer").arg(layer);
    });
    command.arg("--agent").arg(programs.join("bramble")).arg("--init").arg(programs.join("bramble-init"));
    command.args(["--image-version", "0-test", "--out"]).arg(out);
    run(&mut command)?;
    let image = out.join(format!("bramble-{board}-0-test.img"));
    ensure!(image.exists(), "{} was not made", image.display());
    Ok(image)
}

fn image_builder(verb: &str) -> Result<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["run", "-q", "--locked", "-p", "image-builder", "--", verb]);
    Ok(command)
}

/// A docker-save archive: the layer's busybox, which says hello.
fn greeting(folder: &Path, to: &Path) -> Result<()> {
    let saved = busybox(folder, &["/bin/busybox", "echo", GREETING])?;
    let manifest =
        r#"[{"Config":"config.json","RepoTags":["example.org/greeting:1"],"Layers":["layer.tar"]}]"#;
    fs::write(saved.join("manifest.json"), manifest)?;
    let names = ["config.json", "layer.tar", "manifest.json"];
    run(Command::new("tar").arg("-C").arg(&saved).arg("-cf").arg(to).args(names))
}

/// Makes a web server's image and writes it as `tests/images/build.py` does, so that it pushes it: under this name.
pub fn web_server(folder: &Path, name: &str) -> Result<()> {
    fetched("layer", folder)?;
    let page = "echo 'Welcome to nginx on ARM!' > /index.html; exec /bin/busybox httpd -f -p 80 -h /";
    let saved = busybox(folder, &["/bin/busybox", "sh", "-c", page])?;
    let blobs = folder.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |file: &str, kind: &str| -> Result<String> {
        let (path, sum) = (saved.join(file), sha256(&saved.join(file))?);
        fs::copy(&path, blobs.join(&sum))?;
        let (kind, size) = (format!("application/vnd.oci.image.{kind}"), path.metadata()?.len());
        Ok(format!(r#"{{"mediaType":"{kind}","digest":"sha256:{sum}","size":{size}}}"#))
    };
    let (config, layer) = (blob("config.json", "config.v1+json")?, blob("layer.tar", "layer.v1.tar")?);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{config},"layers":[{layer}]}}"#);
    fs::write(saved.join("manifest"), manifest)?;
    let images = format!(r#"{{"images":{{"{name}":{}}}}}"#, blob("manifest", "manifest.v1+json")?);
    Ok(fs::write(folder.join("images.json"), images)?)
}

/// What is in an image: the fetched layer's busybox, and a configuration with this command. Gives the folder with
/// `config.json` and `layer.tar`.
fn busybox(folder: &Path, command: &[&str]) -> Result<PathBuf> {
    let (unpacked, root, saved) = (folder.join("deb"), folder.join("root"), folder.join("saved"));
    for new in [&unpacked, &root.join("bin"), &saved] {
        fs::create_dir_all(new)?;
    }
    run(Command::new("dpkg-deb").arg("-x").arg(cached("busybox-static_")?).arg(&unpacked))?;
    fs::copy(unpacked.join("usr/bin/busybox"), root.join("bin/busybox")).context("busybox")?;
    run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(saved.join("layer.tar")).arg("bin"))?;
    let sum = sha256(&saved.join("layer.tar"))?;
    let config = format!(
        r#"{{"architecture":"arm64","os":"linux","config":{{"Cmd":{command:?}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{sum}"]}}}}"#
    );
    fs::write(saved.join("config.json"), config)?;
    Ok(saved)
}

fn sha256(path: &Path) -> Result<String> {
    let said = Command::new("sha256sum").arg(path).output()?.stdout;
    Ok(String::from_utf8(said)?.split_whitespace().next().context("a hash")?.to_owned())
}

/// The newest package of that name that was fetched.
fn cached(prefix: &str) -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(path) => PathBuf::from(path),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let debs = base.join("bramble/debs");
    let found = fs::read_dir(&debs).with_context(|| debs.display().to_string())?.flatten();
    let ours = found.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with("_arm64.deb")
    });
    ours.max_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok())
        .with_context(|| format!("no {prefix}*_arm64.deb in {}", debs.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
