use super::*;

/// Speech to image, with no text in between.
pub(super) struct DrawHeard(pub(super) Language);

const WORDINGS: Wordings = Wordings::new(
    &["Draw what you hear", "Draw this", "Picture what is said", "Show what you hear"],
    &["画出你听到的", "听音画图", "把听到的画出来"],
);

impl Task for DrawHeard {
    fn name(&self) -> &'static str {
        self.0.of("draw_heard_en", "draw_heard_zh")
    }

    fn help(&self) -> &'static str {
        self.0.of("spoken English -> picture", "spoken Chinese -> picture")
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let sound = asked_sound(corpus, concept, view, rng, |s| speaks(s, self.0.code()))?;
            let picture = default_picture(corpus, concept)?;
            let instruction = WORDINGS.pick(self.0.mostly(rng), rng);
            let question = in_any_order(instruction, audio(sound), rng);
            Some(ask(self, view, question, vec![image(picture)], Some(concept.label())))
        })
    }
}
