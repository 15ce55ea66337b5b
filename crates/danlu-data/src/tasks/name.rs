use super::*;

/// Image to name.
pub(super) struct Name(pub(super) Language);

/// Asked in the language of the answer.
const SAME: Wordings = Wordings::new(
    &["What is this?", "Name this picture.", "What do you see?", "What does it show?"],
    &["这是什么？", "图里是什么？", "看图说出名字。"],
);
/// Asked in the other language: the English ones want Chinese, the Chinese ones English.
const OTHER: Wordings = Wordings::new(
    &[
        "What is this in Chinese?",
        "Name this in Chinese.",
        "Its Chinese name?",
        "Say it in Chinese.",
    ],
    &["这个用英文怎么说？", "写出它的英文名。", "用英文命名这张图。"],
);

impl Task for Name {
    fn name(&self) -> &'static str {
        self.0.of("name_en", "name_zh")
    }

    fn help(&self) -> &'static str {
        self.0.of("picture -> its English name", "picture -> its Chinese name")
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let answer = concept.name(self.0.code())?;
            let picture = asked_picture(corpus, concept, view, rng)?;
            let language = self.0.mostly(rng);
            let wordings = if language == self.0 { &SAME } else { &OTHER };
            let question = in_any_order(wordings.pick(language, rng), image(picture), rng);
            Some(ask(self, view, question, vec![text(answer)], Some(concept.label())))
        })
    }
}
