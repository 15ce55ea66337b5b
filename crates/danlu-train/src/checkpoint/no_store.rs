//! In place of object stores in a build without the feature `object-store`: there are none.

use super::State;
use danlu_core::{Error, Result};
use std::path::Path;

/// A place in an object store, of which there is none here.
#[derive(Debug)]
pub(crate) enum Store {}

impl Store {
    pub(crate) fn open(address: &str) -> Result<Self> {
        let wanted =
            "none, for this build has no object stores; build with `--features object-store`";
        Err(Error::parameter("checkpoint.store", wanted, address))
    }

    pub(crate) fn copy(&self, _: &Path) -> Result<()> {
        match *self {}
    }

    pub(crate) fn drop_after(&self, _: &State) -> Result<()> {
        match *self {}
    }

    pub(crate) fn fetch(&self, _: &Path, _: &str, _: &mut Vec<String>) -> Result<Option<u64>> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_refused_by_name() {
        let error = Store::open("s3://bucket/run").expect_err("there are none").to_string();
        assert!(error.contains("checkpoint.store") && error.contains("--features"), "{error}");
    }
}
