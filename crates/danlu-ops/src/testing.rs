//! The gradient check that every operation runs.

use burn::tensor::{Distribution, Tensor, TensorData};

/// Holds `fused` against `composed` (outputs and gradients of every input) and against central
/// finite differences, on random inputs of the given shapes.
pub(crate) fn check(
    shapes: &[[usize; 2]],
    fused: impl Fn(&[Tensor<2>]) -> Tensor<2>,
    composed: impl Fn(&[Tensor<2>]) -> Tensor<2>,
) {
    let plain = crate::cpu_device();
    plain.seed(7);
    let device = plain.clone().autodiff();
    let inputs: Vec<TensorData> = shapes
        .iter()
        .map(|&s| Tensor::<2>::random(s, Distribution::Normal(0.0, 1.0), &plain).into_data())
        .collect();
    let probe = |data: &[TensorData]| -> Tensor<2> {
        fused(&data.iter().map(|d| Tensor::from_data(d.clone(), &plain)).collect::<Vec<_>>())
    };
    let upstream =
        Tensor::<2>::random(probe(&inputs).dims(), Distribution::Normal(0.0, 1.0), &plain)
            .into_data();
    let run = |f: &dyn Fn(&[Tensor<2>]) -> Tensor<2>| {
        let leaves: Vec<Tensor<2>> =
            inputs.iter().map(|d| Tensor::from_data(d.clone(), &device).require_grad()).collect();
        let out = f(&leaves);
        let grads = (out.clone() * Tensor::from_data(upstream.clone(), &device)).sum().backward();
        let grads: Vec<Vec<f32>> = leaves
            .iter()
            .map(|l| floats(l.grad(&grads).expect("every input has a gradient").into_data()))
            .collect();
        (floats(out.into_data()), grads)
    };
    let (y, grads) = run(&fused);
    let (y_composed, grads_composed) = run(&composed);
    close("output", &y, &y_composed, 2e-5);
    close("untracked output", &y, &floats(probe(&inputs).into_data()), 1e-6);
    for (i, (a, b)) in grads.iter().zip(&grads_composed).enumerate() {
        close(&format!("gradient {i} against composed"), a, b, 5e-5);
    }
    let up = floats(upstream);
    let loss = |data: &[TensorData]| -> f64 {
        let y = floats(probe(data).into_data());
        y.iter().zip(&up).map(|(&a, &b)| a as f64 * b as f64).sum()
    };
    let h = 1e-2f32;
    for (i, grad) in grads.iter().enumerate() {
        let base = floats(inputs[i].clone());
        for e in (0..base.len()).step_by((base.len() / 24).max(1)) {
            let mut sides = [0.0f64; 2];
            for (side, sign) in sides.iter_mut().zip([1.0, -1.0]) {
                let mut moved = base.clone();
                moved[e] += sign * h;
                let mut data = inputs.clone();
                data[i] = TensorData::new(moved, shapes[i]);
                *side = loss(&data);
            }
            let want = (sides[0] - sides[1]) / (2.0 * h as f64);
            let got = grad[e] as f64;
            assert!(
                (want - got).abs() < 2e-2 * (1.0 + want.abs()),
                "input {i} element {e}: differences {want}, backward {got}"
            );
        }
    }
}

pub(crate) fn floats(data: TensorData) -> Vec<f32> {
    data.try_into_vec().expect("f32 data")
}

pub(crate) fn close(what: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{what}: length");
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "{what}[{i}]: {x} against {y}");
    }
}
