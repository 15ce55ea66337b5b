use super::*;
use crate::arch::TransformerConfig;
use danlu_core::Rng;
use danlu_core::recipe::ModelRecipe;

fn model() -> Transformer {
    let recipe = ModelRecipe {
        depth: 3,
        width: Some(64),
        head_dim: Some(16),
        heads: Some(4),
        kv_heads: Some(2),
        hidden: Some(96),
        ..Default::default()
    };
    let config = TransformerConfig::from_recipe(&recipe, 80, 64).expect("valid");
    Transformer::new(config, 5, &danlu_ops::cpu_device())
}

fn documents() -> Vec<Packed> {
    let mut rng = Rng::new(4, 2);
    let mut ids = || -> Arc<[u32]> { (0..60).map(|_| rng.below(80) as u32).collect() };
    (0..6).map(|_| (ids(), Arc::from([0, 25, 60]))).collect()
}

/// Mean square of how far logits are from those of `reference`.
fn off(reference: &Transformer, model: &Transformer) -> f64 {
    let of = |m: &Transformer, (ids, starts): &Packed| -> Vec<f32> {
        m.logits(ids, starts).into_data().try_into_vec().expect("f32")
    };
    let one = |d: &Packed| -> f64 {
        let pairs = of(reference, d).into_iter().zip(of(model, d));
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    documents().iter().map(one).sum::<f64>() / (6.0 * 60.0 * 80.0)
}

#[test]
fn calibration_beats_rounding_and_each_format_is_what_it_is_called() {
    let whole = model();
    for format in [WeightFormat::Q4_0, WeightFormat::Q4K, WeightFormat::Q8_0] {
        let mut nearest = whole.clone();
        quantise(&mut nearest, format, Rounding::Nearest, &mut |_| {}).expect("always");
        let mut calibrated = whole.clone();
        let (documents, mut layers) = (documents(), Vec::new());
        let how = Rounding::Calibrated(&documents);
        quantise(&mut calibrated, format, how, &mut |n| layers.push(n)).expect("finite");
        assert_eq!(layers, [1, 2, 3]);
        let (a, b) = (off(&whole, &calibrated), off(&whole, &nearest));
        assert!(a < 0.9 * b, "{format:?}: {a} calibrated, {b} to the nearest");
        for m in [&nearest, &calibrated] {
            assert_eq!(m.frozen_format(), Some(format));
            assert!(bytes(m) < bytes(&whole) / 3);
            let table = m.embedding.frozen.as_ref().expect("frozen");
            assert_eq!(table.format(), WeightFormat::Q8_0);
        }
    }
}

#[test]
fn what_cannot_be_calibrated_is_named() {
    let mut whole = model();
    let none = Rounding::Calibrated(&[]);
    let error = quantise(&mut whole, WeightFormat::Q4_0, none, &mut |_| {}).expect_err("nothing");
    assert!(error.to_string().contains("--data"), "{error}");
    let p = &mut whole.blocks[1].attention_norm.weight;
    p.set(vec![f32::INFINITY; p.len()]);
    let documents = documents();
    let how = Rounding::Calibrated(&documents);
    let error = quantise(&mut whole, WeightFormat::Q4_0, how, &mut |_| {}).expect_err("infinite");
    assert!(error.to_string().contains("model.layers.1.self_attn.qkv_proj.weight"), "{error}");
}

#[test]
fn what_adds_nothing_goes_first_and_nobody_notices() {
    let mut whole = model();
    let c = whole.config.clone();
    // A layer, a group of heads in each other layer and ten channels that add nothing.
    let clear = |p: &mut crate::params::Parameter, gone: &dyn Fn(usize) -> bool| {
        let width = p.shape[1];
        let mut values = p.values();
        let each = values.iter_mut().enumerate().filter(|(i, _)| gone(i % width));
        each.for_each(|(_, v)| *v = 0.0);
        p.set(values);
    };
    for (i, block) in whole.blocks.iter_mut().enumerate() {
        let group = c.heads / c.kv_heads * c.head_dim;
        let dead = i % 2;
        clear(&mut block.attention.out.weight, &|k| i == 1 || k / group == dead);
        clear(&mut block.linears_mut()[3].weight, &|k| i == 1 || k % 9 == 3);
    }
    let seen = observe(&whole, &documents());
    assert_eq!((seen.len(), seen[0].channels.len(), seen[0].kv_heads.len()), (3, 96, 2));
    let cut = Cut { layers: 1, kv_heads: 1, channels: 10 };
    let small = prune(&whole, &seen, &cut).expect("something is left");
    let s = &small.config;
    assert_eq!((s.depth, s.heads, s.kv_heads, s.hidden), (2, 2, 1, 86));
    assert!(off(&whole, &small) < 1e-9, "{}", off(&whole, &small));
    let too_much = Cut { layers: 3, ..Cut::default() };
    let error = prune(&whole, &seen, &too_much).expect_err("nothing left").to_string();
    assert!(error.contains("--drop-layers"), "{error}");
}
