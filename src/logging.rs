//! The log: one line an event on standard error, as text or JSON, ids as fields.
//!
//! Two things are kept from the threads that log. What a peer wrote cannot leave its line: control
//! characters, ANSI escapes, line separators and direction marks are written as `\u…`. And a terminal
//! or pipe that takes nothing cannot hold up a shard: lines go through a bounded queue to a thread of
//! their own, and those that find it full are counted and said so.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogConfig, LogFormat};
use crate::exit::StartError;

/// Lines that may wait for the writer.
const LINES_MAX: usize = 8192;
/// How long [`flush`] waits for a writer that is stuck.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

static QUEUE: OnceLock<Lines> = OnceLock::new();

enum Item {
    Line(Vec<u8>),
    Flush(flume::Sender<()>),
}

/// The sending end of the log.
#[derive(Clone)]
struct Lines {
    queue: flume::Sender<Item>,
    lost: Arc<AtomicU64>,
}

/// Flushes the log when it goes out of scope. Kept by `main` until the end.
#[must_use = "the log is flushed when this is dropped"]
#[derive(Debug)]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush();
    }
}

/// Waits (at most two seconds) until everything logged so far is written. For those who end the
/// process without returning to `main`.
pub fn flush() {
    let Some(lines) = QUEUE.get() else { return };
    let (done, written) = flume::bounded(1);
    if lines.queue.send_timeout(Item::Flush(done), FLUSH_WAIT).is_ok() {
        let _ = written.recv_timeout(FLUSH_WAIT);
    }
}

/// Starts the log, for the whole process, once. Panics are logged as well, in one line.
///
/// # Errors
/// The filter is wrong, the writer's thread could not start, or a log was started before.
pub fn init(config: &LogConfig) -> Result<LogGuard, StartError> {
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .map_err(|_| StartError::usage(format!("log.level {:?} is no filter", config.level)))?;
    let lines = start_writer(io::stderr)
        .map_err(|err| StartError::new(crate::exit::Exit::Environment, format!("no thread for the log: {err}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone()).with_ansi(false);
    let started = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    started.map_err(|err| StartError::usage(format!("the log cannot start: {err}")))?;
    let _ = QUEUE.set(lines);
    std::panic::set_hook(Box::new(|panic| {
        let said = panic_message(panic.payload());
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("?"), place, said, "panic");
        flush();
    }));
    Ok(LogGuard(()))
}

/// What a panic said, when it was a text.
fn panic_message(payload: &dyn std::any::Any) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("(no message)")
}

fn start_writer<W: Write, F: Fn() -> W + Send + 'static>(target: F) -> io::Result<Lines> {
    let (queue, items) = flume::bounded(LINES_MAX);
    let lost = Arc::new(AtomicU64::new(0));
    let lines = Lines { queue, lost: Arc::clone(&lost) };
    std::thread::Builder::new().name("antiphon-log".to_owned()).spawn(move || {
        for item in items {
            match item {
                // A log that cannot be written has nowhere to complain to.
                Item::Line(line) => _ = target().write_all(&line),
                Item::Flush(done) => _ = done.send(()),
            }
            let lost = lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let _ = writeln!(target(), "WARN antiphon::logging: lines were lost, the log was too slow lost={lost}");
            }
        }
    })?;
    Ok(lines)
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Lines {
    /// Takes one whole line: the formatter writes each event in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(escape_line(line))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line with everything escaped that could end it, colour it or turn it around. The line break
/// at its end stays.
fn escape_line(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let (body, end) = text.strip_suffix('\n').map_or((&*text, ""), |body| (body, "\n"));
    if !body.chars().any(is_unsafe) {
        return text.into_owned().into_bytes();
    }
    let mut out = String::with_capacity(body.len() + 16);
    for c in body.chars() {
        if is_unsafe(c) {
            // The JSON form, which is as good for people.
            let _ = write!(out, "\\u{:04x}", c as u32);
        } else {
            out.push(c);
        }
    }
    out.push_str(end);
    out.into_bytes()
}

/// All of these lie below U+10000, so that four hexadecimal digits name them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Logs one event with `value` in it and gives what was written.
    fn logged(json: bool, value: &str) -> String {
        let kept = Kept::default();
        let target = kept.clone();
        let lines = start_writer(move || target.clone()).unwrap();
        let builder = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false);
        let emit = || tracing::info!(user = value, agent = %value, room = ?value, "opened {value}");
        if json {
            let subscriber = builder.json().flatten_event(true).finish();
            tracing::subscriber::with_default(subscriber, emit);
        } else {
            tracing::subscriber::with_default(builder.finish(), emit);
        }
        let (done, written) = flume::bounded(1);
        lines.queue.send(Item::Flush(done)).unwrap();
        written.recv_timeout(Duration::from_secs(10)).unwrap();
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_a_peer_wrote_cannot_leave_its_line() {
        let hostile = "a\r\nb\u{1b}[31mred\u{7}\u{2028}c\u{2029}\u{202e}d\u{2066}e\u{200f}\u{9b}f\0g\u{7f}";
        for json in [false, true] {
            let line = logged(json, hostile);
            let body = line.strip_suffix('\n').unwrap();
            assert!(!body.chars().any(is_unsafe), "{body:?}");
            assert!(body.contains("202e") && body.contains("1b") && body.contains("red"), "{body}");
            if json {
                let value: serde_json::Value = serde_json::from_str(body).unwrap();
                assert_eq!(value["user"], hostile);
                assert_eq!(value["agent"], hostile);
            }
        }
    }

    #[test]
    fn plain_lines_pass_unchanged() {
        let line = logged(false, "größe 日本 🎵");
        assert!(line.contains("INFO") && line.contains("opened größe 日本 🎵") && line.contains("user="), "{line}");
        assert_eq!(escape_line(b"ab\n"), b"ab\n");
        assert_eq!(escape_line(b"a\nb\n"), b"a\\u000ab\n");
        assert_eq!(escape_line(b"ab"), b"ab");
    }

    #[test]
    fn a_stuck_target_loses_lines_and_holds_nobody_up() {
        let (release, gate) = flume::bounded::<()>(0);
        let kept = Kept::default();
        let target = kept.clone();
        let lines = start_writer(move || {
            let _ = gate.recv();
            target.clone()
        })
        .unwrap();
        for _ in 0..LINES_MAX + 100 {
            (&lines).write_all(b"x\n").unwrap();
        }
        assert!(lines.lost.load(Ordering::Relaxed) >= 99);
        drop(release);
        let (done, written) = flume::bounded(1);
        lines.queue.send(Item::Flush(done)).unwrap();
        written.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(String::from_utf8(kept.0.lock().unwrap().clone()).unwrap().contains("lines were lost"));
    }
}
