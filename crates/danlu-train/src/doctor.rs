//! Looks at machine, files, recipe and data before a run, and reckons what it will take.

use crate::checkpoint;
use crate::distil::Teacher;
use crate::held_out;
use crate::lesson::{Held, Lessons};
use crate::memory;
use crate::pretrain::codes_fingerprint;
use crate::run::Run;
use crate::session::{self, load};
use crate::watch::{Event, Silent, Watcher};
use crate::{CodeTable, pretrain, rehearsal, tune};
use danlu_core::recipe::{GuardRecipe, Optimiser};
use danlu_core::{Error, Recipe, Result, TuneRecipe, Vocabulary};
use danlu_data::{Corpus, LoadOptions, Mixture, Split, picture_classes, sound_classes};
use danlu_model::modality::PLACES;
use danlu_model::{Model, Tokenisers};
use std::path::Path;
use std::time::Instant;

/// How good or bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// To be careful about.
    Careful,
    /// The run cannot work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `machine`, `files`, `recipe`, `data`, `memory` or `time`.
    pub of: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub words: String,
}

struct Findings {
    all: Vec<Finding>,
    /// What an hour of the machine costs.
    price: Option<f64>,
}

impl Findings {
    fn new(price: Option<f64>) -> Self {
        Self { all: Vec::new(), price }
    }

    /// Whether nothing is bad so far: what does not fit, or is no training, is not tried.
    fn works(&self) -> bool {
        self.all.iter().all(|f| f.level != Level::Bad)
    }

    /// What so many steps of so many seconds take, and cost.
    fn time(&mut self, seconds: f64, steps: usize, beside: &str) {
        let all = seconds * steps as f64;
        let cost = self.price.map(|p| format!(", at {p} an hour {:.2}", p * all / 3600.0));
        let words = format!(
            "about {} for {steps} steps of {} each at this machine's present pace{}{beside}",
            lasting(all),
            lasting(seconds),
            cost.unwrap_or_default()
        );
        self.good("time", words);
    }

    fn add(&mut self, of: &'static str, level: Level, words: impl Into<String>) {
        self.all.push(Finding { of, level, words: words.into() });
    }

    fn good(&mut self, of: &'static str, words: impl Into<String>) {
        self.add(of, Level::Good, words);
    }

    fn careful(&mut self, of: &'static str, words: impl Into<String>) {
        self.add(of, Level::Careful, words);
    }

    fn bad(&mut self, of: &'static str, words: impl Into<String>) {
        self.add(of, Level::Bad, words);
    }
}

/// Examines the run of a recipe file in `folder`, which need not exist. What cannot be looked at
/// because of something bad before it is left out.
pub fn examine(path: &Path, folder: &Path, price: Option<f64>) -> Vec<Finding> {
    let mut out = Findings::new(price);
    machine(&mut out);
    if TuneRecipe::is_at(path) {
        if let Err((of, e)) = tuning(&mut out, path, folder) {
            out.bad(of, e.to_string());
        }
        return out.all;
    }
    let recipe = match Recipe::load(path) {
        Ok(recipe) => recipe,
        Err(e) => {
            out.bad("recipe", e.to_string());
            return out.all;
        }
    };
    recipe_sense(&mut out, &recipe);
    if let Err(e) = checkpoint::can_copy(&recipe.checkpoint) {
        out.bad("recipe", e.to_string());
    }
    let found = Run::resume(folder).ok();
    folder_works(&mut out, folder, found.map(|f| f.1.for_training() == recipe.for_training()));
    let options = LoadOptions { max_seconds: recipe.audio.max_seconds, ..Default::default() };
    let mut corpus = match Corpus::load(&recipe.data, recipe.seed, &options) {
        Ok(corpus) => corpus,
        Err(e) => {
            out.bad("data", e.to_string());
            return out.all;
        }
    };
    data(&mut out, &recipe, &corpus);
    let mut texts_held = false;
    match held_out::load(&recipe) {
        Ok((held, ends)) if !ends.is_empty() => {
            texts_held = held.pictures.len() + held.sounds.len() == 0;
            let rows = held.samples.len() + held.texts.len();
            out.good("data", format!("{rows} rows are held out of learning"));
            if let Some(words) = held_out::hardly_fits(&recipe, &held, &ends) {
                out.careful("data", words);
            }
        }
        Ok(_) => {}
        Err(e) => out.bad("data", e.to_string()),
    }
    let run = Run { folder: folder.to_path_buf() };
    if !run.tokenisers().exists()
        && let Err(e) = can_learn(&recipe, &corpus)
    {
        out.bad("data", e.to_string());
    }
    let vocabulary = match lengths(&mut out, &recipe, &run, (&mut corpus, texts_held)) {
        Ok(Some(vocabulary)) => {
            if let Err(e) = session::check_brief(&recipe, &vocabulary) {
                out.bad("recipe", e.to_string());
            }
            vocabulary
        }
        Ok(None) => {
            let vocabulary = expected_vocabulary(&recipe, &corpus);
            if let (Err(e), None) = (session::check_brief(&recipe, &vocabulary), &recipe.model.from)
            {
                // They may come with `--tokenizers`.
                out.careful("recipe", format!("{e}, unless the tokenisers are another model's"));
            }
            vocabulary
        }
        Err(e) => {
            out.bad("data", e.to_string());
            return out.all;
        }
    };
    if let Err(e) = memory_fits(&mut out, &recipe, folder, &vocabulary) {
        out.bad("memory", e.to_string());
    }
    if out.works() {
        let seconds = session::sizes(&recipe, vocabulary.size())
            .and_then(|config| rehearsal::pretraining(&recipe, config));
        match seconds {
            Ok(seconds) => {
                let beside = "; tokenisers, codes and validation come on top";
                out.time(seconds, recipe.train.steps, beside);
            }
            Err(e) => out.bad("recipe", e.to_string()),
        }
    }
    out.all
}

