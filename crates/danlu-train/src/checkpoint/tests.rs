//! What a checkpoint promises, on a module of two tensors.

use super::*;
use crate::checkpoint::folder::{best, list};
use danlu_core::recipe::CheckpointRecipe;
use danlu_model::Parameter;
use std::path::{Path, PathBuf};

struct Two(Vec<Parameter>);

impl Module for Two {
    fn parameters(&self) -> Vec<&Parameter> {
        self.0.iter().collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.0.iter_mut().collect()
    }
}

/// A module whose numbers tell the step.
fn two(step: u64) -> (Two, Optimiser) {
    let device = danlu_ops::cpu_device();
    let value = |name: &str, shape: &[usize]| {
        let n = shape.iter().product::<usize>();
        let values = (0..n).map(|i| i as f32 + 1000.0 * step as f32).collect();
        Parameter::new(name, shape, values, &device)
    };
    let module = Two(vec![value("a", &[40, 30]), value("b", &[30])]);
    let mut optimiser = Optimiser::new(&module, [0.9, 0.95], 1e-8, 0.1, 1.0);
    for [first, second] in &mut optimiser.state {
        *first = first.clone().add_scalar(step as f32 + 0.25);
        *second = second.clone().add_scalar(step as f32 + 0.5);
    }
    optimiser.step = step;
    (module, optimiser)
}

fn state(step: u64) -> State {
    State { step, next: 10 * step, seconds: 0.1, ..State::new("print".into()) }
}

pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("danlu-ckpt-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    pub(super) fn save(&self, steps: &[u64], recipe: &CheckpointRecipe) {
        let mut writer = Writer::new(&self.0, recipe, Facts::default()).expect("opens");
        for &step in steps {
            let (module, optimiser) = two(step);
            let taken = || Snapshot::take(&state(step), &module, &optimiser, None);
            writer.begin(taken).expect("writes the one before");
        }
        writer.wait().expect("writes");
    }

    fn names(&self) -> Vec<String> {
        let name = |p: PathBuf| p.file_name().expect("named").to_string_lossy().to_string();
        list(&self.0).into_iter().map(name).collect()
    }

    /// What is loaded: the step, and what was said of others.
    pub(super) fn load(&self) -> Result<(u64, Vec<String>)> {
        let (mut module, mut optimiser) = two(0);
        let mut faults = Vec::new();
        let found = load(&self.0, "print", &mut module, &mut optimiser, None, &mut faults)?;
        let found = found.expect("there is one");
        let (wanted, moments) = two(found.step);
        for (a, b) in module.0.iter().zip(&wanted.0) {
            assert_eq!(a.values(), b.values(), "{} of step {}", a.name, found.step);
        }
        for (a, b) in optimiser.state.iter().flatten().zip(moments.state.iter().flatten()) {
            assert_eq!(a.to_data(), b.to_data());
        }
        assert_eq!((found.next, optimiser.step), (10 * found.step, found.step));
        Ok((found.step, faults))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shard(folder: &Path, step: u64, number: usize) -> PathBuf {
    folder.join(format!("step-{step:08}/tensors-{number:05}-of-00002.safetensors"))
}

/// A checkpoint of a step, of a training of this fingerprint, with bits of its own.
#[cfg(feature = "object-store")]
pub(super) fn of_print(folder: &Folder, step: u64, print: &str) -> PathBuf {
    let (module, optimiser) = two(step + 100);
    let state = State { fingerprint: print.into(), ..state(step) };
    let taken = Snapshot::take(&state, &module, &optimiser, None).expect("copies");
    folder::write(&folder.0, &taken, &Facts::default(), usize::MAX).expect("writes")
}

#[test]
fn the_newest_stay_and_the_best_if_asked() {
    let folder = Folder::new("keep");
    let recipe = CheckpointRecipe { keep: 2, best: true, ..CheckpointRecipe::default() };
    folder.save(&[1, 2, 3], &recipe);
    assert_eq!(folder.names(), ["step-00000002", "step-00000003"]);
    let writer = Writer::new(&folder.0, &recipe, Facts::default()).expect("opens");
    writer.rate(2, 0.75).expect("points");
    writer.rate(3, 0.9).expect("is no better");
    assert_eq!(best(&folder.0), Some(("step-00000002".into(), 0.75)));
    folder.save(&[4, 5], &recipe);
    assert_eq!(folder.names(), ["step-00000002", "step-00000004", "step-00000005"]);
    let latest = std::fs::read_to_string(folder.0.join("latest")).expect("points");
    assert_eq!(latest, "step-00000005\n");
    assert_eq!(folder.load().expect("loads"), (5, vec![]));
}

#[test]
fn what_a_save_costs_is_counted_once() {
    let folder = Folder::new("cost");
    let recipe = CheckpointRecipe::default();
    let mut writer = Writer::new(&folder.0, &recipe, Facts::default()).expect("opens");
    let (module, optimiser) = two(1);
    let slow = std::time::Duration::from_millis(30);
    let copied = || {
        std::thread::sleep(slow);
        Snapshot::take(&state(1), &module, &optimiser, None)
    };
    writer.begin(copied).expect("begins");
    writer.wait().expect("writes");
    let [held, writing] = writer.cost();
    assert!(held >= slow && writing > std::time::Duration::ZERO, "{held:?}, {writing:?}");
    assert_eq!(writer.cost(), [std::time::Duration::ZERO; 2]);
}

#[test]
fn damage_is_named_and_the_one_before_is_taken() {
    type Damage = (&'static str, &'static dyn Fn(&Path));
    let damages: [Damage; 6] = [
        ("tensors-00002-of-00002.safetensors: expected a shard with BLAKE3", &|f| {
            let path = shard(f, 2, 2);
            let mut bytes = std::fs::read(&path).expect("reads");
            let at = bytes.len() - 7;
            bytes[at] ^= 4;
            std::fs::write(path, bytes).expect("writes");
        }),
        ("tensors-00001-of-00002.safetensors: expected a shard of", &|f| {
            let path = shard(f, 2, 1);
            let bytes = std::fs::read(&path).expect("reads");
            std::fs::write(path, &bytes[..bytes.len() / 2]).expect("writes");
        }),
        ("tensors-00001-of-00002.safetensors", &|f| {
            std::fs::remove_file(shard(f, 2, 1)).expect("removes");
        }),
        ("manifest.json: expected a manifest with BLAKE3", &|f| {
            let path = f.join("step-00000002/manifest.json");
            let text = std::fs::read_to_string(&path).expect("reads");
            std::fs::write(path, text.replace("\"next\": 20", "\"next\": 21")).expect("writes");
        }),
        ("manifest.json: expected the manifest of a checkpoint", &|f| {
            std::fs::write(f.join("step-00000002/manifest.json"), "{").expect("writes");
        }),
        ("state.json", &|f| {
            std::fs::remove_file(f.join("step-00000002/manifest.json")).expect("removes");
        }),
    ];
    for (i, (wanted, damage)) in damages.into_iter().enumerate() {
        let folder = Folder::new(&format!("damage-{i}"));
        folder.save(&[1], &CheckpointRecipe::default());
        // Two shards.
        let (module, optimiser) = two(2);
        let taken = Snapshot::take(&state(2), &module, &optimiser, None).expect("copies");
        folder::write(&folder.0, &taken, &Facts::default(), 12_000).expect("writes");
        assert_eq!(folder.load().expect("loads"), (2, vec![]));
        damage(&folder.0);
        let (step, faults) = folder.load().expect("falls back");
        assert_eq!(step, 1, "{wanted}");
        assert!(faults[0].contains(wanted), "expected {wanted:?} in {faults:?}");
        assert!(faults[1].contains("step-00000001"), "{faults:?}");
        assert_eq!(folder.names(), ["step-00000001"], "what is damaged counts no more");
        let bad = folder.0.join("step-00000002.bad");
        std::fs::rename(bad, folder.0.join("step-00000002")).expect("is kept aside");
        std::fs::remove_dir_all(folder.0.join("step-00000001")).expect("removes");
        let error = folder.load().expect_err("nothing is left").to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn what_was_set_aside_for_a_save_that_never_came_is_taken_back() {
    let folder = Folder::new("aside");
    folder.save(&[4], &CheckpointRecipe::default());
    let whole = folder.0.join("step-00000004");
    std::fs::rename(&whole, whole.with_extension("aside")).expect("sets aside");
    assert_eq!(folder.load().expect("loads"), (4, vec![]));
    assert!(whole.exists());
}

#[test]
fn another_training_is_refused_and_can_be_taken_over() {
    let (a, b) = (Folder::new("from"), Folder::new("to"));
    a.save(&[3], &CheckpointRecipe::default());
    let (mut module, mut optimiser) = two(0);
    let found = load(&a.0, "other", &mut module, &mut optimiser, None, &mut Vec::new());
    assert!(found.expect_err("of another recipe").to_string().contains("(other)"));
    let facts =
        Facts { data: [("rows".to_string(), "another".to_string())].into(), ..Facts::default() };
    let of = |module: &dyn Module| adopt(&a.0, &b.0, module, "other", &facts, &mut Vec::new());
    let wide = Parameter::constant("a", &[3, 9], 0.0, &danlu_ops::cpu_device());
    let error = of(&Two(vec![wide])).expect_err("of another width").to_string();
    assert!(error.contains("[3, 9]") && error.contains("step-00000003"), "{error}");
    assert!(list(&b.0).is_empty(), "nothing was taken over");
    let take = || of(&two(0).0);
    let state = take().expect("takes over");
    assert_eq!((state.step, state.from), (3, vec!["print".to_string()]));
    load(&b.0, "other", &mut module, &mut optimiser, None, &mut Vec::new()).expect("loads");
    assert_eq!(module.0[0].values(), two(3).0.0[0].values());
    assert!(take().is_err(), "it has one of its own");
}

#[test]
fn the_format_before_manifests_is_still_read() {
    let folder = Folder::new("old");
    let at = folder.0.join("step-00000007");
    std::fs::create_dir_all(&at).expect("makes");
    let (module, optimiser) = two(7);
    let taken = Snapshot::take(&state(7), &module, &optimiser, None).expect("copies");
    let f32 = danlu_model::io::Dtype::F32;
    let path = at.join("tensors.safetensors");
    danlu_model::io::save_tensors(&path, &taken.tensors, f32, Default::default()).expect("writes");
    let json = serde_json::to_string(&state(7)).expect("json");
    std::fs::write(at.join("state.json"), json).expect("writes");
    assert_eq!(folder.load().expect("loads"), (7, vec![]));
}

#[test]
fn a_save_that_fails_says_what_is_left_and_leaves_it() {
    let folder = Folder::new("fails");
    let recipe = CheckpointRecipe::default();
    folder.save(&[1], &recipe);
    let mut writer = Writer::new(&folder.0, &recipe, Facts::default()).expect("opens");
    let (module, optimiser) = two(2);
    let taken = || Snapshot::take(&state(2), &module, &optimiser, None);
    // A file stands where the folder of the unfinished checkpoint would be.
    std::fs::write(folder.0.join("step-00000002.part"), "").expect("writes");
    writer.begin(taken).expect("there was none before");
    let error = writer.wait().expect_err("cannot write").to_string();
    assert!(error.contains("step 2") && error.contains("step-00000001"), "{error}");
    assert_eq!(folder.load().expect("loads"), (1, vec![]));
    std::fs::remove_file(folder.0.join("step-00000002.part")).expect("removes");
    writer.begin(taken).expect("there was none before");
    writer.wait().expect("the next one is written");
    assert_eq!(folder.load().expect("loads"), (2, vec![]));
}
