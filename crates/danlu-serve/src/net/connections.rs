//! Who is connected. When every place is taken, the connection that has been idle longest makes
//! room for a new one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The places of a server.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    open: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    busy: Arc<AtomicUsize>,
    evict: Arc<Notify>,
}

impl Inner {
    /// Takes the place of the connection that has been idle longest; `None` if all are busy.
    fn evict(&mut self) -> Option<()> {
        let idle = |entry: &Entry| entry.busy.load(Ordering::Acquire) == 0;
        let oldest = self.open.iter().find(|(_, e)| idle(e)).map(|(&id, _)| id)?;
        self.open.remove(&oldest)?.evict.notify_one();
        Some(())
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    of: Arc<Connections>,
    id: u64,
    /// Requests that are being answered on this connection.
    pub(super) busy: Arc<AtomicUsize>,
    evict: Arc<Notify>,
}

impl Slot {
    /// Whether a request is being answered.
    pub(super) fn asks(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }
}

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), inner: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place; `None` if all are taken and busy.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Slot> {
        let mut inner = self.lock();
        if inner.open.len() >= self.most {
            inner.evict()?;
        }
        let id = inner.next;
        inner.next += 1;
        let (busy, evict) = (Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        inner.open.insert(id, Entry { busy: busy.clone(), evict: evict.clone() });
        Some(Slot { of: self.clone(), id, busy, evict })
    }

    /// Closes the connection that has been idle longest, and ends when one has closed; at once and
    /// with `false` if all are busy.
    pub(super) async fn make_room(&self) -> bool {
        let changed = self.changed.notified();
        let evicted = self.lock().evict();
        if evicted.is_none() {
            return false;
        }
        changed.await;
        true
    }

    /// The number that the next connection has: those that are open have smaller ones.
    pub(super) fn next(&self) -> u64 {
        self.lock().next
    }

    /// How many are open of those whose numbers are below `next`.
    pub(super) fn open(&self, next: u64) -> usize {
        self.lock().open.range(..next).count()
    }

    /// Ends when none of them is open.
    pub(super) async fn ended(&self, next: u64) {
        loop {
            let changed = self.changed.notified();
            if self.open(next) == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Slot {
    /// Ends when another takes this place.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.of.lock().open.remove(&self.id);
        self.of.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_one_that_came_first_makes_room() {
        let all = Arc::new(Connections::new(2));
        let first = all.enter().expect("room");
        let second = all.enter().expect("room");
        first.busy.store(1, Ordering::Release);
        let third = all.enter().expect("the second is idle");
        assert_eq!(all.open(all.next()), 2);
        third.busy.store(1, Ordering::Release);
        assert!(all.enter().is_none(), "both are busy");
        drop(second);
        assert_eq!(all.open(all.next()), 2, "it had already lost its place");
        let next = all.next();
        drop(first);
        let fourth = all.enter().expect("room");
        assert_eq!((all.open(next), all.open(all.next())), (1, 2), "the third came before");
        drop((third, fourth));
        assert_eq!(all.open(all.next()), 0);
    }

    #[test]
    fn room_is_made_once_one_has_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("starts");
        runtime.block_on(async {
            let all = Arc::new(Connections::new(8));
            let (busy, idle) = (all.enter().expect("room"), all.enter().expect("room"));
            busy.busy.store(1, Ordering::Release);
            let closes = async {
                idle.evicted().await;
                drop(idle);
            };
            assert!(tokio::join!(all.make_room(), closes).0);
            assert!(!all.make_room().await, "the other is busy");
        });
    }
}
