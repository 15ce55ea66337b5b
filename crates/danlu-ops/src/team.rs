//! A team of threads for work that is cut up many times a millisecond.
//!
//! Decoding one token is about 150 parallel pieces of a few microseconds each. Waking a sleeping
//! thread costs more than such a piece, so the members of a team keep looking for work for a while
//! after each piece, and sleep only when nothing has come for [`PATIENCE`].
//!
//! The caller works too, and never waits for a member that has not begun: on a busy machine a
//! member that the system does not run costs nothing but its share.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a member looks for work before it sleeps.
const PATIENCE: Duration = Duration::from_micros(300);
/// Looks between two glances at the clock.
const LOOKS: usize = 64;

/// The low bits of the state count the members at work; this one says that more may join.
const OPEN: u64 = 1 << 31;
/// What a piece of work adds to the state: its number is in the high half.
const PIECE: u64 = 1 << 32;

/// A value with cache lines of its own.
#[repr(align(128))]
struct Apart<T>(T);

#[derive(Clone, Copy)]
struct Piece {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Board {
    state: Apart<AtomicU64>,
    next: Apart<AtomicUsize>,
    /// Written by the caller while nobody is at work.
    piece: UnsafeCell<Option<Piece>>,
    asleep: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `piece` is written only while the state says that no member is at work and none may
// join, and read only by members that joined; the state's ordering makes the write visible.
unsafe impl Sync for Board {}
// SAFETY: the pointer in `piece` is used only while the caller that set it waits.
unsafe impl Send for Board {}

/// Threads that share the pieces of one caller.
pub struct Team {
    board: Arc<Board>,
    members: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    busy: AtomicBool,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.threads())
    }
}

impl Team {
    /// A team of `threads`, the caller among them; at least 1. Where the system refuses a thread
    /// the team is smaller.
    pub fn new(threads: usize) -> Self {
        let board = Arc::new(Board {
            state: Apart(AtomicU64::new(0)),
            next: Apart(AtomicUsize::new(0)),
            piece: UnsafeCell::new(None),
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let members: Vec<_> = (1..threads)
            .map_while(|i| {
                let board = board.clone();
                let builder = std::thread::Builder::new().name(format!("danlu-team-{i}"));
                builder.spawn(move || member(&board)).ok()
            })
            .collect();
        let handles = members.iter().map(|m| m.thread().clone()).collect();
        Self { board, members, handles, busy: AtomicBool::new(false) }
    }

    /// A team as large as rayon's current pool.
    pub fn of_rayon() -> Self {
        Self::new(rayon::current_num_threads())
    }

    /// Threads, the caller among them.
    pub fn threads(&self) -> usize {
        self.members.len() + 1
    }

    /// Calls `task` with each of `0..tasks`, in any order, on any thread of the team, and returns
    /// when all are done. Called from within a task it runs on the calling thread alone.
    ///
    /// # Panics
    /// If a task does.
    pub fn each(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.members.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(task);
            return;
        }
        let task: &(dyn Fn(usize) + Sync) = &task;
        let board = &*self.board;
        // SAFETY: the lifetime is forgotten, but `Close` below waits for everyone who may use it
        // before this function returns or unwinds; nobody is at work now, so nobody reads it.
        unsafe {
            let run: *const (dyn Fn(usize) + Sync) = std::mem::transmute(task);
            *board.piece.get() = Some(Piece { run, tasks });
        }
        board.next.0.store(0, Ordering::Relaxed);
        let number = board.state.0.load(Ordering::Relaxed) & !(PIECE - 1);
        board.state.0.store(number.wrapping_add(PIECE) | OPEN, Ordering::SeqCst);
        {
            let _close = Close(self);
            if board.asleep.load(Ordering::SeqCst) > 0 {
                self.handles.iter().for_each(Thread::unpark);
            }
            loop {
                let i = board.next.0.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    break;
                }
                task(i);
            }
        }
        let panic = board.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// As [`each`](Self::each) over chunks of `len` of the values `0..count`.
    pub fn chunks(&self, count: usize, len: usize, task: impl Fn(std::ops::Range<usize>) + Sync) {
        let len = len.max(1);
        self.each(count.div_ceil(len), |i| task(i * len..count.min((i + 1) * len)));
    }
}

/// Lets nobody join any more and waits for those at work, also when a task of the caller panicked.
struct Close<'a>(&'a Team);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let board = &*self.0.board;
        if std::thread::panicking() {
            // What is left is not worth doing.
            board.next.0.store(usize::MAX / 2, Ordering::Relaxed);
        }
        let mut state = board.state.0.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut looks = 0;
        while state & (OPEN - 1) != 0 {
            std::hint::spin_loop();
            looks += 1;
            if looks > 100 * LOOKS {
                // The member may need this processor.
                std::thread::yield_now();
            }
            state = board.state.0.load(Ordering::Acquire);
        }
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for member in self.members.drain(..) {
            // A member hands every panic of a task to the caller, so it ends well.
            let _ = member.join();
        }
    }
}

