//! Two-dimensional convolution with channels last: patches are gathered for a few lines of output at
//! a time, as many as the cache holds, and multiplied with the kernels.
//! A one-dimensional convolution is one of height 1.

use crate::cpu::{self, Mat, Threads, gemm};
use crate::pool::{Buffer, tensor};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, module, ops::ConvOptions};
use rayon::prelude::*;
use std::ops::Range;

/// Kernel, stride and zero padding as `[vertical, horizontal]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step from one patch to the next.
    pub stride: [usize; 2],
    /// Zeros around the input on each side.
    pub padding: [usize; 2],
}

impl ConvShape {
    /// Kernel of odd size whose output is as large as its input.
    pub fn same(kernel: [usize; 2]) -> Self {
        Self { kernel, stride: [1, 1], padding: kernel.map(|k| k / 2) }
    }

    /// For [`conv1d`]: kernel, stride and padding along the only dimension.
    pub fn along(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel: [1, kernel], stride: [1, stride], padding: [0, padding] }
    }

    /// Size of the output for an input of `height` and `width`.
    pub fn output(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        let along = |size: usize, a: usize| {
            (size + 2 * self.padding[a] - self.kernel[a]) / self.stride[a] + 1
        };
        [along(height, 0), along(width, 1)]
    }
}

#[backend_extension(Flex, Autodiff)]
trait ConvOp: Backend {
    fn danlu_conv(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;
}

/// Convolution of `x: [batch, height, width, inputs]` with `w: [outputs, kh * kw * inputs]` (rows
/// in the order kernel row, kernel column, channel) plus `bias: [1, outputs]`:
/// `[batch, height', width', outputs]`.
pub fn conv2d(x: Tensor<4>, w: Tensor<2>, bias: Tensor<2>, shape: ConvShape) -> Tensor<4> {
    let inputs = x.dims()[3];
    assert_eq!(
        w.dims()[1],
        shape.kernel[0] * shape.kernel[1] * inputs,
        "conv2d: x {:?}, w {:?}, {shape:?}",
        x.dims(),
        w.dims()
    );
    assert_eq!(bias.dims(), [1, w.dims()[0]], "conv2d: bias");
    if !on_cpu(&x.device()) {
        return composed(x, w, bias, shape);
    }
    let (x, w, bias) = (x.into_dispatch(), w.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::danlu_conv(x, w, bias, shape))
}

/// Convolution of `x: [batch, time, inputs]` with `w: [outputs, kernel * inputs]` (rows in the order
/// tap, channel) plus `bias: [1, outputs]`: `[batch, time', outputs]`. `shape` is one of
/// [`ConvShape::along`].
///
/// # Panics
/// If shapes do not fit, or `shape` has a height.
pub fn conv1d(x: Tensor<3>, w: Tensor<2>, bias: Tensor<2>, shape: ConvShape) -> Tensor<3> {
    assert_eq!([shape.kernel[0], shape.padding[0]], [1, 0], "conv1d: {shape:?} has a height");
    let [batch, time, inputs] = x.dims();
    let y = conv2d(x.reshape([batch, 1, time, inputs]), w, bias, shape);
    let [_, _, time, outputs] = y.dims();
    y.reshape([batch, time, outputs])
}

pub(crate) fn composed(x: Tensor<4>, w: Tensor<2>, bias: Tensor<2>, shape: ConvShape) -> Tensor<4> {
    let ([_, _, _, inputs], [outputs, _]) = (x.dims(), w.dims());
    let [kh, kw] = shape.kernel;
    let w = w.reshape([outputs, kh, kw, inputs]).permute([0, 3, 1, 2]);
    let options = ConvOptions::new(shape.stride, shape.padding, [1, 1], 1);
    let y = module::conv2d(x.permute([0, 3, 1, 2]), w, Some(bias.reshape([outputs])), options);
    y.permute([0, 2, 3, 1])
}

impl ConvOp for Flex {
    fn danlu_conv(x: FlexTensor, w: FlexTensor, bias: FlexTensor, shape: ConvShape) -> FlexTensor {
        let [x, w, bias] = [x, w, bias].map(|t| t.to_contiguous());
        forward(&x, &w, &bias, shape)
    }
}

impl<C: CheckpointStrategy> ConvOp for Autodiff<Flex, C> {
    fn danlu_conv(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        tape::record::<C, _, 3>(
            "conv2d",
            [x, w, bias],
            |inputs, tracked| {
                let [x, w, bias] = inputs.map(|t| t.to_contiguous());
                let y = forward(&x, &w, &bias, shape);
                (y, tracked.then_some((x, w, shape)))
            },
            |(x, w, shape), up, [want_x, ..]| backward(&x, &w, shape, &up.grad, want_x),
        )
    }
}

/// Values of gathered patches that one task holds at a time: half of a core's second-level cache.
const GATHER: usize = 96 * 1024;
/// Parts that the weight gradient is summed in. Fixed, so that the result is the same for any number
/// of threads.
const PARTS: usize = 8;

/// Sizes of one call, and the gathering of patches.
struct Geometry {
    shape: ConvShape,
    input: [usize; 2],
    output: [usize; 2],
    inputs: usize,
    /// Values of a patch.
    columns: usize,
    /// Lines of output positions, over the whole batch.
    lines: usize,
}

impl Geometry {
    fn new(x: &FlexTensor, shape: ConvShape) -> Self {
        let [batch, height, width, inputs] = cpu::dims(x);
        let output = shape.output([height, width]);
        let columns = shape.kernel[0] * shape.kernel[1] * inputs;
        let lines = batch * output[0];
        Self { shape, input: [height, width], output, inputs, columns, lines }
    }

