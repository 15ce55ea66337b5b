//! Every layer's backward pass against central finite differences of its own forward pass.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Distribution, Tensor};
use danlu_core::Rng;
use danlu_core::recipe::{AudioRecipe, ImageRecipe, ModelRecipe};
use danlu_model::layers::{Attention, Block, Conv, Linear, Mlp, ResBlock, RmsNorm};
use danlu_model::modality::{AudioTokeniser, ImageTokeniser};
use danlu_model::{Module, Parameter, Transformer, TransformerConfig};
use danlu_ops::{ConvShape, HeadLoss, Rotary};
use std::sync::Arc;

/// A layer under test: its parameters.
struct Layer<T>(T, fn(&mut T) -> Vec<&mut Parameter>);

/// Compares, for a few values of every parameter, backward with differences of `loss`.
fn check<T: Clone>(
    name: &str,
    layer: T,
    parameters: fn(&mut T) -> Vec<&mut Parameter>,
    loss: impl Fn(&T) -> Tensor<1>,
) {
    let plain = danlu_ops::cpu_device();
    let mut tracked = Layer(layer.clone(), parameters);
    for p in (tracked.1)(&mut tracked.0) {
        let data = p.tensor.to_data();
        p.tensor = Tensor::from_data(data, &plain.clone().autodiff()).require_grad();
    }
    let grads = loss(&tracked.0).backward();
    let analytic: Vec<Vec<f32>> = (tracked.1)(&mut tracked.0)
        .into_iter()
        .map(|p| {
            let grad = p.tensor.grad(&grads).unwrap_or_else(|| panic!("{name}: {}", p.name));
            grad.into_data().try_into_vec().unwrap()
        })
        .collect();
    let value = |layer: &T| -> f64 { loss(layer).into_scalar::<f32>() as f64 };
    let mut layer = layer;
    for (i, grad) in analytic.iter().enumerate() {
        let largest = grad.iter().fold(0f32, |a, g| a.max(g.abs())) as f64;
        assert!(largest > 0.0, "{name}: parameter {i} has no gradient");
        for e in (0..grad.len()).step_by((grad.len() / 5).max(1)) {
            let mut sides = [0.0; 2];
            for (side, sign) in sides.iter_mut().zip([1.0f32, -1.0]) {
                let p = parameters(&mut layer).remove(i);
                let before = p.values();
                let mut moved = before.clone();
                moved[e] += sign * 4e-3;
                p.set(moved);
                *side = value(&layer);
                parameters(&mut layer).remove(i).set(before);
            }
            let want = (sides[0] - sides[1]) / 8e-3;
            let got = grad[e] as f64;
            assert!(
                (want - got).abs() < 0.03 * want.abs().max(largest) + 2e-3,
                "{name}: parameter {i} value {e}: differences {want}, backward {got}"
            );
        }
    }
}

fn random<const D: usize>(dims: [usize; D]) -> Tensor<D> {
    let device = danlu_ops::cpu_device();
    device.seed(11);
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), &device)
}

/// `x` on the device of the layer's parameters.
fn beside<const D: usize>(x: &Tensor<D>, p: &Parameter) -> Tensor<D> {
    Tensor::from_data(x.to_data(), &p.tensor.device())
}

/// A loss that weighs every output differently.
fn probe<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    let n = y.dims().iter().product::<usize>();
    let weights: Vec<f32> = (0..n).map(|i| ((i * 37 % 19) as f32 - 9.0) / 9.0).collect();
    let device: Device = y.device();
    let weights = Tensor::<1>::from_data(burn::tensor::TensorData::new(weights, [n]), &device);
    (y.reshape([n]) * weights).sum()
}

fn config() -> TransformerConfig {
    let recipe = ModelRecipe { depth: 1, width: Some(16), head_dim: Some(4), ..Default::default() };
    TransformerConfig::from_recipe(&recipe, 23, 32).unwrap()
}

