//! Carries a product out: packing jobs and tiles, taken by the threads one at a time.
//!
//! The steps are gone through in chunks. Each chunk first has packing jobs, then tiles; all jobs
//! stand in one fixed line, and a thread takes the next job when it is done with its last. A thread
//! waits only for jobs that another thread has already begun, so no thread waits for one that
//! never comes. The packed chunks lie in two buffers by turns: a thread without a tile left packs
//! for the next chunk while others finish.

use super::Mat;
use super::buffer::{Buffer, Slot};
use super::kernels::{From, Kernel, Tile};
use super::pack::{Lines, pack};
use super::plan::{LeftMode, Plan};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Up to so many rows of the result the right operand is not packed if its rows are whole.
const DIRECT_ROWS: usize = 128;
/// The same for its elements: they should stay in the second-level cache.
const DIRECT_SIZE: usize = 1 << 16;
/// Columns or rows that one packing job takes, about.
const LINES_PER_JOB: usize = 256;

/// The same in whole panels of `w`.
fn job_lines(w: usize) -> usize {
    LINES_PER_JOB / w * w
}

/// Where the right operand comes from.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    Plain(Mat<'a>),
    /// All blocks of all panels, as `pack_right` lays them out.
    Packed(*const f32),
}

/// What the result starts from.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Nothing,
    /// What the result holds, times a factor.
    Kept(f32),
    /// A row that is added to every row.
    Bias(&'a [f32]),
}

/// A product whose operands and result have been checked against its sizes, none of them zero.
pub(super) struct Product<'a> {
    pub kernel: &'static Kernel,
    pub size: [usize; 3],
    pub a: Mat<'a>,
    pub right: Right<'a>,
    pub c: *mut f32,
    pub width: usize,
    pub start: Start<'a>,
    /// Only tiles that reach the diagonal or lie right of it are computed; the first column here is
    /// this one of the whole result.
    pub upper: Option<usize>,
}

/// A product with its plan and buffers, as the threads share it.
struct Run<'a> {
    p: &'a Product<'a>,
    plan: Plan,
    /// The right operand, packed or to be packed, and the distance between the two chunks' halves.
    right: *mut f32,
    right_half: usize,
    left: *mut f32,
    left_half: usize,
    /// With `right_local`: the tiles read the right operand from where it lies.
    right_direct: bool,
    /// Packing jobs per block for the right and for the left operand.
    right_jobs: usize,
    left_jobs: usize,
}

// SAFETY: the operands are only read; the packing jobs write disjoint parts of the buffers, the
// tiles disjoint parts of the result, and `Turns` puts writers and readers in order.
unsafe impl Sync for Run<'_> {}

/// Which jobs have been begun and which are done.
struct Turns {
    next: AtomicUsize,
    /// Jobs done, for each chunk: packing, tiles.
    done: Vec<[AtomicUsize; 2]>,
    /// A thread panicked: the others must not wait for it.
    broken: AtomicBool,
}

impl Turns {
    /// Waits until `count` jobs are done; false if they never will be.
    fn wait(&self, done: &AtomicUsize, count: usize) -> bool {
        let mut spins = 0u32;
        while done.load(Ordering::Acquire) < count {
            if self.broken.load(Ordering::Relaxed) {
                return false;
            }
            spins += 1;
            if spins < 200 {
                std::hint::spin_loop();
            } else {
                // The thread that is waited for may need this processor.
                std::thread::yield_now();
            }
        }
        true
    }
}

