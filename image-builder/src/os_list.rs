//! `image-builder os-list`: the list from which Raspberry Pi Imager offers our images.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::schema::{Board, Document};

/// What `os-list` takes.
#[derive(Debug, Args)]
pub struct OsList {
    /// Pairs of a board and its packed image: `rpi-3=out/bramble-rpi-3-0.2.0.img.zst`.
    #[arg(required = true, value_name = "BOARD=IMAGE", value_parser = pair)]
    images: Vec<(String, PathBuf)>,
    /// Where the images will be found: the address of their folder.
    #[arg(long)]
    url: String,
    /// Address of the picture that the list shows.
    #[arg(long)]
    icon: String,
    /// Day of the release (2026-11-24).
    #[arg(long, value_parser = day)]
    date: String,
    /// Folder with board-configs/.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Where to write the list; standard output if left out.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct List {
    os_list: Vec<Entry>,
}

/// One image, in Imager's words.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    description: String,
    icon: String,
    url: String,
    extract_size: u64,
    extract_sha256: String,
    image_download_size: u64,
    image_download_sha256: String,
    release_date: String,
    devices: Vec<String>,
    /// Imager's own settings would not be read: `bramble.toml` is where they go.
    init_format: &'static str,
}

fn pair(text: &str) -> Result<(String, PathBuf), String> {
    let (board, image) = text.split_once('=').ok_or("it is BOARD=IMAGE")?;
    Ok((board.to_owned(), image.into()))
}

fn day(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('-').collect();
    let digits = |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_digit());
    let good = matches!(parts.as_slice(), [y, m, d] if digits(y, 4) && digits(m, 2) && digits(d, 2));
    if good { Ok(text.to_owned()) } else { Err("it is YEAR-MONTH-DAY".to_owned()) }
}

/// Writes the list.
///
/// # Errors
/// If an image or a board config cannot be read, or the list cannot be written.
pub fn run(args: &OsList) -> Result<()> {
    let os_list =
        args.images.iter().map(|(board, image)| entry(args, board, image)).collect::<Result<_>>()?;
    let text = serde_json::to_string_pretty(&List { os_list })? + "\n";
    match &args.output {
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string()),
        None => Ok(io::stdout().write_all(text.as_bytes())?),
    }
}

fn entry(args: &OsList, name: &str, image: &Path) -> Result<Entry> {
    let board: Board =
        Document::read(&args.root.join("board-configs").join(format!("{name}.toml")))?.parse()?;
    ensure!(!board.imager_devices.is_empty(), "{name}: its board config has no imager_devices");
    let failed = || image.display().to_string();
    let file = image.file_name().and_then(|n| n.to_str()).with_context(failed)?;
    let (image_download_size, image_download_sha256) =
        sum(File::open(image).with_context(failed)?).with_context(failed)?;
    let unpacked = zstd::stream::read::Decoder::new(File::open(image)?).with_context(failed)?;
    let (extract_size, extract_sha256) = sum(unpacked).with_context(failed)?;
    Ok(Entry {
        name: format!("Bramble ({})", board.description),
        description: "Raspberry Pis as one Kubernetes cluster".to_owned(),
        icon: args.icon.clone(),
        url: format!("{}/{file}", args.url.trim_end_matches('/')),
        extract_size,
        extract_sha256,
        image_download_size,
        image_download_sha256,
        release_date: args.date.clone(),
        devices: board.imager_devices,
        init_format: "none",
    })
}

fn sum(from: impl Read) -> io::Result<(u64, String)> {
    let entry = bundle::measure("", from)?;
    Ok((entry.size, entry.sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_sums_of_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("x.img.zst");
        fs::write(&image, zstd::encode_all(&[7_u8; 10_000][..], 3).unwrap()).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = folder.path().join("list.json");
        let args = OsList {
            images: vec![("rpi-3".to_owned(), image.clone())],
            url: "https://example.org/r/".to_owned(),
            icon: "https://example.org/i.png".to_owned(),
            date: "2026-11-24".to_owned(),
            root: root.to_owned(),
            output: Some(output.clone()),
        };
        run(&args).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&fs::read(output).unwrap()).unwrap();
        let entry = &list["os_list"][0];
        assert_eq!(entry["url"], "https://example.org/r/x.img.zst");
        assert_eq!(entry["extract_size"], 10_000);
        assert_eq!(entry["extract_sha256"], sum(&[7_u8; 10_000][..]).unwrap().1);
        assert_eq!(entry["image_download_size"], fs::metadata(image).unwrap().len());
        assert_eq!(entry["devices"][0], "pi3-64bit");
        assert!(day("24.11.2026").is_err());
    }
}
