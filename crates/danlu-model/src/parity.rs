//! Whether two models, or two forms of one, say the same: ids of texts and conversations, then
//! log-probabilities at every position. Knows nothing of files.

mod form;

pub use form::Form;

use crate::modality::Tokenisers;
use crate::model::Model;
use crate::prompt::{FileCodes, Template};
use danlu_core::{Error, Message, Result, Role, Sample};
use serde::Serialize;

/// What both models read where no probe is given: languages, code, digits and odd characters.
pub const PROBE: &[&str] = &[
    "The capital of France is",
    "A decoder-only transformer predicts the next token of a sequence.",
    "She opened the door, looked around, and said: \"Nobody's here.\"",
    "1, 2, 3, 5, 8, 13, 21, 34, 55, 89; 1234567890 + 987 = ?",
    "def area(width, height):\n    return width * height\n",
    "苹果是红色的,天空是蓝色的。",
    "L'été, les élèves ne vont pas à l'école.",
    "  tabs\tand\n\nblank   lines \u{1F600} e\u{301}",
];

/// How far apart is near enough.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Smallest share of positions at which the likeliest token is the same.
    pub agreement: f64,
    /// Largest difference of two log-probabilities.
    pub distance: f64,
    /// Largest mean Kullback-Leibler divergence, in nats.
    pub divergence: f64,
}

impl Limits {
    /// The same numbers but for the order of sums.
    pub const SAME: Limits = Limits { agreement: 1.0, distance: 2e-3, divergence: 1e-6 };
    /// 16-bit weights.
    pub const HALF: Limits = Limits { agreement: 0.98, distance: 1.0, divergence: 1e-3 };
    /// 8-bit weights.
    pub const EIGHT: Limits = Limits { agreement: 0.9, distance: 5.0, divergence: 0.02 };
    /// 4-bit weights.
    pub const FOUR: Limits = Limits { agreement: 0.6, distance: 20.0, divergence: 0.6 };
}

/// How far one model is from another on a probe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Positions compared.
    pub positions: usize,
    /// Whether both make the same ids of every text and conversation.
    pub same_ids: bool,
    /// Whether every logit has the same bits; of the decode engine, every log-probability.
    pub same_bits: bool,
    /// Share of positions at which the likeliest token is the same.
    pub agreement: f64,
    /// Largest difference of two log-probabilities: what moves all logits of a position alike changes
    /// nothing.
    pub distance: f64,
    /// Mean difference of two log-probabilities.
    pub mean_distance: f64,
    /// Mean Kullback-Leibler divergence of the second model from the first, in nats.
    pub divergence: f64,
    /// Whether all of this is within the limits.
    pub near: bool,
}

/// Ids of a conversation about each text, for the template's sake.
fn conversation(tokenisers: &Tokenisers, text: &str) -> Result<Vec<u32>> {
    let turn = |role, text: &str| Message::text(role, text);
    let messages =
        vec![turn(Role::User, text), turn(Role::Assistant, "Yes."), turn(Role::User, "Why?")];
    let sample = Sample { messages, ..Default::default() };
    Template::new(tokenisers).prompt(&sample, &mut FileCodes(tokenisers))
}

/// Holds a model against a reference on texts and on conversations about them.
pub fn compare(
    reference: &Model,
    other: &Model,
    texts: &[String],
    limits: &Limits,
) -> Result<Comparison> {
    compare_forms(&mut Form::Train(reference), &mut Form::Train(other), texts, limits)
}

