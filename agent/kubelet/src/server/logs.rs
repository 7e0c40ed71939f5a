//! `kubectl logs`: reads the files that the runtime writes in the CRI format.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::pods::Node;
use crate::start::rotated;

/// Longest line that is taken in one piece; the runtime splits at 16 KiB.
const LINE_BYTES: u64 = 64 << 10;
/// Pieces on their way to a slow reader.
const PIECES: usize = 16;
const PIECE_BYTES: usize = 32 << 10;
/// What a termination message takes of a log.
const TAIL_BYTES: usize = 2048;
const TAIL_LINES: usize = 80;

/// The query, as the API passes it on.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Options {
    follow: Option<String>,
    tail_lines: Option<u64>,
    timestamps: Option<String>,
    previous: Option<String>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    limit_bytes: Option<u64>,
    stream: Option<String>,
}

fn yes(flag: &Option<String>) -> bool {
    matches!(flag.as_deref(), Some("true" | "1" | "t" | "T" | "True" | "TRUE" | ""))
}

pub(super) async fn serve(
    State(node): State<Arc<Node>>,
    UrlPath((namespace, pod, name)): UrlPath<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let incarnations = match super::incarnations(&node, &namespace, &pod, &name).await {
        Ok(incarnations) => incarnations,
        Err(refusal) => return refusal,
    };
    let previous = yes(&options.previous);
    let chosen = if previous {
        incarnations
            .iter()
            .rev()
            .filter(|c| c.exit.is_some() || incarnations.len() > 1)
            .nth(usize::from(incarnations.last().is_some_and(|c| c.exit.is_none())))
    } else {
        incarnations.last()
    };
    let Some(container) = chosen else {
        let text = if previous {
            format!("previous terminated container \"{name}\" in pod \"{pod}\" not found")
        } else {
            format!("container \"{name}\" in pod \"{pod}\" is waiting to start: ContainerCreating")
        };
        return super::refuse(StatusCode::BAD_REQUEST, text);
    };
    let filter = match Filter::new(&options, Timestamp::now()) {
        Ok(filter) => filter,
        Err(text) => return super::refuse(StatusCode::BAD_REQUEST, text),
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    let follow = yes(&options.follow).then(|| container.id.clone());
    tokio::spawn(stream(node, container.log_path.clone(), filter, follow, sender));
    let pieces = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (Ok::<_, io::Error>(piece), receiver))
    });
    ([("content-type", "text/plain")], Body::from_stream(pieces)).into_response()
}

/// What of a log is wanted, and how.
#[derive(Debug, Clone)]
struct Filter {
    tail: Option<u64>,
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Option<&'static str>,
    left: u64,
    /// The last line was not at its end: what follows is part of it.
    inside: bool,
}

impl Filter {
    fn new(options: &Options, now: Timestamp) -> Result<Filter, String> {
        let since = match (&options.since_time, options.since_seconds) {
            (Some(text), _) => Some(text.parse().map_err(|e| format!("sinceTime: {e}"))?),
            (None, Some(seconds)) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, None) => None,
        };
        let stream = match options.stream.as_deref() {
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            _ => None,
        };
        Ok(Filter {
            tail: options.tail_lines,
            since,
            timestamps: yes(&options.timestamps),
            stream,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            inside: false,
        })
    }

    /// Adds a line of the file to what is sent. Lines that are not in the format are damaged and left out.
    fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = Entry::parse(line) else { return };
        if self.stream.is_some_and(|stream| stream != entry.stream) {
            return;
        }
        if let Some(since) = self.since {
            match entry.time.parse::<Timestamp>() {
                Ok(time) if time >= since => {}
                _ => return,
            }
        }
        let before = out.len();
        if self.timestamps && !self.inside {
            out.extend_from_slice(entry.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.push(b'\n');
        }
        self.inside = entry.partial;
        let added = (out.len() - before) as u64;
        if added > self.left {
            out.truncate(before + usize::try_from(self.left).unwrap_or(0));
        }
        self.left = self.left.saturating_sub(added);
    }

    fn full(&self) -> bool {
        self.left == 0
    }
}

/// A line of a log file: `<time> stdout|stderr F|P <text>`.
#[derive(Debug, PartialEq)]
struct Entry<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

impl Entry<'_> {
    fn parse(line: &[u8]) -> Option<Entry<'_>> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut word = || std::str::from_utf8(parts.next()?).ok();
        let (time, stream, tag) = (word()?, word()?, word()?);
        if !matches!(stream, "stdout" | "stderr") {
            return None;
        }
        let partial = tag.split(':').any(|tag| tag == "P");
        Some(Entry { time, stream, partial, text: parts.next().unwrap_or_default() })
    }
}

/// Sends a log, then, when told whose end to wait for, what is added until then.
async fn stream(
    node: Arc<Node>,
    path: PathBuf,
    mut filter: Filter,
    follow: Option<String>,
    sender: mpsc::Sender<Bytes>,
) {
    // Begin to watch before reading: what is added meanwhile is then seen for sure.
    let watch = follow.as_ref().and_then(|_| Watch::new(&path).ok());
    let mut reader = match Reader::open(&path, filter.tail) {
        Ok(reader) => reader,
        Err(error) => {
            // The caller is gone, or gets to see why there is nothing.
            let _ = sender.send(Bytes::from(format!("failed to read the log: {error}\n"))).await;
            return;
        }
    };
    let Some(id) = follow else {
        while pump(&mut reader, &mut filter, &sender).await {}
        return;
    };
    let mut ended = std::pin::pin!(node.runtime.wait(&id));
    let mut over = false;
    loop {
        while pump(&mut reader, &mut filter, &sender).await {}
        if sender.is_closed() || filter.full() {
            return;
        }
        if reader.turn_over().unwrap_or(false) {
            continue;
        }
        if over {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            // One more round for what was written last.
            _ = &mut ended => over = true,
            () = added(watch.as_ref()) => {}
        }
    }
}

