//! A run's folder: recipe, tokenisers, checkpoints, log, samples, model, page.

use crate::checkpoint;
use danlu_core::recipe::changes;
use danlu_core::{Error, Recipe, Result, TuneRecipe};
use danlu_model::io::write_atomically;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file with the directory that a run was started in.
const STARTED: &str = "started_in.txt";
/// The file with what a training began with beside its recipe.
const BEGUN: &str = "begun.json";
/// The line of a step whose checkpoint may be there before the line is in the log: between lie measurements
/// that can take minutes.
const UNLOGGED: &str = "unlogged.json";

/// What a training begins with beside its recipe. It is kept with the run, for what is gone on with before the
/// first checkpoint to be the same training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// Where tokenisers are taken from.
    pub tokenizers: Option<PathBuf>,
    /// The run that is gone on from.
    pub from: Option<PathBuf>,
}

/// The log of a training's steps.
pub(crate) const LOG: &str = "train";

/// What every line of a log has.
#[derive(Deserialize)]
struct Stepped {
    step: u64,
}

/// Paths inside a run's folder.
#[derive(Debug, Clone)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
}

/// What a manifest calls the file or folder `path`: its name, or all of it if another has that name.
pub(crate) fn data_name(path: &Path, taken: impl Fn(&str) -> bool) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
    if taken(&name) { path.to_string_lossy().to_string() } else { name }
}

impl Run {
    /// Opens or starts the run of `recipe` in `folder`. A folder that holds another recipe is
    /// refused, unless it is only evaluated otherwise, or nothing has been learnt by it yet.
    pub fn open(folder: &Path, recipe: &Recipe) -> Result<Run> {
        Self::open_with(folder, recipe, &Begun::default())
    }

    /// The same of a training that begins with something beside its recipe.
    pub fn open_with(folder: &Path, recipe: &Recipe, with: &Begun) -> Result<Run> {
        let run = Run { folder: folder.to_path_buf() };
        // Whoever trains here has their recipe here; another's is not to be written over it.
        let _lock = run.lock()?;
        let path = run.recipe();
        if path.exists() {
            let found =
                Recipe::parse(&read(&path)?).map_err(|e| Error::file(&path, "a recipe", e))?;
            if found.for_training() != recipe.for_training() && run.has_learnt() {
                return Err(Error::file(
                    &path,
                    format!("the recipe `{}` that this run was started with", recipe.name),
                    format!(
                        "another one ({}); choose another folder, or remove this one to start again",
                        changes(&found.for_training().to_toml(), &recipe.for_training().to_toml())
                    ),
                ));
            }
            if &found == recipe {
                run.begin_with(with)?;
                return Ok(run);
            }
        }
        // Before the recipe, from which on it can be gone on with.
        run.begin_with(with)?;
        run.begin(&recipe.to_toml())?;
        Ok(run)
    }

