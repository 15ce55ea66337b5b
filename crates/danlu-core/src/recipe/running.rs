//! The parts of a recipe that keep a run going: checkpoints and the guard. A part
//! that says nothing but the defaults is not written out, so runs from before it are the same runs.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which checkpoints are written and kept. Changes no number of the training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointRecipe {
    /// The newest this many are kept.
    pub keep: usize,
    /// Whether the one with the lowest validation loss is kept too.
    pub best: bool,
    /// One more at least every so many minutes; 0: by steps alone.
    pub minutes: f32,
    /// Tensors are split into files of at most this many megabytes.
    pub shard_mb: usize,
    /// Address of a place in an object store where each is copied to, `s3://bucket/run` (with access
    /// by the environment: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, ...) or `file:///path`. A run without
    /// checkpoints goes on from the newest there. Needs a build with the feature `object-store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

impl Default for CheckpointRecipe {
    fn default() -> Self {
        Self { keep: 2, best: false, minutes: 0.0, shard_mb: 512, store: None }
    }
}

/// What watches a training, and what it may do about trouble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardRecipe {
    /// Whether it watches. Without it, steps whose gradient is not finite are still skipped.
    pub on: bool,
    /// Times that it may go back to an earlier state before it stops the run.
    pub rollbacks: usize,
    /// Steps in a row with a gradient that is not finite that it skips before it goes back.
    pub skips: usize,
    /// Steps in a row that it skips for bad data before it stops the run.
    pub bad_steps: usize,
    /// How far out a loss must be to be trouble, in standard deviations from what its tasks cost
    /// lately.
    pub deviations: f64,
    /// Steps of history that it wants before it judges by deviations.
    pub history: usize,
    /// What the learning rate is multiplied with after trouble that the rate is to blame for, where
    /// it cannot be told by how much it was too high.
    pub lower: f32,
    /// Steps over which the rate comes up again after going back.
    pub warmup: usize,
    /// Steps between looks at the scale of activations and the entropy of attention; 0: never.
    pub look: usize,
}

impl Default for GuardRecipe {
    fn default() -> Self {
        Self {
            on: true,
            rollbacks: 4,
            skips: 3,
            bad_steps: 50,
            deviations: 7.0,
            history: 24,
            lower: 0.3,
            warmup: 10,
            look: 50,
        }
    }
}

/// Where figures of a training go beside its own log. Changes no number of the training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackRecipe {
    /// Event files for TensorBoard, in the run's folder `tensorboard/`.
    pub tensorboard: bool,
    /// A file in the text format of Prometheus that is rewritten after every step, for a node
    /// exporter's textfile collector; relative to the run's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PathBuf>,
    /// Address of an MLflow server, such as `http://127.0.0.1:5000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<String>,
    /// Experiment on that server; default: the recipe's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// A dashboard in place of the progress bar, where the output is a terminal.
    pub dashboard: bool,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl CheckpointRecipe {
    pub(crate) fn check(&self) -> Result<()> {
        for (name, value) in
            [("checkpoint.keep", self.keep), ("checkpoint.shard_mb", self.shard_mb)]
        {
            if value == 0 {
                return Err(Error::parameter(name, "at least 1", value));
            }
        }
        if let Some(store) = self.store.as_ref().filter(|s| !s.contains("://")) {
            let wanted = "an address such as s3://bucket/run";
            return Err(Error::parameter("checkpoint.store", wanted, format!("{store:?}")));
        }
        if !(0.0..=1e6).contains(&self.minutes) {
            return Err(Error::parameter("checkpoint.minutes", "0 to 1000000", self.minutes));
        }
        Ok(())
    }
}

impl GuardRecipe {
    pub(crate) fn check(&self) -> Result<()> {
        let bounded = [
            ("guard.deviations", self.deviations, 1.0, 1e6),
            ("guard.lower", self.lower as f64, 1e-3, 1.0),
        ];
        for (name, value, low, high) in bounded {
            if !(low..=high).contains(&value) {
                return Err(Error::parameter(name, format!("a number in {low}..={high}"), value));
            }
        }
        for (name, value) in [("guard.skips", self.skips), ("guard.history", self.history)] {
            if value == 0 {
                return Err(Error::parameter(name, "at least 1", value));
            }
        }
        Ok(())
    }
}

impl TrackRecipe {
    pub(crate) fn check(&self) -> Result<()> {
        // Another ending may be that of a file of the run itself.
        if let Some(path) = &self.prometheus
            && path.extension().is_none_or(|ending| ending != "prom")
        {
            let wanted = "a file that ends in .prom, as collectors want it";
            return Err(Error::parameter("track.prometheus", wanted, format!("{path:?}")));
        }
        match &self.mlflow {
            Some(address) if !address.starts_with("http://") => {
                let wanted = "an address such as http://127.0.0.1:5000";
                Err(Error::parameter("track.mlflow", wanted, format!("{address:?}")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Recipe;

    const SMALL: &str = "name='a'\n[data]\n[train]\nsteps=10\n[mixture]\nname_en=1.0\n";

    #[test]
    fn what_is_not_said_is_not_written_and_changes_no_training() {
        let plain = Recipe::parse(SMALL).expect("valid");
        let text = plain.to_toml();
        for part in ["[checkpoint]", "[guard]", "[track]"] {
            assert!(!text.contains(part), "{part} in {text}");
        }
        for more in ["[checkpoint]\nkeep=5\nbest=true\n", "[track]\ntensorboard=true\n"] {
            let recipe = Recipe::parse(&format!("{SMALL}{more}")).expect(more);
            assert_ne!(recipe, plain);
            assert_eq!(recipe.for_training(), plain.for_training(), "{more}");
            assert_eq!(Recipe::parse(&recipe.to_toml()).expect("round trip"), recipe);
        }
        let guarded = Recipe::parse(&format!("{SMALL}[guard]\nrollbacks=1\n")).expect("valid");
        assert_ne!(guarded.for_training(), plain.for_training(), "the guard may change numbers");
    }

    #[test]
    fn impossible_values_name_the_parameter() {
        for (more, want) in [
            ("[checkpoint]\nkeep=0\n", "checkpoint.keep"),
            ("[checkpoint]\nminutes=-1\n", "checkpoint.minutes"),
            ("[checkpoint]\nstore='bucket'\n", "checkpoint.store"),
            ("[checkpoint]\nkep=3\n", "did you mean `keep`"),
            ("[track]\nmlflow='localhost'\n", "track.mlflow"),
            ("[guard]\nlower=0\n", "guard.lower"),
            ("[guard]\nskips=0\n", "guard.skips"),
            ("[guard]\nrollback=2\n", "did you mean `rollbacks`"),
        ] {
            let error = Recipe::parse(&format!("{SMALL}{more}")).expect_err(more).to_string();
            assert!(error.contains(want), "{more}: {error}");
        }
    }
}
