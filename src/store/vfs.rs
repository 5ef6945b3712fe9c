//! How the writer's connection writes SQLite's write-ahead log: the pages of a commit in one call.
//!
//! SQLite hands each page to the system in two calls, the frame's header and the page, and each call takes
//! its own way through the file system: 4 pages and a sync cost 137 µs of CPU that way and 109 in one call,
//! 8 pages 176 and 118 (ext4). Here what is appended to the log is gathered and goes out when the frame that
//! commits is whole. All else is the system's own VFS, which SQLite is told to use through ours; of files
//! other than the log not even the handle is ours.
//!
//! - Nothing is held back past a commit, whatever `synchronous` says: SQLite tells its other connections of a
//!   commit after the last of its writes, and that is the one that sends all of them out.
//! - A write that fails does so in the call that sent it out, with the system's code. What was gathered is
//!   then forgotten, and SQLite rolls the transaction back, as after any write that fails.
//! - Only appends are gathered. Where SQLite goes back in the file, what was gathered goes out first.
//! - Nothing is left over from a transaction that is rolled back, to be written later over what another connection
//!   has committed: this connection does not spill (see `schema`), so frames are written within a commit only, and
//!   its last write, or the first that fails, empties what was gathered.
//!
//! Sources: "The SQLite OS Interface or VFS", "WAL-mode File Format" (a frame is a header of 24 bytes, with
//! the database's size at its bytes 4 to 7 if it commits and zero if not, and a page).
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

/// Bytes of a frame's header.
const FRAME_HEADER: usize = 24;
/// Bytes that are gathered at most. The system's VFS writes what is longer in parts, of which the first is the
/// length modulo 128 KiB: when that is nothing, it takes the disk for full.
const GATHERED_MAX: usize = 128 * 1_024 - 1;

/// The name under which SQLite knows it, for `Connection::open_with_flags_and_vfs`.
///
/// # Errors
/// SQLite has no default VFS, or takes none of ours; both are a build without them.
pub(super) fn name() -> rusqlite::Result<&'static CStr> {
    const NAME: &CStr = c"antiphon";
    static ANSWER: OnceLock<c_int> = OnceLock::new();
    match *ANSWER.get_or_init(|| register(NAME)) {
        ffi::SQLITE_OK => Ok(NAME),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

fn register(name: &'static CStr) -> c_int {
    // SAFETY: null asks for the default VFS; SQLite initialises itself first.
    let system = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
    if system.is_null() {
        return ffi::SQLITE_NOTFOUND;
    }
    // SAFETY: a registered VFS stays; nobody writes to it but SQLite's list, to `pNext`, under its lock, and a
    // stale copy of that is replaced when ours is registered.
    let mut vfs = unsafe { *system };
    vfs.szOsFile += INNER as c_int;
    vfs.zName = name.as_ptr();
    vfs.pNext = std::ptr::null_mut();
    vfs.xOpen = Some(open);
    let ours = Box::leak(Box::new(Vfs { vfs, system }));
    // SAFETY: it lives as long as the process, as SQLite asks; not made the default.
    unsafe { ffi::sqlite3_vfs_register(&raw mut ours.vfs, 0) }
}

/// The system's VFS with another `xOpen`. Its other calls do not ask whose they are.
#[repr(C)]
struct Vfs {
    vfs: sqlite3_vfs,
    system: *mut sqlite3_vfs,
}

/// A handle of the log. The system's own handle begins [`INNER`] bytes after its start.
#[repr(C)]
struct LogFile {
    methods: *const sqlite3_io_methods,
    gathered: Gathered,
}

/// No write ended there.
const NOWHERE: i64 = -1;

const INNER: usize = size_of::<LogFile>();
// SQLite gives memory for a handle on a multiple of eight, and the system's handle wants the same.
const _: () = assert!(INNER.is_multiple_of(8) && align_of::<LogFile>() <= 8);

/// Appends that have not been written yet.
#[derive(Debug)]
struct Gathered {
    bytes: Vec<u8>,
    /// Where the last write ended, gathered or written, or [`NOWHERE`].
    end: i64,
    /// The frame whose header came last commits.
    commits: bool,
}

/// What is to be done with a write.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It was gathered.
    Kept,
    /// It was gathered, and all goes out now: a commit is whole, or another page would be too much.
    Flush,
    /// It is no append, or too long: it goes to its place after all that was gathered.
    Through,
}

impl Gathered {
    const fn new() -> Self {
        Self { bytes: Vec::new(), end: NOWHERE, commits: false }
    }

    fn add(&mut self, bytes: &[u8], offset: i64) -> Fate {
        let is_header = bytes.len() == FRAME_HEADER;
        if is_header {
            self.commits = bytes[4..8] != [0; 4];
        }
        if offset != self.end || self.bytes.len() + bytes.len() > GATHERED_MAX {
            return Fate::Through;
        }
        self.bytes.extend_from_slice(bytes);
        self.end += bytes.len() as i64;
        let is_full = self.bytes.len() + FRAME_HEADER + bytes.len() > GATHERED_MAX;
        if !is_header && (self.commits || is_full) { Fate::Flush } else { Fate::Kept }
    }

