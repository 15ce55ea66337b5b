//! Where figures of a training go beside its own log, as the recipe's `[track]` says: one file each.
//! None is needed, and none can stop a training: one that fails is told of and left out from then on.

mod http;
mod mlflow;
mod prometheus;
mod tensorboard;

use crate::pretrain::{LogLine, Losses};
use crate::run::Run;
use crate::tune::TuneLine;
use crate::watch::{Event, Watcher};
use danlu_core::recipe::TrackRecipe;
use danlu_core::{Error, Result};
use serde::Serialize;
use serde_json::Value;

/// How a training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its last step.
    Finished,
    /// Before it, asked to stop.
    Stopped,
    /// Before it, by an error.
    Failed,
}

/// Somewhere that figures go.
trait Track {
    /// How it is called in a recipe.
    fn name(&self) -> &'static str;

    /// Takes the figures of a step.
    fn step(&mut self, step: u64, figures: &[(String, f64)]) -> Result<()>;

    /// The training has gone back: what it had of steps after `step` does not count.
    fn back(&mut self, step: u64) -> Result<()>;

    /// There is nothing more to come.
    fn end(&mut self, end: End) -> Result<()>;
}

/// What of a recipe trackers are told.
pub struct About<'a> {
    /// Which of them are wanted.
    pub track: &'a TrackRecipe,
    /// The recipe's name.
    pub name: &'a str,
    /// All of it.
    pub recipe: Value,
}

/// Does a training's work with trackers, which the work opens, and ends them as it ended.
pub fn tracked<T>(
    watcher: &mut dyn Watcher,
    work: impl FnOnce(&mut Trackers, &mut dyn Watcher) -> Result<T>,
) -> Result<T> {
    let mut trackers = Trackers::none();
    let done = work(&mut trackers, watcher);
    let end = match &done {
        Ok(_) => End::Finished,
        Err(Error::Stopped(_)) => End::Stopped,
        Err(_) => End::Failed,
    };
    trackers.end(end, watcher);
    done
}

/// A recipe as JSON.
pub fn to_value(recipe: &impl Serialize) -> Value {
    serde_json::to_value(recipe).unwrap_or_default()
}

/// All that a recipe asks for.
pub struct Trackers(Vec<Box<dyn Track>>);

impl Trackers {
    /// None.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Opens them for a run that goes on from `step`. What cannot be opened is told of.
    pub fn open(about: &About<'_>, run: &Run, step: u64, watcher: &mut dyn Watcher) -> Self {
        let r = about.track;
        let mut all: Vec<Result<Box<dyn Track>>> = Vec::new();
        if r.tensorboard {
            let opened = tensorboard::Writer::open(&run.folder.join("tensorboard"), step);
            all.push(opened.map(|t| Box::new(t) as Box<dyn Track>));
        }
        if let Some(file) = &r.prometheus {
            all.push(Ok(Box::new(prometheus::File::new(run.folder.join(file), about.name))));
        }
        if let Some(address) = &r.mlflow {
            let opened = mlflow::Client::open(address, about, run, step);
            all.push(opened.map(|t| Box::new(t) as Box<dyn Track>));
        }
        let mut this = Self(Vec::new());
        for one in all {
            match one {
                Ok(one) => this.0.push(one),
                Err(e) => watcher.tell(Event::Note(format!("not tracked: {e}"))),
            }
        }
        this
    }

    /// Gives the figures of a step to all of them.
    pub fn step(&mut self, step: u64, figures: &[(String, f64)], watcher: &mut dyn Watcher) {
        self.each(watcher, |t| t.step(step, figures));
    }

    /// Tells all of them that the training has gone back to `step`.
    pub fn back(&mut self, step: u64, watcher: &mut dyn Watcher) {
        self.each(watcher, |t| t.back(step));
    }

    /// Ends all of them.
    pub fn end(&mut self, end: End, watcher: &mut dyn Watcher) {
        self.each(watcher, |t| t.end(end));
    }

