//! Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): every dimension is squashed to a
//! few whole levels; a code is the mixed-radix number of the levels. Nothing is learnt here, so no
//! code can die for want of an update.

use burn::tensor::{Device, Tensor, TensorData};

/// The quantiser of `levels.len()` dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fsq {
    /// Levels of each dimension, at least 2 each.
    pub levels: Vec<u32>,
}

impl Fsq {
    /// Number of codes.
    pub fn size(&self) -> u32 {
        self.levels.iter().product()
    }

    /// Number of dimensions.
    pub fn dimensions(&self) -> usize {
        self.levels.len()
    }

    /// Quantises `z: [n, dimensions]`. Returns values in about -1..1 whose gradient passes straight
    /// through the rounding.
    pub fn quantise(&self, z: Tensor<2>) -> Tensor<2> {
        let bounded = self.bound(z);
        let rounded = bounded.clone().detach().round();
        let straight = bounded.clone() + (rounded - bounded.detach());
        let device = straight.device();
        straight * self.row(|l| 1.0 / (l / 2) as f32, &device)
    }

    /// The code of each row of `z: [n, dimensions]`.
    pub fn codes(&self, z: Tensor<2>) -> Vec<u32> {
        let whole: Vec<f32> = self.bound(z).round().into_data().try_into_vec().expect("f32");
        whole
            .chunks_exact(self.dimensions())
            .map(|row| {
                row.iter().zip(&self.levels).rev().fold(0, |code, (&v, &l)| {
                    let digit = (v as i64 + (l / 2) as i64).clamp(0, l as i64 - 1);
                    code * l + digit as u32
                })
            })
            .collect()
    }

    /// The quantised values of codes, as [`quantise`](Self::quantise) returns them:
    /// `[codes, dimensions]`. Codes outside the codebook wrap around.
    pub fn values(&self, codes: &[u32], device: &Device) -> Tensor<2> {
        let mut out = Vec::with_capacity(codes.len() * self.dimensions());
        for &code in codes {
            let mut left = code % self.size();
            for &l in &self.levels {
                out.push(((left % l) as f32 - (l / 2) as f32) / (l / 2) as f32);
                left /= l;
            }
        }
        Tensor::from_data(TensorData::new(out, [codes.len(), self.dimensions()]), device)
    }

    /// Squashes each dimension so that rounding gives exactly its levels.
    fn bound(&self, z: Tensor<2>) -> Tensor<2> {
        let device = z.device();
        let half = |l: u32| (l - 1) as f32 * (1.0 + 1e-3) / 2.0;
        let offset = |l: u32| if l.is_multiple_of(2) { 0.5 } else { 0.0 };
        let shift = self.row(|l| (offset(l) / half(l)).atanh(), &device);
        (z + shift).tanh() * self.row(half, &device) - self.row(offset, &device)
    }

    fn row(&self, f: impl Fn(u32) -> f32, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = self.levels.iter().map(|&l| f(l)).collect();
        let device = device.clone();
        Tensor::from_data(TensorData::new(values, [1, self.levels.len()]), &device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_and_every_level_is_reached() {
        let device = danlu_ops::cpu_device();
        let fsq = Fsq { levels: vec![4, 5, 2] };
        let codes: Vec<u32> = (0..fsq.size()).collect();
        let values = fsq.values(&codes, &device);
        // A value far out in the direction of each level, undone through the bound's inverse.
        let v: Vec<f32> = values.clone().into_data().try_into_vec().expect("f32");
        let z: Vec<f32> = v
            .chunks_exact(3)
            .flat_map(|row| {
                row.iter().zip(&fsq.levels).map(|(&x, &l)| {
                    let half = (l - 1) as f32 * (1.0 + 1e-3) / 2.0;
                    let offset = if l % 2 == 0 { 0.5 } else { 0.0 };
                    let target = (x * (l / 2) as f32 + offset) / half;
                    target.clamp(-0.9999, 0.9999).atanh() - (offset / half).atanh()
                })
            })
            .collect();
        let z = Tensor::<2>::from_data(TensorData::new(z, [codes.len(), 3]), &device);
        assert_eq!(fsq.codes(z.clone()), codes);
        let quantised: Vec<f32> = fsq.quantise(z).into_data().try_into_vec().expect("f32");
        for (a, b) in quantised.iter().zip(&v) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn extreme_inputs_stay_inside() {
        let device = danlu_ops::cpu_device();
        let fsq = Fsq { levels: vec![8, 5] };
        let z = Tensor::<2>::from_data([[1e9, 1e9], [-1e9, -1e9], [0.0, 0.0]], &device);
        let codes = fsq.codes(z);
        assert_eq!(codes[0], fsq.size() - 1);
        assert_eq!(codes[1], 0);
    }

    #[test]
    fn the_gradient_passes_through_the_rounding() {
        let device = danlu_ops::cpu_device().autodiff();
        let fsq = Fsq { levels: vec![5, 5] };
        let z = Tensor::<2>::from_data([[0.3, -0.2]], &device).require_grad();
        let grads = fsq.quantise(z.clone()).sum().backward();
        let g: Vec<f32> = z.grad(&grads).expect("tracked").into_data().try_into_vec().expect("f32");
        for (g, z) in g.iter().zip([0.3f32, -0.2]) {
            let want = (1.0 - z.tanh().powi(2)) * 2.0 * 1.001 / 2.0;
            assert!((g - want).abs() < 1e-4, "{g} {want}");
        }
    }
}