fn member(board: &Board) {
    let mut last = 0;
    let mut since = Instant::now();
    loop {
        for _ in 0..LOOKS {
            let state = board.state.0.load(Ordering::Acquire);
            let number = state / PIECE;
            if state & OPEN != 0 && number != last {
                let join = board.state.0.compare_exchange(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if join.is_ok() {
                    last = number;
                    work(board);
                    board.state.0.fetch_sub(1, Ordering::AcqRel);
                    since = Instant::now();
                }
            } else {
                std::hint::spin_loop();
            }
        }
        if board.stop.load(Ordering::SeqCst) {
            return;
        }
        if since.elapsed() > PATIENCE {
            board.asleep.fetch_add(1, Ordering::SeqCst);
            let state = board.state.0.load(Ordering::SeqCst);
            let news = state & OPEN != 0 && state / PIECE != last;
            if !news && !board.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            board.asleep.fetch_sub(1, Ordering::SeqCst);
            since = Instant::now();
        }
    }
}

fn work(board: &Board) {
    // SAFETY: this member has joined, so the caller waits and does not write.
    let Some(piece) = (unsafe { *board.piece.get() }) else { return };
    // SAFETY: as above: what it points to lives until this member has left.
    let run = unsafe { &*piece.run };
    let done = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let i = board.next.0.fetch_add(1, Ordering::Relaxed);
            if i >= piece.tasks {
                break;
            }
            run(i);
        }
    }));
    if let Err(panic) = done {
        board.next.0.store(usize::MAX / 2, Ordering::Relaxed);
        *board.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_however_many_pieces_there_are() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads);
            let counts: Vec<AtomicUsize> = (0..37).map(|_| AtomicUsize::new(0)).collect();
            for round in 0..3000 {
                if round % 1000 == 999 {
                    // Long enough for the members to fall asleep.
                    std::thread::sleep(PATIENCE * 3);
                }
                team.each(round % 38, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            }
            for (i, count) in counts.iter().enumerate() {
                let want = (0..3000).filter(|round| i < round % 38).count();
                assert_eq!(count.load(Ordering::Relaxed), want, "task {i} of {threads} threads");
            }
        }
    }

    #[test]
    fn a_piece_within_a_task_runs_and_chunks_cover_all() {
        let team = Team::new(2);
        let sum = AtomicUsize::new(0);
        team.each(4, |i| {
            team.chunks(10, 3, |r| {
                sum.fetch_add(r.len() * (i + 1), Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 100);
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2);
        for bad in 0..40 {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                team.each(40, |i| assert!(i != bad, "task {i}"));
            }));
            assert!(panicked.is_err(), "task {bad}");
            let sum = AtomicUsize::new(0);
            team.each(5, |i| _ = sum.fetch_add(i, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 10);
        }
    }
}
