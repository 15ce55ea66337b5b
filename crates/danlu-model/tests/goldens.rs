//! Numbers made by PyTorch and transformers (golden/make.py): operations, a block, a whole tiny
//! model with all gradients and ten optimiser steps, a second architecture, and steps of Muon.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Tensor, TensorData};
use danlu_model::arch::{Gpt, GptConfig, Transformer, TransformerConfig};
use danlu_model::io::{HfConfig, NamedTensor, from_hf, load_tensors, to_hf};
use danlu_model::{Module, params::matrix};
use danlu_ops::{
    Activation, AdamW, AttentionShape, ConvShape, Fused, HeadLoss, Last, Muon, Norm, Rotary,
    adamw_step, muon_step, squared_norm,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

type File = BTreeMap<String, NamedTensor>;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
}

fn file(name: &str) -> File {
    load_tensors(&path(name)).unwrap()
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

fn ids(f: &File, name: &str) -> Arc<[u32]> {
    f[name].values.iter().map(|&v| v as u32).collect()
}

/// A tensor of the file as a tracked matrix.
fn leaf(f: &File, name: &str) -> Tensor<2> {
    let t = &f[name];
    let device = danlu_ops::cpu_device().autodiff();
    Tensor::from_data(TensorData::new(t.values.clone(), matrix(&t.shape)), &device).require_grad()
}

fn floats<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_into_vec().unwrap()
}

/// Largest difference as a share of the largest value.
fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(1e-6f32, |a, v| a.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * size, "{what}[{i}]: {g}, PyTorch {w} (of {size})");
    }
}

/// Runs an operation of `ops.safetensors` and compares its output and every gradient.
fn op(name: &str, inputs: &[&str], run: impl Fn(&File, &[Tensor<2>]) -> Tensor<2>) {
    op_of("ops.safetensors", name, inputs, run);
}

/// The same with one of `fused.safetensors`.
fn fused(name: &str, inputs: &[&str], run: impl Fn(&File, &[Tensor<2>]) -> Tensor<2>) {
    op_of("fused.safetensors", name, inputs, run);
}

fn op_of(from: &str, name: &str, inputs: &[&str], run: impl Fn(&File, &[Tensor<2>]) -> Tensor<2>) {
    let f = file(from);
    let leaves: Vec<Tensor<2>> = inputs.iter().map(|i| leaf(&f, &format!("{name}.{i}"))).collect();
    let out = run(&f, &leaves);
    close(name, &floats(out.clone()), &f[&format!("{name}.out")].values, 2e-6);
    let up = f[&format!("{name}.grad.out")].values.clone();
    let up = Tensor::from_data(TensorData::new(up, out.dims()), &out.device());
    let grads = (out * up).sum().backward();
    for (leaf, input) in leaves.iter().zip(inputs) {
        let what = format!("{name}.grad.{input}");
        close(&what, &floats(leaf.grad(&grads).unwrap()), &f[&what].values, 5e-6);
    }
}

#[test]
fn operations() {
    op("linear", &["x", "w"], |_, v| danlu_ops::linear(v[0].clone(), v[1].clone()));
    op("rms_norm", &["x", "g"], |_, v| danlu_ops::rms_norm(v[0].clone(), v[1].clone(), 1e-6));
    op("silu", &["x"], |_, v| danlu_ops::silu(v[0].clone()));
    op("swiglu", &["x"], |_, v| danlu_ops::swiglu(v[0].clone()));
    op("embedding", &["table"], |f, v| {
        danlu_ops::embedding(v[0].clone(), &ids(f, "embedding.ids"))
    });
    for (name, stride, size) in
        [("conv2d_stride1", 1, [6, 6]), ("conv2d_stride2", 2, [6, 6]), ("conv1d", 1, [1, 9])]
    {
        op(name, &["x", "w", "bias"], |_, v| {
            let kernel = if size[0] == 1 { [1, 3] } else { [3, 3] };
            let shape = ConvShape { kernel, stride: [stride; 2], padding: kernel.map(|k| k / 2) };
            let x = v[0].clone().reshape([2, size[0], size[1], 3]);
            let y = danlu_ops::conv2d(x, v[1].clone(), v[2].clone(), shape);
            let [b, h, w, c] = y.dims();
            y.reshape([b * h * w, c])
        });
    }
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, norm_eps: Some(1e-6) };
    let rotary = Arc::new(Rotary::new(8, 32, 10_000.0));
    op("attention", &["qkv", "q_norm", "k_norm"], |f, v| {
        let starts = ids(f, "attention.starts");
        danlu_ops::attention(v[0].clone(), v[1].clone(), v[2].clone(), &shape, &rotary, &starts)
    });
    op("attention_plain", &["qkv"], |f, v| {
        let starts = ids(f, "attention_plain.starts");
        let shape = AttentionShape { norm_eps: None, ..shape };
        let ones = Tensor::ones([1, 8], &v[0].device());
        danlu_ops::attention(v[0].clone(), ones.clone(), ones, &shape, &rotary, &starts)
    });
}

