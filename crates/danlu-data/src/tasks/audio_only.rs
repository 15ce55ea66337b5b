use super::*;

/// A sound alone, speech or effect: what sounds are like, whatever they are asked for.
pub(super) struct AudioOnly;

impl Task for AudioOnly {
    fn name(&self) -> &'static str {
        "audio_only"
    }

    fn help(&self) -> &'static str {
        "a sound without a prompt"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let sound = asked_sound(corpus, concept, view, rng, |_| true)?;
            Some(ask(self, view, Vec::new(), vec![audio(sound)], Some(concept.label())))
        })
    }
}
