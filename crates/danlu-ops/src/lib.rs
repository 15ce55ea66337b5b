//! Fused tensor operations for Burn.
//!
//! Each file is one operation and holds everything about it: what it computes (a *composed*
//! definition in plain Burn operations, which is also what every device but the CPU runs), a CPU
//! kernel on Flex tensors, a hand-written backward pass registered under `Autodiff` through
//! Burn's `backend_extension`, and tests that hold the kernel against the composed definition
//! and against finite differences. [`ALL`] lists them, and one test goes over it. Goldens against
//! PyTorch are in `danlu-model`'s `tests/goldens.rs`.
//!
//! This is the only crate with `unsafe`, and the last one upwards where a backend type shows:
//! the public functions take and return [`burn::tensor::Tensor`].
//!
//! Reductions are summed in an order that does not depend on the number of threads, so the same
//! input gives the same bits.

mod activate;
mod activation;
mod attention;
mod conv;
mod cpu;
mod embedding;
mod entropy;
mod experts;
mod frozen;
#[allow(
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "the interface of a part that stands by itself"
)]
mod gemm;
mod grouped;
mod head_loss;
mod layer_norm;
mod linear;
mod list;
mod logits;
mod machine;
mod muon;
mod paged;
mod pool;
mod profile;
mod program;
pub mod quant;
mod recompute;
mod residual;
mod rms_norm;
mod seed;
mod step;
mod tape;
mod team;
#[cfg(test)]
mod testing;

pub use activate::{activate, silu, swiglu};
pub use activation::Activation;
pub use attention::{AttentionMemory, AttentionShape, Rotary, attention, attention_cached};
pub use conv::{ConvShape, conv1d, conv2d};
pub use cpu::{Transposed, fma_peak, gemm_rate};
pub use embedding::embedding;
pub use entropy::attention_entropy;
pub use experts::{Among, Routing, choose, gates, mix_experts};
pub use frozen::{frozen_linear, frozen_rows, thaw};
pub use grouped::{batched_linear, grouped_linear};
pub use head_loss::{HeadLoss, head_loss};
pub use layer_norm::layer_norm;
pub use linear::{Fused, linear, linear_with};
pub use list::{ALL, Op};
pub use logits::Scan;
pub use machine::available_memory;
pub use muon::{Matrix, Muon, muon_step};
pub use paged::{CacheFormat, PAGE, Pages, Span, attend};
pub use pool::{Memory, give_back, keep_no_pages, memory, reset_peak, tensor_bytes};
pub use profile::{Timed, start_profile, take_profile};
pub use recompute::recompute;
pub use residual::{Last, Norm, residual};
pub use rms_norm::rms_norm;
pub use seed::{seed, seed_with};
pub use step::{AdamW, adamw_step, squared_norm};
pub use team::Team;

/// This machine's processor; `.autodiff()` of it records gradients.
pub fn cpu_device() -> burn::tensor::Device {
    burn::tensor::Device::flex()
}

/// Whether tensors of `device` are CPU tensors that the kernels of this crate work on.
pub(crate) fn on_cpu(device: &burn::tensor::Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), burn::backend::DispatchDevice::Flex(_))
}