/// Sets the mark if it is dropped by a panic.
struct Watch<'a>(&'a AtomicBool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Computes `p` with up to `threads` threads of rayon's current pool.
///
/// # Safety
/// The operands and `c` have the elements that the size names, and nothing else reads or writes
/// those of `c` meanwhile.
pub(super) unsafe fn run(p: &Product, threads: usize) {
    let [m, k, n] = p.size;
    let kernel = p.kernel;
    let packed = matches!(p.right, Right::Packed(_));
    let mut plan = Plan::new(kernel, p.size, threads, packed);
    if plan.left == LeftMode::Direct && p.a.cols != 1 && (m > kernel.mc || p.a.cols >= 1024) {
        // Steps far apart in memory: each would touch a page of its own for every tile.
        plan.left = LeftMode::Block;
    }
    let halves = if plan.chunks > 1 { 2 } else { 1 };
    let steps = plan.kc * plan.blocks;
    let right_half = steps * n.next_multiple_of(kernel.nr);
    let left_half = steps * m.next_multiple_of(kernel.mr);
    let shared = plan.left == LeftMode::Shared;
    let ready = packed || plan.right_local;
    let mut right = Buffer::take(Slot::Right, if ready { 0 } else { halves * right_half });
    let mut left = Buffer::take(Slot::Left, if shared { halves * left_half } else { 0 });
    let run = Run {
        p,
        plan,
        right: match p.right {
            Right::Packed(ptr) => ptr.cast_mut(),
            Right::Plain(_) => right.ptr(),
        },
        right_half,
        right_direct: match p.right {
            // Each row of tiles reads the operand again: that is cheap while there are few.
            Right::Plain(b) => {
                let once = m <= kernel.mr || m <= DIRECT_ROWS && k * n <= DIRECT_SIZE;
                b.cols == 1 && n.is_multiple_of(kernel.lanes) && once
            }
            Right::Packed(_) => false,
        },
        left: left.ptr(),
        left_half,
        right_jobs: if ready { 0 } else { n.div_ceil(job_lines(kernel.nr)) },
        left_jobs: if shared { m.div_ceil(job_lines(kernel.mr)) } else { 0 },
    };
    debug_assert_eq!(plan.chunks, k.div_ceil(steps));
    if threads <= 1 {
        // SAFETY: the caller's promise; the jobs run in their order.
        unsafe { run.alone() };
        return;
    }
    let turns = Turns {
        next: AtomicUsize::new(0),
        done: (0..plan.chunks).map(|_| Default::default()).collect(),
        broken: AtomicBool::new(false),
    };
    let (run, turns) = (&run, &turns);
    rayon::scope(|s| {
        for _ in 1..threads {
            // SAFETY: the caller's promise; `turns` keeps the order.
            s.spawn(move |_| unsafe { run.work(turns) });
        }
        // SAFETY: as above.
        unsafe { run.work(turns) };
    });
}

