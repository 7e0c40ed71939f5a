//! A serial console: what was said so far, and waiting for more.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Lines of the console that an error shows.
const TAIL: usize = 60;

/// What a machine says when nothing else will come of this boot.
const LAST_WORDS: [&str; 3] =
    ["Kernel panic - not syncing", "bramble-init: cannot boot", "You are in emergency mode"];

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output and error, and what else came over the console meanwhile.
    pub text: String,
    /// Its exit code.
    pub code: i32,
}

#[derive(Debug, Default)]
struct Said {
    text: String,
    closed: bool,
}

/// The reading end.
#[derive(Clone, Debug, Default)]
pub struct Console {
    said: Arc<(Mutex<Said>, Condvar)>,
}

impl Console {
    /// Reads until the other end is gone; everything goes to the log as well.
    pub fn follow(&self, mut from: impl Read + Send + 'static, mut log: File) {
        let said = self.said.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = from.read(&mut buffer).unwrap_or(0);
                let _ = log.write_all(&buffer[..count]);
                let mut state = said.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.closed = count == 0;
                state.text.push_str(&String::from_utf8_lossy(&buffer[..count]).replace('\r', ""));
                said.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
    }

    /// How much was said.
    pub fn position(&self) -> usize {
        self.said.0.lock().unwrap_or_else(PoisonError::into_inner).text.len()
    }

    /// Waits until `find` finds something in what was said after `from`.
    pub fn wait<T>(
        &self,
        from: usize,
        limit: Duration,
        what: &str,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(state.text.get(from..).unwrap_or_default()) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(why) = over(&state).or_else(|| left.is_zero().then(|| "it took too long".to_owned()))
            {
                bail!("waiting for {what}: {why}; the console's last lines:\n{}", tail(&state.text));
            }
            state = self.said.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the other end is gone.
    pub fn wait_closed(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the machine does not go off; the console's last lines:\n{}", tail(&state.text));
            }
            state = self.said.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// Why no more can be hoped for.
fn over(said: &Said) -> Option<String> {
    if said.closed {
        return Some("the machine went off".to_owned());
    }
    let words = LAST_WORDS.iter().find(|words| said.text.contains(**words))?;
    Some(format!("the machine said {words:?}"))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// Finds what a command said between its marks, and its exit code. The marks are typed in two halves, so that the echo
/// of the command line is not taken for them.
pub fn between_marks(text: &str, number: u64) -> Option<Output> {
    let begin = format!("<begin-{number}>\n");
    let start = text.find(&begin)? + begin.len();
    let end = text[start..].find(&format!("<end-{number}:"))? + start;
    let rest = &text[end..];
    let code = rest[rest.find(':')? + 1..].split('>').next()?;
    // The number may be half there.
    rest.find('>')?;
    let lines = text[start..end].split_inclusive('\n').filter(|line| !is_of_the_kernel_log(line));
    Some(Output { text: lines.collect(), code: code.parse().ok()? })
}

/// Whether a line of the console is one that services and the kernel write there at any moment: `[   12.345678] ...`.
fn is_of_the_kernel_log(line: &str) -> bool {
    let time =
        line.strip_prefix('[').and_then(|line| line.split_once("] ")).map(|(time, _)| time.trim_start());
    time.and_then(|time| time.split_once('.')).is_some_and(|(seconds, rest)| {
        rest.len() == 6 && [seconds, rest].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_is_between_the_marks() {
        let typed = "# echo '<be''gin-7>'; x; echo \"<e\"\"nd-7:$?>\"\n";
        assert_eq!(between_marks(typed, 7), None);
        let answered = format!("{typed}<begin-7>\none\ntwo\n<end-7:12");
        assert_eq!(between_marks(&answered, 7), None, "half a number");
        let output = Output { text: "one\ntwo\n".into(), code: 12 };
        assert_eq!(between_marks(&format!("{answered}>\n# "), 7), Some(output));
    }

    #[test]
    fn what_others_write_between_them_is_no_answer() {
        let said = "<begin-7>\n[  113.609185] kube-config[288]: enabled\n[1] one\n[9.000001] x\n<end-7:0>";
        assert_eq!(between_marks(said, 7), Some(Output { text: "[1] one\n".into(), code: 0 }));
    }

    #[test]
    fn a_wait_ends_when_the_other_end_goes_away() {
        let console = Console::default();
        let log = tempfile::tempfile().unwrap();
        console.follow(std::io::Cursor::new(b"hello\r\nworld".to_vec()), log);
        let found = console.wait(0, Duration::from_secs(60), "world", |text| text.find("world"));
        assert_eq!(found.unwrap(), 6);
        let error = console.wait(0, Duration::from_secs(60), "more", |text| text.find("more")).unwrap_err();
        assert!(error.to_string().contains("went off"), "{error}");
        console.wait_closed(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_wait_ends_when_the_kernel_panics() {
        let console = Console::default();
        let (reader, mut writer) = std::io::pipe().unwrap();
        console.follow(reader, tempfile::tempfile().unwrap());
        writer.write_all(b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n").unwrap();
        let error =
            console.wait(0, Duration::from_secs(60), "a shell", |text| text.find(":~# ")).unwrap_err();
        assert!(error.to_string().contains("Kernel panic"), "{error}");
    }
}
