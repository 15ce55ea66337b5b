//! What the machine has left.

use std::path::Path;

/// Bytes of memory that this process may still take: what the system has available, or what is left
/// of the limit of a control group that it is in or of its address space, whichever is less. `None` where nobody tells.
pub fn available_memory() -> Option<usize> {
    let system = std::fs::read_to_string("/proc/meminfo").ok();
    let system = system.as_deref().and_then(|text| field(text, "MemAvailable:")).map(|k| k * 1024);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = groups.lines().filter_map(|line| left_in(Path::new("/sys/fs/cgroup"), line));
    system.into_iter().chain(left).chain(address_space()).min()
}

/// What is left of a limit of the address space (`ulimit -v`).
fn address_space() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let limit = field(&limits, "Max address space")?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(limit.saturating_sub(field(&status, "VmSize:")? * 1024))
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is left of the least limit on the way from a group to the root, for a line `id:kinds:path`
/// of `/proc/self/cgroup`, in version 1 or 2 of control groups. Cached files are left, for they are
/// dropped when memory is wanted.
fn left_in(root: &Path, line: &str) -> Option<usize> {
    let mut parts = line.splitn(3, ':');
    let (id, kinds, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, limit, usage, cached) = if kinds.split(',').any(|k| k == "memory") {
        let names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ");
        (root.join("memory"), names.0, names.1, names.2)
    } else if id == "0" && kinds.is_empty() {
        (root.to_path_buf(), "memory.max", "memory.current", "inactive_file ")
    } else {
        return None;
    };
    let group = root.join(path.trim_start_matches('/'));
    let left = |folder: &Path| -> Option<usize> {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
        // Without a limit it says `max`, or a number beyond any memory.
        let limit = number(limit).filter(|&l| l < 1 << 60)?;
        let cached = read("memory.stat").and_then(|text| field(&text, cached)).unwrap_or(0);
        Some(limit.saturating_sub(number(usage)?.saturating_sub(cached)))
    };
    group.ancestors().take_while(|a| a.starts_with(&root)).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_control_groups_are_found() {
        let root = std::env::temp_dir().join(format!("danlu-cgroup-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
            std::fs::write(path, text).expect("writes");
        };
        // Version 2: the group has no limit, the one above it has.
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "50\n");
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 1\nactive_file 20\ninactive_file 100\n");
        assert_eq!(left_in(&root, "0::/a/b"), Some(400));
        assert_eq!(left_in(&root, "0::/"), None);
        // Version 1.
        write("memory/c/memory.limit_in_bytes", "500\n");
        write("memory/c/memory.usage_in_bytes", "600\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(left_in(&root, "4:memory:/c"), Some(0));
        assert_eq!(left_in(&root, "3:cpuset:/c"), None);
        std::fs::remove_dir_all(&root).expect("removes");
        assert_eq!(field("MemTotal: 5 kB\nMemAvailable:   3 kB\n", "MemAvailable:"), Some(3));
    }
}
