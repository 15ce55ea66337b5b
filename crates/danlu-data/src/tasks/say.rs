use super::*;

/// Image to speech, with no text in between. A voice that is not the default is named.
pub(super) struct Say(pub(super) Language);

const SAME: Wordings = Wordings::new(
    &["Say what you see", "Say what this is", "Name this aloud", "Speak its name"],
    &["说出你看到的", "说出这是什么", "读出它的名字"],
);
/// Asked in the other language: the English ones want Chinese, the Chinese ones English.
const OTHER: Wordings = Wordings::new(
    &[
        "Say this in Chinese",
        "Name this aloud in Chinese",
        "Speak its Chinese name",
        "Chinese, aloud",
    ],
    &["用英语说出这是什么", "用英语读出它的名字", "说出它的英文名"],
);

impl Task for Say {
    fn name(&self) -> &'static str {
        self.0.of("say_en", "say_zh")
    }

    fn help(&self) -> &'static str {
        self.0.of("picture -> spoken English", "picture -> spoken Chinese")
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let picture = asked_picture(corpus, concept, view, rng)?;
            let (sound, must_name) =
                reply_sound(corpus, concept, rng, |s| speaks(s, self.0.code()))?;
            let language = self.0.mostly(rng);
            let wordings = if language == self.0 { &SAME } else { &OTHER };
            let voice = (corpus.sound(sound).voice.as_str(), must_name);
            let instruction = with_voice(wordings.pick(language, rng), voice, language, rng);
            let question = in_any_order(instruction, image(picture), rng);
            Some(ask(self, view, question, vec![audio(sound)], Some(concept.label())))
        })
    }
}

/// Adds the name of the voice, if it must be named, and else one time in six.
pub(super) fn with_voice(
    instruction: &str,
    (voice, must_name): (&str, bool),
    language: Language,
    rng: &mut Rng,
) -> String {
    if voice.is_empty() || !(must_name || rng.below(6) == 0) {
        return instruction.to_string();
    }
    language
        .of(format!("{instruction} in the {voice} voice"), format!("{instruction}，{voice}声音"))
}