/// The same of a tuning; what is bad, and what is wrong with it, ends it.
fn tuning(
    out: &mut Findings,
    path: &Path,
    folder: &Path,
) -> Result<(), (&'static str, danlu_core::Error)> {
    let recipe = TuneRecipe::load(path).map_err(|e| ("recipe", e))?;
    let r = &recipe.train;
    let before = out.all.len();
    warmup_ends(out, r.warmup, r.steps);
    let high = if recipe.lora.is_some() { 1e-2 } else { 1e-3 };
    if r.rate > high {
        let words = format!("train.rate ({}) is high: over {high} tunings tend to diverge", r.rate);
        out.careful("recipe", words);
    }
    guards(out, &recipe.guard);
    checkpoint::can_copy(&recipe.checkpoint).map_err(|e| ("recipe", e))?;
    if out.all.len() == before {
        out.good("recipe", format!("{} steps", r.steps));
    }
    let found = tune::resume(folder).ok();
    folder_works(out, folder, found.map(|f| f.1.for_training() == recipe.for_training()));
    let base = Model::folder(&recipe.model);
    let config = Model::config(&base).map_err(|e| ("files", e))?;
    Model::check_files(&base).map_err(|e| ("files", e))?;
    out.good("files", format!("the base, {}, is whole", base.display()));
    // Before the base is read, which takes memory too.
    let load = memory::tuning(&recipe, &config);
    let prediction = memory::predict(&memory::Sizes::from(&config), &load);
    let with = "full windows, a checkpoint being written";
    fits(out, &prediction, &tune::remedies(&recipe), with).map_err(|e| ("memory", e))?;
    let learns = load.adapters.map_or(memory::Sizes::from(&config).parameters(), |a| a.values);
    room(out, folder, 3 * size_of::<f32>() * learns, recipe.checkpoint.keep + 4);
    tune::check_window(&recipe, &config).map_err(|e| ("recipe", e))?;
    let device = danlu_ops::cpu_device();
    let (model, ..) =
        Model::load_adapted(&base, &recipe.adapters, &device).map_err(|e| ("files", e))?;
    let mut told = Told::default();
    let lessons = Lessons::read(&recipe, &model, &mut told).map_err(|e| ("data", e))?;
    Held::read(&recipe, &model, &mut told).map_err(|e| ("data", e))?;
    for (set, rows) in recipe.data.iter().zip(lessons.sizes()) {
        out.good("data", format!("{}: {rows} to learn from", set.file.display()));
    }
    if let Some(first) = told.0.first() {
        let (n, limit) = (told.0.len(), recipe.max_bad_rows);
        let words = format!("{n} left out (bad rows allowed: {limit}); the first: {first}");
        out.careful("data", words);
    }
    if out.works() {
        let teacher = Teacher::of(&recipe, &model, &mut told).map_err(|e| ("files", e))?;
        let seconds = rehearsal::tuning(&recipe, &model, &lessons, teacher.as_ref());
        out.time(seconds.map_err(|e| ("recipe", e))?, r.steps, "");
    }
    Ok(())
}

