//! House rules, held by a test and not by memory: who may import what, where `unsafe` may stand, how
//! long a file or a function may be, and what code never says.
//!
//! The rules read the text, not the syntax: lines as `cargo fmt` leaves them, comments cut away. An
//! exception is a line in one of the tables below, with its reason.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// One source file: where it is, and its lines.
struct Source {
    /// From the project's root, with `/`.
    path: String,
    text: String,
    /// Compiled for tests only.
    is_test: bool,
}

/// Broken rules, to be told all at once.
#[derive(Default)]
struct Faults(String);

impl Faults {
    fn add(&mut self, source: &Source, line: usize, what: &str) {
        writeln!(self.0, "{}:{}: {what}", source.path, line + 1).expect("writing to memory");
    }

    fn none(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

impl Source {
    /// What is compiled into the product: no comments, no tests at the end. Lines keep their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = if self.is_test { 0 } else { self.first_test_line() };
        self.lines().take(end)
    }

    /// All lines, comments cut away.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().map(without_comment).enumerate()
    }

    fn first_test_line(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let begins_module = |line: &&str| line.trim_start_matches("pub ").starts_with("mod ") && line.ends_with('{');
        let is_tests = |at: &usize| lines[*at] == "#[cfg(test)]" && lines[at + 1..].iter().take(3).any(begins_module);
        (0..lines.len()).find(is_tests).unwrap_or(lines.len())
    }

    fn is_in(&self, rooms: &[&str]) -> bool {
        rooms.iter().any(|room| self.path.starts_with(&format!("src/{room}/")) || self.path == format!("src/{room}.rs"))
    }
}

/// The line without what follows `//`, unless that stands in a text.
fn without_comment(line: &str) -> &str {
    let mut in_text = false;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match c {
            '"' if before != '\\' && before != '\'' => in_text = !in_text,
            '/' if !in_text && line[at..].starts_with("//") => return &line[..at],
            _ => {}
        }
        before = c;
    }
    line
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "loadgen", "fuzz", "examples"] {
        collect(root, &root.join(folder), &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 50, "the sources are elsewhere");
    let of_tests: Vec<String> = found.iter().flat_map(modules_for_tests).collect();
    for source in &mut found {
        source.is_test |= of_tests.contains(&source.path);
    }
    found
}

/// The files that a file declares with `#[cfg(test)] mod name;`, where they lie beside it.
fn modules_for_tests(source: &Source) -> Vec<String> {
    let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let lines: Vec<&str> = source.text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
        let name = pair[1].strip_prefix("mod ")?.strip_suffix(';')?;
        Some(format!("{folder}/{name}.rs"))
    });
    declared.collect()
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.expect("a folder can be read").path()) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() && name != "target" {
            collect(root, &path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("a source can be read");
            let path = relative(root, &path);
            let is_test = path.starts_with("tests/") || path.starts_with("benches/") || path.contains("/tests");
            found.push(Source { path, text, is_test });
        }
    }
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).expect("found below the root").to_string_lossy().replace('\\', "/")
}

/// True when `word` stands in `line` and is no part of a longer name.
fn says(line: &str, word: &str) -> bool {
    let is_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word)
        .any(|(at, _)| !is_name(line[..at].chars().next_back()) && !is_name(line[at + word.len()..].chars().next()))
}

#[test]
fn rooms_import_what_they_may() {
    // The rooms of the house, and those whose things they may use (besides their own).
    const MAY: [(&str, &[&str]); 7] = [
        ("protocol", &[]),
        ("engine", &["protocol"]),
        ("gateway", &["engine", "protocol"]),
        ("store", &["engine", "protocol", "clock"]),
        ("control", &["engine", "protocol", "config", "exit"]),
        ("shard", &["engine", "protocol", "gateway", "store", "clock"]),
        ("config", &["engine", "protocol", "exit"]),
    ];
    let mut faults = Faults::default();
    for source in sources() {
        for (room, may) in MAY.iter().filter(|(room, _)| source.is_in(&[room])) {
            for (number, line) in source.code() {
                for (at, _) in line.match_indices("crate::") {
                    let used: String =
                        line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if used != *room && !used.is_empty() && !may.contains(&used.as_str()) {
                        faults.add(&source, number, &format!("{room} does not use {used}"));
                    }
                    // `use crate::{a, b}` would hide what is used.
                    if used.is_empty() {
                        faults.add(&source, number, "name the room in each import");
                    }
                }
            }
        }
    }
    faults.none();
}

#[test]
fn the_pure_rooms_know_no_machine() {
    // Neither sockets, disk, threads, clocks nor randomness: time and seeds are handed in.
    const NEVER: [&str; 21] = [
        "glommio",
        "flume",
        "rusqlite",
        "tokio",
        "io_uring",
        "libc",
        "axum",
        "getrandom",
        "tracing",
        "Instant",
        "SystemTime",
        "thread",
        "thread_local",
        "async",
        "std::net",
        "std::fs",
        "std::env",
        "std::process",
        "File",
        "println",
        "eprintln",
    ];
    let mut faults = Faults::default();
    for source in sources().iter().filter(|source| source.is_in(&["protocol", "engine"])) {
        for (number, line) in source.code() {
            for word in NEVER.iter().filter(|word| says(line, word)) {
                // A field of a message, not a thread of the machine.
                if *word == "thread" && !line.contains("thread::") && !line.contains("std::thread") {
                    continue;
                }
                faults.add(source, number, &format!("a pure room says {word}"));
            }
        }
    }
    faults.none();
}

