//! What the process asks of the kernel for itself: limits of open files and locked memory, and no
//! huge pages. Unsafe, because the system calls take pointers.

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

/// Turns transparent huge pages off for this process, where the kernel knows how.
///
/// The allocator asks for them, and a heap of many small long-lived things is then resident in steps
/// of 2 MiB: 15,000 idle connections took 3,700 bytes each with them and 2,050 without.
pub fn disable_huge_pages() {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no pointers. An error leaves everything as it was.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, unused, unused, unused) };
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
}