#[test]
fn layers_of_the_transformer() {
    let device = danlu_ops::cpu_device();
    let c = config();
    let mut rng = Rng::new(3, 3);
    let x = random([9, 16]);
    let rotary = Arc::new(Rotary::new(4, 32, 1e4));
    let starts: Arc<[u32]> = Arc::from([0, 5, 9]);
    check(
        "linear",
        Linear::new("l", [7, 16], 0.3, &mut rng, &device),
        |l| vec![&mut l.weight],
        |l| probe(l.forward(beside(&x, &l.weight))),
    );
    check(
        "norm",
        RmsNorm::new("n", 16, 1e-6, &device),
        |l| vec![&mut l.weight],
        |l| probe(l.forward(beside(&x, &l.weight))),
    );
    check(
        "mlp",
        Mlp::new("m", &c, &mut rng, &device),
        |l| vec![&mut l.gate_up.weight, &mut l.down.weight],
        |l| probe(l.forward(beside(&x, &l.down.weight))),
    );
    check(
        "attention",
        Attention::new("a", &c, &mut rng, &device),
        |l| vec![&mut l.qkv.weight, &mut l.out.weight, &mut l.q_norm, &mut l.k_norm],
        |l| probe(l.forward(beside(&x, &l.out.weight), &rotary, &starts)),
    );
    check("block", Block::new("b", &c, &mut rng, &device), Block::parameters_mut, |l| {
        probe(l.forward(beside(&x, &l.attention.out.weight), &rotary, &starts).0)
    });
    let c = TransformerConfig { experts: 4, experts_per_token: 2, ..c };
    check("experts", Block::new("b", &c, &mut rng, &device), Block::parameters_mut, |l| {
        let stream = beside(&x, &l.attention.out.weight);
        let (out, uneven) = l.forward(stream, &rotary, &starts);
        probe(out) + uneven.expect("of experts").mul_scalar(3.0)
    });
}

#[test]
fn layers_of_the_tokenisers() {
    let device = danlu_ops::cpu_device();
    let mut rng = Rng::new(4, 4);
    let x = random([2, 4, 5, 6]);
    let shape = ConvShape { kernel: [3, 3], stride: [2, 1], padding: [1, 1] };
    check(
        "conv",
        Conv::new("c", [5, 6], shape, 1.0, &mut rng, &device),
        |l| vec![&mut l.weight, &mut l.bias],
        |l| probe(l.forward(beside(&x, &l.bias))),
    );
    check(
        "res block",
        ResBlock::new("r", 6, [3, 3], &mut rng, &device),
        ResBlock::parameters_mut,
        |l| probe(l.forward(beside(&x, &l.norm.weight))),
    );
}

/// The decoders have no rounding in them; the encoders are checked up to it.
#[test]
fn whole_tokenisers_up_to_the_rounding() {
    let device = danlu_ops::cpu_device();
    let recipe = ImageRecipe { levels: vec![5, 5], channels: 4, blocks: 1, ..Default::default() };
    let image = ImageTokeniser::new((&recipe).into(), 1, &device);
    let pixels = random([1, 64, 64, 3]);
    let codes = random([ImageTokeniser::TOKENS, 2]).clamp(-1.0, 1.0);
    check("image", image, ImageTokeniser::parameters_mut, |t| {
        let at = t.parameters()[0].clone();
        let scale = 1.0 / 64.0;
        probe(t.encode(beside(&pixels, &at))).mul_scalar(scale)
            + probe(t.decode(beside(&codes, &at))).mul_scalar(scale)
    });
    let recipe = AudioRecipe {
        levels: vec![5, 5],
        channels: 4,
        blocks: 1,
        mels: 8,
        frames: 2,
        ..Default::default()
    };
    let audio = AudioTokeniser::new((&recipe).into(), 1, &device);
    let (rows, codes) = (random([2, 6, 16]), random([12, 2]));
    check("audio", audio, AudioTokeniser::parameters_mut, |t| {
        let at = t.parameters()[0].clone();
        probe(t.encode(beside(&rows, &at))) + probe(t.decode(beside(&codes, &at), 2))
    });
}

#[test]
fn the_whole_transformer_with_its_loss() {
    let model = Transformer::new(config(), 7, &danlu_ops::cpu_device());
    let ids: Arc<[u32]> = (0..12).map(|i| i * 5 % 23).collect();
    let starts: Arc<[u32]> = Arc::from([0, 7, 12]);
    let spec = HeadLoss {
        targets: (0..12).map(|i| (i * 5 + 3) % 23).collect(),
        weights: (0..12).map(|i| [1.0, 0.0, 2.0][i % 3]).collect(),
        scale: 1.0,
        z_loss: 0.01,
    };
    check("transformer", model, Transformer::parameters_mut, |m| m.loss(&ids, &starts, &spec).0);
}
