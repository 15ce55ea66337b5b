use super::*;

/// Speech to what is said, in the given language or (`None`) in any but English and Chinese.
pub(super) struct Transcribe(pub(super) Option<Language>);

const WORDINGS: Wordings =
    Wordings::new(&danlu_core::instruction::TRANSCRIBE_EN, &danlu_core::instruction::TRANSCRIBE_ZH);

impl Task for Transcribe {
    fn name(&self) -> &'static str {
        self.0.map_or("transcribe_other", |l| l.of("transcribe_en", "transcribe_zh"))
    }

    fn help(&self) -> &'static str {
        match self.0 {
            Some(Language::En) => "spoken English -> what is said",
            Some(Language::Zh) => "spoken Chinese -> what is said",
            None => "speech in any other language -> what is said",
        }
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        let wanted = |sound: &SoundAsset| match self.0 {
            Some(language) => speaks(sound, language.code()),
            None => {
                sound.kind == Some(SoundKind::Speech)
                    && !sound.text.is_empty()
                    && !speaks(sound, "en")
                    && !speaks(sound, "zh")
            }
        };
        from_concept(corpus, view, rng, |concept, rng| {
            let sound = asked_sound(corpus, concept, view, rng, wanted)?;
            let answer = corpus.sound(sound).text.as_str();
            let language = match self.0 {
                Some(language) => language.mostly(rng),
                None => Language::any(rng),
            };
            let question = in_any_order(WORDINGS.pick(language, rng), audio(sound), rng);
            Some(ask(self, view, question, vec![text(answer)], Some(concept.label())))
        })
    }
}
