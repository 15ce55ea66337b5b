//! `y = f(x) w^T + bias + residual`, the projection of every layer with what stands around it.
//!
//! The activation's output is not kept: the backward pass makes it again in the same pass over
//! memory that needs it. The gradient of the residual is the output's own, without a copy.

use crate::activation::Activation;
use crate::cpu::{self, Mat, Threads, gemm, gemm_bias};
use crate::pool::{Buffer, tensor};
use crate::tape::Upstream;
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

/// What stands around a projection.
#[derive(Debug, Clone, Default)]
pub struct Fused {
    /// Applied to the input first.
    pub activation: Activation,
    /// `[1, outputs]`, added to every row.
    pub bias: Option<Tensor<2>>,
    /// `[n, outputs]`, added.
    pub residual: Option<Tensor<2>>,
}

/// The part of [`Fused`] that is not a tensor.
#[derive(Debug, Clone, Copy)]
struct How {
    activation: Activation,
    bias: bool,
    residual: bool,
}

#[backend_extension(Flex, Autodiff)]
trait LinearOp: Backend {
    fn danlu_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        how: How,
    ) -> FloatTensor<Self>;
}

/// `x w^T` for `x: [n, inputs]` and `w: [outputs, inputs]` (the layout of PyTorch's `Linear`):
/// `[n, outputs]`.
///
/// # Panics
/// If the inner dimensions differ.
pub fn linear(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    linear_with(x, w, Fused::default())
}

/// `f(x) w^T + bias + residual`; see [`Fused`]. A gated activation takes `x` twice as wide.
///
/// # Panics
/// If shapes do not fit.
pub fn linear_with(x: Tensor<2>, w: Tensor<2>, around: Fused) -> Tensor<2> {
    let ([n, wide], [m, k]) = (x.dims(), w.dims());
    assert_eq!(around.activation.output(wide), k, "linear: x {:?}, w {:?}", x.dims(), w.dims());
    if let Some(bias) = &around.bias {
        assert_eq!(bias.dims(), [1, m], "linear: bias for w {:?}", w.dims());
    }
    if let Some(residual) = &around.residual {
        assert_eq!(residual.dims(), [n, m], "linear: residual for {n} rows, w {:?}", w.dims());
    }
    if !on_cpu(&x.device()) {
        return composed(x, w, around);
    }
    let how = How {
        activation: around.activation,
        bias: around.bias.is_some(),
        residual: around.residual.is_some(),
    };
    // What is missing is stood for by a tensor that is never read.
    let device = x.device();
    let [bias, residual] = [around.bias, around.residual]
        .map(|t| t.unwrap_or_else(|| Tensor::zeros([1, 1], &device)).into_dispatch());
    let (x, w) = (x.into_dispatch(), w.into_dispatch());
    Tensor::from_dispatch(Dispatch::danlu_linear(x, w, bias, residual, how))
}

pub(crate) fn composed(x: Tensor<2>, w: Tensor<2>, around: Fused) -> Tensor<2> {
    let mut y = around.activation.composed(x).matmul(w.transpose());
    for more in [around.bias, around.residual].into_iter().flatten() {
        y = y + more;
    }
    y
}

impl LinearOp for Flex {
    fn danlu_linear(
        x: FlexTensor,
        w: FlexTensor,
        bias: FlexTensor,
        residual: FlexTensor,
        how: How,
    ) -> FlexTensor {
        let [x, w, bias, residual] = [x, w, bias, residual].map(|t| t.to_contiguous());
        forward(&x, &w, &bias, &residual, how)
    }
}

impl<C: CheckpointStrategy> LinearOp for Autodiff<Flex, C> {
    fn danlu_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        how: How,
    ) -> FloatTensor<Self> {
        // The gradient of a plain projection's input does not need the input.
        let needed = w.is_tracked() || how.activation != Activation::None;
        tape::record::<C, _, 4>(
            name(how.activation),
            [x, w, bias, residual],
            |[x, w, bias, residual], tracked| {
                let y = forward(&x, &w, &bias, &residual, how);
                (y, tracked.then(|| (needed.then_some(x), w, how.activation)))
            },
            |(x, w, activation), Upstream { grad, .. }, wanted| {
                backward(x, &w, activation, grad, wanted)
            },
        )
    }
}

/// The operation's name on the clock.
fn name(activation: Activation) -> &'static str {
    match activation {
        Activation::None => "linear",
        Activation::Silu => "silu and linear",
        Activation::Gelu | Activation::GeluTanh => "gelu and linear",
        Activation::Swiglu => "swiglu and linear",
    }
}

