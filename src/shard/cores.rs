//! Which cores this process may use, and which shard gets which.

/// The cores in this process's affinity mask (`taskset`, cpusets), ascending; at least one.
pub fn allowed() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let cores = parse_list(list.trim());
    if cores.is_empty() { vec![0] } else { cores }
}

/// Reads a list such as `0-3,8,10-11`; what is not a number is left out.
fn parse_list(list: &str) -> Vec<usize> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// The core of the `number`th thread when threads go around `cores`.
pub fn nth(cores: &[usize], number: usize) -> usize {
    cores.get(number % cores.len().max(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores() {
        assert_eq!(parse_list("0-3,8,10-11"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_list("5"), [5]);
        assert_eq!(parse_list(""), [0_usize; 0]);
        assert!(!allowed().is_empty());
        assert_eq!(nth(&[4, 6], 3), 6);
    }
}
