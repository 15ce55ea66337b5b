//! Rows that a pretraining is measured on and never learns from: the recipe's `data.held_out`. They are a corpus of their
//! own, so that neither tokenisers nor codes nor the order of samples know of them.

use crate::codes::CodeTable;
use crate::lesson::Held;
use crate::run::data_name;
use crate::watch::{Event, Watcher};
use danlu_core::recipe::{LossWeights, Recipe};
use danlu_core::{Document, Error, Result, Sample};
use danlu_data::{Corpus, Purpose};
use danlu_model::Tokenisers;
use danlu_model::prompt::Template;

/// Tokens of each file that are measured at most, so that looking does not take as long as learning.
const MOST: usize = 1 << 16;

/// The rows of the held-out files, and how many conversations and texts there are after each file.
pub(crate) fn load(recipe: &Recipe) -> Result<(Corpus, Vec<[usize; 2]>)> {
    let data = &recipe.data;
    let mut corpus = Corpus::default();
    let mut ends = Vec::new();
    for file in &data.held_out {
        corpus.add_file(file, Purpose::Train, data.max_bad_rows, recipe.audio.max_seconds)?;
        ends.push([corpus.samples.len(), corpus.texts.len()]);
    }
    Ok((corpus, ends))
}

/// Bytes of text that a token stands for at most, about, in a vocabulary of this size.
const BYTES: usize = 8;

/// Of a held-out file whose rows are all so long that hardly one can fit `train.window`, before there are
/// tokenisers that could tell.
pub(crate) fn hardly_fits(recipe: &Recipe, held: &Corpus, ends: &[[usize; 2]]) -> Option<String> {
    let window = recipe.train.window;
    let bytes = |sample: &Sample| -> usize {
        let parts = sample.messages.iter().flat_map(|m| &m.parts);
        parts.map(|part| part.words().len()).sum()
    };
    let mut from = [0, 0];
    recipe.data.held_out.iter().zip(ends).find_map(|(file, &to)| {
        let [samples, texts] = std::mem::replace(&mut from, to);
        let shortest = held.samples[samples..to[0]].iter().map(bytes).min()?;
        (texts == to[1] && shortest > BYTES * window).then(|| {
            format!(
                "{}: its shortest row has {shortest} bytes of text, which hardly fit train.window \
                 ({window} tokens)",
                file.display()
            )
        })
    })
}

/// Reads the held-out files of a recipe. Replies count in conversations, everything in plain text.
///
/// # Errors
/// If a file has no usable row, or all of them have more than `data.max_bad_rows` that are not.
pub(crate) fn read(
    recipe: &Recipe,
    tokenisers: &Tokenisers,
    watcher: &mut dyn Watcher,
) -> Result<Held> {
    let (data, window) = (&recipe.data, recipe.train.window);
    let (corpus, ends) = load(recipe)?;
    corpus.skipped.iter().take(5).for_each(|words| watcher.tell(Event::Note(words.clone())));
    let codes = match corpus.pictures.len() + corpus.sounds.len() {
        0 => CodeTable::default(),
        _ => CodeTable::make(&corpus, tokenisers, 0, recipe.seed, watcher)?,
    };
    let template = Template::new(tokenisers);
    let mut sets: Vec<(String, Vec<Document>)> = Vec::new();
    let (mut sample, mut text) = (0, 0);
    for (file, [samples, texts]) in data.held_out.iter().zip(ends) {
        let (mut documents, mut tokens, mut long, mut left) = (Vec::new(), 0, 0, 0);
        let mut take = |document: Document| {
            let fits = tokens + document.ids.len() <= MOST || documents.is_empty();
            tokens += document.ids.len();
            match fits {
                true => documents.push(document),
                false => left += 1,
            }
        };
        for sample in &corpus.samples[sample..samples] {
            let codes = &mut codes.reader(None);
            let document = template.document(sample, codes, &LossWeights::default(), false, 0)?;
            match document.ids.len() <= window + 1 {
                true => take(document),
                false => long += 1,
            }
        }
        for doc in &corpus.texts[text..texts] {
            let whole = template.plain_text(&doc.text, &LossWeights::default(), 0);
            // Each piece begins with the last token of the one before, so that every token is predicted once.
            let mut from = 0;
            while from + 1 < whole.ids.len() {
                let to = whole.ids.len().min(from + window + 1);
                let (ids, weights) = (whole.ids[from..to].into(), whole.weights[from..to].into());
                take(Document { ids, weights, task: 0 });
                from = to - 1;
            }
        }
        (sample, text) = (samples, texts);
        if documents.is_empty() {
            let wanted =
                format!("at least one usable row of at most {window} tokens (train.window)");
            return Err(Error::file(file, wanted, format!("{long} longer ones")));
        }
        let name = data_name(file, |name| sets.iter().any(|(n, _)| n == name));
        for (count, words) in [
            (long, "rows are longer than train.window and not measured"),
            (left, "rows or pieces of texts are over what is measured of a file"),
        ] {
            if count > 0 {
                watcher.tell(Event::Note(format!("{name} (held out): {count} {words}")));
            }
        }
        sets.push((name, documents));
    }
    Ok(Held::of(sets))
}
