//! What the process asks of the kernel for itself: limits of open files and locked memory, and no
//! huge pages; and of its allocator. Unsafe, because the calls are C's.

#![allow(unsafe_code)]

use std::io;

/// A limit: what holds now, and what it may be raised to. `u64::MAX` is "no limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// Open files (a connection is one).
///
/// # Errors
/// The system call failed.
pub fn open_files() -> io::Result<Limit> {
    get(libc::RLIMIT_NOFILE)
}

/// Locked memory, bytes (glommio locks the buffers of its own rings).
///
/// # Errors
/// The system call failed.
pub fn locked_bytes() -> io::Result<Limit> {
    get(libc::RLIMIT_MEMLOCK)
}

/// Raises the limit of open files as far as it may go.
///
/// # Errors
/// The system call failed.
pub fn raise_open_files() -> io::Result<Limit> {
    let limit = open_files()?;
    if limit.soft < limit.hard {
        let wanted = libc::rlimit { rlim_cur: limit.hard, rlim_max: limit.hard };
        // SAFETY: `wanted` is a valid rlimit that outlives the call, which only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    open_files()
}

/// Has a write past the limit of file sizes (`ulimit -f`) fail like one on a full disk, instead of ending the process.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler of ours runs.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Files that this process makes are its user's alone, as far as nobody says otherwise.
pub fn keep_files_private() {
    // SAFETY: sets a number.
    unsafe { libc::umask(0o077) };
}

/// Whether whoever started the process has this signal ignored.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; `action` outlives the call.
    let is_known = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } == 0;
    is_known && action.sa_sigaction == libc::SIG_IGN
}

/// Turns transparent huge pages off for this process, where the kernel knows how.
///
/// The allocator asks for them, and a heap of many small long-lived things is then resident in steps
/// of 2 MiB: 15,000 idle connections took 3,700 bytes each with them and 2,050 without.
pub fn disable_huge_pages() {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no pointers. An error leaves everything as it was.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, unused, unused, unused) };
}

/// How long the allocator keeps pages that are free, ms: what mimalloc 2 did. Version 3 keeps them for a
/// second, and then until somebody allocates again, which on a quiet server may be long: 15,000 idle
/// connections took 2,190 bytes each with that and 1,850 with this.
const FREE_PAGES_KEPT_MS: libc::c_long = 10;

/// `mi_option_purge_delay` of mimalloc.h; the crate has no name for it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Has the allocator give free pages back early, unless `MIMALLOC_PURGE_DELAY` says something else. To be
/// called before there is another thread.
pub fn return_free_pages_early() {
    // SAFETY: sets a number that the allocator reads; no pointers.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, FREE_PAGES_KEPT_MS) };
}

fn get(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call, which only writes it.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_raised_to_the_hard_one() {
        let limit = raise_open_files().unwrap();
        assert!(limit.soft > 0 && limit.soft == limit.hard);
        assert!(locked_bytes().unwrap().hard >= locked_bytes().unwrap().soft);
    }

    /// Another version of the allocator may number its options otherwise, or have another default.
    #[test]
    fn the_number_is_that_of_the_purge_delay() {
        // SAFETY: reads a number.
        let delay_ms = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            assert_eq!(delay_ms(), 1_000);
            return_free_pages_early();
            assert_eq!(delay_ms(), FREE_PAGES_KEPT_MS);
        }
    }
}
