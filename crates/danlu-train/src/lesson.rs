//! What a step of a tuning learns from: replies, preferences, or tries that a rule rewards.
//!
//! All three come down to a weight for each position. A reply's tokens have the weight 1. The
//! gradient of a preference (DPO) and of a reward (GRPO) is that of the cross-entropies, each times
//! a number that depends on the model as it is: so those numbers are worked out first, without
//! gradients, and are the weights of the batch.

use crate::fault;
use crate::memory::HELD_OUT;
use crate::pretrain::{Losses, forward, forward_at};
use crate::run::data_name;
use crate::tune::Learner;
use crate::watch::{Event, Watcher};
use danlu_core::recipe::{LossWeights, same_file};
use danlu_core::{
    Batch, Document, Error, Message, Modality, Objective, Part, Result, Reward, Rng, Role, Sample,
    TokenKind, TuneRecipe, TuneSet,
};
use danlu_data::{Packer, TuneRow, cut, read_tuning};
use danlu_model::engine::{Request, Sampling, generate};
use danlu_model::prompt::{FileCodes, Template, Value};
use danlu_model::{Model, Transformer};
use std::collections::BTreeMap;

/// What one step learns from.
#[derive(Debug)]
pub struct Lesson {
    /// Ids, targets, and the weight of each position.
    pub batch: Batch,
    /// What the weighted sum of cross-entropies is multiplied by.
    pub scale: f32,
    /// What logits are divided by.
    pub temperature: f32,
    /// Index of what the next step begins with.
    pub next: u64,
    /// What is minimised, where the weighted sum says nothing.
    pub loss: Option<f64>,
    /// Figures for the log.
    pub figures: Losses,
}

/// One thing to learn from.
#[derive(Debug, Clone)]
enum Item {
    /// A document whose weights say what counts.
    Document(Document),
    /// The better and the worse continuation of one prompt.
    Pair([Document; 2]),
    /// A prompt, and what the reply should be.
    Question { prompt: Vec<u32>, expected: String },
}

/// Every row of a recipe, and what is made of them.
#[derive(Debug)]
pub struct Lessons<'a> {
    recipe: &'a TuneRecipe,
    model: &'a Model,
    order: Order,
    /// Items of each file.
    items: Vec<Vec<Item>>,
}

/// What a manifest calls the rows of a file with all that they show and play.
fn as_learnt(name: &str) -> String {
    format!("{name}, with its pictures and sounds")
}

/// Held-out documents, ready to be measured.
#[derive(Debug)]
pub struct Held(Vec<(String, Vec<Batch>)>);

impl<'a> Lessons<'a> {
    /// Reads the files of a recipe. Rows that cannot be used are named; over the recipe's limit of
    /// them is an error.
    pub fn read(
        recipe: &'a TuneRecipe,
        model: &'a Model,
        watcher: &mut dyn Watcher,
    ) -> Result<Self> {
        let items = read_sets(recipe, &recipe.data, model, &recipe.objective, watcher)?;
        for (set, items) in recipe.data.iter().zip(&items) {
            if items.is_empty() {
                return Err(Error::file(&set.file, "at least one usable row", "none"));
            }
        }
        let shares: Vec<f32> = recipe.data.iter().map(|s| s.share).collect();
        let sizes = items.iter().map(Vec::len).collect();
        Ok(Self { recipe, model, order: Order::new(recipe.seed, &shares, sizes), items })
    }

    /// How much there is to learn from in each file.
    pub fn sizes(&self) -> Vec<usize> {
        self.items.iter().map(Vec::len).collect()
    }

