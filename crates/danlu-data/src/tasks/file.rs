use super::*;

/// Rows of the recipe's sample files, as they are, and texts of any length. They have no held-out part.
pub(super) struct File;

impl Task for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn help(&self) -> &'static str {
        "rows of the recipe's sample files (`data.files`)"
    }

    fn draw(&self, corpus: &Corpus, view: View, rng: &mut Rng) -> Option<Drawn> {
        if !view.is_trained() {
            return None;
        }
        let texts: Vec<_> = corpus.texts.iter().filter(|t| t.language == "file").collect();
        let count = corpus.samples.len() + texts.len();
        if count == 0 {
            return None;
        }
        let i = rng.below(count);
        let Some(sample) = corpus.samples.get(i) else {
            return Some(Drawn::Long(texts[i - corpus.samples.len()].text.clone()));
        };
        let mut sample = sample.clone();
        sample.task.get_or_insert_with(|| self.name().to_string());
        if view == View::Train {
            sample.expected = None;
        } else {
            let reply = sample.messages.pop_if(|m| m.role == Role::Assistant);
            sample.expected = sample.expected.or(reply.map(|m| m.parts));
        }
        Some(Drawn::Chat(sample))
    }
}