/// Holds a form of a model against a reference on texts and on conversations about them. Where one
/// is the decode engine, the positions are those that it gives.
pub fn compare_forms(
    reference: &mut Form<'_>,
    other: &mut Form<'_>,
    texts: &[String],
    limits: &Limits,
) -> Result<Comparison> {
    let decodes = reference.decodes() || other.decodes();
    let (one, two) = (reference.model(), other.model());
    let sizes = [one, two].map(|m| m.transformer.config.vocabulary);
    if sizes[0] != sizes[1] {
        let wanted = format!("a vocabulary of {} tokens, as the first model has", sizes[0]);
        return Err(Error::parameter("parity", wanted, sizes[1]));
    }
    let context = one.transformer.config.context.min(two.transformer.config.context);
    // The engine draws one token more than it is asked for.
    let context = context - usize::from(decodes);
    let mut c = Comparison {
        positions: 0,
        same_ids: true,
        same_bits: true,
        agreement: 0.0,
        distance: 0.0,
        mean_distance: 0.0,
        divergence: 0.0,
        near: false,
    };
    for text in texts {
        let plain = |m: &Model| Ok(m.tokenisers.text.encode(text));
        let chat = |m: &Model| conversation(&m.tokenisers, text);
        for ids in [&plain as &dyn Fn(&Model) -> Result<Vec<u32>>, &chat] {
            let mut wanted = ids(one)?;
            c.same_ids &= wanted == ids(two)?;
            wanted.truncate(context);
            if wanted.is_empty() {
                continue;
            }
            let mut rows = [reference.rows(&wanted)?, other.rows(&wanted)?];
            let first = rows[0].first.max(rows[1].first);
            let [a, b] = rows.each_mut().map(|r| &mut r.values[(first - r.first) * sizes[0]..]);
            if decodes {
                for rows in [&mut *a, &mut *b] {
                    rows.chunks_exact_mut(sizes[0]).for_each(normalise);
                }
            }
            c.take(a, b, sizes[0]);
        }
    }
    if c.positions == 0 {
        return Err(Error::parameter("--probe", "texts of at least one token", "none"));
    }
    let n = c.positions as f64;
    c.agreement /= n;
    c.mean_distance /= n;
    c.divergence /= n;
    c.near = c.same_ids
        && c.agreement >= limits.agreement
        && c.distance <= limits.distance
        && c.divergence <= limits.divergence;
    Ok(c)
}

impl Comparison {
    /// Adds the rows of one text; shares are sums until [`compare`] is done.
    fn take(&mut self, a: &[f32], b: &[f32], vocabulary: usize) {
        for (a, b) in a.chunks_exact(vocabulary).zip(b.chunks_exact(vocabulary)) {
            self.positions += 1;
            self.same_bits &= a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            let best = likeliest(a);
            // A tie to the last digits is no disagreement.
            let tied = a[best] - a[likeliest(b)] <= 1e-4 && b[likeliest(b)] - b[best] <= 1e-4;
            self.agreement += f64::from(u8::from(best == likeliest(b) || tied));
            let (za, zb) = (normaliser(a), normaliser(b));
            let mut sum = 0.0;
            for (&a, &b) in a.iter().zip(b) {
                let d = ((f64::from(a) - za) - (f64::from(b) - zb)).abs();
                // A comparison with what is not a number is never within limits.
                self.distance = if d.is_nan() { f64::INFINITY } else { self.distance.max(d) };
                sum += d;
            }
            self.mean_distance += sum / vocabulary as f64;
            self.divergence += divergence(a, b);
        }
    }
}

fn likeliest(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best })
}

/// The logarithm of the sum of the exponentials.
fn normaliser(row: &[f32]) -> f64 {
    let most = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let sum: f64 = row.iter().map(|v| f64::from(v - most).exp()).sum();
    f64::from(most) + sum.ln()
}

/// Makes log-probabilities of logits.
fn normalise(row: &mut [f32]) {
    let z = normaliser(row) as f32;
    row.iter_mut().for_each(|v| *v -= z);
}

