//! Tells weights that were damaged from weights that learnt too fast, once training stands where they
//! were well: a rate that is too high moves all layers, damage changes one.

use super::group;
use super::subject::values;
use burn::tensor::Tensor;
use danlu_model::Module;

/// A layer of which a value changed this many times as much as any of the others is damaged. What
/// optimisers move values of different layers by lies within a tenth of that.
const APART: f32 = 100.0;

/// Parameters of a model as they were when trouble was seen.
pub(super) struct Suspect(Vec<(String, Tensor<2>)>);

/// The one layer that was changed by more than steps change layers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Damage {
    pub(super) layer: String,
    /// What was seen.
    pub(super) evidence: String,
}

impl Suspect {
    pub(super) fn of(module: &dyn Module) -> Self {
        Self(module.parameters().into_iter().map(|p| (p.name.clone(), values(p))).collect())
    }

    /// Compares with the same model of `step`, an earlier one.
    pub(super) fn damage(self, module: &dyn Module, step: u64) -> Option<Damage> {
        let earlier = module.parameters();
        let changes = self.0.into_iter().zip(earlier).map(|((name, now), then)| {
            let most: f32 = (now - values(then)).abs().max().into_scalar();
            (name, most)
        });
        apart(&changes.collect::<Vec<_>>()).map(|(name, most, others)| Damage {
            layer: name.clone(),
            evidence: format!(
                "a value of {name} has changed by {most:.3e} since step {step}, and none of other \
                 layers by more than {others:.3e}: no step did that"
            ),
        })
    }
}

/// The parameter that changed most, by how much, and the most that those of other layers changed by.
fn apart(changes: &[(String, f32)]) -> Option<(&String, f32, f32)> {
    let (name, most) = changes.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let layer = group(name);
    let others = changes.iter().filter(|(other, _)| group(other) != layer);
    let others = others.map(|(_, change)| *change).fold(0.0, f32::max);
    (others > 0.0 && *most > APART * others).then_some((name, *most, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_far_from_all_others_is_damaged() {
        let named = |all: [f32; 3]| -> Vec<(String, f32)> {
            let names = ["a.layers.0.x.weight", "a.layers.0.y.weight", "a.layers.1.x.weight"];
            names.iter().zip(all).map(|(n, change)| (n.to_string(), change)).collect()
        };
        let changes = named([0.03, 40.0, 0.02]);
        let (name, most, others) = apart(&changes).expect("the second");
        assert_eq!((name.as_str(), most, others), ("a.layers.0.y.weight", 40.0, 0.02));
        // All together, as a rate that is too high does; nothing learnt since; one layer alone.
        assert_eq!(apart(&named([3.0, 40.0, 9.0])), None);
        assert_eq!(apart(&named([0.0, 40.0, 0.0])), None);
        assert_eq!(apart(&[]), None);
    }
}