    /// BLAKE3 of what is learnt of each file, by its name: rows as ids, pictures and sounds as well.
    pub fn contents(&self) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        for (set, items) in self.recipe.data.iter().zip(&self.items) {
            let mut hash = blake3::Hasher::new();
            let mut add = |ids: &[u32]| {
                ids.iter().for_each(|id| {
                    hash.update(&id.to_le_bytes());
                });
                hash.update(b"|");
            };
            for item in items {
                match item {
                    Item::Document(document) => add(&document.ids),
                    Item::Pair(both) => both.iter().for_each(|document| add(&document.ids)),
                    Item::Question { prompt, .. } => add(prompt),
                }
            }
            let name = data_name(&set.file, |name| out.contains_key(&as_learnt(name)));
            out.insert(as_learnt(&name), hash.finalize().to_hex().to_string());
        }
        out
    }

    /// An item by itself, of a pair the better reply: its batch, the name of its file and its text.
    /// `None` for questions.
    pub(crate) fn alone(&self, index: u64) -> Option<(Batch, String, String)> {
        let document = match self.item(index) {
            Item::Document(document) => document,
            Item::Pair([better, _]) => better,
            Item::Question { .. } => return None,
        };
        let mut document = document.clone();
        self.noise(&mut document, index);
        let v = self.model.tokenisers.vocabulary();
        let words = document.ids.iter().filter_map(|&id| match v.kind(id)? {
            TokenKind::Text(text) => Some(text),
            _ => None,
        });
        let text = self.model.tokenisers.text.decode(&words.collect::<Vec<_>>());
        let file = &self.recipe.data[self.order.at(index).0].file;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Some((side_by_side(&[document]), name, text))
    }

    fn item(&self, index: u64) -> &Item {
        let (set, row) = self.order.at(index);
        &self.items[set][row]
    }

    /// What step `step` learns from, beginning with item `next`.
    pub fn next(&self, learner: &Learner, next: u64, step: usize) -> Result<Lesson> {
        match &self.recipe.objective {
            Objective::Reply | Objective::Distil { .. } => self.replies(next),
            &Objective::Dpo { beta, pairs } => self.preferences(learner, next, pairs, beta),
            &Objective::Grpo { reward, questions, replies, max_tokens, temperature, beta } => {
                let tries = Tries { reward, questions, replies, max_tokens, temperature, beta };
                self.tries(learner, next, step, &tries)
            }
        }
    }

    fn replies(&self, next: u64) -> Result<Lesson> {
        let t = &self.recipe.train;
        let packer = Packer { rows: t.rows, window: t.window };
        let batch = packer.pack(next, &mut |i| match self.item(i) {
            Item::Document(document) => {
                let mut document = document.clone();
                self.noise(&mut document, i);
                Ok(Some(document))
            }
            _ => Ok(None),
        })?;
        let total: f32 = batch.weights.iter().sum();
        let next = batch.next;
        let scale = 1.0 / total.max(1e-6);
        Ok(Lesson { batch, scale, temperature: 1.0, next, loss: None, figures: Losses::new() })
    }

    /// DPO: minus the log of the sigmoid of `beta` times how much more the model has moved towards
    /// the better reply than towards the worse.
    fn preferences(&self, learner: &Learner, next: u64, pairs: usize, beta: f32) -> Result<Lesson> {
        let mut documents = Vec::new();
        for i in next..next + pairs as u64 {
            if let Item::Pair(both) = self.item(i) {
                let mut both = both.clone();
                both.iter_mut().for_each(|d| self.noise(d, i));
                documents.extend(both);
            }
        }
        let mut batch = side_by_side(&documents);
        let ours = sums(&batch, &forward(&learner.plain(), &batch, 1.0, 0.0).1, documents.len());
        let theirs =
            sums(&batch, &forward(&learner.reference, &batch, 1.0, 0.0).1, documents.len());
        // Sums of cross-entropies are minus log-probabilities.
        let moved: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| b - a).collect();
        let (mut loss, mut margin, mut right) = (0.0, 0.0, 0.0);
        let mut push = vec![0.0f32; documents.len()];
        for (i, pair) in moved.chunks_exact(2).enumerate() {
            let gap = beta as f64 * (pair[0] - pair[1]);
            let doubt = 1.0 / (1.0 + gap.exp());
            // Minus the log of the sigmoid, without overflow.
            loss += ((-gap).max(0.0) + (-gap.abs()).exp().ln_1p()) / pairs as f64;
            margin += gap / pairs as f64;
            right += f64::from(gap > 0.0) / pairs as f64;
            push[2 * i] = (beta as f64 * doubt) as f32;
            push[2 * i + 1] = -push[2 * i];
        }
        for (weight, &document) in batch.weights.iter_mut().zip(&batch.tasks) {
            *weight *= push[document as usize];
        }
        let figures = Losses::from([("margin".into(), margin), ("preferred".into(), right)]);
        let next = next + pairs as u64;
        let (scale, temperature) = (1.0 / pairs as f32, 1.0);
        Ok(Lesson { batch, scale, temperature, next, loss: Some(loss), figures })
    }

    /// GRPO (Shao et al., arXiv 2402.03300): several replies to each question, each pushed by how much better
    /// it did than the others, and held to the reference by the divergence from it. Every token counts the
    /// same, whatever the length of its reply (as in DAPO, arXiv 2503.14476), and log-probabilities are
    /// those at the temperature that replies were drawn at.
    fn tries(&self, learner: &Learner, next: u64, step: usize, t: &Tries) -> Result<Lesson> {
        let template = Template::new(&self.model.tokenisers);
        let plain = learner.plain();
        let how = Sampling { temperature: t.temperature, ..Sampling::default() };
        let mut requests = Vec::new();
        let mut wanted = Vec::new();
        for i in next..next + t.questions as u64 {
            let Item::Question { prompt, expected } = self.item(i) else { continue };
            for k in 0..t.replies {
                requests.push(Request {
                    prompt: prompt.clone(),
                    blank: Vec::new(),
                    to: Some(Modality::Text),
                    max_tokens: t.max_tokens,
                    text: how,
                    media: how,
                    guidance: 1.0,
                    seed: self.recipe.seed ^ (step as u64) << 20 ^ (i << 8) ^ k as u64,
                });
                wanted.push(expected.as_str());
            }
        }
        let replies =
            generate(&plain, template.vocabulary(), &requests, requests.len(), &mut |_| {})?;
        let mut rewards = Vec::new();
        let mut documents = Vec::new();
        for ((request, ids), expected) in requests.iter().zip(&replies).zip(&wanted) {
            let text = match template.reply(ids)?.into_iter().next() {
                Some(Value::Text(text)) => text,
                _ => String::new(),
            };
            rewards.push(if t.reward.of(&text, expected) { 1.0f64 } else { 0.0 });
            let mut weights = vec![0.0; request.prompt.len()];
            weights.resize(request.prompt.len() + ids.len(), 1.0);
            if ids.len() >= t.max_tokens
                && let Some(last) = weights.last_mut()
            {
                // The end of a reply that has no room left was nobody's choice.
                *last = 0.0;
            }
            let ids = [request.prompt.as_slice(), ids].concat();
            let document = Document { ids, weights, task: documents.len() as u16 };
            documents.push(document);
        }
        let mut advantages = Vec::with_capacity(rewards.len());
        for group in rewards.chunks(t.replies) {
            let mean = group.iter().sum::<f64>() / group.len() as f64;
            // Of a sample, as TRL has it.
            let variance = group.iter().map(|r| (r - mean).powi(2)).sum::<f64>()
                / (group.len() as f64 - 1.0).max(1.0);
            advantages.extend(group.iter().map(|r| (r - mean) / (variance.sqrt() + 1e-4)));
        }
        let mut batch = side_by_side(&documents);
        let [ours, theirs] = [&plain, &learner.reference]
            .map(|model| forward_at(model, &batch, 1.0, 0.0, t.temperature).1);
        let counted: f32 = batch.weights.iter().sum();
        let mut divergence = 0.0;
        for (i, weight) in batch.weights.iter_mut().enumerate() {
            if *weight > 0.0 {
                // The estimator of Schulman 2020: exp(u) - u - 1, with u the log-ratio of the two.
                let u = ((ours[i] - theirs[i]) as f64).clamp(-20.0, 20.0);
                divergence += (u.exp() - u - 1.0) / counted as f64;
                let advantage = advantages[batch.tasks[i] as usize];
                *weight = (advantage + t.beta as f64 * (u.exp() - 1.0)) as f32;
            }
        }
        let reward = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
        let figures = Losses::from([("reward".into(), reward), ("divergence".into(), divergence)]);
        let loss = Some(t.beta as f64 * divergence - reward);
        let next = next + t.questions as u64;
        let (scale, temperature) = (1.0 / counted.max(1.0), t.temperature);
        Ok(Lesson { batch, scale, temperature, next, loss, figures })
    }

    fn noise(&self, document: &mut Document, index: u64) {
        let vocabulary = self.model.tokenisers.vocabulary().size();
        fault::spoil(document, index, self.recipe.seed, vocabulary);
    }
}

