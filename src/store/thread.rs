//! Where the calling thread runs, and how urgently. `unsafe` for two system calls; holds nothing.
#![allow(unsafe_code)]

/// Lets the calling thread run on `core` only.
///
/// # Errors
/// The kernel's answer: no such core, or not allowed.
pub(super) fn pin_to_core(core: usize) -> std::io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a cpu_set_t is plain bits, all zero is the empty set; `core` is within the set's size;
    // pid 0 is the calling thread, and the kernel only reads the set.
    let answer = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Lets others go first: the calling thread's nice value becomes `nice` (0 to 19, higher is less urgent).
///
/// # Errors
/// The kernel's answer; lowering is always allowed.
pub(super) fn lower_priority(nice: i32) -> std::io::Result<()> {
    // SAFETY: no pointers; on Linux PRIO_PROCESS with 0 is the calling thread.
    let answer = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
