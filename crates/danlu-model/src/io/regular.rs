//! Files of others by what they are: a pipe or a device in place of one may have no end.

use danlu_core::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Opens a file, or what a link to one leads to; anything else is refused unopened.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let there = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !there.is_file() {
        let found = if there.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
        return Err(Error::file(path, "a regular file", found));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// The bytes of a file of at most `limit` bytes, however long it becomes while it is read.
pub(crate) fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let wrong =
        |found: u64| Error::file(path, format!("at most {limit} bytes"), format!("{found} bytes"));
    if size > limit {
        return Err(wrong(size));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    match bytes.len() as u64 {
        more if more > limit => Err(wrong(more)),
        _ => Ok(bytes),
    }
}

/// The same of a text.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let wrong = |e| Error::file(path, "a text in UTF-8", e);
    String::from_utf8(read_regular(path, limit)?).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_unopened_and_a_long_one_unread() {
        let folder = std::env::temp_dir().join(format!("danlu-regular-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("makes");
        let file = folder.join("a.json");
        std::fs::write(&file, "12345").expect("writes");
        assert_eq!(read_text(&file, 5).expect("reads"), "12345");
        let error = read_regular(&file, 4).expect_err("long").to_string();
        assert!(error.contains("a.json: expected at most 4 bytes, found 5"), "{error}");
        let error = open_regular(&folder).expect_err("a folder").to_string();
        assert!(error.contains("a regular file, found a folder"), "{error}");
        #[cfg(unix)]
        {
            let [link, pipe] = ["b.json", "c.json"].map(|name| folder.join(name));
            std::os::unix::fs::symlink("/dev/zero", &link).expect("links");
            let mut all = vec![link];
            let made = std::process::Command::new("mkfifo").arg(&pipe).status();
            all.extend(made.is_ok_and(|status| status.success()).then_some(pipe));
            for path in all {
                let error = read_regular(&path, 4).expect_err("no file").to_string();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                assert!(error.contains(&name) && error.contains("a device"), "{error}");
            }
        }
        std::fs::remove_dir_all(&folder).expect("removes");
    }
}
