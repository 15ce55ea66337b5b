use super::*;

/// The sound that a thing makes to its name.
pub(super) struct Effect;

const WORDINGS: Wordings = Wordings::new(
    &["What makes this sound?", "What do you hear?", "Name this sound.", "Whose sound is this?"],
    &["这是什么声音？", "什么在响？", "你听到了什么？"],
);

impl Task for Effect {
    fn name(&self) -> &'static str {
        "effect"
    }

    fn help(&self) -> &'static str {
        "sound of a thing -> its name"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let wanted = |s: &SoundAsset| s.kind == Some(SoundKind::Effect);
            let sound = asked_sound(corpus, concept, view, rng, wanted)?;
            let (language, name) = super::where_is::any_name(concept, rng)?;
            let question = in_any_order(WORDINGS.pick(language, rng), audio(sound), rng);
            Some(ask(self, view, question, vec![text(name)], Some(concept.label())))
        })
    }
}