/// Packed documents of some files of rows, to look at what runs through a model: batches of up to
/// four rows of `window` tokens, about `tokens` in all or as many as one round through the files gives.
///
/// # Errors
/// As those of reading the rows for a tuning.
pub fn documents(
    files: &[std::path::PathBuf],
    model: &Model,
    window: usize,
    tokens: usize,
    watcher: &mut dyn Watcher,
) -> Result<Vec<danlu_model::compress::Packed>> {
    let recipe = recipe_of_rows(files, std::path::Path::new("."), window, Objective::Reply)?;
    let lessons = Lessons::read(&recipe, model, watcher)?;
    let all: usize = lessons.items.iter().map(Vec::len).sum();
    let (mut out, mut next, mut read) = (Vec::new(), 0, 0);
    while read < tokens && (next as usize) < all {
        let batch = lessons.replies(next)?.batch;
        next = batch.next;
        read += batch.tokens;
        out.push((batch.ids.as_slice().into(), batch.starts.as_slice().into()));
    }
    Ok(out)
}

/// A recipe of a tuning of all weights of the model in `folder` on files of rows, with the usual
/// settings.
///
/// # Errors
/// If there is no file, or the objective is not within its bounds.
pub fn recipe_of_rows(
    files: &[std::path::PathBuf],
    folder: &std::path::Path,
    window: usize,
    objective: Objective,
) -> Result<TuneRecipe> {
    let set = |file: &std::path::PathBuf| TuneSet { file: file.clone(), share: 1.0 };
    let train = format!("steps = 1\nwindow = {window}");
    let text =
        format!("name = \"rows\"\nmodel = \".\"\ndata = [{{ file = \".\" }}]\n[train]\n{train}");
    let recipe = TuneRecipe::parse(&text)?;
    let data: Vec<TuneSet> = files.iter().map(set).collect();
    let recipe = TuneRecipe { model: folder.to_path_buf(), data, objective, ..recipe };
    TuneRecipe::parse(&recipe.to_toml())
}

