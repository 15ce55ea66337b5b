//! Pages of the program itself.

/// Lets go of the pages of the program's code and constants that were read so far: opening a model
/// runs a great deal of both once. What is needed again is mapped again from the system's cache, at
/// a fault for sixteen pages.
#[cfg(target_os = "linux")]
pub(crate) fn give_back() {
    use libc::{MADV_DONTNEED, PF_W, PT_LOAD};
    use std::ffi::{c_int, c_void};

    /// Called for the program first; what it returns ends the walk there.
    unsafe extern "C" fn program(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        _: *mut c_void,
    ) -> c_int {
        // SAFETY: the caller hands a description that is valid during the call, as are its headers.
        let (base, headers) = unsafe {
            let info = &*info;
            let count = usize::from(info.dlpi_phnum);
            (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, count))
        };
        // SAFETY: it only asks for a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        for h in headers.iter().filter(|h| h.p_type == PT_LOAD && h.p_flags & PF_W == 0) {
            let start = base + h.p_vaddr as usize;
            let (from, to) =
                (start.next_multiple_of(page), (start + h.p_memsz as usize) / page * page);
            if from < to {
                // SAFETY: a segment that was never written is the file's: read again, it is the same.
                unsafe { libc::madvise(from as *mut c_void, to - from, MADV_DONTNEED) };
            }
        }
        1
    }

    // SAFETY: the function has the signature that is asked for and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(program), std::ptr::null_mut()) };
}

/// Other systems are not told.
#[cfg(not(target_os = "linux"))]
pub(crate) fn give_back() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    /// Resident pages of the program's code, in kB.
    fn resident() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux tells it");
        let program = std::env::current_exe().expect("it has a path");
        let mut ours = false;
        let mut sum = 0;
        for line in maps.lines() {
            if line.contains(" r-xp ") || line.contains("-p ") {
                ours = line.contains(" r-xp ") && line.ends_with(&*program.to_string_lossy());
            }
            if let (true, Some(size)) = (ours, line.strip_prefix("Rss:")) {
                sum += size.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
            }
        }
        sum
    }

    #[test]
    fn code_goes_and_comes_back() {
        let runs = || format!("{:?} {:?}", "2.5e-3".parse::<f64>(), "a\u{301}".char_indices());
        let before = (runs(), resident());
        super::give_back();
        let after = resident();
        assert!(before.1 > 0 && after < before.1, "{} kB, then {after}", before.1);
        assert_eq!(runs(), before.0, "what runs is the same");
    }
}