    fn each(&mut self, watcher: &mut dyn Watcher, mut f: impl FnMut(&mut dyn Track) -> Result<()>) {
        self.0.retain_mut(|t| match f(t.as_mut()) {
            Ok(()) => true,
            Err(e) => {
                let name = t.name();
                watcher.tell(Event::Note(format!("track.{name} is left out from here on: {e}")));
                false
            }
        });
    }
}

/// A step and its figures by name.
type Figures = (u64, Vec<(String, f64)>);

/// The figures of every step that a run has logged.
fn logged(run: &Run) -> Result<Vec<Figures>> {
    let path = run.log(crate::run::LOG);
    let lines: Vec<LogLine> = crate::run::entries(&path)?;
    if !lines.is_empty() {
        return Ok(lines.iter().map(|l| (l.step as u64, figures(l))).collect());
    }
    let lines: Vec<TuneLine> = crate::run::entries(&path)?;
    Ok(lines.iter().map(|l| (l.step as u64, tuning_figures(l))).collect())
}

/// The figures of a line of the log, by name: `loss`, `loss/image`, `task/name_en`, ...
pub fn figures(line: &LogLine) -> Vec<(String, f64)> {
    let mut all = of_step(line.loss, line.norm, line.rate, line.tokens, line.speed);
    all.push(("utilisation".into(), line.utilisation));
    let health = line.health.as_ref();
    let groups = [
        ("loss", Some(&line.modality)),
        ("task", Some(&line.task)),
        ("validation", Some(&line.validation)),
        ("experts", Some(&line.experts)),
        ("layer_gradient", health.map(|h| &h.norm)),
        ("layer_update", health.map(|h| &h.ratio)),
        ("layer_scale", health.map(|h| &h.scale)),
        ("layer_entropy", health.map(|h| &h.entropy)),
    ];
    for (group, values) in groups {
        all.extend(values.into_iter().flat_map(|values| of_group(group, values)));
    }
    all
}

/// The same of a tuning: `loss`, `figure/margin`, `held_out/FILE`, ...
pub fn tuning_figures(line: &TuneLine) -> Vec<(String, f64)> {
    let mut all = of_step(line.loss, line.norm, line.rate, line.tokens, line.speed);
    all.extend(of_group("figure", &line.figures));
    all.extend(of_group("held_out", &line.held_out));
    all
}

/// What a step of either regime has.
fn of_step(loss: f64, norm: f64, rate: f32, tokens: u64, speed: f64) -> Vec<(String, f64)> {
    let all = [
        ("loss", loss),
        ("gradient_norm", norm),
        ("rate", rate as f64),
        ("tokens", tokens as f64),
        ("tokens_per_second", speed),
    ];
    all.map(|(name, value)| (name.to_string(), value)).into()
}

fn of_group(group: &str, values: &Losses) -> impl Iterator<Item = (String, f64)> {
    values.iter().map(move |(name, value)| (format!("{group}/{name}"), *value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_core::Error;

    struct Failing;

    impl Track for Failing {
        fn name(&self) -> &'static str {
            "failing"
        }

        fn step(&mut self, step: u64, _: &[(String, f64)]) -> Result<()> {
            if step < 2 { Ok(()) } else { Err(Error::Other("gone".into())) }
        }

        fn back(&mut self, _: u64) -> Result<()> {
            Ok(())
        }

        fn end(&mut self, _: End) -> Result<()> {
            Err(Error::Other("it was left out".into()))
        }
    }

    struct Heard(Vec<String>);

    impl Watcher for Heard {
        fn tell(&mut self, event: Event) {
            if let Event::Note(text) = event {
                self.0.push(text);
            }
        }
    }

    #[test]
    fn one_that_fails_is_told_of_once_and_stops_nothing() {
        let mut trackers = Trackers(vec![Box::new(Failing)]);
        let mut heard = Heard(Vec::new());
        (1..5).for_each(|step| trackers.step(step, &[], &mut heard));
        trackers.end(End::Finished, &mut heard);
        assert_eq!(heard.0, ["track.failing is left out from here on: gone"]);
    }
}
