//! The micro-kernel by itself, for operations that lay their operands out once and use them in
//! several products.

use super::kernels::{From, Kernel, Tile, kernel};
use super::pack::{Lines, pack};
use super::{Mat, Packing};

/// The micro-kernel that products use at present, and the layout it wants.
#[derive(Clone, Copy)]
pub struct Micro(&'static Kernel);

impl Micro {
    /// That of [`super::level`].
    pub fn new() -> Self {
        Self(kernel())
    }

    /// Rows of a full tile, and of a packed left panel.
    pub fn rows(&self) -> usize {
        self.0.mr
    }

    /// Columns of a full tile, and of a packed right panel.
    pub fn cols(&self) -> usize {
        self.0.nr
    }

    /// Packs the lines of `from` (its rows; for a right operand hand in the transpose), `depth`
    /// steps each, into whole panels one after another: element (line, step) of a panel of `w` lines
    /// is at `step * w + line`, and lines that the last panel lacks are zeros.
    ///
    /// # Panics
    /// If `from` or `to` is too short.
    pub fn pack(&self, side: Packing, from: Mat, [lines, depth]: [usize; 2], to: &mut [f32]) {
        let w = match side {
            Packing::Left => self.0.mr,
            Packing::Right => self.0.nr,
        };
        assert!(from.holds(lines, depth), "micro: operand too short");
        assert!(lines.next_multiple_of(w) * depth <= to.len(), "micro: panels too short");
        if lines == 0 || depth == 0 {
            return;
        }
        let (ptr, line_stride, step_stride) = (from.data.as_ptr(), from.rows, from.cols);
        let src = Lines { ptr, line_stride, step_stride };
        // SAFETY: both lengths were checked, and the kernel is one that the processor has.
        unsafe { pack(self.0.level, w, src, lines, depth, to.as_mut_ptr()) };
    }

    /// One tile: `c = a b`, or that added to `c`. At most [`Self::rows`] by [`Self::cols`]; `c` has
    /// `width` elements from row to row. The rows of `b` lie `b.rows` apart and hold something up to
    /// the next multiple of the processor's vectors, as packed panels do.
    ///
    /// # Panics
    /// If the tile is larger than that, or an operand too short.
    #[inline]
    pub fn tile(
        &self,
        [rows, depth, cols]: [usize; 3],
        a: Mat,
        b: Mat,
        c: &mut [f32],
        width: usize,
        add: bool,
    ) {
        let k = self.0;
        assert!((1..=k.mr).contains(&rows) && (1..=k.nr).contains(&cols), "micro: size of a tile");
        assert!(a.holds(rows, depth), "micro: left operand too short");
        let wide = cols.next_multiple_of(k.lanes);
        assert!(b.cols == 1 && b.holds(depth, wide), "micro: right operand too short");
        assert!(width >= cols && (rows - 1) * width + cols <= c.len(), "micro: result too short");
        let to = c.as_mut_ptr();
        let tile = Tile {
            depth,
            a: a.data.as_ptr(),
            a_row: a.rows,
            a_step: a.cols,
            b: b.data.as_ptr(),
            b_step: b.rows,
            c: to,
            c_row: width,
            rows,
            cols,
            src: to,
            src_row: width,
            from: if add { From::Scaled(1.0) } else { From::Nothing },
            next: a.data.as_ptr(),
            next_step: 0,
        };
        // SAFETY: everything that the tile names was checked, and the kernel is one that the
        // processor has.
        unsafe { (k.run)(&tile) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_packed_panels_make_the_product() {
        let micro = Micro::new();
        let [m, k, n] = [micro.rows() + 1, 7, micro.cols() + 3];
        let value = |e: usize| (e * 7 % 13) as f32 - 6.0;
        let a: Vec<f32> = (0..m * k).map(value).collect();
        let b: Vec<f32> = (0..k * n).map(value).collect();
        let (mr, nr) = (micro.rows(), micro.cols());
        let mut left = vec![f32::NAN; 2 * mr * k];
        let mut right = vec![f32::NAN; 2 * nr * k];
        micro.pack(Packing::Left, Mat::new(&a, k), [m, k], &mut left);
        micro.pack(Packing::Right, Mat::new(&b, n).t(), [n, k], &mut right);
        let mut c = vec![1.0; m * n];
        for i in (0..m).step_by(mr) {
            for j in (0..n).step_by(nr) {
                let size = [mr.min(m - i), k, nr.min(n - j)];
                let a = Mat::new(&left[i * k..], mr).t();
                let b = Mat::new(&right[j * k..], nr);
                micro.tile(size, a, b, &mut c[i * n + j..], n, true);
            }
        }
        for (e, &c) in c.iter().enumerate() {
            let (i, j) = (e / n, e % n);
            let want = 1.0 + (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum::<f32>();
            assert_eq!(c, want, "element {i}, {j}");
        }
    }

    #[test]
    #[should_panic(expected = "right operand too short")]
    fn an_operand_that_is_too_short_is_refused() {
        let micro = Micro::new();
        let b = vec![0.0; micro.cols() - 1];
        let (a, mut c) = ([1.0], [0.0; 64]);
        let size = [1, 1, micro.cols()];
        micro.tile(size, Mat::new(&a, 1), Mat::new(&b, micro.cols()), &mut c, 64, false);
    }
}
