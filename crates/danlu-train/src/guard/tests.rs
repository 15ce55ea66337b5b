//! What the guard takes for trouble, on made-up losses.

use super::answer::{lowered_from, outcome, record_skip, targets};
use super::judge::Outlook;
use super::*;
use crate::incident::Seen;
use crate::run::Run;
use danlu_core::Rng;
use danlu_core::recipe::GuardRecipe;
use std::path::PathBuf;

/// Losses of three tasks that fall with the step, with noise and now and then a hard step.
fn tasks(step: u64, rng: &mut Rng, more: f64) -> Vec<(String, f64, f64)> {
    let down = 4.0 * (-(step as f64) / 60.0).exp();
    let mut all = Vec::new();
    for (i, name) in ["draw", "name", "say"].into_iter().enumerate() {
        if rng.unit() < 0.3 {
            continue;
        }
        let hard = if rng.unit() < 0.05 { 0.5 } else { 0.0 };
        let mean = 1.0 + i as f64 + down + 0.15 * rng.normal() as f64 + hard + more;
        all.push((name.to_string(), mean, 20.0 + 100.0 * rng.unit() as f64));
    }
    if all.is_empty() { vec![("say".into(), 3.0 + down + more, 50.0)] } else { all }
}

/// What is expected of tasks and a gradient norm.
fn outlook(memory: &Memory, tasks: &[(String, f64, f64)], norm: f64) -> Outlook {
    Outlook::of(memory, &Figures { loss: 0.0, norm, tasks, spreads: &[], samples: [0, 0] })
}

const LIMITS: Limits = Limits { least: 0.0, nats: 0.0, norm: 20.0, update: 0.25 };

fn norm(rng: &mut Rng) -> f64 {
    (0.5 * rng.normal() as f64).exp()
}

#[test]
fn noise_is_no_trouble_and_a_jump_is() {
    let r = GuardRecipe::default();
    for seed in 0..20 {
        let mut rng = Rng::new(seed, 5);
        let mut memory = Memory::default();
        let mut in_a_row = 0;
        for step in 0..300 {
            let seen = outlook(&memory, &tasks(step, &mut rng, 0.0), norm(&mut rng));
            let alarm = seen.alarm(&r, &LIMITS, &memory);
            in_a_row = if alarm.suspicious { in_a_row + 1 } else { 0 };
            assert!(!alarm.far && !alarm.norm && in_a_row < 4, "seed {seed}, step {step}");
            seen.learn(&mut memory, &tasks(step, &mut rng, 0.0));
        }
        let seen = outlook(&memory, &tasks(300, &mut rng, 3.0), 1.0);
        assert!(seen.alarm(&r, &LIMITS, &memory).far, "seed {seed}: {:.1}", seen.deviations);
        let patient = Limits { least: 3.5, ..LIMITS };
        assert!(!seen.alarm(&r, &patient, &memory).far, "seed {seed}: by less than is wanted");
        let seen = outlook(&memory, &tasks(300, &mut rng, 0.0), 200.0);
        assert!(seen.alarm(&r, &LIMITS, &memory).norm, "seed {seed}: {:.1}", seen.norm_jump);
    }
}

#[test]
fn noise_soon_after_a_steep_fall_is_seen() {
    let r = GuardRecipe::default();
    for seed in 0..20 {
        let mut rng = Rng::new(seed, 7);
        let mut memory = Memory::default();
        let mut cost = |step: f64, more: f64| -> Vec<(String, f64, f64)> {
            let fallen = 1.6 + 5.4 / (1.0 + ((step - 40.0) / 3.0).exp());
            let noise = 0.12 * rng.normal() as f64;
            vec![("text".to_string(), fallen + noise + more, 100.0)]
        };
        for step in 0..110 {
            let tasks = cost(step as f64, 0.0);
            let seen = outlook(&memory, &tasks, 1.0);
            let alarm = seen.alarm(&r, &LIMITS, &memory);
            assert!(!alarm.far && !alarm.suspicious, "seed {seed}, step {step}");
            seen.learn(&mut memory, &tasks);
        }
        let seen = outlook(&memory, &cost(110.0, 3.0), 1.0);
        assert!(seen.alarm(&r, &LIMITS, &memory).far, "seed {seed}: {:.1}", seen.deviations);
        let expected = seen.expected.expect("known");
        assert!((expected - 1.6).abs() < 0.4, "seed {seed}: {expected}");
    }
}

