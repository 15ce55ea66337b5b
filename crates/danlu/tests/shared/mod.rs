//! The real binary, as tests call it, and folders to try things in.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

pub(crate) fn danlu(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_danlu")).args(arguments).current_dir(root()).output().unwrap()
}

#[track_caller]
pub(crate) fn works(arguments: &[&str]) -> String {
    let out = danlu(arguments);
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{arguments:?}: {said}");
    said.into_owned()
}

#[track_caller]
pub(crate) fn fails(arguments: &[&str], wanted: &[&str]) {
    let out = danlu(arguments);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{arguments:?} should fail");
    for w in wanted {
        assert!(said.contains(w), "{arguments:?}: expected {w:?} in: {said}");
    }
}

/// A fresh folder outside the checkout.
pub(crate) fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("danlu-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}