/// What was told of rows.
#[derive(Default)]
struct Told(Vec<String>);

impl Watcher for Told {
    fn tell(&mut self, event: Event) {
        if let Event::Note(text) = event {
            self.0.push(text);
        }
    }
}

/// A time for people.
fn lasting(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn machine(out: &mut Findings) {
    let threads = rayon::current_num_threads();
    let peak = danlu_ops::fma_peak(threads, 0.1) / 1e9;
    out.good("machine", format!("{threads} threads, {peak:.0} GFLOP/s of multiply-adds"));
    match danlu_ops::available_memory() {
        Some(bytes) => out.good("machine", format!("{} of memory available", megabytes(bytes))),
        None => out.careful("machine", "nobody tells how much memory is available"),
    }
}

fn megabytes(bytes: usize) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

fn recipe_sense(out: &mut Findings, recipe: &Recipe) {
    let r = &recipe.train;
    let before = out.all.len();
    warmup_ends(out, r.warmup, r.steps);
    let rates = [("train.rate", r.rate, 1.5e-2), ("train.muon_rate", r.muon_rate, 0.15)];
    let used = if r.optimiser == Optimiser::Muon { 2 } else { 1 };
    for (name, rate, high) in rates.into_iter().take(used) {
        if rate > high {
            out.careful(
                "recipe",
                format!("{name} ({rate}) is high: over {high} trainings tend to diverge"),
            );
        }
    }
    if r.checkpoint > r.steps && r.validate > r.steps && recipe.checkpoint.minutes == 0.0 {
        out.careful("recipe", "no checkpoint before the last step; see train.checkpoint");
    }
    guards(out, &recipe.guard);
    if out.all.len() == before {
        let (steps, tokens) = (r.steps, r.steps * r.rows * r.window * r.accumulate);
        let words = format!("{steps} steps of up to {:.1} M tokens in all", tokens as f64 / 1e6);
        out.good("recipe", words);
    }
}

fn warmup_ends(out: &mut Findings, warmup: usize, steps: usize) {
    if warmup >= steps {
        let words = format!("train.warmup ({warmup}) is not over before train.steps ({steps})");
        out.careful("recipe", words);
    }
}

fn guards(out: &mut Findings, guard: &GuardRecipe) {
    if !guard.on {
        out.careful("recipe", "guard.on is false: trouble is not answered");
    }
}

/// Writes and flushes a few megabytes where the run will be, and tells whether the run that is there is
/// of the `same` recipe, if there is one.
fn folder_works(out: &mut Findings, folder: &Path, same: Option<bool>) {
    let existing = folder.ancestors().find(|a| a.is_dir()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let file = existing.join(format!(".danlu-doctor-{}", std::process::id()));
    let bytes = vec![0x5a; 8 << 20];
    let began = Instant::now();
    match danlu_model::io::write_atomically(&file, &bytes) {
        Ok(()) => {
            let rate = bytes.len() as f64 / 1e6 / began.elapsed().as_secs_f64();
            out.good("files", format!("{} can be written, {rate:.0} MB/s", existing.display()));
        }
        Err(e) => out.bad("files", e.to_string()),
    }
    // If it could not be written it is not there.
    let _ = std::fs::remove_file(&file);
    let folder = folder.display();
    match same {
        Some(false) => out.bad("files", format!("{folder} holds the run of another recipe")),
        Some(true) => out.good("files", format!("{folder} goes on with this recipe")),
        None => {}
    }
}

/// Whether there is the memory for what was reckoned `with` something.
fn fits(
    out: &mut Findings,
    prediction: &memory::Prediction,
    would_help: &str,
    with: &str,
) -> Result<()> {
    let tight = memory::check(prediction, danlu_ops::available_memory(), would_help)?;
    out.good("memory", format!("{prediction} ({with})"));
    tight.into_iter().for_each(|told| out.careful("memory", told));
    Ok(())
}

fn data(out: &mut Findings, recipe: &Recipe, corpus: &Corpus) {
    let train = [
        ("pictures", corpus.pictures.iter().filter(|p| p.split == Split::Train).count()),
        ("sounds", corpus.sounds.iter().filter(|s| s.split == Split::Train).count()),
        ("texts", corpus.texts.iter().filter(|t| t.split == Split::Train).count()),
        ("conversations", corpus.samples.len()),
    ];
    let train: Vec<String> = train.iter().map(|(name, n)| format!("{n} {name}")).collect();
    out.good(
        "data",
        format!("to train on: {}; every file of the packs has its hash", train.join(", ")),
    );
    if !corpus.skipped.is_empty() {
        let (n, limit) = (corpus.skipped.len(), recipe.data.max_bad_rows);
        let first = &corpus.skipped[0];
        out.careful(
            "data",
            format!("{n} left out (bad rows allowed: {limit}); the first: {first}"),
        );
    }
    match Mixture::new(&recipe.mixture, corpus) {
        Ok(mixture) => {
            out.good("data", format!("each of {} tasks has data", mixture.names().len()))
        }
        Err(e) => out.bad("data", e.to_string()),
    }
}

/// Checks conversations against the window if the run has tokenisers already, and what is held out where
/// `texts_held` says that it is text alone.
fn lengths(
    out: &mut Findings,
    recipe: &Recipe,
    run: &Run,
    (corpus, texts_held): (&mut Corpus, bool),
) -> Result<Option<Vocabulary>> {
    if !run.tokenisers().is_dir() {
        let words = "no tokenisers yet: lengths of conversations are checked when there are";
        out.good("data", words);
        return Ok(None);
    }
    let foreign = match &recipe.model.from {
        Some(base) => Model::vocabulary(base)?.foreign,
        None => None,
    };
    let Ok(tokenisers) = Tokenisers::load(&run.tokenisers(), foreign, &danlu_ops::cpu_device())
    else {
        out.good("data", "the tokenisers are not all learnt yet");
        return Ok(None);
    };
    // Pictures and sounds would have to be turned into tokens first.
    if texts_held {
        held_out::read(recipe, &tokenisers, &mut Silent)?;
    }
    let print = codes_fingerprint(recipe, run, corpus)?;
    if let Some(codes) = CodeTable::load(&run.folder.join("codes.bin"), &print) {
        let before = corpus.samples.len();
        pretrain::check_lengths(recipe, corpus, &tokenisers, &codes)?;
        let (left, window) = (corpus.samples.len(), recipe.train.window);
        match before - left {
            0 => out.good("data", format!("every conversation fits train.window ({window})")),
            n => out.careful("data", format!("{n} conversations are over train.window ({window})")),
        }
    }
    Ok(Some(tokenisers.vocabulary()))
}

/// What the vocabulary will be.
fn expected_vocabulary(recipe: &Recipe, corpus: &Corpus) -> Vocabulary {
    let book = |steps: usize, levels: &[u32]| if steps > 0 { levels.iter().product() } else { 0 };
    let (image, audio) = (&recipe.image, &recipe.audio);
    let classes = |steps: usize, classes: usize| if steps > 0 { classes as u32 } else { 0 };
    Vocabulary {
        text: recipe.text.vocabulary,
        image: book(image.steps, &image.levels),
        audio: book(audio.steps, &audio.levels),
        image_semantic: classes(image.semantic.steps, picture_classes(corpus).count),
        audio_semantic: classes(audio.semantic.steps, sound_classes(corpus).count),
        places: PLACES,
        foreign: None,
    }
}

/// Refuses a training before its tokenisers are learnt, which takes minutes: an object store that
/// this build cannot open, held-out files that cannot be read, sizes that make no model, and more memory than
/// there is, by the vocabulary that the tokenisers will have.
pub fn early(recipe: &Recipe, corpus: &Corpus) -> Result<()> {
    checkpoint::can_copy(&recipe.checkpoint)?;
    held_out::load(recipe)?;
    let (_, prediction, would_help) = reckoned(recipe, &expected_vocabulary(recipe, corpus))?;
    memory::check(&prediction, danlu_ops::available_memory(), &would_help).map(drop)
}

/// Refuses to learn tokenisers of pictures and sounds where there are none.
pub fn can_learn(recipe: &Recipe, corpus: &Corpus) -> Result<()> {
    if recipe.model.from.is_some() {
        // Its own are taken.
        return Ok(());
    }
    let none = |there: bool, steps: usize, name: &str, what: &str| {
        let wanted = format!("packs with {what} to learn from, or {name}.steps = 0");
        match there || steps == 0 {
            true => Ok(()),
            false => Err(Error::parameter("data.packs", wanted, "none")),
        }
    };
    let pictures = corpus.pictures.iter().any(|p| p.split == Split::Train);
    let sounds = corpus.sounds.iter().any(|s| s.split == Split::Train);
    none(pictures, recipe.image.steps, "image", "pictures")?;
    none(sounds, recipe.audio.steps, "audio", "sounds")
}

/// The sizes of a recipe's model, the memory that its training takes, and what would lower it.
fn reckoned(
    recipe: &Recipe,
    vocabulary: &Vocabulary,
) -> Result<(memory::Sizes, memory::Prediction, String)> {
    let config = session::sizes(recipe, vocabulary.size())?;
    session::check_window(recipe, &config)?;
    let sizes = memory::Sizes::from(&config);
    let load = load(recipe, config.depth)?;
    let prediction = memory::predict(&sizes, &load);
    let would_help = memory::remedies(&sizes, &load);
    Ok((sizes, prediction, would_help))
}

/// Reckons the peak on the longest batch there can be, with replies and a checkpoint being written,
/// and what the checkpoints take.
fn memory_fits(
    out: &mut Findings,
    recipe: &Recipe,
    folder: &Path,
    vocabulary: &Vocabulary,
) -> Result<()> {
    let (sizes, prediction, would_help) = reckoned(recipe, vocabulary)?;
    let with = "full windows, replies, a checkpoint being written";
    fits(out, &prediction, &would_help, with)?;
    let copies = if recipe.train.ema > 0.0 { 4 } else { 3 };
    let one = copies * size_of::<f32>() * sizes.parameters();
    // Those that the guard may go back to, one being written, and the best.
    let most = recipe.checkpoint.keep + 4 + usize::from(recipe.checkpoint.best);
    room(out, folder, one, most);
    Ok(())
}

/// Whether there is room for `most` checkpoints of `one` bytes each.
fn room(out: &mut Findings, folder: &Path, one: usize, most: usize) {
    let existing = folder.ancestors().find(|a| a.is_dir()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let words =
        format!("checkpoints of {} each, at most {most}, in {}", megabytes(one), folder.display());
    match rustix::fs::statvfs(existing) {
        Ok(disk) => {
            let free = (disk.f_bavail * disk.f_frsize) as usize;
            let level = if free < one * most { Level::Bad } else { Level::Good };
            out.add("files", level, format!("{words}; {} are free", megabytes(free)));
        }
        Err(e) => out.careful("files", format!("{words}; what is free is not known: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_told() {
        let recipe = |train: &str| {
            let text = format!("name='a'\n[data]\n[train]\n{train}\n[mixture]\nx=1.0\n");
            Recipe::parse(&text).expect("valid")
        };
        let words = |train: &str| {
            let mut out = Findings::new(None);
            recipe_sense(&mut out, &recipe(train));
            let all: Vec<String> =
                out.all.iter().map(|f| format!("{:?} {}", f.level, f.words)).collect();
            all.join("\n")
        };
        assert!(words("steps=1000").starts_with("Good"));
        for (train, want) in [
            ("steps=40", "Careful train.warmup (50)"),
            ("steps=1000\nrate=0.04", "Careful train.rate (0.04)"),
            ("steps=1000\noptimiser='muon'\nmuon_rate=0.4", "Careful train.muon_rate"),
            ("steps=100\nwarmup=1", "Careful no checkpoint before the last step"),
        ] {
            assert!(words(train).contains(want), "{train}: {}", words(train));
        }
    }

    #[test]
    fn a_missing_recipe_and_an_unusable_folder_are_bad() {
        let missing = examine(Path::new("no/such.toml"), Path::new("runs/none"), None);
        let last = missing.last().expect("findings");
        assert_eq!((last.of, last.level), ("recipe", Level::Bad));
        assert!(last.words.contains("no/such.toml"), "{last:?}");
    }
}
