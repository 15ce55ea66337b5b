//! Two-dimensional convolution with channels last, as one matrix product over gathered patches.
//! A one-dimensional convolution is one of height 1.

use crate::cpu::{self, Mat, Threads, gemm};
use crate::pool::{Buffer, tensor};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Tensor, module, ops::ConvOptions};
use rayon::prelude::*;

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

fn composed(x: Tensor<4>, w: Tensor<2>, bias: Tensor<2>, shape: ConvShape) -> Tensor<4> {
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

/// For every output position the patch under it: `[batch * height' * width', kh * kw * inputs]`.
fn patches(x: &FlexTensor, shape: ConvShape) -> Buffer {
    let [batch, height, width, inputs] = cpu::dims(x);
    let [oh, ow] = shape.output([height, width]);
    let [kh, kw] = shape.kernel;
    let columns = kh * kw * inputs;
    // Positions over the padding stay 0.
    let mut out = Buffer::zeros(batch * oh * ow * columns);
    let x = cpu::values(x);
    out.par_chunks_mut((ow * columns).max(1)).enumerate().for_each(|(line, out)| {
        let (b, oy) = (line / oh, line % oh);
        for (ox, patch) in out.chunks_exact_mut(columns).enumerate() {
            each_tap(shape, [height, width], [oy, ox], |tap, y, xx| {
                let from = ((b * height + y) * width + xx) * inputs;
                patch[tap * inputs..][..inputs].copy_from_slice(&x[from..][..inputs]);
            });
        }
    });
    out
}

/// Calls `f(tap, y, x)` for each kernel position of output `[oy, ox]` that lies inside the input.
#[inline(always)]
fn each_tap(
    shape: ConvShape,
    [height, width]: [usize; 2],
    [oy, ox]: [usize; 2],
    mut f: impl FnMut(usize, usize, usize),
) {
    for ky in 0..shape.kernel[0] {
        let y = (oy * shape.stride[0] + ky).wrapping_sub(shape.padding[0]);
        if y >= height {
            continue;
        }
        for kx in 0..shape.kernel[1] {
            let x = (ox * shape.stride[1] + kx).wrapping_sub(shape.padding[1]);
            if x < width {
                f(ky * shape.kernel[1] + kx, y, x);
            }
        }
    }
}

fn forward(x: &FlexTensor, w: &FlexTensor, bias: &FlexTensor, shape: ConvShape) -> FlexTensor {
    let [batch, height, width, _] = cpu::dims(x);
    let [oh, ow] = shape.output([height, width]);
    let [outputs, columns] = cpu::dims(w);
    let rows = batch * oh * ow;
    let mut out = Buffer::any(rows * outputs);
    cpu::fill_rows(&mut out, cpu::values(bias));
    let gathered;
    let a = if shape == ConvShape::same([1, 1]) {
        cpu::values(x)
    } else {
        gathered = patches(x, shape);
        &gathered
    };
    let (a, b) = (Mat::new(a, columns), Mat::new(cpu::values(w), columns).t());
    gemm([rows, columns, outputs], a, b, &mut out, outputs, 1.0, Threads::All);
    tensor(out, [batch, oh, ow, outputs])
}

fn backward(
    x: &FlexTensor,
    w: &FlexTensor,
    shape: ConvShape,
    grad: &FlexTensor,
    want_x: bool,
) -> [Option<FlexTensor>; 3] {
    let [batch, height, width, inputs] = cpu::dims(x);
    let [oh, ow] = shape.output([height, width]);
    let [outputs, columns] = cpu::dims(w);
    let rows = batch * oh * ow;
    let gathered;
    let a = if shape == ConvShape::same([1, 1]) {
        cpu::values(x)
    } else {
        gathered = patches(x, shape);
        &gathered
    };
    let g = Mat::new(cpu::values(grad), outputs);
    let mut dw = Buffer::any(outputs * columns);
    gemm(
        [outputs, rows, columns],
        g.t(),
        Mat::new(a, columns),
        &mut dw,
        columns,
        0.0,
        Threads::All,
    );
    let db = cpu::sum_rows(cpu::values(grad), outputs);
    let dx = want_x.then(|| {
        let mut dp = Buffer::any(rows * columns);
        let w = Mat::new(cpu::values(w), columns);
        gemm([rows, outputs, columns], g, w, &mut dp, columns, 0.0, Threads::All);
        let mut dx = Buffer::zeros(batch * height * width * inputs);
        // One image is one task: its patches overlap, images do not.
        dx.par_chunks_mut((height * width * inputs).max(1))
            .zip(dp.par_chunks((oh * ow * columns).max(1)))
            .for_each(|(dx, dp)| {
                for (o, patch) in dp.chunks_exact(columns).enumerate() {
                    each_tap(shape, [height, width], [o / ow, o % ow], |tap, y, xx| {
                        let to = &mut dx[(y * width + xx) * inputs..][..inputs];
                        let from = &patch[tap * inputs..][..inputs];
                        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
                    });
                }
            });
        tensor(dx, [batch, height, width, inputs])
    });
    [dx, Some(tensor(dw, [outputs, columns])), Some(tensor(db, [1, outputs]))]
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
}
