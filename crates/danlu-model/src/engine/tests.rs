//! The scheduler against the full forward pass, and against itself.

use super::*;
use crate::arch::{Transformer, TransformerConfig};
use danlu_core::Rng;
use danlu_core::recipe::ModelRecipe;
use std::sync::Arc;

const VOCABULARY: usize = 131;

fn model(tied: bool, qk_norm: bool) -> Transformer {
    let recipe = ModelRecipe {
        depth: 2,
        width: Some(64),
        head_dim: Some(16),
        tied,
        qk_norm,
        ..Default::default()
    };
    let config = TransformerConfig::from_recipe(&recipe, VOCABULARY, 200).expect("valid");
    let mut model = Transformer::new(config, 5, &danlu_ops::cpu_device());
    // Larger weights, so that logits are apart.
    for p in crate::Module::parameters_mut(&mut model) {
        if p.is_matrix() {
            p.set(p.values().iter().map(|v| v * 3.0).collect());
        }
    }
    model
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, 1);
    (0..n).map(|_| rng.below(VOCABULARY) as u32).collect()
}

fn options(weights: WeightFormat) -> EngineOptions {
    EngineOptions { weights, cache: CacheFormat::F32, batch: 3, chunk: 13, ..Default::default() }
}

/// Logits of every position by the transformer itself.
fn full(model: &Transformer, ids: &[u32]) -> Vec<f32> {
    let starts: Arc<[u32]> = Arc::from([0, ids.len() as u32]);
    model.logits(&ids.into(), &starts).into_data().try_into_vec().expect("f32")
}

fn best(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("not empty") as u32
}