#[test]
fn operations_with_what_stands_around_them() {
    fused("layer_norm", &["x", "g", "b"], |_, v| {
        danlu_ops::layer_norm(v[0].clone(), v[1].clone(), v[2].clone(), 1e-5)
    });
    for (name, f) in [("gelu", Activation::Gelu), ("gelu_tanh", Activation::GeluTanh)] {
        fused(name, &["x"], |_, v| danlu_ops::activate(v[0].clone(), f));
    }
    for (name, activation) in [
        ("linear_none", Activation::None),
        ("linear_silu", Activation::Silu),
        ("linear_gelu", Activation::Gelu),
        ("linear_gelu_tanh", Activation::GeluTanh),
        ("linear_swiglu", Activation::Swiglu),
    ] {
        fused(name, &["x", "w", "bias", "residual"], |_, v| {
            let (bias, residual) = (Some(v[2].clone()), Some(v[3].clone()));
            let around = Fused { activation, bias, residual };
            danlu_ops::linear_with(v[0].clone(), v[1].clone(), around)
        });
    }
    fused("residual_layer_norm", &["x", "g", "b", "w", "bias"], |_, v| {
        let half = |x| {
            let norm = Norm::Layer { gain: v[1].clone(), bias: v[2].clone(), eps: 1e-5 };
            let (activation, bias) = (Activation::Gelu, Some(v[4].clone()));
            let around = Fused { activation, bias, residual: None };
            danlu_ops::residual(x, norm, |x| Last { x, weight: v[3].clone(), around })
        };
        half(half(v[0].clone()))
    });
    fused("residual_rms_norm", &["x", "g", "w"], |_, v| {
        let half = |x| {
            let norm = Norm::Rms { gain: v[1].clone(), eps: 1e-6 };
            let weight = v[2].clone();
            danlu_ops::residual(x, norm, |x| Last { x, weight, around: Fused::default() })
        };
        half(half(v[0].clone()))
    });
    fused("grouped_linear", &["x", "w"], |f, v| {
        let offsets = ids(f, "grouped_linear.offsets");
        danlu_ops::grouped_linear(v[0].clone(), v[1].clone().reshape([12, 5]), &offsets)
    });
    fused("batched_linear", &["x", "w"], |_, v| {
        let (x, w) = (v[0].clone().reshape([3, 4, 5]), v[1].clone().reshape([3, 6, 5]));
        danlu_ops::batched_linear(x, w).reshape([12, 6])
    });
    fused("conv1d", &["x", "w", "bias"], |_, v| {
        let (x, shape) = (v[0].clone().reshape([2, 9, 3]), ConvShape::along(5, 2, 2));
        danlu_ops::conv1d(x, v[1].clone(), v[2].clone(), shape).reshape([10, 4])
    });
}

#[test]
fn cross_entropy_with_head() {
    let f = file("ops.safetensors");
    let (hidden, table) = (leaf(&f, "head_loss.hidden"), leaf(&f, "head_loss.table"));
    let weights = f["head_loss.weights"].values.clone();
    let spec = HeadLoss {
        targets: ids(&f, "head_loss.targets"),
        scale: 1.0 / weights.iter().sum::<f32>(),
        weights: weights.clone().into(),
        z_loss: z_loss(&f),
    };
    let (loss, each) = danlu_ops::head_loss(hidden.clone(), table.clone(), &spec);
    close("loss", &floats(loss.clone()), &f["head_loss.out"].values, 2e-6);
    let want: Vec<f32> = f["head_loss.ce"]
        .values
        .iter()
        .zip(&weights)
        .map(|(c, &w)| if w == 0.0 { 0.0 } else { *c })
        .collect();
    close("each", &each, &want, 2e-6);
    let up = f["head_loss.grad.out"].values[0];
    let grads = loss.mul_scalar(up).backward();
    close(
        "hidden",
        &floats(hidden.grad(&grads).unwrap()),
        &f["head_loss.grad.hidden"].values,
        5e-6,
    );
    close("table", &floats(table.grad(&grads).unwrap()), &f["head_loss.grad.table"].values, 5e-6);
}

