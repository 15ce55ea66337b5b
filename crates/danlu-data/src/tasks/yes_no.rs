use super::*;

/// "Is this a ...?" Half of the answers are yes. Half of the wrong names are those of related
/// concepts, so that the family of a thing is not enough to know.
pub(super) struct YesNo;

const WORDINGS: Wordings = Wordings::new(
    &["Is this {}?", "Does it show {}?", "Do you see {}?", "Can this be {}?"],
    &["这是{}吗？", "图里有{}吗？", "你看到{}了吗？"],
);

impl Task for YesNo {
    fn name(&self) -> &'static str {
        "yes_no"
    }

    fn help(&self) -> &'static str {
        "picture and a name -> yes or no"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        let language = Language::any(rng);
        let code = language.code();
        let yes = rng.below(2) == 0;
        let hard = rng.below(2) == 0;
        from_concept(corpus, view, rng, |concept, rng| {
            let right = concept.name(code)?;
            let picture = asked_picture(corpus, concept, view, rng)?;
            let asked = match yes {
                true => right,
                false => wrong_name(corpus, concept, right, code, hard, rng)?,
            };
            let instruction = WORDINGS.pick(language, rng).replace("{}", asked);
            let answer = match yes {
                true => language.of("yes", "是"),
                false => language.of("no", "不是"),
            };
            let question = in_any_order(instruction, image(picture), rng);
            Some(ask(self, view, question, vec![text(answer)], Some(concept.label())))
        })
    }
}

/// The name of a trained concept that is not `right`; of a related one if `hard` and there is one.
fn wrong_name<'a>(
    corpus: &'a Corpus,
    concept: &ConceptEntry,
    right: &str,
    code: &str,
    hard: bool,
    rng: &mut Rng,
) -> Option<&'a str> {
    let name = |&i: &u32| {
        let other = &corpus.concepts[i as usize];
        let name = other.name(code)?;
        (other.split == Split::Train && name != right).then_some(name)
    };
    let related: Vec<&str> =
        if hard { concept.related.iter().filter_map(name).collect() } else { Vec::new() };
    one(&related, rng).or_else(|| {
        from_concept(corpus, View::Train, rng, |other, _| {
            other.name(code).filter(|&name| name != right)
        })
    })
}
