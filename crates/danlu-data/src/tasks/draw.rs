use super::*;

/// Name to image. A style that is not the default is named, the default one half of the time.
pub(super) struct Draw(pub(super) Language);

const WORDINGS: Wordings =
    Wordings::new(&danlu_core::instruction::DRAW_EN, &danlu_core::instruction::DRAW_ZH);
/// Around a name in the other language.
const OTHER: Wordings = Wordings::new(
    &["Draw “{}”", "A picture of “{}”", "Show me “{}”", "Paint “{}”"],
    &["画“{}”", "请画一个“{}”", "给我看“{}”"],
);

impl Task for Draw {
    fn name(&self) -> &'static str {
        self.0.of("draw_en", "draw_zh")
    }

    fn help(&self) -> &'static str {
        self.0.of("English name -> picture", "Chinese name -> picture")
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        if matches!(view, View::HeldStyle | View::HeldVoice) {
            return None;
        }
        from_concept(corpus, view, rng, |concept, rng| {
            let name = concept.name(self.0.code())?;
            let (picture, must_name) = reply_picture(corpus, concept, rng)?;
            let language = self.0.mostly(rng);
            let wordings = if language == self.0 { &WORDINGS } else { &OTHER };
            let mut question = wordings.pick(language, rng).replace("{}", name);
            if must_name || rng.below(2) == 0 {
                let style = &corpus.picture(picture).style;
                question +=
                    &language.of(format!(" in the {style} style"), format!("，{style}风格"));
            }
            let label = Some(concept.label());
            Some(ask(self, view, vec![text(question)], vec![image(picture)], label))
        })
    }
}
