use super::*;

/// A scene and a name to the box of that thing.
pub(super) struct Where;

const WORDINGS: Wordings = Wordings::new(
    &["Where is {}?", "Find {}.", "Box {}.", "Locate {}."],
    &["{}在哪里？", "找出{}。", "框出{}。"],
);

impl Task for Where {
    fn name(&self) -> &'static str {
        "where"
    }

    fn help(&self) -> &'static str {
        "picture of several things and a name -> its box"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        let scene = scene(corpus, view, rng)?;
        let object = rng.pick(&scene.objects);
        let concept = &corpus.concepts[object.concept as usize];
        let (language, name) = any_name(concept, rng)?;
        let instruction = WORDINGS.pick(language, rng).replace("{}", name);
        let question = in_any_order(instruction, image(scene.picture), rng);
        Some(ask(self, view, question, vec![text(places(object))], Some(concept.label())))
    }
}

/// The name in a random language, or in English if it has no Chinese one.
pub(super) fn any_name<'a>(
    concept: &'a ConceptEntry,
    rng: &mut Rng,
) -> Option<(Language, &'a str)> {
    let language = Language::any(rng);
    match concept.name(language.code()) {
        Some(name) => Some((language, name)),
        None => concept.name("en").map(|name| (Language::En, name)),
    }
}