#[test]
fn greedy_replies_are_those_of_the_full_forward() {
    for (tied, qk_norm) in [(true, false), (false, true)] {
        let model = model(tied, qk_norm);
        let mut scheduler = Scheduler::new(&model, &options(WeightFormat::F32)).expect("fits");
        let prompts = [ids(40, 1), ids(1, 2), ids(17, 3), ids(33, 4)];
        let jobs = prompts.iter().map(|p| Job::new(p.clone(), 12));
        let replies = run_all(&mut scheduler, jobs).expect("runs");
        for (prompt, reply) in prompts.iter().zip(&replies) {
            assert_eq!(reply.len(), 12);
            let all = [&prompt[..], reply].concat();
            let logits = full(&model, &all);
            for (i, &token) in reply.iter().enumerate() {
                let row = &logits[(prompt.len() + i - 1) * VOCABULARY..][..VOCABULARY];
                // Where two are as good as equal either may come.
                let gap = row[best(row) as usize] - row[token as usize];
                assert!(gap < 1e-3, "token {i}: {gap} below the best");
            }
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_full_forward_in_every_format() {
    let model = model(true, true);
    let prompt = ids(30, 8);
    let logits = full(&model, &prompt);
    let row = &logits[29 * VOCABULARY..];
    let total = row.iter().map(|l| l.exp()).sum::<f32>().ln();
    for (weights, cache, bound) in [
        (WeightFormat::F32, CacheFormat::F32, 1e-3),
        (WeightFormat::F16, CacheFormat::F16, 2e-2),
        (WeightFormat::Q8_0, CacheFormat::Q8, 0.2),
        (WeightFormat::Q4_0, CacheFormat::F16, 1.5),
        (WeightFormat::Q4K, CacheFormat::F16, 1.5),
    ] {
        let options = EngineOptions { cache, ..options(weights) };
        let mut scheduler = Scheduler::new(&model, &options).expect("fits");
        let job = Job { top_logprobs: Some(VOCABULARY), ..Job::new(prompt.clone(), 1) };
        scheduler.add(job).expect("fits");
        let (mut seen, mut off) = (0, 0.0);
        for event in std::iter::from_fn(|| Some(scheduler.step())).take(10).flatten() {
            let Event::Token { logprob: Some(logprob), .. } = event else { continue };
            for (id, l) in logprob.top {
                let want = row[id as usize] - total;
                off += (l - want).abs();
                seen += 1;
            }
        }
        assert_eq!(seen, VOCABULARY, "{weights:?}");
        // Random weights are the hardest to quantise, and these are large: on average.
        let off = off / VOCABULARY as f32;
        assert!(off < bound, "{weights:?}: {off} nats off");
    }
}

#[test]
fn prompts_are_scored_as_the_full_forward_does() {
    let model = model(true, true);
    // Room for two of them: one has to wait, be put back, and go on where it was.
    let small = EngineOptions { cache_tokens: Some(144), ..options(WeightFormat::F32) };
    let mut scheduler = Scheduler::new(&model, &small).expect("fits");
    // One is known, a part of another; one is of a single id.
    let prompts = [ids(50, 1), ids(50, 1), [&ids(50, 1)[..32], &ids(9, 2)].concat(), ids(1, 3)];
    run_all(&mut scheduler, [Job::new(prompts[0].clone(), 1)]).expect("runs");
    let jobs: Vec<JobId> = prompts
        .iter()
        .map(|prompt| {
            let job =
                Job { top_logprobs: Some(2), score_prompt: true, ..Job::new(prompt.clone(), 70) };
            scheduler.add(job).expect("fits")
        })
        .collect();
    let beside = scheduler.add(Job::new(ids(20, 4), 40)).expect("fits");
    let mut scored: Vec<Vec<Logprob>> = vec![Vec::new(); prompts.len()];
    let mut said = vec![0; prompts.len()];
    while scheduler.usage().running + scheduler.usage().waiting > 0 {
        for event in scheduler.step() {
            match event {
                Event::Scored { id, logprobs } => {
                    let at = jobs.iter().position(|j| *j == id).expect("one that asked");
                    assert_eq!(said[at], 0, "before what follows");
                    scored[at].extend(logprobs);
                }
                Event::Token { id, .. } if id != beside => {
                    said[jobs.iter().position(|j| *j == id).expect("ours")] += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(said, [70; 4]);
    for (prompt, scored) in prompts.iter().zip(&scored) {
        assert_eq!(scored.len(), prompt.len() - 1);
        let logits = full(&model, prompt);
        for (i, found) in scored.iter().enumerate() {
            let row = &logits[i * VOCABULARY..][..VOCABULARY];
            let total = row.iter().map(|l| l.exp()).sum::<f32>().ln();
            let want = row[prompt[i + 1] as usize] - total;
            assert!((found.chosen - want).abs() < 1e-3, "{i}: {} and {want}", found.chosen);
            assert_eq!(found.top.len(), 2);
            assert!((found.top[0].1 - (row[best(row) as usize] - total)).abs() < 1e-3);
        }
    }
}

fn hot(seed: u64) -> Sampler {
    Sampler { temperature: 1.0, top_k: 40, top_p: 0.95, seed, ..Default::default() }
}

#[test]
fn a_reply_depends_on_its_job_alone() {
    let model = model(true, true);
    for weights in [WeightFormat::F32, WeightFormat::Q8_0, WeightFormat::Q4_0] {
        let shared = ids(50, 3);
        let jobs = || {
            (0..7u64).map(|i| {
                let mut prompt = shared[..10 + 5 * i as usize].to_vec();
                prompt.extend(ids(i as usize, i));
                let sampling = hot(i);
                Job { sampling, speculate: i % 2 == 0, ..Job::new(prompt, 25) }
            })
        };
        let mut together = Scheduler::new(&model, &options(weights)).expect("fits");
        let replies = run_all(&mut together, jobs()).expect("runs");
        // The same scheduler again, with all prompts known.
        assert_eq!(run_all(&mut together, jobs()).expect("runs"), replies, "{weights:?}");
        for (job, reply) in jobs().zip(&replies) {
            let alone = EngineOptions { chunk: 1000, batch: 1, ..options(weights) };
            let mut alone = Scheduler::new(&model, &alone).expect("fits");
            let job = Job { speculate: !job.speculate, ..job };
            assert_eq!(&run_all(&mut alone, [job]).expect("runs")[0], reply, "{weights:?}");
        }
        assert_eq!(together.usage().pages_used, 0);
    }
}

#[test]
fn guesses_are_right_where_a_reply_repeats_itself() {
    let mut model = model(true, false);
    // Without the layers a token is followed by itself.
    for block in &mut model.blocks {
        for which in [1, 3] {
            let p = &mut block.linears_mut()[which].weight;
            p.set(vec![0.0; p.len()]);
        }
    }
    let mut scheduler = Scheduler::new(&model, &options(WeightFormat::F32)).expect("fits");
    let job = Job { speculate: true, ..Job::new(vec![7, 7, 7], 60) };
    scheduler.add(job).expect("fits");
    let mut steps = 0;
    let mut tokens = Vec::new();
    while scheduler.usage().running + scheduler.usage().waiting > 0 {
        steps += 1;
        for event in scheduler.step() {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Scored { .. } => unreachable!("nothing is scored"),
                Event::Done { completion_tokens, reason, .. } => {
                    assert_eq!((completion_tokens, reason), (60, FinishReason::Length));
                }
            }
        }
    }
    assert_eq!(tokens, [7; 60]);
    assert!(steps < 30, "{steps} steps");
    let [made, right] = scheduler.usage().guessed;
    assert!(right > 30 && right <= made, "{right} of {made}");
}

#[test]
fn a_small_model_guesses_and_changes_no_reply() {
    let model = model(true, true);
    let jobs = || {
        (0..6u64).map(|i| {
            let sampling = if i < 3 { Sampler::default() } else { hot(i) };
            let prompt = ids(9 + 40 * (i as usize % 2), i);
            Job { sampling, speculate: i != 5, ..Job::new(prompt, 25) }
        })
    };
    let plain = || Scheduler::new(&model, &options(WeightFormat::Q8_0)).expect("fits");
    let wanted = run_all(&mut plain(), jobs()).expect("runs");
    let small = |seed: u64| {
        let config = TransformerConfig { depth: 1, ..model.config.clone() };
        Transformer::new(config, seed, &danlu_ops::cpu_device())
    };
    // One that knows nothing, and the model itself; for as many replies as there are, and for fewer.
    for draft in [small(9), model.clone()] {
        for batch in [1, 8] {
            let draft = Draft::new(Decoder::new(&draft, WeightFormat::Q8_0), batch);
            let mut scheduler = plain().with_draft(draft).expect("of the same ids");
            assert_eq!(run_all(&mut scheduler, jobs()).expect("runs"), wanted, "{batch}");
            let [made, right] = scheduler.usage().guessed;
            assert!(made > 0 && right <= made);
        }
    }
    // The model itself guesses what is always the likeliest, but for the rounding of its cache.
    let draft = Draft::new(Decoder::new(&model, WeightFormat::Q8_0), 3);
    let mut scheduler = plain().with_draft(draft).expect("of the same ids");
    assert_eq!(run_all(&mut scheduler, jobs().take(3)).expect("runs"), wanted[..3]);
    let [made, right] = scheduler.usage().guessed;
    assert!(2 * right > made, "{right} of {made}");
    let config = TransformerConfig { vocabulary: 7, ..model.config.clone() };
    let other = Transformer::new(config, 1, &danlu_ops::cpu_device());
    let draft = Draft::new(Decoder::new(&other, WeightFormat::F32), 1);
    let error = plain().with_draft(draft).expect_err("other ids").to_string();
    assert!(error.contains("draft") && error.contains('7'), "{error}");
}

#[test]
fn known_prompts_are_not_read_again_and_cancelled_jobs_leave_nothing() {
    let model = model(true, true);
    let mut scheduler = Scheduler::new(&model, &options(WeightFormat::F32)).expect("fits");
    let prompt = ids(64, 1);
    let mut cached = Vec::new();
    for n in [64, 64, 40, 64] {
        scheduler.add(Job::new(prompt[..n].to_vec(), 3)).expect("fits");
        while scheduler.usage().running + scheduler.usage().waiting > 0 {
            for event in scheduler.step() {
                if let Event::Done { cached_tokens, .. } = event {
                    cached.push(cached_tokens);
                }
            }
        }
    }
    assert_eq!(cached, [0, 63, 32, 63]);
    let running = scheduler.add(Job::new(prompt.clone(), 9)).expect("fits");
    let waiting = scheduler.add(Job::new(prompt.clone(), 9)).expect("fits");
    scheduler.step();
    scheduler.cancel(waiting);
    let done = Event::Done {
        id: running,
        reason: FinishReason::Stop,
        prompt_tokens: 64,
        cached_tokens: 63,
        completion_tokens: 1,
    };
    assert_eq!(scheduler.finish(running), Some(done));
    assert_eq!(scheduler.finish(running), None);
    assert!(scheduler.step().is_empty());
    scheduler.add(Job::new(prompt, 9)).expect("fits");
    scheduler.step();
    scheduler.reset();
    assert_eq!(scheduler.usage().pages_used, 0);
}

#[test]
fn stop_ids_and_masks_end_a_reply_and_hold() {
    struct Even {
        left: usize,
    }
    impl Mask for Even {
        fn allowed(&mut self, out: &mut BitMask) {
            (0..VOCABULARY as u32).step_by(2).for_each(|id| out.insert(id));
        }
        fn accept(&mut self, id: u32) {
            assert_eq!(id % 2, 0);
            self.left -= 1;
        }
        fn done(&self) -> bool {
            self.left == 0
        }
    }
    let model = model(true, true);
    let mut scheduler = Scheduler::new(&model, &options(WeightFormat::F32)).expect("fits");
    let plain = run_all(&mut scheduler, [Job::new(ids(9, 1), 20)]).expect("runs");
    let stop = plain[0][6];
    let first = plain[0].iter().position(|&t| t == stop).expect("it came");
    for speculate in [false, true] {
        let jobs = [
            Job { stop_ids: vec![stop], speculate, ..Job::new(ids(9, 1), 20) },
            Job {
                mask: Some(Box::new(Even { left: 8 })),
                sampling: hot(1),
                speculate,
                ..Job::new(ids(9, 1), 20)
            },
        ];
        let replies = run_all(&mut scheduler, jobs).expect("runs");
        assert_eq!(replies[0], plain[0][..=first]);
        assert_eq!(replies[1].len(), 8);
    }
}

#[test]
fn what_cannot_fit_is_refused_with_numbers() {
    let model = model(true, true);
    let small = EngineOptions { cache_tokens: Some(64), ..options(WeightFormat::F32) };
    let mut scheduler = Scheduler::new(&model, &small).expect("fits");
    for (job, words) in [
        (Job::new(vec![], 5), "0 tokens"),
        (Job::new(vec![1; 190], 20), "190 tokens"),
        (Job::new(vec![1; 60], 20), "80 tokens or more"),
        (Job::new(vec![1, 131], 5), "131"),
        (Job { adapter: Some("cat".into()), ..Job::new(vec![1], 5) }, "cat"),
    ] {
        let error = scheduler.add(job).expect_err("cannot fit").to_string();
        assert!(error.contains(words), "{error}");
    }
    // Jobs that fit only one after the other all come to their end.
    let jobs = (0..5).map(|i| Job::new(ids(30, i), 20));
    let replies = run_all(&mut scheduler, jobs).expect("runs");
    assert!(replies.iter().all(|r| r.len() == 20));
    assert!(Scheduler::new(&model, &EngineOptions { cache_tokens: Some(9), ..small }).is_err());
}

#[test]
fn replies_that_outgrow_the_cache_wait_and_are_the_same() {
    let model = model(true, true);
    let jobs = || {
        (0..5u64).map(|i| {
            let guidance = Guidance { blank: ids(3, 90 + i), scale: 2.0 };
            let guidance = (i == 3).then_some(guidance);
            let sampling = Sampler { presence_penalty: 0.5, ..hot(i) };
            let mask: Option<Box<dyn Mask>> = guidance.as_ref().map(|_| Box::new(Picture) as _);
            let speculate = i % 2 == 0;
            Job { guidance, mask, sampling, speculate, ..Job::new(ids(20, i), 70) }
        })
    };
    struct Picture;
    impl Mask for Picture {
        fn allowed(&mut self, out: &mut BitMask) {
            out.insert_range(0..VOCABULARY as u32);
        }
        fn accept(&mut self, _: u32) {}
        fn in_image(&self) -> bool {
            true
        }
    }
    let ample = EngineOptions { batch: 5, ..options(WeightFormat::Q8_0) };
    let mut ample = Scheduler::new(&model, &ample).expect("fits");
    let replies = run_all(&mut ample, jobs()).expect("runs");
    // The guided one alone takes eleven pages of these thirteen in the end.
    let tight =
        EngineOptions { cache_tokens: Some(13 * 16), batch: 5, ..options(WeightFormat::Q8_0) };
    let mut tight = Scheduler::new(&model, &tight).expect("fits");
    let numbers: Vec<JobId> = jobs().map(|job| tight.add(job).expect("fits")).collect();
    let (mut most, mut put_back, mut again) = (0, 0, vec![Vec::new(); 5]);
    while tight.usage().running + tight.usage().waiting > 0 {
        let before = tight.usage().waiting;
        for event in tight.step() {
            if let Event::Token { id, token, .. } = event {
                again[numbers.iter().position(|n| *n == id).expect("ours")].push(token);
            }
        }
        let usage = tight.usage();
        put_back += usize::from(usage.waiting > before);
        most = most.max(usage.running);
        assert!(usage.pages_used <= usage.pages);
    }
    assert_eq!(again, replies);
    assert!(most >= 3 && put_back > 0, "{most} together, {put_back} put back");
    assert_eq!(tight.usage().pages_used, 0);
}

#[test]
fn embeddings_are_the_mean_of_the_hidden_states() {
    let model = model(true, true);
    let text = ids(29, 4);
    let starts: Arc<[u32]> = Arc::from([0, 29]);
    let hidden: Vec<f32> =
        model.hidden(&text.clone().into(), &starts).into_data().try_into_vec().expect("f32");
    let mut mean = vec![0.0; 64];
    for row in hidden.chunks_exact(64) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
    }
    let length = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
    for chunk in [8, 512] {
        let options = EngineOptions { chunk, ..options(WeightFormat::F32) };
        let mut scheduler = Scheduler::new(&model, &options).expect("fits");
        let mut embedding = scheduler.begin_embedding(text.clone()).expect("fits");
        let mut passes = 1;
        let vector = loop {
            if let Some(vector) = scheduler.embed(&mut embedding) {
                break vector;
            }
            passes += 1;
        };
        assert_eq!(passes, 29usize.div_ceil(chunk));
        for (a, b) in vector.iter().zip(&mean) {
            assert!((a - b / length).abs() < 1e-4, "{a} against {}", b / length);
        }
    }
    for bad in [vec![], vec![u32::MAX], vec![0; 100_000]] {
        let scheduler = Scheduler::new(&model, &options(WeightFormat::F32)).expect("fits");
        assert!(scheduler.begin_embedding(bad).is_err());
    }
}

#[test]
fn adapters_answer_beside_the_base_as_models_of_their_own() {
    let device = danlu_ops::cpu_device();
    let base = model(true, true);
    let adapted = |seed: u64| {
        let mut adapted = base.clone();
        let config = danlu_core::LoraConfig { rank: 4, ..Default::default() };
        adapted.attach_fresh(&config, seed, &device).expect("fits");
        // Fresh adapters change nothing: the second factor is zero.
        let mut rng = Rng::new(seed, 3);
        for block in &mut adapted.blocks {
            for lora in block.linears_mut().into_iter().flat_map(|l| &mut l.adapters) {
                lora.b.set((0..lora.b.len()).map(|_| rng.normal() * 0.2).collect());
            }
        }
        adapted
    };
    let models = [base.clone(), adapted(1), adapted(2)];
    let prompt = ids(40, 6);
    let asked = |adapter: Option<&str>| Job {
        top_logprobs: Some(VOCABULARY),
        adapter: adapter.map(Into::into),
        ..Job::new(prompt.clone(), 2)
    };
    let options = options(WeightFormat::F32);
    let mut scheduler = Scheduler::new(&base, &options).expect("fits");
    assert!(scheduler.add(asked(Some("one"))).is_err(), "not there yet");
    assert!(scheduler.add_adapter("none", &base).is_err(), "nothing is attached");
    scheduler.add_adapter("one", &models[1]).expect("fits");
    scheduler.add_adapter("two", &models[2]).expect("fits");
    // Twice: the second time the prompts are known, each under its own adapter.
    for _ in 0..2 {
        let jobs = [asked(None), asked(Some("one")), asked(Some("two"))];
        let numbers: Vec<JobId> =
            jobs.into_iter().map(|job| scheduler.add(job).expect("fits")).collect();
        let mut got: Vec<Option<Logprob>> = vec![None; 3];
        while scheduler.usage().running + scheduler.usage().waiting > 0 {
            for event in scheduler.step() {
                let Event::Token { id, logprob, .. } = event else { continue };
                let at = numbers.iter().position(|n| *n == id).expect("ours");
                got[at] = got[at].take().or(logprob);
            }
        }
        for (model, got) in models.iter().zip(got) {
            let mut merged = model.clone();
            if merged.merge().is_err() {
                merged = base.clone();
            }
            let logits = full(&merged, &prompt);
            let row = &logits[39 * VOCABULARY..];
            let top = row.iter().fold(f32::MIN, |a, &b| a.max(b));
            let total = top + row.iter().map(|l| (l - top).exp()).sum::<f32>().ln();
            for (id, l) in got.expect("asked for").top {
                let want = row[id as usize] - total;
                assert!((l - want).abs() < 5e-3, "{id}: {l} against {want}");
            }
        }
    }
    scheduler.remove_adapter("one");
    assert!(scheduler.add(asked(Some("one"))).is_err(), "taken away");
}