/// The weight of the z-loss, out of the loss with and without it.
fn z_loss(f: &File) -> f32 {
    let (with, without) = (f["head_loss.out"].values[0], f["head_loss.plain"].values[0]);
    assert!(with > without, "the golden loss has a z-loss in it");
    1e-2
}

fn config(name: &str) -> TransformerConfig {
    let text = serde_json::to_value(&json(name)["config"]).unwrap();
    let config: HfConfig = serde_json::from_value(text).unwrap();
    config.to_ours(&path(name)).unwrap()
}

fn load(name: &str, config: TransformerConfig) -> (Transformer, File) {
    let f = file(name);
    let device = danlu_ops::cpu_device();
    let mut model = Transformer::new(config, 0, &device);
    let mut weights = f.clone();
    weights.retain(|name, _| name.starts_with("model.") || name == "lm_head.weight");
    from_hf(&mut model, weights, &path(name)).unwrap();
    (model, f)
}

#[test]
fn a_whole_qwen3_with_all_gradients() {
    let (mut model, f) = load("qwen3_tiny.safetensors", config("qwen3_tiny.json"));
    let (tokens, starts) = (ids(&f, "ids"), ids(&f, "starts"));
    close("hidden", &floats(model.hidden(&tokens, &starts)), &f["hidden"].values, 5e-6);
    close("logits", &floats(model.logits(&tokens, &starts)), &f["logits"].values, 5e-6);
    model.to_device(&danlu_ops::cpu_device().autodiff());
    let weights = f["weights"].values.clone();
    let mut spec = HeadLoss {
        targets: ids(&f, "targets"),
        scale: 1.0 / weights.iter().sum::<f32>(),
        weights: weights.into(),
        z_loss: 0.0,
    };
    let (loss, _) = model.loss(&tokens, &starts, &spec);
    close("loss", &floats(loss), &f["loss"].values, 2e-6);
    spec.z_loss = json("qwen3_tiny.json")["z_loss"].as_f64().unwrap() as f32;
    let (loss, _) = model.loss(&tokens, &starts, &spec);
    close("loss_z", &floats(loss.clone()), &f["loss_z"].values, 2e-6);
    let grads = loss.backward();
    // Gradients under the names of the file: put them where the weights were, and export.
    let mut as_weights = model.clone();
    for (to, p) in as_weights.parameters_mut().into_iter().zip(model.parameters()) {
        to.set(floats(p.tensor.grad(&grads).unwrap()));
    }
    let exported = to_hf(&as_weights);
    assert_eq!(exported.len(), 35);
    for t in exported {
        let name = format!("grad.{}", t.name);
        close(&name, &t.values, &f[&name].values, 2e-5);
    }
}