    /// Where the first byte belongs.
    fn begin(&self) -> i64 {
        self.end - self.bytes.len() as i64
    }
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // Neither shared memory nor maps: SQLite asks the database's handle for those.
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// The system's handle in ours.
///
/// # Safety
/// `file` was given to [`open`] for a log.
unsafe fn inner(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: `szOsFile` has room for ours and the system's, which begins there.
    unsafe { file.byte_add(INNER) }
}

/// # Safety
/// `file` is a log that [`open`] opened, and no other reference to its state lives: SQLite uses a handle from
/// one thread at a time, and the system's methods, which are called meanwhile, do not know of it.
unsafe fn gathered<'a>(file: *mut sqlite3_file) -> &'a mut Gathered {
    // SAFETY: as above.
    unsafe { &mut (*file.cast::<LogFile>()).gathered }
}

/// Sends out what was gathered; forgets it, however that ends.
///
/// # Safety
/// `file` is a log that [`open`] opened.
unsafe fn flush(file: *mut sqlite3_file) -> c_int {
    // SAFETY: the only reference, and gone before this returns; SQLite's sizes are `int`, and
    // `GATHERED_MAX` is one.
    unsafe {
        let gathered = gathered(file);
        if gathered.bytes.is_empty() {
            return ffi::SQLITE_OK;
        }
        let (bytes, begin) = (gathered.bytes.as_ptr().cast(), gathered.begin());
        let code = pass_write(file, bytes, gathered.bytes.len() as c_int, begin);
        gathered.bytes.clear();
        if code != ffi::SQLITE_OK {
            gathered.end = NOWHERE;
        }
        code
    }
}

/// The same before something that is not a write. A full disk is then told as an error of input and output:
/// after that SQLite always ends the transaction, while after "full" it may end a statement only.
///
/// # Safety
/// As for [`flush`].
unsafe fn flush_before(file: *mut sqlite3_file) -> c_int {
    // SAFETY: as the caller says.
    match unsafe { flush(file) } {
        ffi::SQLITE_FULL => ffi::SQLITE_IOERR_WRITE,
        code => code,
    }
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives the VFS that we registered, and `szOsFile` bytes for the handle.
    unsafe {
        let system = (*vfs.cast::<Vfs>()).system;
        let Some(open) = (*system).xOpen else { return ffi::SQLITE_CANTOPEN };
        if flags & ffi::SQLITE_OPEN_WAL == 0 {
            return open(system, name, file, flags, out_flags);
        }
        // Without methods it is not open, and SQLite will not close it.
        (*file).pMethods = std::ptr::null();
        let code = open(system, name, inner(file), flags, out_flags);
        if code == ffi::SQLITE_OK {
            file.cast::<LogFile>().write(LogFile { methods: &raw const METHODS, gathered: Gathered::new() });
        }
        code
    }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: `from` has so many bytes, which is not negative; the file is open.
    unsafe {
        match gathered(file).add(std::slice::from_raw_parts(from.cast(), bytes as usize), offset) {
            Fate::Kept => ffi::SQLITE_OK,
            Fate::Flush => flush(file),
            Fate::Through => match flush(file) {
                ffi::SQLITE_OK => {
                    let code = pass_write(file, from, bytes, offset);
                    gathered(file).end = if code == ffi::SQLITE_OK { offset + i64::from(bytes) } else { NOWHERE };
                    code
                }
                code => code,
            },
        }
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: open until now, and never used again. What is still gathered was never committed.
    unsafe {
        std::ptr::drop_in_place(gathered(file));
        pass_close(file)
    }
}

/// Methods that the system's handle answers, each after `$first` has said that it may.
macro_rules! passed_on {
    ($($name:ident => $method:ident($($argument:ident: $kind:ty),*) after $first:ident or $absent:expr;)*) => {$(
        unsafe extern "C" fn $name(file: *mut sqlite3_file, $($argument: $kind),*) -> c_int {
            // SAFETY: SQLite's own arguments, on a file that is open: so the system's handle has its methods.
            unsafe {
                match $first(file) {
                    ffi::SQLITE_OK => {
                        let system = inner(file);
                        (*(*system).pMethods).$method.map_or($absent, |method| method(system, $($argument),*))
                    }
                    code => code,
                }
            }
        }
    )*};
}

passed_on! {
    pass_write => xWrite(from: *const c_void, bytes: c_int, offset: i64) after nothing or ffi::SQLITE_IOERR_WRITE;
    pass_close => xClose() after nothing or ffi::SQLITE_OK;
    read => xRead(into: *mut c_void, bytes: c_int, offset: i64) after flush_before or ffi::SQLITE_IOERR_READ;
    truncate => xTruncate(size: i64) after flush_before or ffi::SQLITE_IOERR_TRUNCATE;
    sync => xSync(flags: c_int) after flush_before or ffi::SQLITE_IOERR_FSYNC;
    file_size => xFileSize(size: *mut i64) after flush_before or ffi::SQLITE_IOERR_FSTAT;
    lock => xLock(level: c_int) after nothing or ffi::SQLITE_IOERR_LOCK;
    unlock => xUnlock(level: c_int) after nothing or ffi::SQLITE_IOERR_UNLOCK;
    check_reserved_lock => xCheckReservedLock(is_held: *mut c_int) after nothing or ffi::SQLITE_IOERR_CHECKRESERVEDLOCK;
    file_control => xFileControl(what: c_int, argument: *mut c_void) after nothing or ffi::SQLITE_NOTFOUND;
    // Zero: SQLite's default, and nothing promised.
    sector_size => xSectorSize() after nothing or 0;
    device_characteristics => xDeviceCharacteristics() after nothing or 0;
}

fn nothing(_: *mut sqlite3_file) -> c_int {
    ffi::SQLITE_OK
}

#[cfg(test)]
mod tests;
