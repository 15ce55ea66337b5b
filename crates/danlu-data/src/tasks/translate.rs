use super::*;

/// A name to the name in the other language.
pub(super) struct Translate {
    pub(super) to: Language,
}

const TO_CHINESE: Wordings = Wordings::new(
    &[
        "{} in Chinese",
        "Translate to Chinese: {}",
        "Chinese for “{}”",
        "How is “{}” said in Chinese?",
    ],
    &["“{}”的中文", "译成中文：{}", "{}用中文怎么说？"],
);
const TO_ENGLISH: Wordings = Wordings::new(
    &[
        "{} in English",
        "Translate to English: {}",
        "English for “{}”",
        "How is “{}” said in English?",
    ],
    &["“{}”的英文", "译成英文：{}", "{}用英文怎么说？"],
);

impl Task for Translate {
    fn name(&self) -> &'static str {
        self.to.of("translate_zh_en", "translate_en_zh")
    }

    fn help(&self) -> &'static str {
        self.to.of("Chinese name -> English name", "English name -> Chinese name")
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        if matches!(view, View::HeldStyle | View::HeldVoice) {
            return None;
        }
        from_concept(corpus, view, rng, |concept, rng| {
            let name = concept.name(self.to.other().code())?;
            let answer = concept.name(self.to.code())?;
            let wordings = self.to.of(&TO_ENGLISH, &TO_CHINESE);
            let question = wordings.pick(Language::any(rng), rng).replace("{}", name);
            let label = Some(concept.label());
            Some(ask(self, view, vec![text(question)], vec![text(answer)], label))
        })
    }
}
