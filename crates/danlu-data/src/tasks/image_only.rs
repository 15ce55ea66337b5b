use super::*;

/// A picture alone: what pictures look like, whatever they are asked for.
pub(super) struct ImageOnly;

impl Task for ImageOnly {
    fn name(&self) -> &'static str {
        "image_only"
    }

    fn help(&self) -> &'static str {
        "a picture without a prompt"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        from_concept(corpus, view, rng, |concept, rng| {
            let picture = asked_picture(corpus, concept, view, rng)?;
            Some(ask(self, view, Vec::new(), vec![image(picture)], Some(concept.label())))
        })
    }
}
