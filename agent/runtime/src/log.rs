//! A container's log: one line a record, in the CRI's format, in a file that cannot grow without bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file this long is put aside as `<name>.1`, so a container has twice this at most.
const MAX_FILE: u64 = 10 << 20;
/// Longer lines are written in pieces.
const MAX_LINE: usize = 16 << 10;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts one stream into records. Pure.
#[derive(Debug)]
struct Lines {
    stream: Stream,
    rest: Vec<u8>,
}

impl Lines {
    fn new(stream: Stream) -> Self {
        Self { stream, rest: Vec::new() }
    }

    /// Appends to `out` the records that some bytes complete.
    fn feed(&mut self, mut bytes: &[u8], now: &str, out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.pieces(&bytes[..end], now, out);
            let line = std::mem::take(&mut self.rest);
            self.record('F', &line, now, out);
            bytes = &bytes[end + 1..];
        }
        self.pieces(bytes, now, out);
    }

    fn pieces(&mut self, mut bytes: &[u8], now: &str, out: &mut Vec<u8>) {
        while self.rest.len() + bytes.len() > MAX_LINE {
            let (now_part, later) = bytes.split_at(MAX_LINE - self.rest.len());
            self.rest.extend_from_slice(now_part);
            let piece = std::mem::take(&mut self.rest);
            self.record('P', &piece, now, out);
            bytes = later;
        }
        self.rest.extend_from_slice(bytes);
    }

    /// At the end: what has no newline is a piece of a line that never ended.
    fn finish(&mut self, now: &str, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            let piece = std::mem::take(&mut self.rest);
            self.record('P', &piece, now, out);
        }
    }

    fn record(&self, tag: char, line: &[u8], now: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{now} {} {tag} ", self.stream.name()).as_bytes());
        out.extend_from_slice(line);
        out.push(b'\n');
    }
}

/// The log file of one container.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    stdout: Lines,
    stderr: Lines,
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file: Some(file),
            stdout: Lines::new(Stream::Stdout),
            stderr: Lines::new(Stream::Stderr),
        })
    }

    fn lines(&mut self, stream: Stream) -> &mut Lines {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8], now: &str) {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        self.lines(stream).feed(bytes, now, &mut out);
        self.put(&out);
    }

    pub(crate) fn finish(&mut self, now: &str) {
        let mut out = Vec::new();
        self.stdout.finish(now, &mut out);
        self.stderr.finish(now, &mut out);
        self.put(&out);
    }

    /// A full card loses log lines; it must not stop the container.
    fn put(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.size + records.len() as u64 > MAX_FILE && self.size > 0 {
            self.rotate();
        }
        if let Some(file) = &mut self.file
            && file.write_all(records).is_ok()
        {
            self.size += records.len() as u64;
        }
    }

    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        if fs::rename(&self.path, old).is_ok() {
            self.file = OpenOptions::new().create(true).append(true).open(&self.path).ok();
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(chunks: &[&[u8]]) -> String {
        let mut lines = Lines::new(Stream::Stdout);
        let mut out = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, "T", &mut out);
        }
        lines.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        assert_eq!(
            text(&[b"a\nb", b"c\n\n", b"tail"]),
            "T stdout F a\nT stdout F bc\nT stdout F \nT stdout P tail\n"
        );
        let long = vec![b'x'; MAX_LINE + 3];
        let got = text(&[&long, b"\n"]);
        let parts: Vec<&str> = got.lines().collect();
        assert_eq!(parts.len(), 2);
        assert!(parts[0].starts_with("T stdout P xxx") && parts[1] == "T stdout F xxx");
        // A line of exactly the limit is one record.
        assert_eq!(text(&[&long[..MAX_LINE], b"\n"]).lines().count(), 1);
    }

    #[test]
    fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/c.log");
        let mut log = Log::open(&path).unwrap();
        let mebibyte = [&vec![b'y'; (1 << 20) - 1][..], b"\n"].concat();
        for _ in 0..35 {
            log.write(Stream::Stderr, &mebibyte, "2026-01-01T00:00:00.000000000Z");
        }
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        for file in names {
            assert!(file.metadata().unwrap().len() <= MAX_FILE);
        }
    }
}
