//! Memory of training, measured. It is alone in its program, for the peak is the whole program's,
//! and its tests take turns.

use burn::tensor::Tensor;
use danlu_core::recipe::{ModelRecipe, Recompute};
use danlu_model::arch::{Gpt, GptConfig};
use danlu_model::{Module, Transformer, TransformerConfig};
use danlu_ops::HeadLoss;
use danlu_train::bench::{Arch, Setting, train};
use danlu_train::memory::{Load, Prediction, Sizes, predict};
use danlu_train::optim::{Optimiser, gradients};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(arch: Arch) -> Setting {
    Setting {
        arch,
        depth: 3,
        width: 64,
        heads: 4,
        vocabulary: 300,
        window: 128,
        rows: 4,
        steps: 3,
        warmup: 0,
        recompute: Recompute::None,
    }
}

/// Steps of AdamW: bits of the loss and of every gradient in each, the peak of the tensors that
/// operations make, in bytes, and the model's sizes.
fn run(s: &Setting, accumulate: usize, muon: bool) -> (Vec<u32>, usize, Sizes) {
    let device = danlu_ops::cpu_device().autodiff();
    let again = s.recompute.blocks("recompute", s.depth).expect("valid");
    match s.arch {
        Arch::Gpt => {
            let config = GptConfig {
                vocabulary: s.vocabulary,
                width: s.width,
                depth: s.depth,
                heads: s.heads,
                context: s.window,
                norm_eps: 1e-5,
            };
            let mut model = Gpt::new(config, 3, &device);
            model.blocks.iter_mut().zip(again).for_each(|(b, again)| b.recompute = again);
            let sizes = Sizes::from(&model.config);
            steps(s, [accumulate, usize::from(muon)], model, sizes, |m, ids, starts, spec| {
                m.loss(ids, starts, spec).0
            })
        }
        Arch::Qwen => transformer(s, [accumulate, usize::from(muon)], 0),
    }
}

/// The same of a transformer whose layers have `experts`, of which a token goes through two.
fn transformer(s: &Setting, how: [usize; 2], experts: usize) -> (Vec<u32>, usize, Sizes) {
    let device = danlu_ops::cpu_device().autodiff();
    let again = s.recompute.blocks("recompute", s.depth).expect("valid");
    let recipe = ModelRecipe {
        depth: s.depth,
        width: Some(s.width),
        heads: Some(s.heads),
        head_dim: Some(s.width / s.heads),
        experts,
        experts_per_token: 2,
        ..Default::default()
    };
    let config = TransformerConfig::from_recipe(&recipe, s.vocabulary, s.window);
    let mut model = Transformer::new(config.expect("valid"), 3, &device);
    model.blocks.iter_mut().zip(again).for_each(|(b, again)| b.recompute = again);
    let sizes = Sizes::from(&model.config);
    steps(s, how, model, sizes, |m, ids, starts, spec| m.loss(ids, starts, spec).0)
}

fn steps<M: Module>(
    s: &Setting,
    [accumulate, muon]: [usize; 2],
    mut model: M,
    sizes: Sizes,
    loss: impl Fn(&M, &Arc<[u32]>, &Arc<[u32]>, &HeadLoss) -> Tensor<1>,
) -> (Vec<u32>, usize, Sizes) {
    assert_eq!(sizes.parameters(), model.size(), "the values that are reckoned with");
    model.to_device(&danlu_ops::cpu_device().autodiff());
    let mut optimiser = Optimiser::new(&model, [0.9, 0.95], 1e-8, 0.1, 1.0);
    if muon > 0 {
        optimiser = optimiser.with_muon(&model, |name| name.contains(".layers."));
    }
    let n = s.rows * s.window;
    let ids = |by: usize| (0..n).map(|i| (i * i * by % s.vocabulary) as u32).collect();
    let starts: Arc<[u32]> = (0..=s.rows).map(|r| (r * s.window) as u32).collect();
    let mut bits = Vec::new();
    danlu_ops::reset_peak();
    for step in 0..s.steps {
        let spec = HeadLoss {
            targets: ids(step + 7),
            weights: vec![1.0; n].into(),
            scale: 1.0 / n as f32,
            z_loss: 1e-4,
        };
        let mut total: Option<Vec<Tensor<2>>> = None;
        for batch in 0..accumulate {
            let loss = loss(&model, &ids(step + 5 + batch), &starts, &spec);
            bits.push(loss.clone().inner().into_scalar::<f32>().to_bits());
            let grads = gradients(&model, loss.backward());
            total = Some(match total {
                None => grads,
                Some(sum) => sum.into_iter().zip(grads).map(|(a, b)| a + b).collect(),
            });
        }
        let grads = total.expect("at least one batch");
        for grad in &grads {
            let values: Vec<f32> = grad.to_data().try_into_vec().expect("f32");
            bits.extend(values.into_iter().map(f32::to_bits));
        }
        optimiser.step(&mut model, grads, [1e-2; 2], 1.0);
    }
    (bits, danlu_ops::memory().peak, sizes)
}

