//! What runs through a transformer, layer by layer, for those who watch or debug a training.

use super::Transformer;
use burn::tensor::Tensor;
use std::sync::Arc;

/// What comes out of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerView {
    /// As the layer's parameters are called: `model.layers.3`.
    pub name: String,
    /// Root of the mean square of its values that are finite.
    pub rms: f64,
    /// Largest absolute value of those.
    pub largest: f32,
    /// Values that are not finite.
    pub bad: usize,
    /// Mean over the heads of [`danlu_ops::attention_entropy`] of the first document, from 0 to 1;
    /// `None` for what is no attention layer.
    pub entropy: Option<f64>,
}

/// Rows of the first document whose attention is looked at, and rows of logits: enough for a mean.
const ROWS: usize = 128;

impl Transformer {
    /// Runs packed documents, as [`Transformer::hidden`] takes them, and looks at what comes out of
    /// the embedding, of every layer, of the last norm, and of the head for the first 128 rows. The
    /// weights must be on a device without autodiff.
    pub fn view(&self, ids: &Arc<[u32]>, starts: &Arc<[u32]>) -> Vec<LayerView> {
        let first = starts.get(1).map_or(0, |&end| end as usize).min(ROWS);
        let mut x = self.embed(ids);
        let mut all = vec![look("model.embed_tokens".into(), &x, None)];
        for (i, block) in self.blocks.iter().enumerate() {
            let seen = block.attention_norm.forward(x.clone().narrow(0, 0, first.max(1)));
            let heads = block.attention.entropy(seen, &self.rotary[i]);
            let entropy = heads.iter().sum::<f64>() / heads.len() as f64;
            (x, _) = block.forward(x, &self.rotary[i], starts);
            let entropy = (!heads.is_empty()).then_some(entropy);
            all.push(look(format!("model.layers.{i}"), &x, entropy));
        }
        let x = self.norm.forward(x);
        all.push(look("model.norm".into(), &x, None));
        let rows = x.dims()[0].min(ROWS);
        let logits = self.scores(x.narrow(0, 0, rows));
        all.push(look("lm_head".into(), &logits, None));
        all
    }
}

fn look(name: String, x: &Tensor<2>, entropy: Option<f64>) -> LayerView {
    let values: Vec<f32> = x.to_data().try_into_vec().expect("f32");
    let finite = || values.iter().filter(|v| v.is_finite());
    let squares: f64 = finite().map(|&v| (v as f64).powi(2)).sum();
    LayerView {
        name,
        rms: (squares / finite().count().max(1) as f64).sqrt(),
        largest: finite().fold(0.0, |most, v| most.max(v.abs())),
        bad: values.iter().filter(|v| !v.is_finite()).count(),
        entropy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TransformerConfig;
    use crate::params::Module;
    use danlu_core::recipe::ModelRecipe;

    #[test]
    fn every_layer_is_seen_and_the_first_broken_one_is_named() {
        let recipe =
            ModelRecipe { depth: 3, width: Some(24), head_dim: Some(6), ..Default::default() };
        let config = TransformerConfig::from_recipe(&recipe, 31, 40).expect("valid");
        let mut model = Transformer::new(config, 5, &danlu_ops::cpu_device());
        let ids: Arc<[u32]> = Arc::from([1, 5, 9, 30, 2, 7]);
        let starts: Arc<[u32]> = Arc::from([0, 4, 6]);
        let all = model.view(&ids, &starts);
        let names: Vec<&str> = all.iter().map(|v| v.name.as_str()).collect();
        let layers = ["model.layers.0", "model.layers.1", "model.layers.2"];
        assert_eq!(
            names,
            [&["model.embed_tokens"], &layers[..], &["model.norm", "lm_head"]].concat()
        );
        assert!(all.iter().all(|v| v.bad == 0 && v.rms > 0.0 && v.largest as f64 >= v.rms));
        assert!((all[4].rms - 1.0).abs() < 0.05, "the last norm makes it 1: {}", all[4].rms);
        for (v, inside) in all.iter().zip([false, true, true, true, false, false]) {
            assert_eq!(v.entropy.is_some_and(|e| (0.0..=1.000_001).contains(&e)), inside, "{v:?}");
        }
        for p in model.parameters_mut() {
            if p.name.starts_with("model.layers.1.mlp") {
                let mut values = p.values();
                values[0] = f32::NAN;
                p.set(values);
            }
        }
        let broken = model.view(&ids, &starts).into_iter().find(|v| v.bad > 0);
        assert_eq!(broken.expect("one is").name, "model.layers.1");
    }
}