/// The settings of GRPO.
struct Tries {
    reward: Reward,
    questions: usize,
    replies: usize,
    max_tokens: usize,
    temperature: f32,
    beta: f32,
}

/// Whether a reply is rewarded.
trait Rewards {
    fn of(self, reply: &str, expected: &str) -> bool;
    /// What `expected` lacks for a reply to be told from another.
    fn wants(self, expected: &str) -> Option<&'static str>;
}

impl Rewards for Reward {
    fn of(self, reply: &str, expected: &str) -> bool {
        let (reply, expected) = (reply.trim().to_lowercase(), expected.trim().to_lowercase());
        match self {
            Reward::Exact => reply == expected,
            Reward::Contains => reply.contains(&expected),
            Reward::Number => {
                let last = last_number(&expected);
                last.is_some() && last_number(&reply) == last
            }
        }
    }

    fn wants(self, expected: &str) -> Option<&'static str> {
        match self {
            Reward::Number if last_number(expected).is_none() => {
                Some("`expected` to hold a number")
            }
            Reward::Contains if expected.trim().is_empty() => Some("`expected` to say something"),
            _ => None,
        }
    }
}

/// The last number in a text, thousands' commas left out. A hyphen after a letter or a digit is no sign.
fn last_number(text: &str) -> Option<f64> {
    let bare: Vec<char> = text.chars().filter(|c| *c != ',').collect();
    let digits = |c: &char| c.is_ascii_digit() || *c == '.';
    let mut end = bare.len();
    while end > 0 {
        let Some(last) = bare[..end].iter().rposition(char::is_ascii_digit) else { break };
        let start = bare[..last].iter().rposition(|c| !digits(c)).map_or(0, |at| at + 1);
        let sign = start > 0 && bare[start - 1] == '-';
        let signed = sign && (start < 2 || !bare[start - 2].is_alphanumeric());
        let number: String = bare[start - usize::from(signed)..=last].iter().collect();
        // Dots before it may be the end of what was said.
        let bare = number.trim_start_matches('.');
        if let Some(number) = [&number, bare].into_iter().find_map(|n| n.parse().ok()) {
            return Some(number);
        }
        end = start;
    }
    None
}

/// Documents one after the other without filling; the task of a position is its document's number.
fn side_by_side(documents: &[Document]) -> Batch {
    let mut batch = Batch::default();
    for (number, d) in documents.iter().enumerate() {
        let length = d.ids.len() - 1;
        batch.starts.push(batch.ids.len() as u32);
        batch.ids.extend(&d.ids[..length]);
        batch.targets.extend(&d.ids[1..]);
        batch.weights.extend(&d.weights[1..]);
        batch.tasks.extend(std::iter::repeat_n(number as u16, length));
        batch.tokens += length;
    }
    batch.starts.push(batch.ids.len() as u32);
    batch
}

