//! Streams that may be plain, gzip or zstd, told apart by their first bytes and bounded in what they unpack to.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// What a zstd frame may ask for as window: the format's recommended maximum for decoders on small machines.
const MAX_ZSTD_WINDOW: u64 = 128 << 20;

/// Opens a possibly compressed stream.
pub(crate) fn open<'a, R: Read + 'a>(source: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    let start = source.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(Zstd { source: Some(source), frame: None }),
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Box::new(Zstd { source: Some(source), frame: None }),
        _ => Box::new(source),
    })
}

/// All the frames of a zstd stream, one after another. Exactly one of the two fields is set.
struct Zstd<R: Read> {
    source: Option<BufReader<R>>,
    frame: Option<StreamingDecoder<BufReader<R>, FrameDecoder>>,
}

impl<R: Read> Zstd<R> {
    /// Goes to the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        let Some(mut source) = self.source.take() else { return Ok(false) };
        loop {
            let start = source.fill_buf()?;
            if start.is_empty() {
                return Ok(false);
            }
            // Skippable frames: a magic number out of sixteen, a length, and bytes that are nobody's business.
            let mut header = [0; 4];
            let (magic, rest) = start.split_at(start.len().min(4));
            header[..magic.len()].copy_from_slice(magic);
            if u32::from_le_bytes(header) & 0xffff_fff0 != 0x184d_2a50 {
                break;
            }
            let _ = rest;
            let mut skipped = [0; 8];
            source.read_exact(&mut skipped)?;
            let length = u32::from_le_bytes([skipped[4], skipped[5], skipped[6], skipped[7]]);
            let copied = io::copy(&mut source.by_ref().take(u64::from(length)), &mut io::sink())?;
            if copied != u64::from(length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let frame = StreamingDecoder::new_with_max_window_size(source, MAX_ZSTD_WINDOW)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        self.frame = Some(frame);
        Ok(true)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(frame) = &mut self.frame {
                let n = frame.read(buf)?;
                if n > 0 {
                    return Ok(n);
                }
                self.source = self.frame.take().map(StreamingDecoder::into_inner);
            }
            if !self.next_frame()? {
                return Ok(0);
            }
        }
    }
}

/// Fails once more than a number of bytes has been read: a small download must not fill the card.
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("unpacks to more bytes than are allowed"))?;
        Ok(n)
    }
}

/// What a tar entry's headers may take. The archive says how long its long names and extended headers are, and the
/// reader keeps them in memory.
const MAX_HEADERS: u64 = 1 << 20;

/// A tar stream that is read in turns: an entry's headers, which must be short, and its content, which may be long.
pub(crate) struct Turns<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

/// Says whose turn it is.
pub(crate) struct Turn(Rc<Cell<u64>>);

impl Turn {
    /// Headers are read next. What is left of the entry before must have been read.
    pub(crate) fn headers(&self) {
        self.0.set(MAX_HEADERS);
    }

    /// Content is read next.
    pub(crate) fn content(&self) {
        self.0.set(u64::MAX);
    }
}

impl<R: Read> Turns<R> {
    pub(crate) fn new(inner: R) -> (Self, Turn) {
        let left = Rc::new(Cell::new(MAX_HEADERS));
        (Self { inner, left: left.clone() }, Turn(left))
    }
}

impl<R: Read> Read for Turns<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        let left = self.left.get().checked_sub(n as u64);
        let left =
            left.ok_or_else(|| io::Error::other(format!("headers of more than {MAX_HEADERS} bytes")))?;
        self.left.set(left);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        open(bytes)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn every_form_gives_the_same_bytes() {
        let text = b"bramble ".repeat(10_000);
        assert_eq!(all(&text).unwrap(), text);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let gz = gz.finish().unwrap();
        assert_eq!(all(&gz).unwrap(), text);
        assert_eq!(all(&[gz.clone(), gz].concat()).unwrap(), text.repeat(2), "several gzip members");
        let zstd = ruzstd::encoding::compress_to_vec(&text[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(all(&zstd).unwrap(), text);
        let skippable = [&[0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let frames = [&skippable[..], &zstd[..], &skippable[..], &zstd[..]].concat();
        assert_eq!(all(&frames).unwrap(), text.repeat(2), "several frames");
    }

    #[test]
    fn cut_off_streams_fail() {
        let zstd =
            ruzstd::encoding::compress_to_vec(&[7u8; 5000][..], ruzstd::encoding::CompressionLevel::Fastest);
        assert!(all(&zstd[..zstd.len() - 3]).is_err());
        assert!(all(&[0x51, 0x2a, 0x4d, 0x18, 255, 255, 255, 255, 0]).is_err());
    }

    #[test]
    fn a_bomb_is_stopped() {
        let mut bounded = Bounded::new(io::repeat(0), 1 << 20);
        assert!(io::copy(&mut bounded, &mut io::sink()).is_err());
        assert!(io::copy(&mut Bounded::new(&[0u8; 10][..], 10), &mut io::sink()).is_ok());
    }
}