#[test]
fn a_gradient_of_nothing_says_nothing_about_the_next() {
    let r = GuardRecipe::default();
    let mut memory = Memory::default();
    let tasks = [("divergence".to_string(), 0.1, 10.0)];
    for step in 0..100 {
        let seen = outlook(&memory, &tasks, if step % 3 == 0 { 0.5 } else { 0.0 });
        let alarm = seen.alarm(&r, &LIMITS, &memory);
        assert!(!alarm.norm && !alarm.far, "step {step}");
        seen.learn(&mut memory, &tasks);
    }
    assert!((memory.norm.value - 0.5f64.ln()).abs() < 1e-9, "{:?}", memory.norm);
}

#[test]
fn parameters_are_watched_by_layer() {
    for (name, want) in [
        ("model.layers.3.self_attn.qkv_proj.weight", "model.layers.3"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("scales.1.blocks.0.weight", "scales.1"),
    ] {
        assert_eq!(group(name), want);
    }
}

#[test]
fn it_goes_back_to_before_the_trouble() {
    let memory = Memory { marks: vec![0, 10, 20], ..Memory::default() };
    assert_eq!(targets(&memory, 25, &[]), [20, 10, 0]);
    assert_eq!(targets(&memory, 21, &[]), [10, 0]);
    assert_eq!(targets(&memory, 1, &[]), [0]);
    assert!(targets(&Memory::default(), 9, &[]).is_empty());
    // What was marked may not be there, and older ones are.
    assert_eq!(targets(&memory, 25, &[3, 6, 20, 30]), [20, 10, 0, 6, 3]);
}

#[test]
fn a_rate_is_lowered_where_the_trouble_began_and_earlier_if_that_was_not_enough() {
    assert_eq!(lowered_from(&[], 0, 100), 98);
    assert_eq!(lowered_from(&[], 100, 101), 100);
    let eases = [Ease { from: 98, factor: 0.05, warmup: 10 }];
    assert_eq!(lowered_from(&eases, 0, 105), 0, "it came again");
    assert_eq!(lowered_from(&eases, 120, 150), 148, "another time");
}

#[test]
fn steps_skipped_in_a_row_are_one_incident_with_an_outcome() {
    let folder: PathBuf =
        std::env::temp_dir().join(format!("danlu-incidents-{}", std::process::id()));
    let run = Run { folder: folder.clone() };
    let mut memory = Memory::default();
    let trouble = |step: u64| Trouble {
        cause: Cause::BadData,
        from: [step, 10 * step],
        layer: None,
        evidence: vec!["hard".into()],
        factor: 1.0,
        leave_out: true,
    };
    for step in [7, 8, 9] {
        record_skip(&run, "", &mut memory, trouble(step), [10 * step, 10 * step + 10])
            .expect("saves");
    }
    assert!(outcome(&run, "", &mut memory, 30).expect("reads").is_none(), "it still skips");
    memory.skipped = 0;
    let seen = Seen { step: 12, loss: Some(2.5), expected: None, norm: None, ratio: None };
    memory.remember(seen);
    let told = outcome(&run, "", &mut memory, 12).expect("reads").expect("is due");
    assert_eq!((told.number, told.began, told.step, told.samples), (1, 8, 10, [70, 100]));
    assert_eq!(told.action, "skipped 3 steps");
    assert!(told.outcome.contains("2.5"), "{}", told.outcome);
    record_skip(&run, "", &mut memory, trouble(20), [200, 210]).expect("saves");
    memory.skipped = 0;
    // One that comes before the outcome of another is its outcome.
    record_skip(&run, "", &mut memory, trouble(21), [210, 220]).expect("saves");
    let second = crate::incident::incidents(&run).expect("reads").remove(1);
    assert!(second.outcome.contains("incident 3 came"), "{}", second.outcome);
    crate::incident::forget(&run, "", 2).expect("removes");
    let all = crate::incident::incidents(&run).expect("reads");
    assert_eq!(all.iter().map(|i| i.number).collect::<Vec<_>>(), [1, 2]);
    // Those of a tokeniser have numbers of their own.
    let mut other = Memory::default();
    let of = record_skip(&run, "image", &mut other, trouble(4), [40, 50]).expect("saves");
    assert!(of.headline().starts_with("incident 1 of image at step 5"), "{}", of.headline());
    crate::incident::forget(&run, "", 1).expect("removes");
    assert_eq!(crate::incident::incidents(&run).expect("reads"), [of, told]);
    std::fs::remove_dir_all(&folder).expect("removes");
}
