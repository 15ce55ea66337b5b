//! Whether a tiny transformer computes on a WebGPU device, by the composed definitions of every
//! operation, what it computes with the kernels on the processor: forward, backward, one step of
//! AdamW. Run by `benches/webgpu.sh`.

use burn::tensor::{Device, DeviceKind};
use danlu_core::recipe::ModelRecipe;
use danlu_model::params::Module;
use danlu_model::{Transformer, TransformerConfig};
use danlu_ops::HeadLoss;
use danlu_train::optim::{Optimiser, gradients};
use std::sync::Arc;

/// Loss, every gradient, and every parameter after a step.
fn run(model: &Transformer, device: &Device) -> (f32, Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut model = model.clone();
    model.to_device(&device.clone().autodiff());
    let ids: Arc<[u32]> = Arc::from([1, 5, 9, 3, 2, 7, 7, 30]);
    let starts: Arc<[u32]> = Arc::from([0, 5, 8]);
    let spec = HeadLoss {
        targets: Arc::from([5, 9, 3, 2, 7, 7, 30, 4]),
        weights: Arc::from([1.0, 1.0, 0.5, 0.0, 1.0, 1.0, 1.0, 1.0]),
        scale: 0.15,
        z_loss: 1e-4,
    };
    let (loss, _) = model.loss(&ids, &starts, &spec);
    let value = loss.clone().inner().into_scalar();
    let grads = gradients(&model, loss.backward());
    let values = |t: &burn::tensor::Tensor<2>| -> Vec<f32> {
        t.to_data().try_into_vec().expect("single precision")
    };
    let all = grads.iter().map(values).collect();
    let mut optimiser = Optimiser::new(&model, [0.9, 0.95], 1e-8, 0.1, 1.0);
    optimiser.step(&mut model, grads, [1e-2, 0.0], 1.0);
    (value, all, model.parameters().iter().map(|p| p.values()).collect())
}

/// Largest difference, as a share of the largest value.
fn apart(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().zip(b).map(|(a, b)| {
        assert_eq!(a.len(), b.len(), "a tensor of another size");
        let most = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        // What is no number is infinitely far.
        a.iter().zip(b).fold(0.0f32, |m, (a, b)| {
            let d = (a - b).abs() / most;
            if d.is_nan() { f32::INFINITY } else { m.max(d) }
        })
    });
    pairs.fold(0.0, f32::max)
}

fn main() {
    let recipe = ModelRecipe { depth: 2, width: Some(32), head_dim: Some(8), ..Default::default() };
    let config = TransformerConfig::from_recipe(&recipe, 40, 16).expect("valid sizes");
    let model = Transformer::new(config, 5, &danlu_ops::cpu_device());
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let cpu = run(&model, &danlu_ops::cpu_device());
    let gpu = run(&model, &device);
    let (grads, step) = (apart(&cpu.1, &gpu.1), apart(&cpu.2, &gpu.2));
    println!("loss {} on the processor, {} on {device:?}", cpu.0, gpu.0);
    println!("gradients {grads:.1e} apart, parameters after a step {step:.1e}");
    let near = (cpu.0 - gpu.0).abs() < 1e-3 && grads < 1e-2 && step < 1e-2;
    println!("{}", if near { "agree" } else { "DIFFER" });
    std::process::exit(i32::from(!near));
}