impl Run<'_> {
    fn packing_jobs(&self) -> usize {
        self.plan.blocks * (self.right_jobs + self.left_jobs)
    }

    /// All jobs on this thread.
    unsafe fn alone(&self) {
        let mut block = self.block_buffer();
        for chunk in 0..self.plan.chunks {
            for job in 0..self.packing_jobs() {
                // SAFETY: the caller's promise.
                unsafe { self.pack_job(chunk, job) };
            }
            for tile in 0..self.plan.tiles {
                // SAFETY: the caller's promise; this chunk is packed.
                unsafe { self.tile(chunk, tile, block.ptr()) };
            }
        }
    }

    /// Takes jobs until none is left.
    unsafe fn work(&self, turns: &Turns) {
        let _watch = Watch(&turns.broken);
        let mut block = None;
        let packing = self.packing_jobs();
        let tiles = self.plan.tiles;
        loop {
            let job = turns.next.fetch_add(1, Ordering::Relaxed);
            let (chunk, job) = (job / (packing + tiles), job % (packing + tiles));
            if chunk >= self.plan.chunks {
                return;
            }
            let done = &turns.done;
            if job < packing {
                // The buffer is free once the chunk before the last has been used up.
                if chunk >= 2 && !turns.wait(&done[chunk - 2][1], tiles) {
                    return;
                }
                // SAFETY: the caller's promise, and nobody reads this half of the buffer.
                unsafe { self.pack_job(chunk, job) };
                done[chunk][0].fetch_add(1, Ordering::Release);
            } else {
                if !turns.wait(&done[chunk][0], packing)
                    || chunk >= 1 && !turns.wait(&done[chunk - 1][1], tiles)
                {
                    return;
                }
                let block = block.get_or_insert_with(|| self.block_buffer());
                // SAFETY: the caller's promise; the chunk is packed and the one before is in `c`.
                unsafe { self.tile(chunk, job - packing, block.ptr()) };
                done[chunk][1].fetch_add(1, Ordering::Release);
            }
        }
    }

    fn block_buffer(&self) -> Buffer {
        let plan = &self.plan;
        let left = if plan.left == LeftMode::Block { plan.tile_rows } else { 0 };
        let right = if plan.right_local { self.p.kernel.nr } else { 0 };
        Buffer::take(Slot::Block, (right + left) * plan.kc)
    }

    /// First step and number of steps of a block; none past the end.
    fn steps(&self, chunk: usize, block: usize) -> (usize, usize) {
        let k = self.p.size[1];
        let first = (chunk * self.plan.blocks + block) * self.plan.kc;
        (first, self.plan.kc.min(k.saturating_sub(first)))
    }

    /// Packs some panels of one block of an operand.
    unsafe fn pack_job(&self, chunk: usize, job: usize) {
        let jobs = self.right_jobs + self.left_jobs;
        let (block, job) = (job / jobs, job % jobs);
        let (first, depth) = self.steps(chunk, block);
        if depth == 0 {
            return;
        }
        let [m, _, n] = self.p.size;
        let kernel = self.p.kernel;
        let (b, w, count, job, to) = if job < self.right_jobs {
            let Right::Plain(b) = self.p.right else { return };
            // SAFETY: the buffer has two such halves, or there is one chunk.
            (b.t(), kernel.nr, n, job, unsafe { self.right.add(chunk % 2 * self.right_half) })
        } else {
            let job = job - self.right_jobs;
            // SAFETY: as above.
            (self.p.a, kernel.mr, m, job, unsafe { self.left.add(chunk % 2 * self.left_half) })
        };
        let line = job * job_lines(w);
        let lines = job_lines(w).min(count - line);
        // SAFETY: the elements are within the operand, whose length was checked, and the panels
        // within the buffer, which has whole panels for all lines of each block.
        unsafe {
            let ptr = b.data.as_ptr().add(line * b.rows + first * b.cols);
            let src = Lines { ptr, line_stride: b.rows, step_stride: b.cols };
            let whole = count.next_multiple_of(w);
            let to = to.add(block * self.plan.kc * whole + line * depth);
            pack(kernel.level, w, src, lines, depth, to);
        }
    }

    /// Adds one chunk of steps to one tile of the result.
    unsafe fn tile(&self, chunk: usize, tile: usize, buffer: *mut f32) {
        let [m, _, n] = self.p.size;
        let (plan, p, kernel) = (&self.plan, self.p, self.p.kernel);
        let (row, col) = (tile / plan.across * plan.tile_rows, tile % plan.across * plan.tile_cols);
        let rows = plan.tile_rows.min(m - row);
        let cols = plan.tile_cols.min(n - col);
        // The first row of the whole result that lies below all of some columns' diagonal.
        let below = |end: usize| p.upper.map_or(usize::MAX, |first| first + end);
        if below(col + cols) <= row {
            return;
        }
        let whole_n = n.next_multiple_of(kernel.nr);
        let whole_m = m.next_multiple_of(kernel.mr);
        for block in 0..plan.blocks {
            let (first, depth) = self.steps(chunk, block);
            if depth == 0 {
                return;
            }
            // SAFETY: all offsets are within the operands, the buffers and the result, as checked
            // or allocated for these sizes; `buffer` has room for this tile's rows.
            unsafe {
                let right = if plan.right_local {
                    buffer
                } else {
                    let right = self.right.add(chunk % 2 * self.right_half);
                    right.add(block * plan.kc * whole_n + col * depth)
                };
                let buffer =
                    if plan.right_local { buffer.add(kernel.nr * plan.kc) } else { buffer };
                let lies = p.a.data.as_ptr().add(row * p.a.rows + first * p.a.cols);
                let (left, panel, a_row, a_step) = match plan.left {
                    LeftMode::Direct => (lies, kernel.mr * p.a.rows, p.a.rows, p.a.cols),
                    LeftMode::Block => {
                        let (line_stride, step_stride) = (p.a.rows, p.a.cols);
                        let src = Lines { ptr: lies, line_stride, step_stride };
                        pack(kernel.level, kernel.mr, src, rows, depth, buffer);
                        (buffer.cast_const(), kernel.mr * depth, 1, kernel.mr)
                    }
                    LeftMode::Shared => {
                        let left = self.left.add(chunk % 2 * self.left_half);
                        let left = left.add(block * plan.kc * whole_m + row * depth);
                        (left.cast_const(), kernel.mr * depth, 1, kernel.mr)
                    }
                };
                // While a packed panel is in use, the next one is fetched, a share with each tile, at
                // most a cache line at a time.
                let share = (kernel.nr * depth).div_ceil(rows.div_ceil(kernel.mr));
                let next_step = if plan.right_local {
                    0
                } else {
                    (share * size_of::<f32>()).div_ceil(depth.div_ceil(4)).min(64)
                };
                for j in (0..cols).step_by(kernel.nr) {
                    let below = below((col + j + kernel.nr).min(n));
                    if below <= row {
                        continue;
                    }
                    let (mut panel_b, mut b_step) =
                        (right.cast_const().wrapping_add(j * depth), kernel.nr);
                    if let (true, Right::Plain(b)) = (plan.right_local, p.right) {
                        let ptr = b.data.as_ptr().add(first * b.rows + (col + j) * b.cols);
                        if self.right_direct {
                            (panel_b, b_step) = (ptr, b.rows);
                        } else {
                            let (line_stride, step_stride) = (b.cols, b.rows);
                            let src = Lines { ptr, line_stride, step_stride };
                            let lines = kernel.nr.min(cols - j);
                            pack(kernel.level, kernel.nr, src, lines, depth, right);
                            panel_b = right;
                        }
                    }
                    for (q, i) in (0..rows).step_by(kernel.mr).enumerate() {
                        if row + i >= below {
                            break;
                        }
                        let c = p.c.add((row + i) * p.width + col + j);
                        let (src, src_row, from) = match p.start {
                            _ if first > 0 => (c.cast_const(), p.width, From::Scaled(1.0)),
                            Start::Nothing => (c.cast_const(), p.width, From::Nothing),
                            Start::Kept(keep) => (c.cast_const(), p.width, From::Scaled(keep)),
                            Start::Bias(bias) => (bias.as_ptr().add(col + j), 0, From::Scaled(1.0)),
                        };
                        (kernel.run)(&Tile {
                            depth,
                            a: left.add(q * panel),
                            a_row,
                            a_step,
                            b: panel_b,
                            b_step,
                            c,
                            c_row: p.width,
                            rows: kernel.mr.min(rows - i),
                            cols: kernel.nr.min(cols - j),
                            src,
                            src_row,
                            from,
                            next: panel_b.wrapping_add(kernel.nr * depth + q * share),
                            next_step,
                        });
                    }
                }
            }
        }
    }
}

/// Floats that `pack_right` writes.
pub(super) fn right_len(kernel: &Kernel, k: usize, n: usize) -> usize {
    k * n.next_multiple_of(kernel.nr)
}

/// Packs all of `b`, [k, n], for `Right::Packed`.
///
/// # Safety
/// `b` has its elements, and `to` room for `right_len` floats.
pub(super) unsafe fn pack_right(
    kernel: &Kernel,
    b: Mat,
    [k, n]: [usize; 2],
    kc: usize,
    to: *mut f32,
) {
    let wide = n.next_multiple_of(kernel.nr);
    for first in (0..k).step_by(kc) {
        // SAFETY: within the operand and the room that the caller promises.
        unsafe {
            let ptr = b.data.as_ptr().add(first * b.rows);
            let src = Lines { ptr, line_stride: b.cols, step_stride: b.rows };
            pack(kernel.level, kernel.nr, src, n, kc.min(k - first), to.add(first * wide));
        }
    }
}
