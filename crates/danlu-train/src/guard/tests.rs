//! What the guard takes for trouble, on made-up losses.

use super::*;
use danlu_core::Rng;
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
            let outlook = Outlook::of(&memory, &tasks(step, &mut rng, 0.0), norm(&mut rng));
            let alarm = outlook.alarm(&r, &memory);
            in_a_row = if alarm.suspicious { in_a_row + 1 } else { 0 };
            assert!(!alarm.far && !alarm.norm && in_a_row < 4, "seed {seed}, step {step}");
            outlook.learn(&mut memory, &tasks(step, &mut rng, 0.0));
        }
        let outlook = Outlook::of(&memory, &tasks(300, &mut rng, 3.0), 1.0);
        assert!(outlook.alarm(&r, &memory).far, "seed {seed}: {:.1}", outlook.deviations);
        let outlook = Outlook::of(&memory, &tasks(300, &mut rng, 0.0), 200.0);
        assert!(outlook.alarm(&r, &memory).norm, "seed {seed}: {:.1}", outlook.norm_jump);
    }
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
    assert_eq!(targets(&memory, 25), [20, 10, 0]);
    assert_eq!(targets(&memory, 21), [10, 0]);
    assert_eq!(targets(&memory, 1), [0]);
    assert!(targets(&Memory::default(), 9).is_empty());
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
        record_skip(&run, &mut memory, trouble(step), [10 * step, 10 * step + 10]).expect("saves");
    }
    assert!(conclude(&run, &mut memory, 30).expect("reads").is_none(), "it still skips");
    memory.skipped = 0;
    let seen = Seen { step: 12, loss: Some(2.5), expected: None, norm: None, ratio: None };
    memory.remember(seen);
    let told = conclude(&run, &mut memory, 12).expect("reads").expect("is due");
    assert_eq!((told.number, told.began, told.step, told.samples), (1, 8, 10, [70, 100]));
    assert_eq!(told.action, "skipped 3 steps");
    assert!(told.outcome.contains("2.5"), "{}", told.outcome);
    record_skip(&run, &mut memory, trouble(20), [200, 210]).expect("saves");
    let all = crate::incident::incidents(&run).expect("reads");
    assert_eq!(all.iter().map(|i| i.number).collect::<Vec<_>>(), [1, 2]);
    crate::incident::forget(&run, 1).expect("removes");
    assert_eq!(crate::incident::incidents(&run).expect("reads"), [told]);
    std::fs::remove_dir_all(&folder).expect("removes");
}
