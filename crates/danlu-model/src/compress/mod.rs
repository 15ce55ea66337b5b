//! Smaller forms of a transformer: weights in few bits ([`quantise`]), and heads, channels and
//! layers taken out ([`prune`]). Both may look at documents: what runs through the layers says which
//! errors matter and what does the least.

mod gptq;
mod gram;
mod prune;

pub use prune::{Cut, Seen, observe, prune};

use crate::arch::Transformer;
use crate::layers::{FeedForward, Linear, Mlp};
use crate::params::Module;
use burn::tensor::Tensor;
use danlu_core::{Error, Result};
use danlu_ops::quant::{Arena, WeightFormat, Weights};
use danlu_ops::{Activation, Routing};
use gram::Gram;
use std::sync::Arc;

/// Packed documents: ids, and where each begins, as [`Transformer::hidden`] takes them.
pub type Packed = (Arc<[u32]>, Arc<[u32]>);

/// How numbers in few bits are found.
#[derive(Debug, Clone, Copy)]
pub enum Rounding<'a> {
    /// Each weight by itself, to the nearest.
    Nearest,
    /// Each weight so that what those of its row before it lost is made up for, on these documents
    /// (GPTQ, arXiv 2210.17323).
    Calibrated(&'a [Packed]),
}

/// Keeps every matrix in `format`, and the embedding and the head in
/// [its tables' format](WeightFormat::of_tables). `done` is told how many layers are.
///
/// # Errors
/// If there is nothing to calibrate on, or what runs through a layer is not finite.
pub fn quantise(
    model: &mut Transformer,
    format: WeightFormat,
    rounding: Rounding<'_>,
    done: &mut dyn FnMut(usize),
) -> Result<()> {
    let arena = Arena::default();
    for p in std::iter::once(&mut model.embedding).chain(&mut model.head) {
        p.freeze(format.of_tables(), &arena);
    }
    match rounding {
        Rounding::Nearest => {
            for (i, block) in model.blocks.iter_mut().enumerate() {
                block.linears_mut().into_iter().for_each(|l| l.weight.freeze(format, &arena));
                done(i + 1);
            }
        }
        Rounding::Calibrated(documents) => {
            if documents.iter().all(|(ids, _)| ids.is_empty()) {
                return Err(Error::parameter("--data", "documents to calibrate on", "none"));
            }
            calibrated(model, format, documents, &arena, done)?;
        }
    }
    Ok(())
}

/// Layer by layer, and within a layer projection by projection: each sees what those before it, in
/// few bits, make of the documents.
fn calibrated(
    model: &mut Transformer,
    format: WeightFormat,
    documents: &[Packed],
    arena: &Arena,
    done: &mut dyn FnMut(usize),
) -> Result<()> {
    let rotary = model.rotary().to_vec();
    let mut streams: Vec<Tensor<2>> = documents.iter().map(|(ids, _)| model.embed(ids)).collect();
    for (i, block) in model.blocks.iter_mut().enumerate() {
        let inner: Vec<_> =
            streams.iter().map(|x| block.attention_norm.forward(x.clone())).collect();
        few_bits(&mut block.attention.qkv, &inner, format, arena)?;
        let inner: Vec<_> = inner
            .into_iter()
            .zip(documents)
            .map(|(x, (_, starts))| block.attention.branch(x, &rotary[i], starts))
            .collect();
        few_bits(&mut block.attention.out, &inner, format, arena)?;
        for (x, inner) in streams.iter_mut().zip(inner) {
            *x = x.clone() + block.attention.out.forward(inner);
        }
        let inner: Vec<_> = streams.iter().map(|x| block.mlp_norm.forward(x.clone())).collect();
        match &mut block.mlp {
            FeedForward::Dense(mlp) => few_bits_of(mlp, inner.clone(), format, arena)?,
            FeedForward::Experts(experts) => {
                // Each sees what it is sent.
                let sent: Vec<Routing> = inner.iter().map(|x| experts.route(x.clone()).1).collect();
                for (e, mlp) in experts.each.iter_mut().enumerate() {
                    let own = inner.iter().zip(&sent).filter_map(|(x, sent)| {
                        let [from, to] = [0, 1].map(|i| sent.offsets[e + i] as usize);
                        let rows: Arc<[u32]> = sent.rows[from..to].into();
                        (from < to).then(|| danlu_ops::embedding(x.clone(), &rows))
                    });
                    few_bits_of(mlp, own.collect(), format, arena)?;
                }
            }
        }
        for (x, inner) in streams.iter_mut().zip(inner) {
            *x = x.clone() + block.mlp.forward(inner);
        }
        done(i + 1);
    }
    Ok(())
}

/// Gate and up on their inputs, then down on what few bits make of those.
fn few_bits_of(
    mlp: &mut Mlp,
    inputs: Vec<Tensor<2>>,
    format: WeightFormat,
    arena: &Arena,
) -> Result<()> {
    few_bits(&mut mlp.gate_up, &inputs, format, arena)?;
    let gated = |x| danlu_ops::activate(mlp.gate_up.forward(x), Activation::Swiglu);
    let inner: Vec<_> = inputs.into_iter().map(gated).collect();
    few_bits(&mut mlp.down, &inner, format, arena)
}

/// On no inputs each weight is rounded by itself.
fn few_bits(
    linear: &mut Linear,
    inputs: &[Tensor<2>],
    format: WeightFormat,
    arena: &Arena,
) -> Result<()> {
    if inputs.is_empty() {
        linear.weight.freeze(format, arena);
        return Ok(());
    }
    let mut gram = Gram::new(linear.weight.shape[1]);
    inputs.iter().for_each(|x| gram.add(x));
    let shape = [linear.weight.shape[0], linear.weight.shape[1]];
    let feedback = gptq::feedback(gram)
        .map_err(|found| Error::parameter(&*linear.weight.name, "finite inputs", found))?;
    let values = linear.weight.values();
    let weights = Weights::with_feedback(&values, shape, format, arena, &feedback);
    linear.weight.keep(Arc::new(weights));
    Ok(())
}

/// Bytes of all parameters as they are kept.
pub fn bytes(model: &Transformer) -> usize {
    let one = |p: &&crate::params::Parameter| p.frozen.as_ref().map_or(4 * p.len(), |w| w.bytes());
    model.parameters().iter().map(one).sum()
}

#[cfg(test)]
mod tests;
