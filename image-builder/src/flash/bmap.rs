//! The block map of an image: which blocks hold something, and their checksums (bmap-tools' form, version 2).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// No map of a card is longer.
const MAX_FILE: u64 = 16 << 20;

/// A run of bytes of the image, and its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) sha256: [u8; 32],
}

/// The map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) image_size: u64,
    pub(crate) extents: Vec<Extent>,
}

impl Map {
    /// The map that lies beside an image, if there is one.
    pub(crate) fn beside(image: &Path) -> Result<Option<Self>> {
        let Some(path) = candidates(image).into_iter().find(|path| path.exists()) else { return Ok(None) };
        let read = || {
            ensure!(fs::metadata(&path)?.len() <= MAX_FILE, "too large for a block map");
            Self::parse(&fs::read_to_string(&path)?)
        };
        read().with_context(|| path.display().to_string()).map(Some)
    }

    /// Bytes to be written.
    pub(crate) fn mapped(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let document = roxmltree::Document::parse(text).context("not a block map")?;
        let root = document.root_element();
        ensure!(root.has_tag_name("bmap"), "not a block map");
        let field = |name: &str| {
            let node = root.children().find(|node| node.has_tag_name(name));
            node.and_then(|node| node.text()).map(str::trim).with_context(|| format!("it has no {name}"))
        };
        let number = |name: &str| field(name)?.parse::<u64>().with_context(|| format!("{name} is no number"));
        ensure!(field("ChecksumType")? == "sha256", "its checksums are not sha256");
        let sum = field("BmapFileChecksum")?;
        ensure!(own_sum(text, sum) == unhex(sum), "it is damaged (its own checksum is wrong)");
        let (image_size, block) = (number("ImageSize")?, number("BlockSize")?);
        ensure!((512..=1 << 20).contains(&block), "its block size is not sensible");
        let ranges =
            root.children().find(|node| node.has_tag_name("BlockMap")).context("it has no BlockMap")?;
        let mut extents: Vec<Extent> = Vec::new();
        for node in ranges.children().filter(|node| node.has_tag_name("Range")) {
            let text = node.text().unwrap_or_default().trim();
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last): (u64, u64) = (first.parse()?, last.parse()?);
            let sha256 = node
                .attribute("chksum")
                .and_then(unhex)
                .with_context(|| format!("{text} has no checksum"))?;
            let extent = (|| {
                let start = first.checked_mul(block)?;
                let end = last.checked_add(1)?.checked_mul(block)?.min(image_size);
                let after = extents.last().is_none_or(|before| before.start + before.len <= start);
                (after && start < end).then_some(Extent { start, len: end - start, sha256 })
            })();
            let Some(extent) = extent else { bail!("the range {text} does not fit") };
            extents.push(extent);
        }
        Ok(Self { image_size, extents })
    }
}

/// `x.img.zst` and `x.img` have theirs in `x.img.bmap` or `x.bmap`.
fn candidates(image: &Path) -> Vec<PathBuf> {
    let plain = if image.extension().is_some_and(|e| e == "zst") {
        image.with_extension("")
    } else {
        image.to_owned()
    };
    let mut longer = plain.clone().into_os_string();
    longer.push(".bmap");
    vec![longer.into(), plain.with_extension("bmap")]
}

/// The file's own sum is over the file with zeros in that sum's place.
fn own_sum(text: &str, sum: &str) -> Option<[u8; 32]> {
    let zeros = "0".repeat(sum.len());
    Some(Sha256::digest(text.replacen(sum, &zeros, 1).as_bytes()).into())
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}
