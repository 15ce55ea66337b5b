//! The optimiser's step in one pass over memory.

use crate::cpu;
use crate::on_cpu;
use crate::pool::tensor;
use crate::profile::timed;
use burn::backend::flex::FlexTensor;
use burn::backend::{
    Backend, Dispatch, ExtensionType, Flex, backend_extension, tensor::FloatTensor,
};
use burn::tensor::Tensor;
use rayon::prelude::*;

const CHUNK: usize = 16 * 1024;

/// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub rate: f32,
    /// Decays of the two moments.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u64,
    /// What the gradient is multiplied with first (clipping, accumulation).
    pub grad_scale: f32,
}

/// A parameter and its two moments.
#[derive(ExtensionType)]
struct Moments<B: Backend> {
    value: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
}

#[backend_extension(Flex)]
trait StepOp: Backend {
    fn danlu_adamw(
        #[extension_type] state: Moments<Self>,
        grad: FloatTensor<Self>,
        adamw: AdamW,
    ) -> Moments<Self>;
    fn danlu_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The parameter and its moments after one AdamW step; all four tensors have the same shape and
/// no gradient record. Memory is reused where nothing else holds it.
pub fn adamw_step(
    [value, first, second]: [Tensor<2>; 3],
    grad: Tensor<2>,
    adamw: AdamW,
) -> [Tensor<2>; 3] {
    assert_eq!(value.dims(), grad.dims(), "adamw: gradient");
    if !on_cpu(&value.device()) {
        return composed([value, first, second], grad, adamw);
    }
    let state = Moments {
        value: value.into_dispatch(),
        first: first.into_dispatch(),
        second: second.into_dispatch(),
    };
    let new = timed("adamw", "", || Dispatch::danlu_adamw(state, grad.into_dispatch(), adamw));
    [new.value, new.first, new.second].map(Tensor::from_dispatch)
}

/// Sum of the squares of `x`, in double precision.
pub fn squared_norm(x: &Tensor<2>) -> f64 {
    if !on_cpu(&x.device()) {
        return x.clone().powf_scalar(2.0).sum().into_scalar::<f32>() as f64;
    }
    let parts = Tensor::<1>::from_dispatch(Dispatch::danlu_squares(x.clone().into_dispatch()));
    let parts: Vec<f32> = parts.into_data().try_into_vec().expect("f32");
    parts.iter().map(|&p| p as f64).sum()
}

pub(crate) fn composed(
    [value, first, second]: [Tensor<2>; 3],
    grad: Tensor<2>,
    a: AdamW,
) -> [Tensor<2>; 3] {
    let grad = grad.mul_scalar(a.grad_scale);
    let first = first.mul_scalar(a.betas[0]) + grad.clone().mul_scalar(1.0 - a.betas[0]);
    let second = second.mul_scalar(a.betas[1]) + grad.powf_scalar(2.0).mul_scalar(1.0 - a.betas[1]);
    let [c1, c2] = corrections(&a);
    let root = second.clone().div_scalar(c2).sqrt().add_scalar(a.epsilon);
    let value = value.mul_scalar(1.0 - a.rate * a.weight_decay)
        - first.clone().mul_scalar(a.rate / c1) / root;
    [value, first, second]
}

/// One minus each beta to the power of the step.
fn corrections(a: &AdamW) -> [f32; 2] {
    a.betas.map(|b| (1.0 - (b as f64).powi(a.step as i32)) as f32)
}

impl StepOp for Flex {
    fn danlu_adamw(state: Moments<Self>, grad: FlexTensor, a: AdamW) -> Moments<Self> {
        let grad = grad.to_contiguous();
        let [mut value, mut first, mut second] =
            [state.value, state.first, state.second].map(whole);
        let [c1, c2] = corrections(&a);
        let step = a.rate / c1;
        let root_c2 = 1.0 / c2.sqrt();
        let keep = 1.0 - a.rate * a.weight_decay;
        value
            .storage_mut::<f32>()
            .par_chunks_mut(CHUNK)
            .zip(first.storage_mut::<f32>().par_chunks_mut(CHUNK))
            .zip(second.storage_mut::<f32>().par_chunks_mut(CHUNK))
            .zip(cpu::values(&grad).par_chunks(CHUNK))
            .for_each(|(((value, first), second), grad)| {
                cpu::vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..value.len() {
                            let g = grad[i] * a.grad_scale;
                            first[i] = a.betas[0] * first[i] + (1.0 - a.betas[0]) * g;
                            second[i] = a.betas[1] * second[i] + (1.0 - a.betas[1]) * g * g;
                            let root = second[i].sqrt() * root_c2 + a.epsilon;
                            value[i] = keep * value[i] - step * first[i] / root;
                        }
                    },
                );
            });
        Moments { value, first, second }
    }

    fn danlu_squares(x: FlexTensor) -> FlexTensor {
        let x = x.to_contiguous();
        let parts: Vec<f32> = cpu::values(&x)
            .par_chunks(CHUNK)
            .map(|part| {
                cpu::vectorised(
                    #[inline(always)]
                    || cpu::dot(part, part),
                )
            })
            .collect();
        let n = parts.len();
        tensor(parts, [n])
    }
}

/// `t` as a tensor that covers its whole storage, so that `storage_mut` is its elements.
fn whole(t: FlexTensor) -> FlexTensor {
    let t = t.to_contiguous();
    match t.storage::<f32>().len() == t.layout().num_elements() {
        true => t,
        false => tensor(cpu::values(&t).to_vec(), cpu::dims::<2>(&t)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, floats};
    use burn::tensor::Distribution;

    #[test]
    fn kernel_and_composed_agree_over_steps() {
        let d = crate::cpu_device();
        d.seed(3);
        let random = || Tensor::<2>::random([5, 7], Distribution::Normal(0.0, 1.0), &d);
        let start = random();
        let zeros = || Tensor::<2>::zeros([5, 7], &d);
        let mut fused = [start.clone(), zeros(), zeros()];
        let mut plain = fused.clone();
        for step in 1..=5 {
            let adamw = AdamW {
                rate: 0.01,
                betas: [0.9, 0.95],
                epsilon: 1e-8,
                weight_decay: 0.1,
                step,
                grad_scale: 0.5,
            };
            let grad = random();
            fused = adamw_step(fused, grad.clone(), adamw);
            plain = composed(plain, grad, adamw);
        }
        for (a, b) in fused.iter().zip(&plain) {
            close("state", &floats(a.clone().into_data()), &floats(b.clone().into_data()), 1e-5);
        }
        assert!(squared_norm(&(fused[0].clone() - start)) > 1e-4, "the step moves the parameter");
    }

    #[test]
    fn squared_norm_is_the_sum_of_squares() {
        let x = Tensor::<2>::from_data([[3.0, 4.0], [0.0, -1.0]], &crate::cpu_device());
        assert_eq!(squared_norm(&x), 26.0);
    }
}