/// Of the distribution of `b` from that of `a`, in nats.
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let (za, zb) = (normaliser(a), normaliser(b));
    let each = a.iter().zip(b).map(|(&a, &b)| {
        let (la, lb) = (f64::from(a) - za, f64::from(b) - zb);
        la.exp() * (la - lb)
    });
    each.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::tests::noisy;
    use crate::engine::WeightFormat;
    use crate::model::tests::tiny_model;
    use danlu_core::LoraConfig;

    fn texts() -> Vec<String> {
        PROBE.iter().map(|t| t.to_string()).collect()
    }

    #[test]
    fn a_model_is_itself_and_not_another() {
        let (a, b) = (tiny_model(1), tiny_model(2));
        let same = compare(&a, &a, &texts(), &Limits::SAME).expect("compares");
        assert!(same.near && same.same_bits && same.same_ids, "{same:?}");
        assert_eq!((same.agreement, same.distance, same.divergence), (1.0, 0.0, 0.0));
        let other = compare(&a, &b, &texts(), &Limits::SAME).expect("compares");
        assert!(!other.near && !other.same_bits && other.divergence > 0.0, "{other:?}");
    }

    /// A model with two adapters, the second on the first, and with learnt lengths if `dora`.
    fn stacked(dora: bool) -> Model {
        let mut model = tiny_model(1);
        let device = danlu_ops::cpu_device();
        for (rank, seed, name, dora) in [(3, 5, "industry", false), (2, 6, "scenario", dora)] {
            let adapter = noisy(&LoraConfig { rank, dora, ..Default::default() }, seed, name);
            model.transformer.attach(&adapter, &device).expect("attaches");
        }
        model
    }

    #[test]
    fn stacked_merged_swapped_and_decoded_adapters_pass_the_gate() {
        let base = tiny_model(1);
        for model in [stacked(false), stacked(true)] {
            let gate = |form: &mut Form<'_>, limits: &Limits| {
                compare_forms(&mut Form::Train(&model), form, &texts(), limits).expect("compares")
            };
            let mut merged = model.clone();
            merged.transformer.merge().expect("merges");
            let found = gate(&mut Form::Train(&merged), &Limits::SAME);
            assert!(found.near && !found.same_bits, "{found:?}");
            // Off and on again, to the bit; off, it is the base.
            let mut swapped = model.clone();
            let taken = swapped.transformer.detach();
            assert!(compare(&base, &swapped, &texts(), &Limits::SAME).expect("compares").same_bits);
            assert!(!gate(&mut Form::Train(&swapped), &Limits::FOUR).near, "they say nothing");
            swapped.transformer.reattach(taken);
            assert!(gate(&mut Form::Train(&swapped), &Limits::SAME).same_bits);
            // The decode engine with adapters merged in, and with adapters beside the base.
            let f32 = WeightFormat::F32;
            for form in [Form::decode(&model, f32), Form::beside(&model, f32)] {
                let found = gate(&mut form.expect("has adapters"), &Limits::SAME);
                assert!(found.near && found.positions > 100, "{found:?}");
            }
            assert!(!gate(&mut Form::decode(&base, f32).expect("decodes"), &Limits::FOUR).near);
            for form in [Form::decode, Form::beside] {
                let mut eight = form(&model, WeightFormat::Q8_0).expect("decodes");
                let found = gate(&mut eight, &Limits::EIGHT);
                assert!(found.near && found.distance > 1e-3, "{found:?}");
            }
            assert!(Form::beside(&base, f32).is_err(), "no adapters");
        }
    }

    #[test]
    fn what_is_no_number_is_not_near() {
        let (a, mut b) = (tiny_model(1), tiny_model(1));
        let p = &mut b.transformer.norm.weight;
        let mut values = p.values();
        values[0] = f32::NAN;
        p.set(values);
        let found = compare(&a, &b, &texts(), &Limits::FOUR).expect("compares");
        assert!(!found.near, "{found:?}");
    }

    #[test]
    fn logits_that_move_alike_say_the_same() {
        let mut c = compare(&tiny_model(1), &tiny_model(1), &texts(), &Limits::SAME).expect("same");
        let (a, b) = ([1.0, -2.0, 0.5], [26.0, 23.0, 25.5]);
        c.take(&a, &b, 3);
        assert!(!c.same_bits && c.distance < 1e-6 && c.divergence < 1e-6, "{c:?}");
    }

    #[test]
    fn divergence_is_that_of_the_formula() {
        // Probabilities 1/2, 1/2 and 1/4, 3/4.
        let (a, b) = ([0.0, 0.0], [0.0, 3f32.ln()]);
        let wanted = 0.5 * (2f64).ln() + 0.5 * (2f64 / 3.0).ln();
        assert!((divergence(&a, &b) - wanted).abs() < 1e-6);
    }
}
