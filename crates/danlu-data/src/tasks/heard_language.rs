use super::*;

/// Recorded human speech to the language it is in, by its English name (its code, if unknown).
pub(super) struct HeardLanguage;

const WORDINGS: Wordings = Wordings::new(
    &[
        "Which language is this?",
        "Name the language.",
        "What language is spoken?",
        "Which language?",
    ],
    &["这是哪种语言？", "说的是什么语言？", "哪国话？"],
);

const LANGUAGES: &[(&str, &str)] = &[
    ("bg", "bulgarian"),
    ("ca", "catalan"),
    ("cs", "czech"),
    ("da", "danish"),
    ("de", "german"),
    ("el", "greek"),
    ("en", "english"),
    ("es", "spanish"),
    ("eu", "basque"),
    ("fi", "finnish"),
    ("fr", "french"),
    ("gl", "galician"),
    ("he", "hebrew"),
    ("hu", "hungarian"),
    ("is", "icelandic"),
    ("it", "italian"),
    ("ja", "japanese"),
    ("ko", "korean"),
    ("nl", "dutch"),
    ("pl", "polish"),
    ("pt", "portuguese"),
    ("ro", "romanian"),
    ("ru", "russian"),
    ("sr", "serbian"),
    ("sv", "swedish"),
    ("ta", "tamil"),
    ("tr", "turkish"),
    ("uk", "ukrainian"),
    ("zh", "chinese"),
];

impl Task for HeardLanguage {
    fn name(&self) -> &'static str {
        "heard_language"
    }

    fn help(&self) -> &'static str {
        "recorded speech -> which language it is"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let wanted = |s: &SoundAsset| s.kind == Some(SoundKind::Speech) && !s.synthetic;
            let sound = asked_sound(corpus, concept, view, rng, wanted)?;
            let code = corpus.sound(sound).language.split(['-', '_']).next()?;
            let name = LANGUAGES.iter().find(|(c, _)| *c == code).map_or(code, |(_, name)| name);
            let instruction = WORDINGS.pick(Language::En.mostly(rng), rng);
            let question = in_any_order(instruction, audio(sound), rng);
            Some(ask(self, view, question, vec![text(name)], Some(concept.label())))
        })
    }
}
