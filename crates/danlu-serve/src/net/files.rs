//! How many files the process may have open, of which every connection is one.

use std::io;

/// Files that are not connections: those of models, keys and logs, and the runtime's own.
const OTHERS: usize = 64;

/// Most connections that leave room for other files; `None` where nothing is known of a limit.
pub(super) fn most_connections() -> Option<usize> {
    // Other systems do not have this file.
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    Some(soft_limit(&text)?.saturating_sub(OTHERS))
}

/// The limit that holds, of a list with a line for each.
fn soft_limit(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether a connection could not be accepted because too many files are open: here (EMFILE) or on the
/// whole machine (ENFILE).
pub(super) fn too_many(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_that_holds_is_the_first_of_its_line() {
        let text = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max processes             7                    8                    processes\n\
                 Max open files            {soft:<20} 524288               files\n"
            )
        };
        assert_eq!(soft_limit(&text("1024")), Some(1_024));
        assert_eq!(soft_limit(&text("unlimited")), None);
        assert_eq!(soft_limit(""), None);
    }
}
