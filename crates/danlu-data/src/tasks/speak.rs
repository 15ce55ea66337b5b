use super::say::with_voice;
use super::*;

/// Text to speech. A voice that is not the default is named.
pub(super) struct Speak(pub(super) Language);

const WORDINGS: Wordings =
    Wordings::new(&danlu_core::instruction::SPEAK_EN, &danlu_core::instruction::SPEAK_ZH);

impl Task for Speak {
    fn name(&self) -> &'static str {
        self.0.of("speak_en", "speak_zh")
    }

    fn help(&self) -> &'static str {
        self.0.of("English text -> speech", "Chinese text -> speech")
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        if matches!(view, View::HeldStyle | View::HeldVoice) {
            return None;
        }
        from_concept(corpus, view, rng, |concept, rng| {
            let (sound, must_name) =
                reply_sound(corpus, concept, rng, |s| speaks(s, self.0.code()))?;
            let asset = corpus.sound(sound);
            let language = self.0.mostly(rng);
            let instruction = WORDINGS.pick(language, rng).replace("{}", &asset.text);
            let question =
                vec![text(with_voice(&instruction, (&asset.voice, must_name), language, rng))];
            Some(ask(self, view, question, vec![audio(sound)], Some(concept.label())))
        })
    }
}