/// Weighted sums of cross-entropies by document.
fn sums(batch: &Batch, each: &[f32], documents: usize) -> Vec<f64> {
    let mut out = vec![0.0; documents];
    for (i, &ce) in each.iter().enumerate() {
        out[batch.tasks[i] as usize] += (ce * batch.weights[i]) as f64;
    }
    out
}

impl Held {
    /// Reads the held-out files of a recipe; of pairs the better reply counts, of questions what is
    /// expected.
    pub fn read(recipe: &TuneRecipe, model: &Model, watcher: &mut dyn Watcher) -> Result<Self> {
        let sets = read_sets(recipe, &recipe.held_out, model, &Objective::Reply, watcher)?;
        let learnt = |set: &&TuneSet| recipe.data.iter().any(|d| same_file(&d.file, &set.file));
        for set in recipe.held_out.iter().filter(learnt) {
            let words = "is learnt from as well: what is measured on it is no validation";
            watcher.tell(Event::Note(format!("{} (held out) {words}", set.file.display())));
        }
        let mut out: Vec<(String, Vec<Document>)> = Vec::new();
        for (set, items) in recipe.held_out.iter().zip(sets) {
            let documents: Vec<Document> = items
                .into_iter()
                .filter_map(|item| match item {
                    Item::Document(d) => Some(d),
                    Item::Pair(_) | Item::Question { .. } => None,
                })
                .collect();
            if documents.is_empty() {
                return Err(Error::file(&set.file, "at least one usable row", "none"));
            }
            let name = data_name(&set.file, |name| out.iter().any(|(n, _)| n == name));
            out.push((name, documents));
        }
        Ok(Self::of(out))
    }

    /// Of documents, by the name of their file.
    pub(crate) fn of(sets: Vec<(String, Vec<Document>)>) -> Self {
        let batches =
            |documents: Vec<Document>| documents.chunks(HELD_OUT).map(side_by_side).collect();
        Self(sets.into_iter().map(|(name, documents)| (name, batches(documents))).collect())
    }

    /// Cross-entropy in nats a token of what counts, by file.
    pub fn measure(&self, model: &Transformer) -> Losses {
        let of = |batches: &Vec<Batch>| {
            let (mut sum, mut count) = (0.0, 0.0);
            for batch in batches {
                let each = forward(model, batch, 1.0, 0.0).1;
                let pairs = each.iter().zip(&batch.weights);
                sum += pairs.map(|(ce, w)| (ce * w) as f64).sum::<f64>();
                count += batch.weights.iter().map(|&w| w as f64).sum::<f64>();
            }
            sum / count.max(1e-9)
        };
        self.0.iter().map(|(name, batches)| (name.clone(), of(batches))).collect()
    }
}

/// The items of some files, file by file.
fn read_sets(
    recipe: &TuneRecipe,
    sets: &[TuneSet],
    model: &Model,
    objective: &Objective,
    watcher: &mut dyn Watcher,
) -> Result<Vec<Vec<Item>>> {
    let mut bad = 0;
    let mut out = Vec::new();
    for set in sets {
        let (rows, mut faults) = read_tuning(&set.file)?;
        let mut items = Vec::new();
        for (line, row) in rows {
            match items_of(row, model, recipe, objective) {
                Ok(some) => items.extend(some),
                Err(e) => faults.push(Error::row(&set.file, line, e.to_string()).to_string()),
            }
        }
        bad += faults.len();
        if bad > recipe.max_bad_rows {
            return Err(Error::file(
                &set.file,
                format!("at most {} unusable rows (max_bad_rows)", recipe.max_bad_rows),
                format!("{bad}; the last: {}", faults.last().map_or("", String::as_str)),
            ));
        }
        faults.into_iter().for_each(|f| watcher.tell(Event::Note(format!("left out: {f}"))));
        out.push(items);
    }
    Ok(out)
}

