//! May this process use io_uring here, and can the kernel do what the ring needs?
//!
//! Asked once at start and by `antiphon check`; the answer is a report, or one sentence for a person.

use std::fmt;

use io_uring::{IoUring, Probe, opcode};

use super::ring::{Ring, RingConfig, TaskRun};

/// The oldest kernel that has multishot receive, single-issuer rings and synchronous cancel.
pub const KERNEL_MIN: (u32, u32) = (6, 0);

/// What the kernel offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelReport {
    /// As in `uname -r`.
    pub release: String,
    /// How rings run their work here.
    pub task_run: TaskRun,
}

impl fmt::Display for KernelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.task_run {
            TaskRun::Deferred => "deferred",
            TaskRun::Cooperative => "cooperative",
        };
        write!(f, "Linux {} with io_uring ({how} task running)", self.release)
    }
}

/// Asks the kernel.
///
/// # Errors
/// One sentence that says what is missing and what to do.
pub fn probe() -> Result<KernelReport, String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    check_release(&release)?;
    let ring = IoUring::new(8).map_err(|error| refusal(error.raw_os_error(), &disabled_setting()))?;
    let mut known = Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|e| format!("io_uring does not say what it can do: {e}"))?;
    let needed = [
        ("accept", opcode::Accept::CODE),
        ("recv", opcode::Recv::CODE),
        ("poll", opcode::PollAdd::CODE),
        ("connect", opcode::Connect::CODE),
        ("read", opcode::Read::CODE),
        ("cancel", opcode::AsyncCancel::CODE),
    ];
    if let Some((name, _)) = needed.iter().find(|(_, code)| !known.is_supported(*code)) {
        return Err(format!("io_uring here does not allow `{name}`, which Antiphon needs; lift the restriction"));
    }
    drop(ring);
    let ring = Ring::new(RingConfig { entries: 8, buffers: 8, buffer_bytes: 64 })
        .map_err(|error| refusal(error.raw_os_error(), &disabled_setting()))?;
    Ok(KernelReport { release, task_run: ring.task_run() })
}

fn check_release(release: &str) -> Result<(), String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => Ok(()),
        (Some(major), Some(minor)) => Err(format!(
            "Linux {major}.{minor} is too old: Antiphon needs {}.{} or newer for io_uring's multishot receive",
            KERNEL_MIN.0, KERNEL_MIN.1
        )),
        _ => Err("cannot read the kernel's version from /proc/sys/kernel/osrelease".to_owned()),
    }
}

/// The value of `kernel.io_uring_disabled`, where there is one.
fn disabled_setting() -> String {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default().trim().to_owned()
}

fn refusal(errno: Option<i32>, disabled: &str) -> String {
    match (errno, disabled) {
        (Some(libc::EPERM), "1" | "2") => format!(
            "io_uring is switched off on this host (kernel.io_uring_disabled = {disabled}); set it to 0 to run Antiphon"
        ),
        (Some(libc::EPERM | libc::EACCES), _) => "io_uring is forbidden here, most likely by a container's seccomp \
             profile; allow io_uring_setup, io_uring_enter and io_uring_register"
            .to_owned(),
        (Some(libc::ENOSYS), _) => {
            "this kernel was built without io_uring, or a sandbox hides it; Antiphon cannot run here".to_owned()
        }
        (Some(libc::ENOMEM), _) => "no memory may be locked for io_uring; raise the limit (ulimit -l)".to_owned(),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "no file descriptor left for io_uring; raise the limit (ulimit -n)".to_owned()
        }
        (Some(libc::EINVAL), _) => "io_uring here lacks provided buffer rings or single-issuer mode; \
             Antiphon needs Linux 6.0 or newer"
            .to_owned(),
        (errno, _) => format!("io_uring cannot be set up (errno {})", errno.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_will_do() {
        let report = probe().unwrap();
        assert!(report.to_string().contains("io_uring"));
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for good in ["6.0.0", "6.18.44-fc-v595", "10.2-rc1", "6.1"] {
            assert_eq!(check_release(good), Ok(()), "{good}");
        }
        for old in ["5.15.0-91-generic", "5.19", "4.4.0"] {
            assert!(check_release(old).unwrap_err().contains("too old"), "{old}");
        }
        for odd in ["", "six", "6"] {
            assert!(check_release(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        assert!(refusal(Some(libc::EPERM), "2").contains("io_uring_disabled = 2"));
        assert!(refusal(Some(libc::EPERM), "0").contains("seccomp"));
        assert!(refusal(Some(libc::ENOSYS), "").contains("without io_uring"));
        assert!(refusal(Some(libc::ENOMEM), "").contains("ulimit -l"));
        assert!(refusal(Some(libc::EMFILE), "").contains("ulimit -n"));
        assert!(refusal(Some(libc::EINVAL), "").contains("6.0"));
        assert!(refusal(Some(5), "").contains("errno 5"));
    }
}