    /// Whether the patches are the input itself.
    fn is_plain(&self) -> bool {
        self.shape == ConvShape::same([1, 1])
    }

    /// Lines whose patches are gathered at a time.
    fn lines_at_once(&self) -> usize {
        (GATHER / (self.output[1] * self.columns).max(1)).max(1)
    }

    /// Writes the patches under output lines `first..first + lines`, `[lines * width', columns]`.
    fn gather(&self, x: &[f32], first: usize, lines: usize, out: &mut [f32]) {
        let ([height, width], [oh, ow]) = (self.input, self.output);
        let row = self.shape.kernel[1] * self.inputs;
        for (line, out) in (first..first + lines).zip(out.chunks_exact_mut(ow * self.columns)) {
            let (image, oy) = (line / oh, line % oh);
            for (ox, patch) in out.chunks_exact_mut(self.columns).enumerate() {
                // Taps side by side are neighbours in memory: a row of the kernel is one copy.
                let left = ox * self.shape.stride[1];
                let (skip, from) = match left.checked_sub(self.shape.padding[1]) {
                    Some(from) => (0, from),
                    None => (self.shape.padding[1] - left, 0),
                };
                let taps =
                    (self.shape.kernel[1].saturating_sub(skip)).min(width.saturating_sub(from));
                let (skip, copied) = (skip * self.inputs, taps * self.inputs);
                for (ky, to) in patch.chunks_exact_mut(row).enumerate() {
                    let y = (oy * self.shape.stride[0] + ky).wrapping_sub(self.shape.padding[0]);
                    if y >= height || taps == 0 {
                        to.fill(0.0);
                        continue;
                    }
                    let at = ((image * height + y) * width + from) * self.inputs;
                    to[..skip].fill(0.0);
                    to[skip..skip + copied].copy_from_slice(&x[at..][..copied]);
                    to[skip + copied..].fill(0.0);
                }
            }
        }
    }