async fn added(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.added().await,
        // Without a watch there is only the end to wait for.
        None => std::future::pending().await,
    }
}

/// Sends a piece; `false` when there is no more to send now.
async fn pump(reader: &mut Reader, filter: &mut Filter, sender: &mpsc::Sender<Bytes>) -> bool {
    let mut piece = Vec::new();
    let mut more = true;
    while more && piece.len() < PIECE_BYTES && !filter.full() {
        match reader.line() {
            Some(line) => filter.push(line, &mut piece),
            None => more = false,
        }
    }
    if !piece.is_empty() && sender.send(Bytes::from(piece)).await.is_err() {
        return false;
    }
    more && !filter.full()
}

/// Reads whole lines of a log file that grows and is now and then replaced.
struct Reader {
    path: PathBuf,
    file: BufReader<std::fs::File>,
    line: Vec<u8>,
    waiting: Vec<PathBuf>,
}

impl Reader {
    /// At the beginning of what there is, or so far before the end.
    fn open(path: &Path, tail: Option<u64>) -> io::Result<Reader> {
        let old = rotated(path);
        let mut files: Vec<PathBuf> =
            [old, path.to_owned()].into_iter().filter(|path| path.exists()).collect();
        let mut start = 0;
        if let (Some(wanted), Some(newest)) = (tail, files.last()) {
            let (found, at) = last_lines(newest, wanted)?;
            start = at;
            if found < wanted && files.len() > 1 {
                start = last_lines(&files[0], wanted - found)?.1;
            } else {
                files.drain(..files.len() - 1);
            }
        }
        let first = if files.is_empty() { path.to_owned() } else { files.remove(0) };
        let mut file = std::fs::File::open(&first)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(Reader { path: path.to_owned(), file: BufReader::new(file), line: Vec::new(), waiting: files })
    }

    /// The next whole line; what is not whole yet is kept for later.
    fn line(&mut self) -> Option<&[u8]> {
        if self.line.ends_with(b"\n") {
            self.line.clear();
        }
        loop {
            let room = LINE_BYTES.saturating_sub(self.line.len() as u64).max(1);
            let read = (&mut self.file).take(room).read_until(b'\n', &mut self.line).unwrap_or(0);
            if self.line.ends_with(b"\n") {
                return Some(&self.line);
            }
            if self.line.len() as u64 >= LINE_BYTES {
                // Not the runtime's doing: cut it.
                self.line.push(b'\n');
                return Some(&self.line);
            }
            if read == 0 {
                let next = (!self.waiting.is_empty()).then(|| self.waiting.remove(0))?;
                self.file = BufReader::new(std::fs::File::open(next).ok()?);
                self.line.clear();
            }
        }
    }

    /// Goes over to a new file if the old one was put aside; says whether it did.
    fn turn_over(&mut self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let (now, mine) = (std::fs::metadata(&self.path)?, self.file.get_ref().metadata()?);
        if now.ino() == mine.ino() {
            return Ok(false);
        }
        self.file = BufReader::new(std::fs::File::open(&self.path)?);
        self.line.clear();
        Ok(true)
    }
}

/// How many of the last `wanted` whole lines (log entries) a file has, and where they begin.
fn last_lines(path: &Path, wanted: u64) -> io::Result<(u64, u64)> {
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    if wanted == 0 {
        return Ok((0, size));
    }
    let (mut at, mut found) = (size, 0);
    let mut block = vec![0; 16 << 10];
    while at > 0 {
        let length = at.min(block.len() as u64);
        at -= length;
        let part = &mut block[..usize::try_from(length).unwrap_or(0)];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let position = at + index as u64;
            // The last line's own end is none before it.
            if *byte == b'\n' && position + 1 != size {
                found += 1;
                if found == wanted {
                    return Ok((found, position + 1));
                }
            }
        }
    }
    Ok((found + u64::from(size > 0), 0))
}

/// Tells when something happens in a log's folder.
struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn new(path: &Path) -> io::Result<Watch> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let folder = path.parent().unwrap_or(path);
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, folder, flags)?;
        // SAFETY: the descriptor is owned by what is registered, which neither replaces nor closes it while it lives.
        #[allow(unsafe_code)]
        let watched = unsafe { AsyncFd::register(fd) }?;
        Ok(Watch(watched))
    }

    async fn added(&self) {
        let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
        let mut buffer = [0; 4096];
        // What happened does not matter, only that it did.
        while rustix::io::read(self.0.get_ref(), &mut buffer).is_ok_and(|read| read == buffer.len()) {}
        ready.clear_ready();
    }
}

/// The end of a log, as a termination message.
pub fn tail_of(path: &Path) -> String {
    let mut out = Vec::new();
    let options = Options::default();
    if let (Ok(mut reader), Ok(mut filter)) =
        (Reader::open(path, Some(TAIL_LINES as u64)), Filter::new(&options, Timestamp::now()))
    {
        while let Some(line) = reader.line() {
            filter.push(line, &mut out);
        }
    }
    let start = out.len().saturating_sub(TAIL_BYTES);
    String::from_utf8_lossy(&out[start..]).into_owned()
}