/// What a row is for an objective. Plain text is cut into windows; anything else must fit one.
fn items_of(
    row: TuneRow,
    model: &Model,
    recipe: &TuneRecipe,
    objective: &Objective,
) -> Result<Vec<Item>> {
    let window = recipe.train.window;
    let template = Template::new(&model.tokenisers);
    let weights = LossWeights {
        text: 1.0,
        image: 1.0,
        audio: 1.0,
        semantic: 1.0,
        prompt: recipe.train.prompt,
    };
    let document = |sample: Sample, weights: &LossWeights| -> Result<Document> {
        let mut codes = FileCodes(&model.tokenisers);
        let d = template.document(&sample, &mut codes, weights, false, 0)?;
        match d.ids.len() <= window + 1 {
            true => Ok(d),
            false => Err(Error::Other(format!(
                "a conversation of {} tokens; expected at most {} (train.window {window} and one)",
                d.ids.len(),
                window + 1
            ))),
        }
    };
    let bare = LossWeights { prompt: 0.0, ..weights.clone() };
    Ok(match (row, objective) {
        (TuneRow::Text(text), Objective::Reply | Objective::Distil { .. }) => {
            let whole = template.plain_text(&text, &weights, 0);
            let mut pieces = Vec::new();
            let mut from = 0;
            while from + 1 < whole.ids.len() {
                let mut piece = Document {
                    ids: whole.ids[from..].to_vec(),
                    weights: whole.weights[from..].to_vec(),
                    task: 0,
                };
                cut(&mut piece, window);
                from += piece.ids.len() - 1;
                pieces.push(Item::Document(piece));
            }
            pieces
        }
        (TuneRow::Chat(mut sample), Objective::Reply | Objective::Distil { .. }) => {
            // A question of an evaluation is learnt with what it expects.
            if let (Some(expected), true) = (sample.expected.take(), !ends_with_reply(&sample)) {
                sample.messages.push(Message::new(Role::Assistant, expected));
            }
            vec![Item::Document(document(sample, &weights)?)]
        }
        // Where replies are learnt, the better of two is one.
        (
            TuneRow::Pair { asked: mut sample, chosen, .. },
            Objective::Reply | Objective::Distil { .. },
        ) => {
            sample.messages.push(chosen);
            vec![Item::Document(document(sample, &weights)?)]
        }
        (TuneRow::Pair { asked, chosen, rejected }, Objective::Dpo { .. }) => {
            let with = |reply: Message| {
                let mut sample = asked.clone();
                sample.messages.push(reply);
                document(sample, &bare)
            };
            vec![Item::Pair([with(chosen)?, with(rejected)?])]
        }
        (TuneRow::Chat(mut sample), Objective::Grpo { max_tokens, reward, .. }) => {
            let mut expected = sample.expected.take();
            if ends_with_reply(&sample) {
                expected = expected.or(sample.messages.pop().map(|m| m.parts));
            }
            let Some([Part::Text(expected)]) = expected.as_deref() else {
                return Err(Error::Other("expected a reply of text to hold tries against".into()));
            };
            if let Some(wanted) = reward.wants(expected) {
                return Err(Error::Other(format!("expected {wanted}, found {expected:?}")));
            }
            let prompt = template.prompt(&sample, &mut FileCodes(&model.tokenisers))?;
            let context = model.transformer.config.context;
            if prompt.len() + max_tokens > context {
                return Err(Error::Other(format!(
                    "a question of {} tokens and a reply of {max_tokens}; expected at most {context}",
                    prompt.len()
                )));
            }
            vec![Item::Question { prompt, expected: expected.clone() }]
        }
        (TuneRow::Text(_), _) => {
            return Err(Error::Other("plain text; expected what the objective needs".into()));
        }
        (TuneRow::Chat(_), Objective::Dpo { .. }) => {
            return Err(Error::Other("expected `chosen` and `rejected`".into()));
        }
        (TuneRow::Pair { .. }, Objective::Grpo { .. }) => {
            return Err(Error::Other("a preference; expected a question with `expected`".into()));
        }
    })
}

fn ends_with_reply(sample: &Sample) -> bool {
    sample.messages.last().is_some_and(|m| m.role == Role::Assistant)
}

/// Which row comes when: a pure function of the seed and an index. Files take turns by their shares;
/// the rows of a file come each once, in a new order every time round.
#[derive(Debug)]
struct Order {
    seed: u64,
    /// Files of one cycle, and how often each came before in it.
    cycle: Vec<(usize, u64)>,
    /// How often each file comes in a cycle.
    counts: Vec<u64>,
    sizes: Vec<usize>,
    /// The order of the round that was last asked for, by file.
    rounds: std::cell::RefCell<Vec<Option<Round>>>,
}

/// The number of a round through a file, and the order of its rows.
type Round = (u64, Vec<u32>);

/// Turns of one cycle, at least and at most.
const CYCLE: usize = 1000;
const LONGEST_CYCLE: usize = 1_000_000;