#[test]
fn ten_optimiser_steps_follow_pytorch() {
    let (mut model, f) = load("qwen3_tiny.safetensors", config("qwen3_tiny.json"));
    let golden = json("qwen3_tiny.json");
    let numbers = |key: &str| -> Vec<f64> {
        golden[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let (losses, norms) = (numbers("losses"), numbers("grad_norms"));
    let a = &golden["adamw"];
    let setting = |key: &str| a[key].as_f64().unwrap_or_else(|| panic!("adamw.{key}: {a}")) as f32;
    let plain = danlu_ops::cpu_device();
    model.to_device(&plain.clone().autodiff());
    let weights = f["weights"].values.clone();
    let spec = HeadLoss {
        targets: ids(&f, "targets"),
        scale: 1.0 / weights.iter().sum::<f32>(),
        weights: weights.into(),
        z_loss: golden["z_loss"].as_f64().unwrap() as f32,
    };
    let (tokens, starts) = (ids(&f, "ids"), ids(&f, "starts"));
    let mut moments: Vec<[Tensor<2>; 2]> = model
        .parameters()
        .iter()
        .map(|p| [0; 2].map(|_| Tensor::zeros(p.tensor.dims(), &plain)))
        .collect();
    for step in 1..=10u64 {
        let (loss, _) = model.loss(&tokens, &starts, &spec);
        let value = floats(loss.clone())[0] as f64;
        let want = losses[step as usize - 1];
        assert!(
            (value - want).abs() < 2e-5 * want.max(1.0),
            "step {step}: {value}, PyTorch {want}"
        );
        let grads = loss.backward();
        let grads: Vec<Tensor<2>> =
            model.parameters().iter().map(|p| p.tensor.grad(&grads).unwrap()).collect();
        let norm = grads.iter().map(squared_norm).sum::<f64>().sqrt();
        let want = norms[step as usize - 1];
        // Adam divides by small roots, so rounding grows from step to step: 1e-7 at first, 3e-4 by
        // the seventh.
        assert!((norm - want).abs() < 1e-3 * want, "step {step}: norm {norm}, PyTorch {want}");
        let clip = 1.0 / norm.max(1.0);
        for ((p, grad), state) in model.parameters_mut().into_iter().zip(grads).zip(&mut moments) {
            let adamw = AdamW {
                rate: setting("lr"),
                betas: [0.9, 0.95],
                epsilon: setting("eps"),
                weight_decay: if p.is_matrix() { setting("weight_decay") } else { 0.0 },
                step,
                grad_scale: clip as f32,
            };
            let now = p.tensor.clone().inner();
            let [value, first, second] =
                adamw_step([now, state[0].clone(), state[1].clone()], grad, adamw);
            *state = [first, second];
            p.tensor = Tensor::from_inner(value).require_grad();
        }
    }
    let after: Vec<f32> = golden["embed_after"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|v| v.as_f64().unwrap() as f32)
        .collect();
    close("embedding after ten steps", &model.embedding.values(), &after, 2e-3);
}

#[test]
fn three_steps_of_muon_follow_pytorch() {
    let f = file("muon.safetensors");
    let device = danlu_ops::cpu_device();
    for name in ["wide", "tall", "square"] {
        let [steps, rows, columns] = f[&format!("{name}.grads")].shape[..] else {
            panic!("{name}")
        };
        let size = rows * columns;
        let tensor = |v: &[f32]| {
            Tensor::<2>::from_data(TensorData::new(v.to_vec(), [rows, columns]), &device)
        };
        let start = &f[&format!("{name}.value")].values;
        let mut state = [tensor(start), Tensor::zeros([rows, columns], &device)];
        for step in 0..steps {
            let part = |key: &str| &f[&format!("{name}.{key}")].values[step * size..][..size];
            let [value, momentum] = state;
            // PyTorch's momentum is an average, ours a sum; the iteration knows no scale.
            let muon = Muon { rate: 0.02, momentum: 0.95, weight_decay: 0.1, grad_scale: 0.5 };
            let grad = tensor(part("grads"));
            state = muon_step(vec![[value, momentum, grad].into()], muon).remove(0);
            let moved = |now: &[f32]| -> Vec<f32> {
                now.iter().zip(start).map(|(now, start)| now - start).collect()
            };
            let (got, want) = (moved(&floats(state[0].clone())), moved(part("after")));
            close(&format!("{name}, step {step}"), &got, &want, 1e-4);
        }
    }
}

#[test]
fn a_block_with_its_gradients() {
    let f = file("block.safetensors");
    let mut c = config("qwen3_tiny.json");
    c.depth = 1;
    let device = danlu_ops::cpu_device();
    let mut whole = Transformer::new(c.clone(), 0, &device);
    let mut tensors = File::new();
    for t in to_hf(&whole) {
        let inner = t.name.strip_prefix("model.layers.0.").map(str::to_string);
        let found = inner.and_then(|name| f.get(&name)).cloned().unwrap_or(t.clone());
        tensors.insert(t.name.clone(), NamedTensor { name: t.name, ..found });
    }
    from_hf(&mut whole, tensors, &path("block.safetensors")).unwrap();
    whole.to_device(&device.autodiff());
    let block = &whole.blocks[0];
    let x = &f["input"];
    let n = x.shape[1];
    let x = Tensor::<2>::from_data(
        TensorData::new(x.values.clone(), [n, c.width]),
        &block.attention.out.weight.tensor.device(),
    )
    .require_grad();
    let rotary = Arc::new(Rotary::new(c.head_dim, 64, c.rope_theta));
    let (out, _) = block.forward(x.clone(), &rotary, &Arc::from([0, n as u32]));
    close("output", &floats(out.clone()), &f["output"].values, 5e-6);
    let up = TensorData::new(f["grad.output"].values.clone(), [n, c.width]);
    let grads = (out.clone() * Tensor::from_data(up, &out.device())).sum().backward();
    close("grad.input", &floats(x.grad(&grads).unwrap()), &f["grad.input"].values, 1e-5);
    let mut as_weights = whole.clone();
    for (to, p) in as_weights.parameters_mut().into_iter().zip(whole.parameters()) {
        if let Some(grad) = p.tensor.grad(&grads) {
            to.set(floats(grad));
        }
    }
    let mut compared = 0;
    for t in to_hf(&as_weights) {
        let Some(name) = t.name.strip_prefix("model.layers.0.") else { continue };
        let name = format!("grad.{name}");
        close(&name, &t.values, &f[&name].values, 2e-5);
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn an_untied_llama_without_query_norms() {
    let c = config("untied_llama.json");
    assert!(!c.qk_norm && !c.tied);
    let (model, f) = load("untied_llama.safetensors", c);
    let tokens = ids(&f, "ids");
    let starts: Arc<[u32]> = Arc::from([0, tokens.len() as u32]);
    close("logits", &floats(model.logits(&tokens, &starts)), &f["logits"].values, 5e-6);
}

/// The tiny GPT-2 with the weights of the file.
fn gpt2(f: &File) -> Gpt {
    let config =
        GptConfig { vocabulary: 53, width: 24, depth: 2, heads: 3, context: 20, norm_eps: 1e-5 };
    let mut model = Gpt::new(config, 0, &danlu_ops::cpu_device());
    for p in model.parameters_mut() {
        let t = f.get(&p.name).unwrap_or_else(|| panic!("{} is not in the file", p.name));
        assert_eq!(p.shape, t.shape, "{}", p.name);
        p.set(t.values.clone());
    }
    model.to_device(&danlu_ops::cpu_device().autodiff());
    model
}

/// Weighted cross-entropy of the file's batch.
fn gpt2_spec(f: &File) -> HeadLoss {
    let weights = f["weights"].values.clone();
    HeadLoss {
        targets: ids(f, "targets"),
        scale: 1.0 / weights.iter().sum::<f32>(),
        weights: weights.into(),
        z_loss: 0.0,
    }
}

#[test]
fn a_whole_gpt2_with_all_gradients() {
    let f = file("gpt2_tiny.safetensors");
    let model = gpt2(&f);
    let (tokens, starts) = (ids(&f, "ids"), ids(&f, "starts"));
    close("logits", &floats(model.logits(&tokens, &starts)), &f["logits"].values, 5e-6);
    let (loss, _) = model.loss(&tokens, &starts, &gpt2_spec(&f));
    close("loss", &floats(loss.clone()), &f["loss"].values, 2e-6);
    let grads = loss.backward();
    let all = model.parameters();
    assert_eq!(all.len(), 28);
    for p in all {
        let name = format!("grad.{}", p.name);
        let got = floats(p.tensor.grad(&grads).unwrap());
        // The bias of the keys moves every score of a query alike: its gradient is rounding.
        close(&name, &got, &f[&name].values, 1e-5);
    }
}

#[test]
fn ten_steps_of_gpt2_follow_pytorch() {
    let f = file("gpt2_tiny.safetensors");
    let mut model = gpt2(&f);
    let (tokens, starts, spec) = (ids(&f, "ids"), ids(&f, "starts"), gpt2_spec(&f));
    let plain = danlu_ops::cpu_device();
    let mut moments: Vec<[Tensor<2>; 2]> = model
        .parameters()
        .iter()
        .map(|p| [0; 2].map(|_| Tensor::zeros(p.tensor.dims(), &plain)))
        .collect();
    for step in 1..=10u64 {
        let (loss, _) = model.loss(&tokens, &starts, &spec);
        let (value, want) = (floats(loss.clone())[0], f["losses"].values[step as usize - 1]);
        assert!((value - want).abs() < 2e-5 * want, "step {step}: {value}, PyTorch {want}");
        let grads = loss.backward();
        let grads: Vec<Tensor<2>> =
            model.parameters().iter().map(|p| p.tensor.grad(&grads).unwrap()).collect();
        let norm = grads.iter().map(squared_norm).sum::<f64>().sqrt();
        for ((p, grad), state) in model.parameters_mut().into_iter().zip(grads).zip(&mut moments) {
            let adamw = AdamW {
                rate: 1e-2,
                betas: [0.9, 0.95],
                epsilon: 1e-8,
                weight_decay: if p.is_matrix() { 0.1 } else { 0.0 },
                step,
                grad_scale: (1.0 / norm.max(1.0)) as f32,
            };
            let now = p.tensor.clone().inner();
            let [value, first, second] =
                adamw_step([now, state[0].clone(), state[1].clone()], grad, adamw);
            *state = [first, second];
            p.tensor = Tensor::from_inner(value).require_grad();
        }
    }
}
