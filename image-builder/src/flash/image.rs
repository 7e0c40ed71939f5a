//! The image as it is read: from its start to its end, unpacked on the way.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use super::bmap::{Extent, Map};
use super::write::{Phase, Progress};

/// Bytes moved at once; a card is fastest in large pieces.
pub(crate) const CHUNK: usize = 1 << 20;
/// What counts as a hole in an image without a map.
const BLOCK: usize = 4096;
/// Longer than any card; a compressed file can claim to be endless.
const MAX_IMAGE: u64 = 64 << 30;

/// An image file.
#[derive(Debug)]
pub(crate) struct Image {
    path: PathBuf,
    file: File,
    packed: bool,
}

impl Image {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let packed = path.extension().is_some_and(|extension| extension == "zst");
        Ok(Self { path: path.to_owned(), file: File::open(path)?, packed })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this path is the very same file.
    pub(crate) fn is(&self, path: &Path) -> bool {
        let place = |about: std::fs::Metadata| (about.dev(), about.ino());
        match (self.file.metadata(), std::fs::metadata(path)) {
            (Ok(mine), Ok(other)) => place(mine) == place(other),
            _ => false,
        }
    }

    /// Refuses what is no card image at all: a packed form that is not unpacked here, an update bundle, a mistake.
    pub(crate) fn is_of_a_card(&mut self) -> Result<()> {
        let mut head = [0; 512];
        let got = fill(&mut self.bytes()?, &mut head)?;
        if got < head.len() || head[510..] != [0x55, 0xaa] {
            bail!("no image of a card: it has no partition table (.img and .img.zst are understood)");
        }
        Ok(())
    }

    /// The image's bytes from the start.
    fn bytes(&mut self) -> io::Result<Box<dyn Read + '_>> {
        self.file.seek(SeekFrom::Start(0))?;
        if self.packed {
            return Ok(Box::new(zstd::stream::read::Decoder::new(&self.file)?));
        }
        Ok(Box::new(BufReader::with_capacity(CHUNK, &self.file)))
    }

    /// Gives the bytes of each extent, in pieces.
    pub(crate) fn each(
        &mut self,
        extents: &[Extent],
        mut take: impl FnMut(&Extent, u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let plain = (!self.packed).then(|| self.file.try_clone()).transpose()?;
        let mut bytes = self.bytes()?;
        let mut at = 0;
        let mut buffer = vec![0; CHUNK];
        for extent in extents {
            match &plain {
                Some(file) => {
                    use std::os::unix::fs::FileExt;
                    for_pieces(extent.len, |offset, want| {
                        file.read_exact_at(&mut buffer[..want], extent.start + offset)?;
                        take(extent, extent.start + offset, &buffer[..want])
                    })?;
                }
                None => {
                    let hole = extent.start - at;
                    if io::copy(&mut (&mut bytes).take(hole), &mut io::sink())? != hole {
                        bail!("the image ends before its block map does");
                    }
                    for_pieces(extent.len, |offset, want| {
                        bytes.read_exact(&mut buffer[..want])?;
                        take(extent, extent.start + offset, &buffer[..want])
                    })?;
                    at = extent.start + extent.len;
                }
            }
        }
        Ok(())
    }

    /// Checks the image against its map; without one, makes it. Nothing has been written to a card yet.
    pub(crate) fn check(&mut self, map: Option<Map>, progress: Progress<'_>) -> Result<Map> {
        let Some(map) = map else { return self.survey(progress) };
        if !self.packed && self.file.metadata()?.len() != map.image_size {
            bail!("not of the size that its block map says: fetch both again");
        }
        let (mut sum, mut done, total) = (Sha256::new(), 0, map.mapped());
        self.each(&map.extents, |extent, at, piece| {
            sum.update(piece);
            done += piece.len() as u64;
            progress(Phase::Checking, done, total);
            let complete = at + piece.len() as u64 == extent.start + extent.len;
            if complete && <[u8; 32]>::from(sum.finalize_reset()) != extent.sha256 {
                bail!(
                    "damaged: its bytes from {} on are not what its block map says: fetch it again",
                    extent.start
                );
            }
            Ok(())
        })?;
        Ok(map)
    }

    /// The map of an image that came without: the blocks that are not zero.
    fn survey(&mut self, progress: Progress<'_>) -> Result<Map> {
        let packed_size = self.file.metadata()?.len();
        let packed = self.packed;
        let mut bytes = self.bytes()?;
        let mut buffer = vec![0; BLOCK];
        let mut extents: Vec<Extent> = Vec::new();
        let mut sum = Sha256::new();
        let mut open = false;
        let mut at = 0_u64;
        loop {
            let got = fill(&mut bytes, &mut buffer)?;
            let block = &buffer[..got];
            let hole = block.iter().all(|byte| *byte == 0);
            if open && hole {
                if let Some(extent) = extents.last_mut() {
                    extent.sha256 = sum.finalize_reset().into();
                }
                open = false;
            }
            if got == 0 {
                break;
            }
            if !hole {
                if !open {
                    extents.push(Extent { start: at, len: 0, sha256: [0; 32] });
                    open = true;
                }
                sum.update(block);
                if let Some(extent) = extents.last_mut() {
                    extent.len += got as u64;
                }
            }
            at += got as u64;
            if at > MAX_IMAGE {
                bail!("too large for a card");
            }
            if at.is_multiple_of(CHUNK as u64) {
                progress(Phase::Checking, at, if packed { at + 1 } else { packed_size });
            }
        }
        progress(Phase::Checking, at, at);
        Ok(Map { image_size: at, extents })
    }
}

fn for_pieces(len: u64, mut piece: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
    let mut offset = 0;
    while offset < len {
        let want = usize::try_from(len - offset).unwrap_or(usize::MAX).min(CHUNK);
        piece(offset, want)?;
        offset += want as u64;
    }
    Ok(())
}

/// Reads until the buffer is full or the end is reached.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match from.read(&mut buffer[got..])? {
            0 => break,
            count => got += count,
        }
    }
    Ok(got)
}
