//! Judges how a mixture of experts spreads its tokens: a router that comes to send all of them to the
//! same few experts has collapsed, and the others learn no more.

use super::Trouble;
use super::memory::Memory;
use super::subject::Figures;
use crate::incident::Cause;
use danlu_core::recipe::GuardRecipe;

/// How the tokens of a step were spread over the experts of a layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spread {
    /// `model.layers.3`.
    pub(crate) layer: String,
    /// Experts that were used ([`danlu_model::layers::experts_used`]).
    pub(crate) used: f64,
    /// Experts that there are, and how many a token is sent to.
    pub(crate) experts: usize,
    pub(crate) chosen: usize,
}

impl Spread {
    /// From 0, where all tokens go to the same experts, to 1, where all experts have as many; `None`
    /// where there is no choice.
    pub(super) fn share(&self) -> Option<f64> {
        let more = self.experts.checked_sub(self.chosen).filter(|&n| n > 0)?;
        Some((self.used - self.chosen as f64) / more as f64)
    }
}

/// A spread under this share of what is usual for its layer is trouble.
const FALLEN: f64 = 0.25;
/// Steps in a row after which it is, if nothing else is wrong.
const LASTS: u64 = 2;
/// Steps that moving means go back.
const SPAN: u64 = 50;

/// Judges the routers in a step that begins with `from` (step and sample); `alarm` says that its loss or
/// gradient is out of line too.
pub(super) fn judge(
    r: &GuardRecipe,
    memory: &mut Memory,
    figures: &Figures<'_>,
    from: [u64; 2],
    alarm: bool,
) -> Option<Trouble> {
    let fallen = |s: &&Spread| {
        let Some(usual) = memory.spreads.get(&s.layer) else { return false };
        usual.count >= r.history as u64 && s.share().is_some_and(|v| v < FALLEN * usual.value)
    };
    let Some(worst) = figures.spreads.iter().find(fallen) else {
        memory.collapsed = 0;
        return None;
    };
    let usual = memory.spreads[&worst.layer].value;
    if memory.collapsed == 0 {
        memory.collapsed_from = from;
    }
    memory.collapsed += 1;
    if memory.collapsed < LASTS && !alarm {
        return None;
    }
    // What passed by does not come again when the same steps are taken again, and a lower rate would cost
    // what it does not save; what comes again is of the training's own making.
    let again = memory.fallen.is_some_and(|at| memory.collapsed_from[0] <= at + SPAN);
    let usual = worst.chosen as f64 + usual * (worst.experts - worst.chosen) as f64;
    Some(Trouble {
        cause: Cause::RouterCollapse,
        from: memory.collapsed_from,
        layer: Some(worst.layer.clone()),
        evidence: vec![format!(
            "tokens were spread over {:.1} of the {} experts of {}, where {usual:.1} is usual and {} \
             the least",
            worst.used, worst.experts, worst.layer, worst.chosen
        )],
        factor: if again { r.lower } else { 1.0 },
        leave_out: false,
    })
}

/// Takes the spreads of a step that was well for what is usual.
pub(super) fn learn(memory: &mut Memory, spreads: &[Spread]) {
    if memory.collapsed > 0 {
        return;
    }
    for s in spreads {
        if let Some(share) = s.share() {
            memory.spreads.entry(s.layer.clone()).or_default().add(share, SPAN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(used: f64) -> Vec<Spread> {
        vec![Spread { layer: "model.layers.1".into(), used, experts: 8, chosen: 2 }]
    }

    fn step(memory: &mut Memory, used: f64, step: u64, alarm: bool) -> Option<Trouble> {
        let spreads = spread(used);
        let figures =
            Figures { loss: 1.0, norm: 1.0, tasks: &[], spreads: &spreads, samples: [0, 0] };
        let found = judge(&GuardRecipe::default(), memory, &figures, [step, 10 * step], alarm);
        learn(memory, &spreads);
        found
    }

    #[test]
    fn a_collapse_is_named_once_it_lasts_and_noise_is_not() {
        let mut memory = Memory::default();
        for i in 0..100 {
            let noise = (i * 7 % 11) as f64 / 11.0;
            assert_eq!(step(&mut memory, 6.0 + 2.0 * noise, i, false), None, "step {i}");
        }
        // Once is not enough, and what was usual stays that.
        assert_eq!(step(&mut memory, 2.1, 100, false), None);
        assert_eq!(step(&mut memory, 7.0, 101, false), None);
        assert_eq!(step(&mut memory, 2.1, 102, false), None);
        let found = step(&mut memory, 2.2, 103, false).expect("it lasts");
        assert_eq!((found.cause, found.from), (Cause::RouterCollapse, [102, 1020]));
        assert_eq!(found.layer.as_deref(), Some("model.layers.1"));
        assert!(found.evidence[0].contains("2.2 of the 8 experts"), "{:?}", found.evidence);
        // Once it may have passed by; where it comes again, or soon after, the rate is lowered.
        let lower = GuardRecipe::default().lower;
        for (fell, factor) in [(None, 1.0), (Some(102), lower), (Some(60), lower), (Some(40), 1.0)]
        {
            let mut memory = Memory { fallen: fell, ..memory.clone() };
            let found = step(&mut memory, 2.2, 104, false).expect("it goes on");
            assert_eq!(found.factor, factor, "after {fell:?}");
        }
        // With an alarm it is at once; without a usual spread never.
        assert!(step(&mut memory.clone(), 2.1, 104, true).is_some());
        assert_eq!(step(&mut Memory::default(), 2.0, 1, true), None);
    }

    #[test]
    fn where_all_are_chosen_there_is_nothing_to_see() {
        assert_eq!(Spread { layer: String::new(), used: 2.0, experts: 2, chosen: 2 }.share(), None);
    }
}