fn forward(
    x: &FlexTensor,
    w: &FlexTensor,
    bias: &FlexTensor,
    residual: &FlexTensor,
    how: How,
) -> FlexTensor {
    let ([n, wide], [m, k]) = (cpu::dims(x), cpu::dims::<2>(w));
    let mut out = Buffer::any(n * m);
    let activated = activated(x, wide, n * k, how.activation);
    let x = Mat::new(activated.as_deref().unwrap_or(cpu::values(x)), k);
    let w = Mat::new(cpu::values(w), k).t();
    let bias = how.bias.then(|| cpu::values(bias));
    match (how.residual, bias) {
        (true, bias) => {
            cpu::copy_rows(&mut out, cpu::values(residual), bias, m);
            gemm([n, k, m], x, w, &mut out, m, 1.0, Threads::All);
        }
        (false, Some(bias)) => gemm_bias([n, k, m], x, w, bias, &mut out, m, Threads::All),
        (false, None) => gemm([n, k, m], x, w, &mut out, m, 0.0, Threads::All),
    }
    tensor(out, [n, m])
}

/// The activation's output, if there is an activation.
fn activated(x: &FlexTensor, wide: usize, len: usize, f: Activation) -> Option<Buffer> {
    (f != Activation::None).then(|| {
        let mut out = Buffer::any(len);
        f.forward(cpu::values(x), wide, &mut out);
        out
    })
}

fn backward(
    x: Option<FlexTensor>,
    w: &FlexTensor,
    activation: Activation,
    grad: FlexTensor,
    [want_x, want_w, want_bias, want_residual]: [bool; 4],
) -> [Option<FlexTensor>; 4] {
    let ([n, _], [m, k]) = (cpu::dims::<2>(&grad), cpu::dims::<2>(w));
    let g = Mat::new(cpu::values(&grad), m);
    let mut dx = want_x.then(|| {
        let mut out = Buffer::any(n * k);
        gemm([n, m, k], g, Mat::new(cpu::values(w), k), &mut out, k, 0.0, Threads::All);
        out
    });
    let mut dw = None;
    if let Some(mut x) = x {
        let [_, wide] = cpu::dims(&x);
        let mut again = None;
        if let (true, Some(dz)) = (activation != Activation::None, &mut dx) {
            // Now `x` holds its gradient, and `dz` the activation's output.
            activation.backward(cpu::values_mut(&mut x), wide, dz);
            again = dx.take();
        } else if want_w {
            again = activated(&x, wide, n * k, activation);
        }
        dw = want_w.then(|| {
            let mut out = Buffer::any(m * k);
            let x = Mat::new(again.as_deref().unwrap_or(cpu::values(&x)), k);
            gemm([m, n, k], g.t(), x, &mut out, k, 0.0, Threads::All);
            tensor(out, [m, k])
        });
        if want_x && dx.is_none() {
            let db = bias_gradient(&grad, want_bias);
            return [Some(x), dw, db, want_residual.then_some(grad)];
        }
    }
    let db = bias_gradient(&grad, want_bias);
    let dx = dx.map(|dx| tensor(dx, [n, k]));
    [dx, dw, db, want_residual.then_some(grad)]
}

/// The gradient of the bias, `[1, outputs]`.
fn bias_gradient(grad: &FlexTensor, wanted: bool) -> Option<FlexTensor> {
    let [_, m] = cpu::dims(grad);
    wanted.then(|| tensor(cpu::sum_rows(cpu::values(grad), m), [1, m]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        check(
            &[[5, 7], [6, 7]],
            |v| linear(v[0].clone(), v[1].clone()),
            |v| composed(v[0].clone(), v[1].clone(), Fused::default()),
        );
    }

    #[test]
    fn everything_around_it_agrees_too() {
        for activation in [
            Activation::None,
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Swiglu,
        ] {
            let wide = if activation == Activation::Swiglu { 14 } else { 7 };
            let around = |v: &[Tensor<2>]| Fused {
                activation,
                bias: Some(v[2].clone()),
                residual: Some(v[3].clone()),
            };
            check(
                &[[70, wide], [6, 7], [1, 6], [70, 6]],
                |v| linear_with(v[0].clone(), v[1].clone(), around(v)),
                |v| composed(v[0].clone(), v[1].clone(), around(v)),
            );
        }
    }

    #[test]
    #[should_panic(expected = "linear: x [2, 3], w [4, 5]")]
    fn shapes_that_do_not_fit_are_named() {
        let d = crate::cpu_device();
        linear(Tensor::zeros([2, 3], &d), Tensor::zeros([4, 5], &d));
    }
}
