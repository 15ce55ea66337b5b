use super::where_is::any_name;
use super::*;

/// A scene and a box to the name of what is in it.
pub(super) struct WhatInBox;

const WORDINGS: Wordings = Wordings::new(
    &["What is in {}?", "Name {}.", "What is at {}?", "What does {} hold?"],
    &["{}里是什么？", "说出{}的名字。", "{}处是什么？"],
);

impl Task for WhatInBox {
    fn name(&self) -> &'static str {
        "what_in_box"
    }

    fn help(&self) -> &'static str {
        "picture of several things and a box -> the name of what is in it"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        let scene = scene(corpus, view, rng)?;
        let object = rng.pick(&scene.objects);
        let concept = &corpus.concepts[object.concept as usize];
        let (language, name) = any_name(concept, rng)?;
        let instruction = WORDINGS.pick(language, rng).replace("{}", &places(object));
        let question = in_any_order(instruction, image(scene.picture), rng);
        Some(ask(self, view, question, vec![text(name)], Some(concept.label())))
    }
}
