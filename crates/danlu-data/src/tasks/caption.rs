use super::*;

/// Image to a sentence. Where a concept has no caption, the sentence is composed of its name, the
/// picture's style and the group; not for held-out styles, whose names nobody could know.
pub(super) struct Caption;

const WORDINGS: Wordings = Wordings::new(
    &["Describe this picture.", "Caption this.", "Write a caption.", "Describe what you see."],
    &["描述这张图。", "写一句说明。", "说说你看到的。"],
);

impl Task for Caption {
    fn name(&self) -> &'static str {
        "caption"
    }

    fn help(&self) -> &'static str {
        "picture -> a sentence in English or Chinese"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let language = Language::any(rng);
            let picture = asked_picture(corpus, concept, view, rng)?;
            let caption = match concept.captions.get(language.code()) {
                Some(caption) if !caption.is_empty() => caption.clone(),
                _ if view == View::HeldStyle => return None,
                _ => compose(concept, &corpus.picture(picture).style, language)?,
            };
            let question = in_any_order(WORDINGS.pick(language, rng), image(picture), rng);
            Some(ask(self, view, question, vec![text(caption)], Some(concept.label())))
        })
    }
}

fn compose(concept: &ConceptEntry, style: &str, language: Language) -> Option<String> {
    let name = concept.name(language.code())?;
    let group = concept.group.replace('-', " ");
    Some(match (language, group.is_empty()) {
        (Language::En, true) => format!("{name}, in the {style} style."),
        (Language::En, false) => format!("{name}, in the {style} style, from {group}."),
        (Language::Zh, true) => format!("{name}，{style}风格。"),
        (Language::Zh, false) => format!("{name}，{style}风格，属于{group}。"),
    })
}
