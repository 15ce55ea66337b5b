//! Who may ask: a file of hashed keys, compared in constant time, each with its own limits.

use super::error::{Answer, ApiError};
use axum::http::{HeaderMap, StatusCode, header};
use danlu_core::{Error, Result};
use serde::Deserialize;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

/// One entry of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// BLAKE3 of the key, in hexadecimal.
    blake3: String,
    requests_per_minute: Option<u32>,
    concurrent: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

/// A key's owner, and what is left of their limits.
#[derive(Debug)]
pub(crate) struct Owner {
    /// For the log.
    pub(crate) name: String,
    hash: blake3::Hash,
    per_minute: Option<u32>,
    concurrent: Option<u32>,
    /// Goes on when the file is read again.
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Requests that may start now.
    tokens: f64,
    filled: Instant,
    running: u32,
}

/// The keys of a server.
#[derive(Debug, Default)]
pub struct Keys(RwLock<Vec<Arc<Owner>>>);

/// A request of a key's owner, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Owner>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

impl Owner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The hash of a key as the file has it.
pub fn hash(key: &str) -> String {
    blake3::hash(key.as_bytes()).to_hex().to_string()
}

impl Keys {
    /// Reads a file of `[[key]]` tables with `name`, `blake3` (the hash of the key in
    /// hexadecimal), and if wanted `requests_per_minute` and `concurrent`.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        // The parser's own message would quote lines of the file.
        let wanted = "[[key]] tables with name, blake3, requests_per_minute, concurrent";
        let file: File =
            toml::from_str(&text).map_err(|e| Error::file(path, wanted, e.message()))?;
        if file.key.is_empty() {
            return Err(Error::file(path, "at least one [[key]]", "none"));
        }
        let mut owners = Vec::new();
        for entry in file.key {
            let hash = blake3::Hash::from_hex(&entry.blake3)
                .map_err(|_| Error::file(path, "64 hexadecimal digits in `blake3`", &entry.name))?;
            let full = entry.requests_per_minute.map_or(0.0, f64::from);
            let state = State { tokens: full, filled: Instant::now(), running: 0 };
            owners.push(Arc::new(Owner {
                name: entry.name,
                hash,
                per_minute: entry.requests_per_minute,
                concurrent: entry.concurrent,
                state: Arc::new(Mutex::new(state)),
            }));
        }
        Ok(Self(RwLock::new(owners)))
    }

    fn owners(&self) -> Vec<Arc<Owner>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Reads the file again: keys that are no longer there open nothing more, requests that run go on, and
    /// what was used of a limit stays used. Returns how many keys there are; on an error all stays as it was.
    pub(crate) fn reload(&self, path: &Path) -> Result<usize> {
        let mut owners = Self::load(path)?.owners();
        let before = self.owners();
        for owner in &mut owners {
            let same = before.iter().find(|b| b.hash == owner.hash);
            if let (Some(same), Some(owner)) = (same, Arc::get_mut(owner)) {
                owner.state = same.state.clone();
            }
        }
        let count = owners.len();
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = owners;
        Ok(count)
    }

    /// Whether anybody may ask.
    pub fn is_empty(&self) -> bool {
        self.owners().is_empty()
    }

    /// The owner of the key that a request carries; `None` if there are no keys.
    pub(crate) fn owner(&self, headers: &HeaderMap) -> Answer<Option<Arc<Owner>>> {
        let owners = self.owners();
        if owners.is_empty() {
            return Ok(None);
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let key = given.and_then(|v| {
            let (scheme, key) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        let refused = |message: &str| {
            ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key")
        };
        let key = key.ok_or_else(|| refused("a key is needed: `Authorization: Bearer KEY`"))?;
        let hash = blake3::hash(key.as_bytes());
        // All of them, however early one fits; the comparison of hashes takes constant time.
        let mut found = None;
        for owner in &owners {
            if owner.hash == hash {
                found = Some(owner);
            }
        }
        found.cloned().map(Some).ok_or_else(|| refused("the key is not known"))
    }
}

impl Owner {
    /// Lets a request begin, if the limits have room for it.
    pub(crate) fn admit(self: &Arc<Self>) -> Answer<Permit> {
        let mut state = self.lock();
        let many = |message: &str, seconds: f64| {
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
            error.code("rate_limit_exceeded").retry((seconds.ceil() as u64).clamp(1, 60))
        };
        if self.concurrent.is_some_and(|most| state.running >= most) {
            return Err(many("too many requests of this key at a time", 1.0));
        }
        if let Some(per_minute) = self.per_minute.map(f64::from) {
            let passed = state.filled.elapsed().as_secs_f64();
            state.filled = Instant::now();
            state.tokens = (state.tokens + passed * per_minute / 60.0).min(per_minute);
            if state.tokens < 1.0 {
                let wait = (1.0 - state.tokens) * 60.0 / per_minute.max(1e-9);
                return Err(many("too many requests of this key in a minute", wait));
            }
            state.tokens -= 1.0;
        }
        state.running += 1;
        Ok(Permit(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Keys> {
        let name = format!("danlu-keys-{}-{}", std::process::id(), hash(text));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
        let keys = Keys::load(&path);
        std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        keys
    }

    fn carrying(value: &str) -> HeaderMap {
        let value = value.parse().expect("a header");
        HeaderMap::from_iter([(header::AUTHORIZATION, value)])
    }

    #[test]
    fn a_key_opens_and_no_other_does() {
        let text = format!("[[key]]\nname = \"a\"\nblake3 = \"{}\"\n", hash("secret"));
        let keys = keys(&text).expect("reads");
        let owner = keys.owner(&carrying("Bearer secret")).expect("known").expect("an owner");
        assert_eq!(owner.name, "a");
        assert!(owner.admit().is_ok());
        for wrong in ["Bearer secre", "Bearer ", "Basic secret", "secret"] {
            let error = keys.owner(&carrying(wrong)).expect_err(wrong);
            assert_eq!(error.status, StatusCode::UNAUTHORIZED);
            assert!(!error.message.contains("secre"), "{}", error.message);
        }
    }

    #[test]
    fn limits_are_per_key() {
        let text = format!(
            "[[key]]\nname = \"a\"\nblake3 = \"{}\"\nrequests_per_minute = 2\nconcurrent = 1\n",
            hash("k")
        );
        let keys = keys(&text).expect("reads");
        let ask = || keys.owner(&carrying("Bearer k")).expect("known").expect("an owner").admit();
        let first = ask().expect("the first");
        let error = ask().expect_err("one at a time");
        assert_eq!((error.status.as_u16(), error.retry), (429, Some(1)));
        drop(first);
        drop(ask().expect("the second"));
        let error = ask().expect_err("the third of this minute");
        assert!(error.retry.is_some_and(|s| (20..=30).contains(&s)), "{error:?}");
    }

    #[test]
    fn a_file_is_read_again_and_limits_go_on() {
        let path = std::env::temp_dir().join(format!("danlu-keys-again-{}", std::process::id()));
        let write = |names: &[&str]| {
            let one = |n: &&str| {
                format!("[[key]]\nname = \"{n}\"\nblake3 = \"{}\"\nconcurrent = 1\n", hash(n))
            };
            std::fs::write(&path, names.iter().map(one).collect::<String>()).expect("writes");
        };
        write(&["a", "b"]);
        let keys = Keys::load(&path).expect("reads");
        let owner = |name: &str| keys.owner(&carrying(&format!("Bearer {name}")));
        let running = owner("a").expect("known").expect("an owner").admit().expect("runs");
        write(&["a", "c"]);
        assert_eq!(keys.reload(&path).expect("reads"), 2);
        assert!(owner("b").is_err() && owner("c").is_ok());
        let again = || owner("a").expect("known").expect("an owner").admit();
        assert_eq!(again().expect_err("one runs").status.as_u16(), 429);
        drop(running);
        assert!(again().is_ok());
        std::fs::write(&path, "[[key").expect("writes");
        assert!(keys.reload(&path).is_err());
        assert!(owner("c").is_ok(), "what cannot be read changes nothing");
        std::fs::remove_file(&path).expect("removes");
    }

    #[test]
    fn bad_files_are_named() {
        for (text, want) in [
            ("", "at least one"),
            ("[[key]]\nname = \"a\"\nblake3 = \"zz\"", "64 hexadecimal digits"),
            ("[[key]]\nname = \"a\"\nblake3 = \"\"\nrate = 1", "rate"),
        ] {
            let error = keys(text).expect_err(text).to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