impl Order {
    fn new(seed: u64, shares: &[f32], sizes: Vec<usize>) -> Self {
        let total: f32 = shares.iter().sum();
        let least = shares.iter().copied().fold(f32::INFINITY, f32::min);
        // As long as the least share needs to come about.
        let length = ((total / least).ceil() as usize).clamp(CYCLE, LONGEST_CYCLE);
        let mut counts = vec![0u64; shares.len()];
        let mut cycle = Vec::with_capacity(length);
        for turn in 1..=length {
            // The file that is furthest behind its share.
            let behind = |f: &usize| shares[*f] / total * turn as f32 - counts[*f] as f32;
            let next = (0..shares.len()).max_by(|a, b| behind(a).total_cmp(&behind(b)));
            let file = next.expect("at least one file");
            cycle.push((file, counts[file]));
            counts[file] += 1;
        }
        // Beyond the longest cycle each still has a turn in it.
        for (file, count) in counts.iter_mut().enumerate().filter(|(_, count)| **count == 0) {
            cycle.push((file, 0));
            *count = 1;
        }
        let rounds = std::cell::RefCell::new(vec![None; sizes.len()]);
        Self { seed, cycle, counts, sizes, rounds }
    }

    /// File and row of turn `index`.
    fn at(&self, index: u64) -> (usize, usize) {
        let length = self.cycle.len() as u64;
        let (file, before) = self.cycle[(index % length) as usize];
        let turn = index / length * self.counts[file] + before;
        let size = self.sizes[file] as u64;
        let round = turn / size;
        let mut rounds = self.rounds.borrow_mut();
        if rounds[file].as_ref().is_none_or(|(of, _)| *of != round) {
            let mut order: Vec<u32> = (0..size as u32).collect();
            let mut rng = Rng::new(self.seed ^ 0x0072_6f77, (file as u64) << 40 | round);
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i + 1));
            }
            rounds[file] = Some((round, order));
        }
        let (_, order) = rounds[file].as_ref().expect("just made");
        (file, order[(turn % size) as usize] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Silent;
    use danlu_core::Row;
    use danlu_core::recipe::ModelRecipe;
    use danlu_model::modality::TextTokeniser;
    use danlu_model::{ModelInfo, Tokenisers, TransformerConfig};

    #[test]
    fn every_row_comes_once_a_round_and_files_by_their_shares() {
        let order = Order::new(7, &[3.0, 1.0], vec![5, 4]);
        let turns: Vec<(usize, usize)> = (0..4000).map(|i| order.at(i)).collect();
        let of = |file: usize| turns.iter().filter(move |t| t.0 == file).map(|t| t.1);
        assert_eq!((of(0).count(), of(1).count()), (3000, 1000));
        for (file, size) in [(0, 5), (1, 4)] {
            let rows: Vec<usize> = of(file).collect();
            let rounds: Vec<Vec<usize>> = rows.chunks_exact(size).map(<[_]>::to_vec).collect();
            for round in &rounds {
                let mut sorted = round.clone();
                sorted.sort();
                assert_eq!(sorted, (0..size).collect::<Vec<_>>());
            }
            assert!(rounds.windows(2).any(|w| w[0] != w[1]), "each round has its own order");
        }
        // However small a share is, its file has its turns.
        let order = Order::new(7, &[10_000.0, 1.0], vec![5, 4]);
        assert_eq!((0..20_002).filter(|&i| order.at(i).0 == 1).count(), 2);
        let order = Order::new(7, &[1.0, 1e-9], vec![5, 4]);
        assert_eq!((0..1_000_001).filter(|&i| order.at(i).0 == 1).count(), 1);
        // A pure function: asking out of turn changes nothing.
        let order = Order::new(7, &[3.0, 1.0], vec![5, 4]);
        assert_eq!(order.at(3), turns[3]);
        assert_eq!(Order::new(7, &[3.0, 1.0], vec![5, 4]).at(2345), turns[2345]);
    }

    /// An untrained model that knows text alone.
    fn model() -> Model {
        let text = TextTokeniser::train(["hi hello what"].into_iter(), 260).expect("trains");
        let tokenisers = Tokenisers {
            text,
            foreign: None,
            chat: None,
            image: None,
            audio: None,
            image_semantic: None,
            audio_semantic: None,
        };
        let recipe =
            ModelRecipe { depth: 1, width: Some(16), head_dim: Some(8), ..Default::default() };
        let size = tokenisers.vocabulary().size();
        let config = TransformerConfig::from_recipe(&recipe, size, 64).expect("valid");
        let transformer = Transformer::new(config, 1, &danlu_ops::cpu_device());
        Model { transformer, tokenisers, info: ModelInfo::default() }
    }

    #[test]
    fn the_better_of_two_replies_is_learnt_where_replies_are() {
        let file = std::env::temp_dir().join(format!("danlu-pairs-{}.jsonl", std::process::id()));
        let row = "{\"prompt\":\"hi\",\"chosen\":\"hello\",\"rejected\":\"what\"}\n";
        std::fs::write(&file, row).expect("writes");
        let (model, files) = (model(), [file.clone()]);
        let seen = documents(&files, &model, 48, 40, &mut Silent).expect("reads");
        let reply = model.tokenisers.text.encode("hello");
        assert!(seen[0].0.windows(reply.len()).any(|w| w == reply), "{seen:?}");
        let pad = model.tokenisers.vocabulary().control_id(danlu_core::Control::Pad);
        for (ids, starts) in &seen {
            assert!(!ids.contains(&pad), "what fills a row is not looked at");
            assert_eq!(starts.last().map(|&end| end as usize), Some(ids.len()));
        }
        // Held out, it counts as the same; a file without a usable row is no file.
        let recipe = recipe_of_rows(&files, std::path::Path::new("."), 48, Objective::Reply);
        let mut recipe = recipe.expect("valid");
        recipe.held_out = recipe.data.clone();
        recipe.max_bad_rows = 1;
        let held = Held::read(&recipe, &model, &mut Silent).expect("reads");
        assert!(held.measure(&model.transformer).values().all(|&loss| loss > 0.0));
        std::fs::write(&file, "{\"prompt\":7}\n").expect("writes");
        let error = Held::read(&recipe, &model, &mut Silent).expect_err("nothing").to_string();
        assert!(error.contains("at least one usable row"), "{error}");
        std::fs::remove_file(&file).expect("removes");
    }

    #[test]
    fn replies_of_no_weight_are_not_learnt_and_tools_are_told() {
        let model = model();
        let here = std::path::Path::new(".");
        let files = ["rows.jsonl".into()];
        let recipe = recipe_of_rows(&files, here, 400, Objective::Reply).expect("valid");
        let learnt = |weights: [u8; 2], tools: &str| {
            let reply = |content: &str, weight: u8| serde_json::json!({ "role": "assistant", "content": content, "weight": weight });
            let ask = serde_json::json!({ "role": "user", "content": "what" });
            let messages = [&ask, &reply("hello", weights[0]), &ask, &reply("hi", weights[1])];
            let row = serde_json::json!({ "messages": messages, "tools": tools }).to_string();
            let Row::Chat(sample) = Row::parse(&row, here).expect("valid") else {
                panic!("a conversation")
            };
            let row = TuneRow::Chat(sample);
            let items = items_of(row, &model, &recipe, &recipe.objective).expect("fits");
            let [Item::Document(d)] = &items[..] else { panic!("{items:?}") };
            let said = d.ids.iter().zip(&d.weights).filter(|(_, w)| **w > 0.0);
            let said: Vec<u32> = said.map(|(id, _)| *id).collect();
            (model.tokenisers.text.decode(&said), d.ids.len())
        };
        assert_eq!([learnt([1, 1], "").0, learnt([0, 1], "").0], ["hellohi", "hi"]);
        let tools = r#"[{"name":"f"}]"#;
        assert_eq!(learnt([0, 1], tools).0, "hi", "the system's turn before them moves none");
        assert!(learnt([1, 1], tools).1 > learnt([1, 1], "").1 + 20);
    }

    #[test]
    fn rewards_hold_replies_against_what_is_expected() {
        for (reward, reply, expected, want) in [
            (Reward::Exact, " Yes\n", "yes", true),
            (Reward::Exact, "yes.", "yes", false),
            (Reward::Contains, "The answer is Paris.", "paris", true),
            (Reward::Contains, "London", "paris", false),
            (Reward::Number, "3 + 4 = 1,007.", "#### 1007", true),
            (Reward::Number, "no idea", "7", false),
            (Reward::Number, "a 12-hour day", "12", true),
            (Reward::Number, "pages 3-4", "4", true),
            (Reward::Number, "2 + 2 is...4", "4", true),
            (Reward::Number, "It is -4.", "-4", true),
            (Reward::Number, "x=-0.5", "-.5", true),
            (Reward::Number, "so -7", "7", false),
        ] {
            assert_eq!(reward.of(reply, expected), want, "{reply} / {expected}");
        }
    }
}
