//! Copies checkpoints to an object store beside the training, one at a time. A slow store holds no
//! step: while one is on its way the newest waits, and those between are left out.

use super::store::Store;
use crate::upkeep::thread_time;
use danlu_core::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the thread and those that ask it share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Option<PathBuf>,
    at_work: Option<PathBuf>,
    /// What was not copied, and why.
    failed: Vec<String>,
    /// Processor time of the thread.
    cost: Duration,
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is done under the lock that could leave half of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies the checkpoints that it is given. When it is dropped, what waits is copied first.
#[derive(Debug)]
pub(super) struct Copier {
    store: Arc<Store>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    pub(super) fn new(store: Store) -> Self {
        let (store, shared) = (Arc::new(store), Arc::<Shared>::default());
        let (from, of) = (store.clone(), shared.clone());
        let thread = std::thread::spawn(move || serve(&of, &|whole| from.copy(whole)));
        Self { store, shared, thread: Some(thread) }
    }

    /// The store, for other things than copying.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Who gives it checkpoints from another thread.
    pub(super) fn giver(&self) -> Giver {
        Giver(self.shared.clone())
    }

    /// Waits until nothing is left to copy.
    pub(super) fn flush(&self) {
        let busy = |s: &mut State| s.waiting.is_some() || s.at_work.is_some();
        drop(self.shared.changed.wait_while(self.shared.lock(), busy));
    }

    /// What was not copied since this was last asked, and the processor time that copying took.
    pub(super) fn told(&self) -> (Vec<String>, Duration) {
        let mut state = self.shared.lock();
        (std::mem::take(&mut state.failed), std::mem::take(&mut state.cost))
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.flush();
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends by itself; how is of no more use to anybody.
            let _ = thread.join();
        }
    }
}

/// Gives checkpoints to a [`Copier`].
#[derive(Debug, Clone)]
pub(super) struct Giver(Arc<Shared>);

impl Giver {
    /// A checkpoint that is whole. One that waits for its turn gives it up.
    pub(super) fn put(&self, whole: PathBuf) {
        self.0.lock().waiting = Some(whole);
        self.0.changed.notify_all();
    }

    /// Names of checkpoints that have to stay until they are copied.
    pub(super) fn names(&self) -> Vec<String> {
        let state = self.0.lock();
        let all = state.waiting.iter().chain(&state.at_work);
        all.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect()
    }
}

fn serve(shared: &Shared, copy: &dyn Fn(&Path) -> Result<(), Error>) {
    let mut state = shared.lock();
    loop {
        let idle = |s: &mut State| s.waiting.is_none() && !s.over;
        state = shared.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let Some(whole) = state.waiting.take() else { return };
        state.at_work = Some(whole.clone());
        drop(state);
        let before = thread_time();
        // Whoever waits for the copy is to wait for no one who is gone.
        let copied = catch_unwind(AssertUnwindSafe(|| copy(&whole)));
        let copied = copied.unwrap_or_else(|_| Err(Error::Other("copying panicked".into())));
        state = shared.lock();
        state.cost += thread_time().saturating_sub(before);
        state.at_work = None;
        if let Err(e) = copied {
            let name = whole.file_name().unwrap_or_default().to_string_lossy();
            state.failed.push(format!("{name} is written, but not copied: {e}"));
        }
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_copy_holds_nobody_and_the_newest_comes_next() {
        let shared = Arc::<Shared>::default();
        let (gate, copied) = (Arc::<Shared>::default(), Arc::<Mutex<Vec<PathBuf>>>::default());
        let (of, held, done) = (shared.clone(), gate.clone(), copied.clone());
        let thread = std::thread::spawn(move || {
            serve(&of, &|path| {
                // Held until the gate is open.
                let closed = |s: &mut State| !s.over;
                drop(held.changed.wait_while(held.lock(), closed));
                done.lock().expect("whole").push(path.into());
                match path.ends_with("c") {
                    true => Err(Error::Other("no room".into())),
                    false => Ok(()),
                }
            });
        });
        let giver = Giver(shared.clone());
        giver.put("a".into());
        while giver.names() != ["a"] || shared.lock().at_work.is_none() {
            std::thread::yield_now();
        }
        ["b", "c"].into_iter().for_each(|name| giver.put(name.into()));
        assert_eq!(giver.names(), ["c", "a"], "one is on its way, and the newest waits");
        gate.lock().over = true;
        gate.changed.notify_all();
        let busy = |s: &mut State| s.waiting.is_some() || s.at_work.is_some();
        drop(shared.changed.wait_while(shared.lock(), busy));
        assert_eq!(*copied.lock().expect("whole"), [PathBuf::from("a"), "c".into()]);
        let told = std::mem::take(&mut shared.lock().failed);
        assert_eq!(told, ["c is written, but not copied: no room"]);
        shared.lock().over = true;
        shared.changed.notify_all();
        thread.join().expect("ends");
    }
}