#[test]
fn unsafe_stands_only_where_a_socket_or_memory_rule_needs_it() {
    const WHERE: [(&str, &str); 7] = [
        ("src/shard/buffers.rs", "memory shared with the kernel"),
        ("src/shard/ring.rs", "the ring: submissions name memory that must live on"),
        ("src/shard/socket.rs", "socket calls that std does not have"),
        ("src/shard/doorbell.rs", "eventfd"),
        ("src/store/vfs.rs", "SQLite's interface to files is C"),
        ("src/store/thread.rs", "where a thread runs and how urgently"),
        ("src/cli/process.rs", "what a process asks of the kernel for itself"),
    ];
    let mut faults = Faults::default();
    for source in sources() {
        let is_named = WHERE.iter().any(|(path, _)| source.path == *path);
        for (number, line) in source.lines() {
            let is_unsafe = says(line, "unsafe") && !line.contains("\"unsafe") && source.path != "tests/tidy.rs";
            if is_unsafe && !is_named {
                faults.add(&source, number, "unsafe has no business here");
            }
        }
        if is_named && !source.text.contains("#![allow(unsafe_code)]") {
            faults.add(&source, 0, "a file with unsafe says so at its top: #![allow(unsafe_code)]");
        }
    }
    faults.none();
}

#[test]
fn files_begin_with_what_they_are_and_end_in_time() {
    const LINES_MAX: usize = 700;
    const LONGER: [(&str, usize, &str); 1] =
        [("src/engine/event.rs", 900, "the closed lists of values; nothing in it does anything")];
    let mut faults = Faults::default();
    for source in sources() {
        let count = source.text.lines().count();
        let max = LONGER.iter().find(|(path, ..)| source.path == *path).map_or(LINES_MAX, |(_, max, _)| *max);
        if count >= max {
            faults.add(&source, count, &format!("{count} lines, and {max} is the end"));
        }
        if !source.text.starts_with("//!") {
            faults.add(&source, 0, "a file begins with what it holds: //! …");
        }
    }
    faults.none();
}

#[test]
fn functions_fit_on_a_page() {
    const LINES_MAX: usize = 100;
    let mut faults = Faults::default();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| begins_function(line)) {
            let indent = line.len() - line.trim_start().len();
            let closes =
                |line: &&str| line.len() > indent && line.trim_start() == "}" && line.find('}') == Some(indent);
            let body = lines[at..].iter().position(closes).unwrap_or(0);
            if body >= LINES_MAX {
                faults.add(&source, at, &format!("a function of {body} lines"));
            }
        }
    }
    faults.none();
}

fn begins_function(line: &str) -> bool {
    const BEFORE: [&str; 9] = [
        "pub ",
        "pub(super) ",
        "pub(crate) ",
        "pub(in crate::engine) ",
        "const ",
        "async ",
        "unsafe ",
        "extern ",
        "\"C\" ",
    ];
    let mut rest = line.trim_start();
    while let Some(shorter) = BEFORE.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = shorter;
    }
    rest.starts_with("fn ") && !line.trim_end().ends_with(';') && !line.trim_end().ends_with('}')
}

#[test]
fn code_says_neither_unwrap_nor_todo() {
    let mut faults = Faults::default();
    for source in sources() {
        for (number, line) in source.code() {
            if line.contains(".unwrap()") {
                faults.add(&source, number, "unwrap: `expect` names the invariant");
            }
        }
        for (number, line) in source.lines().filter(|_| source.path != "tests/tidy.rs") {
            for word in ["todo!", "unimplemented!", "dbg!"] {
                if line.contains(word) {
                    faults.add(&source, number, word);
                }
            }
        }
    }
    faults.none();
}

#[test]
fn no_lock_lies_on_the_data_path() {
    const LOCKS: [&str; 3] = ["Mutex", "RwLock", "Condvar"];
    let mut faults = Faults::default();
    for source in sources().iter().filter(|s| s.is_in(&["engine", "protocol", "gateway", "shard"])) {
        for (number, line) in source.code() {
            for lock in LOCKS.iter().filter(|lock| says(line, lock)) {
                faults.add(source, number, &format!("{lock}: shards share nothing but channels"));
            }
        }
    }
    faults.none();
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).to_string_lossy().into_owned();
    // Written in two pieces, so that this list does not find itself.
    let places: Vec<String> = ["home/", "root/", "work/", "Users/"].iter().map(|place| format!("/{place}")).collect();
    let mut faults = Faults::default();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            let begins_path = |place: &String| {
                line.match_indices(place.as_str()).any(|(at, _)| {
                    line[..at].chars().next_back().is_none_or(|c| matches!(c, '"' | '\'' | ' ' | '(' | '`' | '='))
                })
            };
            if line.contains(&root) || places.iter().any(begins_path) {
                faults.add(&source, number, "a path of one machine");
            }
        }
    }
    faults.none();
}

#[test]
fn the_rules_find_what_breaks_them() {
    assert_eq!(without_comment("a // b"), "a ");
    assert_eq!(without_comment(r#"let a = "http://x"; // b"#), r#"let a = "http://x"; "#);
    assert!(says("use std::sync::Mutex;", "Mutex") && !says("MutexGuard", "Mutex"));
    assert!(begins_function("    pub(super) async fn x(") && !begins_function("    fn x();"));
    let text = "//! x\nfn a() {}\n#[cfg(test)]\nmod tests {\n x.unwrap()\n}\n".to_owned();
    let source = Source { path: "src/a.rs".to_owned(), text, is_test: false };
    assert_eq!(source.code().count(), 2);
}