    /// Calls `f(row, patches)` for output lines `lines`, some at a time: `row` is the first output
    /// position of the patches `[n, columns]`.
    fn each(&self, x: &[f32], lines: Range<usize>, mut f: impl FnMut(usize, &[f32])) {
        let ow = self.output[1];
        if self.is_plain() {
            let row = lines.start * ow;
            f(row, &x[row * self.columns..lines.end * ow * self.columns]);
            return;
        }
        let at_once = self.lines_at_once().min(lines.len());
        let mut buffer = Buffer::any(at_once * ow * self.columns);
        for first in lines.clone().step_by(at_once.max(1)) {
            let n = at_once.min(lines.end - first);
            let patches = &mut buffer[..n * ow * self.columns];
            self.gather(x, first, n, patches);
            f(first * ow, patches);
        }
    }
}

fn forward(x: &FlexTensor, w: &FlexTensor, bias: &FlexTensor, shape: ConvShape) -> FlexTensor {
    let g = Geometry::new(x, shape);
    let [oh, ow] = g.output;
    let [outputs, columns] = cpu::dims(w);
    let mut out = Buffer::any(g.lines * ow * outputs);
    cpu::fill_rows(&mut out, cpu::values(bias));
    let (x, w) = (cpu::values(x), Mat::new(cpu::values(w), columns).t());
    let some = g.lines_at_once();
    out.par_chunks_mut((some * ow * outputs).max(1)).enumerate().for_each(|(i, out)| {
        let lines = i * some..((i + 1) * some).min(g.lines);
        g.each(x, lines, |_, patches| {
            let n = patches.len() / columns;
            let a = Mat::new(patches, columns);
            gemm([n, columns, outputs], a, w, out, outputs, 1.0, Threads::One);
        });
    });
    tensor(out, [g.lines / oh.max(1), oh, ow, outputs])
}

fn backward(
    x: &FlexTensor,
    w: &FlexTensor,
    shape: ConvShape,
    grad: &FlexTensor,
    want_x: bool,
) -> [Option<FlexTensor>; 3] {
    let [outputs, columns] = cpu::dims(w);
    let dw = weight_gradient(x, shape, grad, [outputs, columns]);
    let db = cpu::sum_rows(cpu::values(grad), outputs);
    let dx = want_x.then(|| input_gradient(x, w, shape, grad));
    [dx, Some(dw), Some(tensor(db, [1, outputs]))]
}

fn weight_gradient(
    x: &FlexTensor,
    shape: ConvShape,
    grad: &FlexTensor,
    [outputs, columns]: [usize; 2],
) -> FlexTensor {
    let g = Geometry::new(x, shape);
    let (x, grad) = (cpu::values(x), cpu::values(grad));
    let each = g.lines.div_ceil(PARTS).max(1);
    let parts: Vec<Buffer> = (0..g.lines.div_ceil(each))
        .into_par_iter()
        .map(|part| {
            let lines = part * each..((part + 1) * each).min(g.lines);
            let mut dw = Buffer::any(outputs * columns);
            let mut keep = 0.0;
            g.each(x, lines, |row, patches| {
                let n = patches.len() / columns;
                let up = Mat::new(&grad[row * outputs..], outputs).t();
                let a = Mat::new(patches, columns);
                gemm([outputs, n, columns], up, a, &mut dw, columns, keep, Threads::One);
                keep = 1.0;
            });
            dw
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_else(|| Buffer::zeros(outputs * columns));
    let rest: Vec<Buffer> = parts.collect();
    total.par_chunks_mut(GATHER / 8).enumerate().for_each(|(i, total)| {
        for part in &rest {
            let part = &part[i * (GATHER / 8)..][..total.len()];
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
        }
    });
    tensor(total, [outputs, columns])
}

/// With a stride of one the gradient of the input is a convolution too: of the output's gradient
/// with the kernel turned round and its channels swapped. Else it is scattered, patch by patch.
fn input_gradient(
    x: &FlexTensor,
    w: &FlexTensor,
    shape: ConvShape,
    grad: &FlexTensor,
) -> FlexTensor {
    let [batch, height, width, inputs] = cpu::dims(x);
    let [outputs, columns] = cpu::dims(w);
    let taps = shape.kernel[0] * shape.kernel[1];
    let turns = shape.stride == [1, 1] && (0..2).all(|a| shape.padding[a] < shape.kernel[a]);
    if turns {
        let (values, mut turned) = (cpu::values(w), Buffer::any(outputs * columns));
        for (input, row) in turned.chunks_exact_mut((taps * outputs).max(1)).enumerate() {
            for (tap, row) in row.chunks_exact_mut(outputs).enumerate() {
                let from = (taps - 1 - tap) * inputs + input;
                for (output, value) in row.iter_mut().enumerate() {
                    *value = values[output * columns + from];
                }
            }
        }
        let turned = tensor(turned, [inputs, taps * outputs]);
        let padding = [0, 1].map(|a| shape.kernel[a] - 1 - shape.padding[a]);
        let back = ConvShape { padding, ..shape };
        return forward(grad, &turned, &tensor(Buffer::zeros(inputs), [1, inputs]), back);
    }
    let [oh, ow] = shape.output([height, width]);
    let (grad, w) = (cpu::values(grad), Mat::new(cpu::values(w), columns));
    let mut dx = Buffer::zeros(batch * height * width * inputs);
    // One image is one task: its patches overlap, images do not.
    dx.par_chunks_mut((height * width * inputs).max(1)).enumerate().for_each(|(image, dx)| {
        let mut patches = Buffer::any(oh * ow * columns);
        let up = Mat::new(&grad[image * oh * ow * outputs..], outputs);
        gemm([oh * ow, outputs, columns], up, w, &mut patches, columns, 0.0, Threads::One);
        for (o, patch) in patches.chunks_exact(columns).enumerate() {
            for (tap, from) in patch.chunks_exact(inputs).enumerate() {
                let [ky, kx] = [tap / shape.kernel[1], tap % shape.kernel[1]];
                let y = (o / ow * shape.stride[0] + ky).wrapping_sub(shape.padding[0]);
                let x = (o % ow * shape.stride[1] + kx).wrapping_sub(shape.padding[1]);
                if y < height && x < width {
                    let to = &mut dx[(y * width + x) * inputs..][..inputs];
                    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
                }
            }
        }
    });
    tensor(dx, [batch, height, width, inputs])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        let strided = ConvShape { kernel: [4, 4], stride: [2, 2], padding: [1, 1] };
        let uneven = ConvShape { kernel: [3, 2], stride: [2, 1], padding: [1, 0] };
        for (shape, size) in [
            (ConvShape::same([3, 3]), [5, 6]),
            (ConvShape::same([1, 1]), [3, 3]),
            (ConvShape::same([1, 3]), [1, 9]),
            (strided, [6, 8]),
            (uneven, [7, 4]),
        ] {
            let [kh, kw] = shape.kernel;
            let run = |v: &[Tensor<2>], fused: bool| {
                let x = v[0].clone().reshape([2, size[0], size[1], 3]);
                let y = match fused {
                    true => conv2d(x, v[1].clone(), v[2].clone(), shape),
                    false => composed(x, v[1].clone(), v[2].clone(), shape),
                };
                let d = y.dims();
                y.reshape([d[0] * d[1] * d[2], d[3]])
            };
            check(
                &[[2 * size[0] * size[1], 3], [4, kh * kw * 3], [1, 4]],
                |v| run(v, true),
                |v| run(v, false),
            );
        }
    }

    #[test]
    fn one_dimension_agrees_too() {
        let shape = ConvShape::along(5, 2, 2);
        check(
            &[[2 * 9, 3], [4, 5 * 3], [1, 4]],
            |v| {
                let x = v[0].clone().reshape([2, 9, 3]);
                conv1d(x, v[1].clone(), v[2].clone(), shape).reshape([2 * 5, 4])
            },
            |v| {
                let x = v[0].clone().reshape([2, 9, 3]).swap_dims(1, 2);
                let w = v[1].clone().reshape([4, 5, 3]).swap_dims(1, 2);
                let options = ConvOptions::new([2], [2], [1], 1);
                let y = module::conv1d(x, w, Some(v[2].clone().reshape([4])), options);
                y.swap_dims(1, 2).reshape([2 * 5, 4])
            },
        );
    }

    #[test]
    #[should_panic(expected = "has a height")]
    fn one_dimension_has_no_height() {
        let d = crate::cpu_device();
        let (w, bias) = (Tensor::zeros([4, 27], &d), Tensor::zeros([1, 4], &d));
        conv1d(Tensor::zeros([2, 9, 3], &d), w, bias, ConvShape::same([3, 3]));
    }
}
