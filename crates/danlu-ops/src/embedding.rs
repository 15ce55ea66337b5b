//! Rows of a table by id.

use crate::cpu;
use crate::pool::{Buffer, tensor};
use crate::{on_cpu, tape};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::flex::FlexTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use std::sync::Arc;

#[backend_extension(Flex, Autodiff)]
trait EmbeddingOp: Backend {
    fn danlu_embedding(table: FloatTensor<Self>, ids: Arc<[u32]>) -> FloatTensor<Self>;
}

/// Row `ids[i]` of `table: [vocabulary, width]` at row `i`: `[ids, width]`.
///
/// # Panics
/// If an id is outside the table.
pub fn embedding(table: Tensor<2>, ids: &Arc<[u32]>) -> Tensor<2> {
    let size = table.dims()[0];
    if let Some(id) = ids.iter().find(|&&id| id as usize >= size) {
        panic!("embedding: id {id} in a table of {size}");
    }
    if !on_cpu(&table.device()) {
        return composed(table, ids);
    }
    Tensor::from_dispatch(Dispatch::danlu_embedding(table.into_dispatch(), ids.clone()))
}

pub(crate) fn composed(table: Tensor<2>, ids: &Arc<[u32]>) -> Tensor<2> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let n = ids.len();
    let index = Tensor::<1, Int>::from_data(TensorData::new(ids, [n]), &table.device());
    table.select(0, index)
}

impl EmbeddingOp for Flex {
    fn danlu_embedding(table: FlexTensor, ids: Arc<[u32]>) -> FlexTensor {
        forward(&table.to_contiguous(), &ids)
    }
}

impl<C: CheckpointStrategy> EmbeddingOp for Autodiff<Flex, C> {
    fn danlu_embedding(table: FloatTensor<Self>, ids: Arc<[u32]>) -> FloatTensor<Self> {
        tape::record::<C, _, 1>(
            "embedding",
            [table],
            |[table], tracked| {
                let table = table.to_contiguous();
                let out = forward(&table, &ids);
                (out, tracked.then(|| (cpu::dims::<2>(&table), ids.clone())))
            },
            |([size, width], ids), up, _| {
                let mut out = Buffer::any(size * width);
                scatter(&mut out, cpu::values(&up.grad), &ids, width);
                [Some(tensor(out, [size, width]))]
            },
        )
    }
}

/// Every row `id` of `out` becomes the sum of the rows of `grad` that belong to it. A task has a
/// range of ids, so the sums do not depend on the number of threads.
fn scatter(out: &mut [f32], grad: &[f32], ids: &[u32], width: usize) {
    let share = (out.len() / width.max(1)).div_ceil(16).max(1);
    out.par_chunks_mut((share * width).max(1)).enumerate().for_each(|(task, out)| {
        out.fill(0.0);
        let mine = task * share..(task + 1) * share;
        for (row, &id) in grad.chunks_exact(width).zip(ids) {
            if mine.contains(&(id as usize)) {
                let to = &mut out[(id as usize - mine.start) * width..][..width];
                to.iter_mut().zip(row).for_each(|(t, g)| *t += g);
            }
        }
    });
}

fn forward(table: &FlexTensor, ids: &[u32]) -> FlexTensor {
    let [_, width] = cpu::dims(table);
    let table = cpu::values(table);
    let mut out = Buffer::any(ids.len() * width);
    for (to, &id) in out.chunks_exact_mut(width.max(1)).zip(ids) {
        to.copy_from_slice(&table[id as usize * width..][..width]);
    }
    tensor(out, [ids.len(), width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn kernel_composed_and_differences_agree() {
        let ids: Arc<[u32]> = Arc::from([3, 0, 3, 4]);
        check(&[[5, 6]], |v| embedding(v[0].clone(), &ids), |v| composed(v[0].clone(), &ids));
    }

    #[test]
    #[should_panic(expected = "embedding: id 9 in a table of 5")]
    fn an_id_outside_is_named() {
        embedding(Tensor::zeros([5, 2], &crate::cpu_device()), &Arc::from([9]));
    }
}