#[test]
fn recomputation_changes_no_bit_and_takes_less_memory() {
    let _turn = turn();
    for arch in [Arch::Gpt, Arch::Qwen] {
        let with = |recompute| run(&Setting { recompute, ..setting(arch) }, 1, false);
        let (bits, none, _) = with(Recompute::None);
        let (bits_some, some, _) = with(Recompute::Blocks(vec![0, 2]));
        let (bits_all, all, _) = with(Recompute::All);
        assert!(bits == bits_some && bits == bits_all, "{arch:?}");
        assert!(bits.iter().any(|&b| b != bits[0]), "{arch:?}: something is compared");
        assert!(some < none * 9 / 10 && all < some, "{arch:?}: {none}, {some}, {all}");
    }
}

/// What [`run`] should come to, on two threads.
fn predicted(s: &Setting, accumulate: usize, muon: bool, sizes: &Sizes) -> Prediction {
    let again = s.recompute.blocks("recompute", s.depth).expect("valid");
    let (rows, window, threads) = (s.rows, s.window, 2);
    let (average, replies, saves) = (false, 0, false);
    let adapters = None;
    let load =
        Load { rows, window, accumulate, again, muon, average, replies, saves, threads, adapters };
    predict(sizes, &load)
}

#[test]
fn the_peak_is_what_was_predicted() {
    let _turn = turn();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("starts");
    for arch in [Arch::Gpt, Arch::Qwen] {
        let base = || setting(arch);
        let narrow = Recompute::Blocks(vec![1]);
        for s in [
            base(),
            Setting { recompute: Recompute::All, ..base() },
            Setting { recompute: narrow, depth: 5, ..base() },
            // One long document; many short ones; a table larger than all else; wide.
            Setting { rows: 1, window: 1500, ..base() },
            Setting { rows: 40, window: 16, recompute: Recompute::All, ..base() },
            Setting { vocabulary: 6000, rows: 2, ..base() },
            Setting { vocabulary: 6000, rows: 2, recompute: Recompute::All, ..base() },
            Setting { width: 192, depth: 2, rows: 8, ..base() },
        ] {
            for (accumulate, muon) in [(1, false), (2, arch == Arch::Qwen)] {
                let (_, measured, sizes) = pool.install(|| run(&s, accumulate, muon));
                let predicted = predicted(&s, accumulate, muon, &sizes).operations();
                let off = predicted as f64 / measured as f64 - 1.0;
                let what = format!("{s:?}, {accumulate} batches, Muon: {muon}");
                assert!(off.abs() < 0.05, "{what}: {predicted} of {measured} bytes, {off:+.3}");
            }
        }
    }
}

#[test]
fn experts_are_reckoned_with() {
    let _turn = turn();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("starts");
    let base = || setting(Arch::Qwen);
    for s in [
        base(),
        Setting { recompute: Recompute::All, ..base() },
        Setting { width: 192, depth: 2, rows: 8, ..base() },
    ] {
        let (_, measured, sizes) = pool.install(|| transformer(&s, [1, 1], 4));
        let predicted = predicted(&s, 1, true, &sizes).operations();
        // What plain operations make (sums, weights one under the other) is not in what is measured.
        let over = predicted as f64 / measured as f64;
        assert!((1.0..1.5).contains(&over), "{s:?}: {predicted} of {measured} bytes, {over:.2}");
    }
}

/// Peak of tensors in MB of a one-layer model that trains on 8,192 tokens in rows of `window`.
fn peak(window: usize) -> f64 {
    let s =
        Setting { window, rows: 8192 / window, depth: 1, vocabulary: 64, ..setting(Arch::Qwen) };
    // One thread: each thread holds the gradients of one head of a document besides the rest, so
    // the number of threads would move the peak.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("starts");
    pool.install(|| train(&Setting { steps: 1, warmup: 1, ..s })).expect("trains").peak_tensors_mb
}

#[test]
fn memory_per_token_is_flat_in_the_length() {
    let _turn = turn();
    let (short, long) = (peak(512), peak(8192));
    assert!((long / short - 1.0).abs() < 0.1, "{short} MB at 512, {long} MB at 8,192");
}
