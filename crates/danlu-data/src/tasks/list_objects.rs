use super::*;

/// A scene to everything in it, `name<loc..>...; name<loc..>...`, from left to right, then from the
/// top down.
pub(super) struct ListObjects;

const WORDINGS: Wordings = Wordings::new(
    &["List all objects.", "What is where?", "Name and box everything.", "List what you see."],
    &["列出所有物体。", "什么在哪里？", "框出并说出一切。"],
);

impl Task for ListObjects {
    fn name(&self) -> &'static str {
        "list_objects"
    }

    fn help(&self) -> &'static str {
        "picture of several things -> all names with their boxes"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        let scene = scene(corpus, view, rng)?;
        let mut objects: Vec<_> = scene.objects.iter().collect();
        objects.sort_by_key(|o| (o.x0, o.y0));
        let list = |code: &str| -> Option<Vec<String>> {
            let line = |o: &&crate::scenes::SceneObject| {
                let name = corpus.concepts[o.concept as usize].name(code)?;
                Some(format!("{name}{}", places(o)))
            };
            objects.iter().map(line).collect()
        };
        let language = Language::any(rng);
        let (language, lines) = match list(language.code()) {
            Some(lines) => (language, lines),
            None => (Language::En, list("en")?),
        };
        let question = in_any_order(WORDINGS.pick(language, rng), image(scene.picture), rng);
        Some(ask(self, view, question, vec![text(lines.join("; "))], None))
    }
}
