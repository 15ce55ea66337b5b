//! The recipe's proportions of tasks.

use crate::corpus::Corpus;
use crate::tasks::{self, Drawn, Task, View};
use danlu_core::{Error, Result, Rng};
use std::collections::BTreeMap;

/// How often a task may fail to draw before it is taken for broken.
const TRIES: usize = 100;

/// Which tasks are trained, and how much of each.
pub struct Mixture {
    tasks: Vec<&'static dyn Task>,
    weights: Vec<f32>,
}

impl Mixture {
    /// Checks that every task of `mixture` exists and, unless its weight is 0, that `corpus` has
    /// something for it.
    pub fn new(mixture: &BTreeMap<String, f32>, corpus: &Corpus) -> Result<Mixture> {
        let tasks = mixture.keys().map(|name| tasks::find(name)).collect::<Result<Vec<_>>>()?;
        let weights: Vec<f32> = mixture.values().copied().collect();
        if !weights.iter().any(|&w| w > 0.0) {
            return Err(Error::parameter("mixture", "a task with a weight over 0", "none"));
        }
        for (task, &weight) in tasks.iter().zip(&weights) {
            if weight > 0.0 && !can_draw(*task, corpus) {
                let name = task.name();
                return Err(Error::parameter(
                    format!("mixture.{name}"),
                    format!("data for it ({}) in the recipe's packs or files", task.help()),
                    "none",
                ));
            }
        }
        Ok(Mixture { tasks, weights })
    }

    /// Names of the tasks, in the order of their numbers.
    pub fn names(&self) -> Vec<&'static str> {
        self.tasks.iter().map(|t| t.name()).collect()
    }

    /// Sample `index` and the number of its task: a function of `seed` and `index` alone.
    pub fn draw(&self, corpus: &Corpus, seed: u64, index: u64) -> (u16, Drawn) {
        let mut rng = Rng::new(seed, index);
        let number = rng.weighted(&self.weights);
        let task = self.tasks[number];
        let drawn = (0..TRIES)
            .find_map(|_| task.draw(corpus, View::Train, &mut rng))
            .expect("the task drew from this corpus when the mixture was made");
        (number as u16, drawn)
    }
}

fn can_draw(task: &dyn Task, corpus: &Corpus) -> bool {
    let mut rng = Rng::new(0, 0);
    (0..TRIES).any(|_| task.draw(corpus, View::Train, &mut rng).is_some())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tasks::tests::tiny_corpus;

    fn mixture(tasks: &[(&str, f32)]) -> BTreeMap<String, f32> {
        tasks.iter().map(|&(name, weight)| (name.to_string(), weight)).collect()
    }

    #[test]
    fn follows_the_weights_and_depends_on_seed_and_index_alone() {
        let corpus = tiny_corpus();
        let names = mixture(&[("where", 1.0), ("name_en", 3.0), ("draw_en", 0.0)]);
        let mixture = Mixture::new(&names, corpus).unwrap();
        assert_eq!(mixture.names(), ["draw_en", "name_en", "where"]);
        let mut counts = [0; 3];
        for i in 0..2000 {
            let (number, drawn) = mixture.draw(corpus, 5, i);
            counts[number as usize] += 1;
            assert_eq!((number, drawn), mixture.draw(corpus, 5, i));
        }
        assert_eq!(counts[0], 0);
        assert!((1400..1600).contains(&counts[1]), "{counts:?}");
        assert!((0..50).any(|i| mixture.draw(corpus, 5, i) != mixture.draw(corpus, 6, i)));
    }

    #[test]
    fn unknown_and_impossible_tasks_are_named() {
        let corpus = tiny_corpus();
        let error = |tasks: &[(&str, f32)], corpus: &Corpus| {
            Mixture::new(&mixture(tasks), corpus).err().unwrap().to_string()
        };
        let typo = error(&[("nmae_en", 1.0)], corpus);
        assert!(typo.contains("mixture.nmae_en") && typo.contains("`name_en`"), "{typo}");
        let empty = error(&[("effect", 1.0)], &Corpus::default());
        assert!(empty.contains("mixture.effect") && empty.contains("sound of a thing"), "{empty}");
        assert!(error(&[("name_en", 0.0)], corpus).contains("weight over 0"));
    }
}
