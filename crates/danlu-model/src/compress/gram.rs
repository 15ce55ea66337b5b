//! What the inputs of a projection have in common: the sum of their outer products.

use burn::tensor::Tensor;

/// The sum of `x^T x` over inputs `x: [rows, size]`, row-major `[size, size]`.
#[derive(Debug, Clone)]
pub(super) struct Gram {
    pub(super) size: usize,
    pub(super) values: Vec<f64>,
}

impl Gram {
    pub(super) fn new(size: usize) -> Self {
        Self { size, values: vec![0.0; size * size] }
    }

    /// Adds inputs `[rows, size]`.
    pub(super) fn add(&mut self, x: &Tensor<2>) {
        let columns = x.clone().transpose();
        let products = danlu_ops::linear(columns.clone(), columns).into_data();
        let products: Vec<f32> = products.try_into_vec().expect("f32");
        for (sum, v) in self.values.iter_mut().zip(products) {
            *sum += f64::from(v);
        }
    }

    /// The sums of squares.
    pub(super) fn diagonal(&self) -> impl Iterator<Item = f64> + '_ {
        self.values.iter().step_by(self.size + 1).copied()
    }
}