    fn begin_with(&self, with: &Begun) -> Result<()> {
        let path = self.folder.join(BEGUN);
        if with == &Begun::default() {
            return match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, e)),
                _ => Ok(()),
            };
        }
        let whole = |path: &PathBuf| std::path::absolute(path).map_err(|e| Error::io(path, e));
        let of = |path: &Option<PathBuf>| path.as_ref().map(whole).transpose();
        let with = Begun { tokenizers: of(&with.tokenizers)?, from: of(&with.from)? };
        let text = serde_json::to_string(&with).map_err(|e| Error::Other(e.to_string()))?;
        write_atomically(&path, text.as_bytes())
    }

    /// What it began with beside its recipe.
    pub fn begun(&self) -> Result<Begun> {
        let path = self.folder.join(BEGUN);
        if !path.exists() {
            return Ok(Begun::default());
        }
        let wanted = "what a training began with, in JSON";
        serde_json::from_str(&read(&path)?).map_err(|e| Error::file(&path, wanted, e))
    }

    /// Notes the line of a step whose checkpoint is about to be written; it is in the log once it is whole.
    pub(crate) fn note_line(&self, line: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(line).map_err(|e| Error::Other(e.to_string()))?;
        write_atomically(&self.folder.join(UNLOGGED), text.as_bytes())
    }

    /// The line that was noted of `step`, if it never got into the log.
    pub(crate) fn noted_line<T: DeserializeOwned>(&self, step: u64) -> Result<Option<T>> {
        let Ok(text) = std::fs::read_to_string(self.folder.join(UNLOGGED)) else { return Ok(None) };
        let noted = serde_json::from_str::<Stepped>(&text).is_ok_and(|line| line.step == step);
        if !noted || self.logged()? >= step {
            return Ok(None);
        }
        Ok(serde_json::from_str(&text).ok())
    }

    /// What is to be told where a training begins anew though the log has steps of it.
    pub(crate) fn begins_anew(&self, step: u64) -> Result<Option<String>> {
        let logged = self.logged()?;
        let folder = self.checkpoints();
        let words = format!("no checkpoint is left of {logged} steps; it begins anew");
        Ok((step == 0 && logged > 0).then(|| format!("{}: {words}", folder.display())))
    }

    /// The last step in the log; 0 without any.
    fn logged(&self) -> Result<u64> {
        let lines: Vec<Stepped> = entries(&self.log(LOG))?;
        Ok(lines.last().map_or(0, |line| line.step))
    }

    /// Adds the line of a step to the log.
    pub(crate) fn log_line(&self, line: &impl Serialize) -> Result<()> {
        append(&self.log(LOG), line)?;
        // Where it stays, it is of a step that is in the log.
        let _ = std::fs::remove_file(self.folder.join(UNLOGGED));
        Ok(())
    }

    /// Writes the recipe that the run is for, and the directory that its relative paths start at.
    pub(crate) fn begin(&self, recipe: &str) -> Result<()> {
        write_atomically(&self.recipe(), recipe.as_bytes())?;
        let here = std::env::current_dir().map_err(|e| Error::io(".", e))?;
        write_atomically(&self.folder.join(STARTED), here.to_string_lossy().as_bytes())
    }

    /// Finds what a recipe's relative paths name from the directory that the run was started in, where
    /// they lead nowhere from this one.
    pub(crate) fn find<'a>(&self, paths: impl Iterator<Item = &'a mut PathBuf>) {
        let Ok(started) = std::fs::read_to_string(self.folder.join(STARTED)) else { return };
        for path in paths.filter(|path| !path.exists()) {
            let there = Path::new(&started).join(&*path);
            if there.exists() {
                *path = there;
            }
        }
    }

    /// Whether there is a checkpoint, or the beginning of a tokeniser.
    pub(crate) fn has_learnt(&self) -> bool {
        let tokenisers = std::fs::read_dir(self.tokenisers());
        tokenisers.is_ok_and(|mut files| files.next().is_some())
            || !checkpoint::folder::list(&self.checkpoints()).is_empty()
    }

    /// Keeps other processes from training in this folder for as long as the result lives; death frees
    /// it too. Two of them would remove each other's checkpoints.
    pub fn lock(&self) -> Result<std::fs::File> {
        use std::fs::{File, TryLockError};
        let path = self.folder.join(".lock");
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        let opened =
            File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => {
                // Who it is, for those who find it locked.
                let pid = std::process::id().to_string();
                let told = file.set_len(0).and_then(|()| file.write_all(pid.as_bytes()));
                told.map_err(|e| Error::io(&path, e))?;
            }
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                let found = format!("process {holder} at work in it");
                return Err(Error::file(&self.folder, "a run that nobody trains", found));
            }
            // A file system without locks is no reason not to train.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(file)
    }

    /// A run that there is, of a training or a tuning.
    pub fn at(folder: &Path) -> Result<Run> {
        let run = Run { folder: folder.to_path_buf() };
        match run.recipe().is_file() {
            true => Ok(run),
            false => Err(Error::file(run.recipe(), "the recipe of a run", "none")),
        }
    }

    /// The recipe that a run was started with.
    pub fn resume(folder: &Path) -> Result<(Run, Recipe)> {
        let run = Run { folder: folder.to_path_buf() };
        let path = run.recipe();
        let text = read(&path)?;
        if TuneRecipe::is_meant(&text) {
            return Err(Error::file(&path, "the recipe of `danlu train`", "one of `danlu tune`"));
        }
        let mut recipe = Recipe::parse(&text).map_err(|e| Error::file(&path, "a recipe", e))?;
        run.find(recipe.paths_mut());
        Ok((run, recipe))
    }

    /// The recipe, every value spelled out.
    pub fn recipe(&self) -> PathBuf {
        self.folder.join("recipe.toml")
    }

    /// Where the tokenisers are.
    pub fn tokenisers(&self) -> PathBuf {
        self.folder.join("tokenisers")
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// Where samples of the training are.
    pub fn samples(&self) -> PathBuf {
        self.folder.join("samples")
    }

    /// The finished model.
    pub fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    /// What went wrong and what was done about it.
    pub fn incidents(&self) -> PathBuf {
        self.folder.join("incidents")
    }

    /// The page that a person looks at.
    pub fn page(&self) -> PathBuf {
        self.folder.join("index.html")
    }

    /// A log of one JSON object a line.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.jsonl"))
    }
}

pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

/// Adds a line to a log.
pub(crate) fn append(path: &Path, entry: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(entry).map_err(|e| Error::Other(e.to_string()))?;
    line.push('\n');
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| Error::io(path, e))?;
    file.write_all(line.as_bytes()).map_err(|e| Error::io(path, e))
}

/// A number of a log: JSON has no other word than `null` for those that are not finite.
pub(crate) fn number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(<Option<f64> as serde::Deserialize>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// The same by name.
pub(crate) fn numbers<'de, D>(d: D) -> Result<std::collections::BTreeMap<String, f64>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    type Named = std::collections::BTreeMap<String, Option<f64>>;
    let all = <Named as serde::Deserialize>::deserialize(d)?;
    Ok(all.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// The lines of a log; one that was cut off by a crash is passed over.
pub(crate) fn entries<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    Ok(lossy(path)?.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
}

/// The text of a log; what a crash left of a character is none.
fn lossy(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes the lines of a log that are of steps after `step`, and what a crash left of a line: the
/// run goes on from there.
pub(crate) fn drop_after(path: &Path, step: u64) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let text = lossy(path)?;
    let kept = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter(|line| serde_json::from_str::<Stepped>(line).is_ok_and(|l| l.step <= step));
    let kept: String = kept.collect();
    if kept == text { Ok(()) } else { write_atomically(path, kept.as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_back_to_a_step() {
        let path = std::env::temp_dir().join(format!("danlu-log-{}", std::process::id()));
        let line = |step: u64| format!("{{\"step\":{step},\"x\":0.1}}\n");
        let text = line(1) + &line(2) + &line(3) + "{\"step\":2,\"x";
        for (step, want) in [(2, line(1) + &line(2)), (9, line(1) + &line(2) + &line(3))] {
            std::fs::write(&path, &text).expect("writes");
            drop_after(&path, step).expect("cuts");
            assert_eq!(read(&path).expect("there"), want);
        }
        std::fs::remove_file(&path).expect("removes");
    }

    #[test]
    fn a_run_may_be_evaluated_otherwise_but_not_trained_otherwise() {
        let folder = std::env::temp_dir().join(format!("danlu-run-{}", std::process::id()));
        let text = "name='a'\n[data]\n[train]\nsteps=100\n[mixture]\nx=1.0\n";
        let recipe = Recipe::parse(text).expect("valid");
        Run::open(&folder, &recipe).expect("starts");
        let mut other = recipe.clone();
        other.eval.questions = 7;
        let run = Run::open(&folder, &other).expect("goes on");
        assert_eq!(Recipe::parse(&read(&run.recipe()).expect("there")).expect("valid"), other);
        other.train.steps = 99;
        Run::open(&folder, &other).expect("nothing was learnt by the first");
        std::fs::create_dir_all(run.checkpoints().join("step-00000001")).expect("makes");
        other.train.steps = 98;
        let error = Run::open(&folder, &other).expect_err("another training").to_string();
        assert!(error.contains("recipe.toml") && error.contains("`a`"), "{error}");
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn data_is_found_from_any_directory() {
        let at = std::env::temp_dir().join(format!("danlu-found-{}", std::process::id()));
        let run = Run { folder: at.join("run") };
        for folder in ["run", "project/packs/sample"] {
            std::fs::create_dir_all(at.join(folder)).expect("makes");
        }
        let text = "name='a'\n[data]\npacks=['recipes/../packs/sample','/none']\n[train]\nsteps=5\n\
                    [mixture]\nx=1.0\n";
        let recipe = Recipe::parse(text).expect("valid");
        write_atomically(&run.recipe(), recipe.to_toml().as_bytes()).expect("writes");
        std::fs::create_dir_all(at.join("project/recipes")).expect("makes");
        // As it was started there, and as it was before there was such a file.
        let started = at.join("project");
        let started = started.to_str().expect("UTF-8");
        let (_, before) = Run::resume(&run.folder).expect("reads");
        assert_eq!(before.data.packs, recipe.data.packs);
        std::fs::write(run.folder.join(STARTED), started).expect("writes");
        let (_, found) = Run::resume(&run.folder).expect("reads");
        assert_eq!(found.data.packs[0], at.join("project/recipes/../packs/sample"));
        assert_eq!(found.data.packs[1], Path::new("/none"));
        assert_eq!(found.for_training(), recipe.for_training(), "the same training");
        std::fs::remove_dir_all(&at).expect("removes");
    }

    #[test]
    fn what_a_training_began_with_stays_with_it() {
        let folder = std::env::temp_dir().join(format!("danlu-begun-{}", std::process::id()));
        let text = "name='a'\n[data]\n[train]\nsteps=100\n[mixture]\nx=1.0\n";
        let recipe = Recipe::parse(text).expect("valid");
        let with = Begun { tokenizers: Some("some/model".into()), from: None };
        let run = Run::open_with(&folder, &recipe, &with).expect("starts");
        let found = run.begun().expect("reads").tokenizers.expect("is there");
        assert!(found.is_absolute() && found.ends_with("some/model"), "{}", found.display());
        Run::open(&folder, &recipe).expect("starts otherwise");
        assert_eq!(run.begun().expect("reads"), Begun::default());
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn a_line_that_never_got_into_the_log_is_found_once() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Line {
            step: u64,
        }
        let run = Run {
            folder: std::env::temp_dir().join(format!("danlu-noted-{}", std::process::id())),
        };
        std::fs::create_dir_all(&run.folder).expect("makes");
        let noted = |step| run.noted_line::<Line>(step).expect("reads");
        run.log_line(&Line { step: 1 }).expect("logs");
        assert_eq!(noted(1), None);
        run.note_line(&Line { step: 2 }).expect("notes");
        // Killed before the checkpoint was whole, and after.
        assert_eq!(noted(1), None);
        assert_eq!(noted(2), Some(Line { step: 2 }));
        run.log_line(&Line { step: 2 }).expect("logs");
        assert_eq!(noted(2), None);
        assert_eq!(read(&run.log(LOG)).expect("there"), "{\"step\":1}\n{\"step\":2}\n");
        std::fs::remove_dir_all(&run.folder).expect("removes");
    }

    #[test]
    fn one_trains_in_a_folder_at_a_time() {
        let folder = std::env::temp_dir().join(format!("danlu-lock-{}", std::process::id()));
        let run = Run { folder: folder.clone() };
        let held = run.lock().expect("nobody is there");
        let error = run.lock().expect_err("somebody is").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        run.lock().expect("nobody is there any more");
        std::fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn files_of_one_name_are_told_apart() {
        let first = data_name(Path::new("en/train.jsonl"), |_| false);
        let second = data_name(Path::new("zh/train.jsonl"), |name| name == first);
        assert_eq!((first.as_str(), second.as_str()), ("train.jsonl", "zh/train.jsonl"));
    }
}
