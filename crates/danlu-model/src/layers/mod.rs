//! The blocks that architectures are made of. A layer is its parameters and one `forward`.

mod attention;
mod block;
mod conv;
mod experts;
mod feed;
mod linear;
mod lora;
mod mlp;
mod norm;

pub use attention::{Attention, Cache};
pub use block::Block;
pub(crate) use conv::fold;
pub use conv::{Conv, ResBlock};
pub(crate) use experts::is_router;
pub use experts::{Experts, experts_used};
pub use feed::FeedForward;
pub use linear::Linear;
pub use lora::Lora;
pub use mlp::Mlp;
pub use norm::{LayerNorm, RmsNorm};
