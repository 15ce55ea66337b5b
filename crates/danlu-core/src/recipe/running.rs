//! The part of a recipe that keeps a run going: checkpoints. A part
//! that says nothing but the defaults is not written out, so runs from before it are the same runs.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

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
}

impl Default for CheckpointRecipe {
    fn default() -> Self {
        Self { keep: 2, best: false, minutes: 0.0, shard_mb: 512 }
    }
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl CheckpointRecipe {
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in
            [("checkpoint.keep", self.keep), ("checkpoint.shard_mb", self.shard_mb)]
        {
            if value == 0 {
                return Err(Error::parameter(name, "at least 1", value));
            }
        }
        if !(0.0..=1e6).contains(&self.minutes) {
            return Err(Error::parameter("checkpoint.minutes", "0 to 1000000", self.minutes));
        }
        Ok(())
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
        assert!(!text.contains("[checkpoint]"), "{text}");
        let more = "[checkpoint]\nkeep=5\nbest=true\n";
        let recipe = Recipe::parse(&format!("{SMALL}{more}")).expect(more);
        assert_ne!(recipe, plain);
        assert_eq!(recipe.for_training(), plain.for_training(), "{more}");
        assert_eq!(Recipe::parse(&recipe.to_toml()).expect("round trip"), recipe);
    }

    #[test]
    fn impossible_values_name_the_parameter() {
        for (more, want) in [
            ("[checkpoint]\nkeep=0\n", "checkpoint.keep"),
            ("[checkpoint]\nminutes=-1\n", "checkpoint.minutes"),
            ("[checkpoint]\nkep=3\n", "did you mean `keep`"),
        ] {
            let error = Recipe::parse(&format!("{SMALL}{more}")).expect_err(more).to_string();
            assert!(error.contains(want), "{more}: {error}");
        }
    }
}
