//! A copy of every checkpoint in an object store, and back from there.
//!
//! Shards are objects named by their hash, so none is ever written over. The manifest comes last, and
//! only where there is none or one of the same training. Whatever interrupts this, a reader finds the
//! manifest of a whole checkpoint or none. Where another training has checkpoints nothing is put, and
//! none of those is ever removed.

use super::State;
use super::folder::{self, name};
use super::manifest::{MANIFEST, Manifest};
use danlu_core::{Error, Result};
use object_store::path::Path as Key;
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    UpdateVersion, WriteMultipart,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Bytes of a part of an upload.
const PART: usize = 8 << 20;

/// Parts on their way at the same time.
const PARTS: usize = 4;

/// How long an answer may take, tries again included.
const PATIENCE: Duration = Duration::from_secs(45);

/// A place in an object store.
#[derive(Debug)]
pub(crate) struct Store {
    address: String,
    inner: Box<dyn ObjectStore>,
    prefix: Key,
    runtime: tokio::runtime::Runtime,
}

impl Store {
    /// `s3://bucket/path` with what the environment says of access (`AWS_ACCESS_KEY_ID`,
    /// `AWS_ENDPOINT`, ...), or `file:///path`.
    pub(crate) fn open(address: &str) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| {
            Error::parameter("checkpoint.store", "the address of an object store", e)
        };
        let url = url::Url::parse(address).map_err(|e| wrong(&e))?;
        if let ("file", Ok(folder)) = (url.scheme(), url.to_file_path()) {
            std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        let environment = std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value));
        let (inner, prefix) =
            object_store::parse_url_opts(&url, environment).map_err(|e| wrong(&e))?;
        Self::of(address, inner, prefix)
    }

    fn of(address: &str, inner: Box<dyn ObjectStore>, prefix: Key) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Error::io(address, e))?;
        Ok(Self { address: address.to_string(), inner, prefix, runtime })
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T> {
        self.ask(work).map_err(|e| self.failed(e))
    }

    /// Waits for an answer, and not for ever: a training that is stopped waits for its copies.
    fn ask<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        // The clock is the runtime's.
        let timed = {
            let _inside = self.runtime.enter();
            tokio::time::timeout(PATIENCE, work)
        };
        let answer = self.runtime.block_on(timed);
        answer.unwrap_or_else(|_| {
            let source = format!("no answer in {} s", PATIENCE.as_secs()).into();
            Err(StoreError::Generic { store: "object store", source })
        })
    }

    fn failed(&self, e: StoreError) -> Error {
        // Without keys the machine is asked what role it has, at an address of its own.
        let keyless = std::env::var_os("AWS_ACCESS_KEY_ID").is_none();
        let wanted = match self.address.starts_with("s3") && keyless {
            true => {
                "an object store that works (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set)"
            }
            false => "an object store that works",
        };
        Error::file(&self.address, wanted, e)
    }

    fn key(&self, checkpoint: &str, object: &str) -> Key {
        self.prefix.clone().join(checkpoint).join(object)
    }

    /// Copies a whole checkpoint, and removes those that are not in its folder any more.
    pub(crate) fn copy(&self, whole: &Path) -> Result<()> {
        let manifest = Manifest::read(whole)?;
        let checkpoint = name(manifest.state.step);
        let there = self.manifests(&mut Vec::new())?;
        there.values().try_for_each(|other| self.own(other, &manifest.state))?;
        for shard in &manifest.shards {
            let key = self.key(&checkpoint, &shard.blake3);
            match self.ask(self.inner.head(&key)) {
                Ok(there) if there.size == shard.bytes => {}
                Ok(_) | Err(StoreError::NotFound { .. }) => {
                    self.upload(&whole.join(&shard.file), &key)?;
                }
                Err(e) => return Err(self.failed(e)),
            }
        }
        self.put_manifest(&self.key(&checkpoint, MANIFEST), &manifest)?;
        let local = whole.parent().unwrap_or(Path::new("."));
        let gone = there.into_keys().filter(|&step| !local.join(name(step)).exists());
        gone.into_iter().try_for_each(|step| self.remove(step))
    }

    /// Whether a checkpoint that is there is one of a training that stands at `state`.
    fn own(&self, there: &Manifest, state: &State) -> Result<()> {
        let (found, own) = (&there.state.fingerprint, &state.fingerprint);
        if found == own || state.from.contains(found) {
            return Ok(());
        }
        let wanted = format!("none, or a checkpoint of this training ({own})");
        let path = format!("{}/{}/{MANIFEST}", self.address, name(there.state.step));
        Err(Error::file(path, wanted, format!("one of {found}")))
    }

    fn upload(&self, path: &Path, key: &Key) -> Result<()> {
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let upload = self.wait(self.inner.put_multipart(key))?;
        // The parts are sent by tasks of the runtime.
        let _inside = self.runtime.enter();
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut piece = vec![0; PART];
        loop {
            let n = file.read(&mut piece).map_err(|e| Error::io(path, e))?;
            if n == 0 {
                break;
            }
            self.wait(upload.wait_for_capacity(PARTS))?;
            upload.write(&piece[..n]);
        }
        self.wait(upload.finish()).map(drop)
    }

    /// Puts a manifest where there is none. One of the same training that is there already has to be
    /// of a checkpoint that a training that went back has left, and is replaced.
    fn put_manifest(&self, key: &Key, manifest: &Manifest) -> Result<()> {
        let json = manifest.to_json()?;
        let put = |mode: PutMode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            let payload = PutPayload::from(json.clone());
            self.ask(self.inner.put_opts(key, payload, options))
        };
        let there = match put(PutMode::Create) {
            Ok(_) => return Ok(()),
            Err(StoreError::AlreadyExists { .. }) => self.wait(self.inner.get(key))?,
            Err(e) => return Err(self.failed(e)),
        };
        let version =
            UpdateVersion { e_tag: there.meta.e_tag.clone(), version: there.meta.version.clone() };
        let before = self.parse(key, &self.wait(there.bytes())?)?;
        self.own(&before, &manifest.state)?;
        if before.shards == manifest.shards {
            return Ok(());
        }
        match put(PutMode::Update(version)) {
            // A folder has no versions: it is emptied first, so that nobody else's is written over.
            Err(StoreError::NotImplemented { .. }) => {
                self.wait(self.inner.delete(key))?;
                put(PutMode::Create)
            }
            done => done,
        }
        .map(drop)
        .map_err(|e| self.failed(e))
    }

    fn parse(&self, key: &Key, bytes: &[u8]) -> Result<Manifest> {
        let path = format!("{key} in {}", self.address);
        Manifest::parse(path.as_ref(), &String::from_utf8_lossy(bytes))
    }

    /// The manifests that there are, by step. What cannot be read of one is put to `faults`; nothing
    /// here touches its checkpoint.
    fn manifests(&self, faults: &mut Vec<String>) -> Result<BTreeMap<u64, Manifest>> {
        let listed = self.wait(self.inner.list_with_delimiter(Some(&self.prefix)))?;
        let mut all = BTreeMap::new();
        for place in listed.common_prefixes {
            let last = place.filename().unwrap_or_default();
            let Some(step) = folder::step_of(Path::new(last)) else { continue };
            let key = self.key(last, MANIFEST);
            match self.ask(self.inner.get(&key)) {
                Ok(found) => match self.parse(&key, &self.wait(found.bytes())?) {
                    Ok(manifest) => drop(all.insert(step, manifest)),
                    Err(e) => faults.push(e.to_string()),
                },
                Err(StoreError::NotFound { .. }) => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(all)
    }

    /// Removes the checkpoints after where a training stands, which has gone back before them.
    pub(crate) fn drop_after(&self, state: &State) -> Result<()> {
        for (step, there) in self.manifests(&mut Vec::new())? {
            self.own(&there, state)?;
            if step > state.step {
                self.remove(step)?;
            }
        }
        Ok(())
    }

    fn remove(&self, step: u64) -> Result<()> {
        let checkpoint = name(step);
        // Without its manifest it is no checkpoint any more.
        self.wait(self.inner.delete(&self.key(&checkpoint, MANIFEST)))?;
        let place = self.prefix.clone().join(checkpoint.as_str());
        let left = self.wait(self.inner.list_with_delimiter(Some(&place)))?;
        left.objects.iter().try_for_each(|o| self.wait(self.inner.delete(&o.location)))
    }

    /// Fetches the checkpoints of the training with this fingerprint into a folder, those that it may have
    /// to go back to as well; the step of the newest that is whole. `None` if there is none. What is wrong
    /// with others is put to `faults`.
    pub(crate) fn fetch(
        &self,
        to: &Path,
        fingerprint: &str,
        faults: &mut Vec<String>,
    ) -> Result<Option<u64>> {
        let all = self.manifests(faults)?;
        // The newest knows what the training was before its data changed.
        let newest = all.values().rev().find(|there| there.state.fingerprint == fingerprint);
        let own = newest.map_or_else(|| State::new(fingerprint.into()), |n| n.state.clone());
        all.values().try_for_each(|there| self.own(there, &own))?;
        let mut newest = None;
        for (step, manifest) in all.into_iter().rev() {
            match self.fetch_one(step, &manifest, to) {
                Ok(()) => newest = newest.or(Some(step)),
                Err(e) => faults.push(e.to_string()),
            }
        }
        match faults.first() {
            _ if newest.is_some() => Ok(newest),
            Some(first) => Err(Error::Other(format!("no checkpoint can be fetched: {first}"))),
            None => Ok(None),
        }
    }

    fn fetch_one(&self, step: u64, whole: &Manifest, to: &Path) -> Result<()> {
        let checkpoint = name(step);
        let part = to.join(format!("{checkpoint}.part"));
        std::fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
        let get = |object: &str| -> Result<Vec<u8>> {
            let found = self.wait(self.inner.get(&self.key(&checkpoint, object)))?;
            Ok(self.wait(found.bytes())?.to_vec())
        };
        for shard in &whole.shards {
            let file = Path::new(&shard.file).file_name().unwrap_or_default();
            let bytes = get(&shard.blake3)?;
            let path = format!("{}/{checkpoint}/{}", self.address, shard.blake3);
            shard.check(path.as_ref(), &bytes)?;
            danlu_model::io::write_atomically(&part.join(file), &bytes)?;
        }
        danlu_model::io::write_atomically(&part.join(MANIFEST), whole.to_json()?.as_bytes())?;
        let whole = to.join(&checkpoint);
        std::fs::rename(&part, &whole).map_err(|e| Error::io(&whole, e))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, of_print};
    use super::*;
    use danlu_core::recipe::CheckpointRecipe;

    /// The state of a training at a step.
    fn at(step: u64, print: &str) -> State {
        State { step, ..State::new(print.into()) }
    }

    fn steps(store: &Store) -> Vec<u64> {
        store.manifests(&mut Vec::new()).expect("lists").into_keys().collect()
    }

    /// A store in memory, and one in a folder.
    fn stores(folder: &Folder) -> [Store; 2] {
        let file = Store::open(&format!("file://{}/runs/a", folder.0.display()));
        [Store::open("memory:///runs/a").expect("opens"), file.expect("opens")]
    }

    #[test]
    fn what_is_copied_comes_back_and_another_training_is_refused() {
        let (local, remote) = (Folder::new("store-local"), Folder::new("store-remote"));
        local.save(&[1, 2, 3, 4], &CheckpointRecipe::default());
        for store in stores(&remote) {
            let fetch = |to: &Folder, print: &str| store.fetch(&to.0, print, &mut Vec::new());
            assert_eq!(fetch(&local, "print").expect("lists"), None);
            [3, 4].iter().for_each(|&s| store.copy(&local.0.join(name(s))).expect("copies"));
            assert_eq!(steps(&store), [3, 4]);
            let back = Folder::new("store-back");
            std::fs::create_dir_all(&back.0).expect("makes");
            let error = fetch(&back, "other").expect_err("another's").to_string();
            assert!(error.contains("manifest.json") && error.contains("other"), "{error}");
            assert_eq!(fetch(&back, "print").expect("fetches"), Some(4));
            assert_eq!(back.load().expect("loads"), (4, vec![]));
            damaged_ones_are_passed_over(&store, &local.0);
            // The same bits again: nothing to do. Of another training: refused.
            store.copy(&local.0.join(name(4))).expect("the same");
            let other = Folder::new("store-other");
            let error = store.copy(&of_print(&other, 4, "other")).expect_err("another").to_string();
            assert!(error.contains("manifest.json") && error.contains("other"), "{error}");
            // The same step of the same training with other bits: it had gone back.
            let again = Folder::new("store-again");
            store.copy(&of_print(&again, 4, "print")).expect("replaces it");
            assert_eq!(steps(&store), [4], "3 is not there any more");
            store.copy(&local.0.join(name(3))).expect("copies");
            assert_eq!(steps(&store), [3, 4]);
            // Another training touches none of them, whatever its steps are.
            let error = store.copy(&of_print(&other, 7, "other")).expect_err("another").to_string();
            assert!(error.contains("step-00000003") && error.contains("print"), "{error}");
            store.drop_after(&at(0, "other")).expect_err("another's");
            assert_eq!(steps(&store), [3, 4]);
            store.drop_after(&at(3, "print")).expect("removes");
            assert_eq!(steps(&store), [3]);
            // One that goes on from it, with other data, has its place.
            let from = State { from: vec!["print".into()], ..at(0, "other") };
            store.drop_after(&from).expect("removes");
            assert!(steps(&store).is_empty());
            store.copy(&local.0.join(name(3))).expect("copies");
            // Without its manifest a checkpoint is none.
            let key = store.key(&name(3), MANIFEST);
            store.wait(store.inner.delete(&key)).expect("removes");
            assert!(steps(&store).is_empty());
        }
    }

    /// The newest is damaged in two ways, one after the other, and made whole again.
    fn damaged_ones_are_passed_over(store: &Store, local: &Path) {
        let put = |key: &Key, bytes: Vec<u8>| {
            store.wait(store.inner.put(key, bytes.into())).expect("puts");
        };
        let whole = Manifest::read(&local.join(name(4))).expect("whole");
        let shard = store.key(&name(4), &whole.shards[0].blake3);
        let bytes = std::fs::read(local.join(name(4)).join(&whole.shards[0].file)).expect("whole");
        let manifest = store.key(&name(4), MANIFEST);
        let json = whole.to_json().expect("json").into_bytes();
        for (key, own) in [(&shard, bytes), (&manifest, json)] {
            let mut damaged = own.clone();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 1;
            put(key, damaged);
            let (back, mut faults) = (Folder::new("store-damaged"), Vec::new());
            std::fs::create_dir_all(&back.0).expect("makes");
            assert_eq!(
                store.fetch(&back.0, "print", &mut faults).expect("the one before"),
                Some(3)
            );
            assert!(faults.len() == 1 && faults[0].contains("step-00000004"), "{faults:?}");
            put(key, own);
        }
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        for address in ["ftp://x/y", "nowhere"] {
            let error = Store::open(address).expect_err("unknown").to_string();
            assert!(error.contains("checkpoint.store"), "{error}");
        }
    }
}
