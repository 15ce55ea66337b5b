//! The repository's files, and Rust source without its comments and strings.

use std::path::Path;
use std::process::Command;

/// A file of the repository.
pub(crate) struct File {
    /// Path from the root, with forward slashes.
    pub(crate) path: String,
    /// Size in bytes.
    pub(crate) size: usize,
    /// Its text; empty if it is not UTF-8.
    pub(crate) text: String,
    /// For Rust files, the text with comments and the insides of strings blanked.
    pub(crate) code: String,
}

impl File {
    pub(crate) fn new(path: &str, bytes: Vec<u8>) -> Self {
        let size = bytes.len();
        let text = String::from_utf8(bytes).unwrap_or_default();
        let code = if path.ends_with(".rs") { code_only(&text) } else { String::new() };
        Self { path: path.into(), size, text, code }
    }

    /// Name of the crate folder under `crates/` this file is in.
    pub(crate) fn crate_name(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split_once('/').map(|(name, _)| name)
    }
}

/// Every file git knows or would add: what is ignored is nobody's business here.
pub(crate) fn repository(root: &Path) -> Result<Vec<File>, String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cannot run git: {error}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let names = String::from_utf8_lossy(&output.stdout);
    let mut files = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        let path = root.join(name);
        // Deleted but not yet committed, or a link to a folder.
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|error| format!("{name}: {error}"))?;
            files.push(File::new(name, bytes));
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    Ok(files)
}

/// `text` with comments and the insides of strings and characters replaced by blanks, line for
/// line and column for column, so that a search finds code only.
pub(crate) fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match at(i) {
            '/' if at(i + 1) == '/' => {
                (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len())
            }
            '/' if at(i + 1) == '*' => block_comment(&chars, i),
            '"' => quoted(&chars, i),
            'r' if !word(if i > 0 { at(i - 1) } else { ' ' }) || at(i.wrapping_sub(1)) == 'b' => {
                raw_string(&chars, i).unwrap_or(i)
            }
            // A character, and not a lifetime: it is closed two or more places on.
            '\'' if at(i + 1) == '\\' => quoted(&chars, i),
            '\'' if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end == i {
            out.push(at(i));
            i += 1;
        } else {
            out.extend(chars[i..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    out
}

fn word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The end of the quoted literal that begins at `start`, by whichever quote is there.
fn quoted(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 1,
            c if c == chars[start] => return i + 1,
            _ => {}
        }
        i += 1;
    }
    chars.len()
}

/// The end of the raw string whose `r` is at `start`, if it is one.
fn raw_string(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + hashes;
    (chars.get(open) == Some(&'"')).then_some(())?;
    let closes =
        |i: usize| chars[i] == '"' && chars[i + 1..].iter().take(hashes).all(|&c| c == '#');
    Some(
        (open + 1..chars.len())
            .find(|&i| closes(i))
            .map_or(chars.len(), |i| i + 1 + hashes)
            .min(chars.len()),
    )
}

fn block_comment(chars: &[char], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0usize);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (i, depth) = (i + 2, depth + 1),
            ('*', '/') => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

/// Lines of `text`, numbered from 1, in which `needle` stands as a word of its own.
pub(crate) fn lines_with_word<'a>(
    text: &'a str,
    needle: &'a str,
) -> impl Iterator<Item = usize> + 'a {
    let has = move |line: &str| {
        line.match_indices(needle).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + needle.len()..].chars().next();
            let ends_in_word = needle.ends_with(word);
            let longer = before.is_some_and(word) || (ends_in_word && after.is_some_and(word));
            !longer
        })
    };
    text.lines().enumerate().filter(move |(_, line)| has(line)).map(|(i, _)| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_blanked() {
        let source = "a // unsafe\nb /* x /* unsafe */ y */ c\nlet s = \"un\\\"safe\";\n\
                      r#\"unsafe \" \"# + br\"unsafe\"; 'x' '\\'' <'a> z('\"') d";
        let code = code_only(source);
        assert!(!code.contains("safe"), "{code}");
        for kept in ["a ", "\nb ", " c\n", "let s =", "<'a>", " z(", " d"] {
            assert!(code.contains(kept), "{kept} in {code}");
        }
        assert_eq!(code.chars().count(), source.chars().count());
        assert_eq!(code.lines().count(), source.lines().count());
        // Unclosed literals and comments end with the text.
        for source in ["\"open", "/* open", "r##\"open\"#", "'\\", "r#", "r"] {
            assert_eq!(code_only(source).chars().count(), source.chars().count());
        }
    }

    #[test]
    fn words_are_whole() {
        let found = |text, needle| lines_with_word(text, needle).collect::<Vec<_>>();
        assert_eq!(found("unsafe_code\nx unsafe {\nmakeunsafe", "unsafe"), [2]);
        assert_eq!(found("use burn::Tensor;\nuse auburn::x;", "burn::"), [1]);
        assert_eq!(found("eprintln!()\nprintln!()", "println!"), [2]);
    }
}
