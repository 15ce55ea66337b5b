use super::{Grammar, Sampling, sample};
use crate::arch::{SequenceCache, Transformer};
use danlu_core::{Error, Modality, Result, Rng, Vocabulary};

/// What to generate from what.
#[derive(Debug, Clone)]
pub struct Request {
    /// Ids before the reply.
    pub prompt: Vec<u32>,
    /// Ids of the prompt of guidance.
    pub blank: Vec<u32>,
    /// The reply's modality; `None`: the model chooses.
    pub to: Option<Modality>,
    /// Most tokens of the reply.
    pub max_tokens: usize,
    /// How text is drawn.
    pub text: Sampling,
    /// How codes of pictures and sounds are drawn.
    pub media: Sampling,
    /// Classifier-free guidance of pictures (Ho and Salimans, arXiv 2207.12598): 1 is none.
    pub guidance: f32,
    /// Seed of this reply.
    pub seed: u64,
}

/// A reply in the making: an iterator of its token ids, the closing control included.
#[derive(Debug)]
pub struct Generator<'a> {
    transformer: &'a Transformer,
    one: Sequence,
}

impl<'a> Generator<'a> {
    /// Starts a reply.
    pub fn new(
        transformer: &'a Transformer,
        vocabulary: &Vocabulary,
        request: &Request,
    ) -> Result<Self> {
        Ok(Self { transformer, one: Sequence::new(transformer, vocabulary, request)? })
    }
}

impl Iterator for Generator<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.one.grammar.done() {
            return None;
        }
        step(self.transformer, &mut [&mut self.one]);
        self.one.reply.last().copied()
    }
}

/// Replies to many requests, `width` of them at a time; a finished one makes room for the next.
/// `done` is told how many are finished. A reply does not depend on its neighbours.
pub fn generate(
    transformer: &Transformer,
    vocabulary: &Vocabulary,
    requests: &[Request],
    width: usize,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>> {
    let mut replies: Vec<Vec<u32>> = vec![Vec::new(); requests.len()];
    let mut waiting = requests.iter().enumerate();
    let mut active: Vec<(usize, Sequence)> = Vec::new();
    let mut finished = 0;
    loop {
        while active.len() < width.max(1) {
            let Some((i, request)) = waiting.next() else { break };
            active.push((i, Sequence::new(transformer, vocabulary, request)?));
        }
        if active.is_empty() {
            return Ok(replies);
        }
        let mut turn: Vec<&mut Sequence> = active.iter_mut().map(|(_, s)| s).collect();
        step(transformer, &mut turn);
        active.retain_mut(|(i, s)| {
            let going = !s.grammar.done();
            if !going {
                replies[*i] = std::mem::take(&mut s.reply);
                finished += 1;
            }
            going
        });
        done(finished);
    }
}

#[derive(Debug)]
struct Sequence {
    cache: SequenceCache,
    /// Ids that the cache has not seen.
    fresh: Vec<u32>,
    /// The same for the blank prompt, where pictures are guided.
    blank: Option<(SequenceCache, Vec<u32>)>,
    grammar: Grammar,
    reply: Vec<u32>,
    rng: Rng,
    text: Sampling,
    media: Sampling,
    guidance: f32,
}

impl Sequence {
    fn new(transformer: &Transformer, vocabulary: &Vocabulary, r: &Request) -> Result<Self> {
        let context = transformer.config.context;
        let room = context.saturating_sub(r.prompt.len()).min(r.max_tokens);
        if r.prompt.is_empty() || room < Grammar::room(vocabulary, r.to) {
            return Err(Error::parameter(
                "prompt",
                format!(
                    "1 to {} tokens, so that a reply of {} fits into the context of {context} and \
                     max_tokens of {}",
                    context.saturating_sub(Grammar::room(vocabulary, r.to)),
                    Grammar::room(vocabulary, r.to),
                    r.max_tokens
                ),
                format!("{} tokens", r.prompt.len()),
            ));
        }
        let lacks = match r.to {
            Some(Modality::Image) => vocabulary.image == 0,
            Some(Modality::Audio) => vocabulary.audio == 0,
            _ => false,
        };
        if let Some(to) = r.to.filter(|_| lacks) {
            let wanted = "a modality that the model has tokens for";
            return Err(Error::parameter("to", wanted, format!("{to:?}")));
        }
        let may_draw = vocabulary.image > 0 && r.to.is_none_or(|to| to == Modality::Image);
        let guided = r.guidance != 1.0 && may_draw;
        Ok(Self {
            cache: transformer.start(),
            fresh: r.prompt.clone(),
            blank: guided.then(|| (transformer.start(), r.blank.clone())),
            grammar: Grammar::new(vocabulary, r.to, room),
            reply: Vec::new(),
            rng: Rng::new(r.seed, 0x0067_656e),
            text: r.text,
            media: r.media,
            guidance: r.guidance,
        })
    }
}

/// One token for each of several sequences.
fn step(transformer: &Transformer, sequences: &mut [&mut Sequence]) {
    let mut rows: Vec<(&mut SequenceCache, &[u32])> = Vec::new();
    let mut guided = Vec::with_capacity(sequences.len());
    for s in sequences.iter_mut() {
        let s = &mut **s;
        rows.push((&mut s.cache, &s.fresh));
        guided.push(s.blank.is_some());
        if let Some((cache, fresh)) = &mut s.blank {
            rows.push((cache, fresh));
        }
    }
    let logits = transformer.advance(&mut rows);
    drop(rows);
    let size = transformer.config.vocabulary;
    let mut logits = logits.chunks_exact(size);
    for (s, guided) in sequences.iter_mut().zip(guided) {
        let own = logits.next().expect("a row for each sequence");
        let other = if guided { logits.next() } else { None };
        let allowed = s.grammar.allowed();
        let text = allowed.first().is_some_and(|r| r.start == 0);
        let how = if text { s.text } else { s.media };
        let id = match other {
            Some(blank) if s.grammar.in_image() => {
                let pushed: Vec<f32> =
                    own.iter().zip(blank).map(|(o, b)| b + s.guidance * (o - b)).collect();
                sample(&pushed, &allowed, &how, &mut s.rng)
            }
            _ => sample(own, &allowed, &how, &mut s.rng),
        };
        s.grammar.take(id);
        s.reply.push(id);
        s.fresh = vec![id];
        if let Some((_, fresh)) = &mut s.blank {
            *fresh = vec![id];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny_model;
    use crate::prompt::{Template, Value};

    fn request(template: &Template<'_>, to: Option<Modality>, seed: u64) -> Request {
        let hot = Sampling { temperature: 1.0, ..Default::default() };
        let mut prompt = template.text("ok hi");
        prompt.truncate(1 + seed as usize % 3);
        Request {
            prompt,
            blank: template.blank_prompt(),
            to,
            max_tokens: 90,
            text: hot,
            media: hot,
            guidance: 2.0,
            seed,
        }
    }

    #[test]
    fn replies_are_well_formed_repeatable_and_independent_of_the_batch() {
        let model = tiny_model(11);
        let template = Template::new(&model.tokenisers);
        let v = template.vocabulary();
        let requests: Vec<Request> =
            [None, Some(Modality::Text), Some(Modality::Image), Some(Modality::Audio)]
                .into_iter()
                .enumerate()
                .map(|(i, to)| request(&template, to, i as u64))
                .collect();
        let together =
            generate(&model.transformer, v, &requests, 3, &mut |_| {}).expect("generates");
        for (r, ids) in requests.iter().zip(&together) {
            let alone: Vec<u32> =
                Generator::new(&model.transformer, v, r).expect("starts").collect();
            assert_eq!(&alone, ids);
            let values = template.reply(ids).expect("well-formed");
            match r.to {
                Some(Modality::Image) => assert!(matches!(values[..], [Value::Picture(_)])),
                Some(Modality::Audio) => assert!(matches!(values[..], [Value::Sound(_)])),
                Some(Modality::Text) => assert!(matches!(values[..], [Value::Text(_)])),
                None => {}
            }
        }
    }

    #[test]
    fn a_prompt_without_room_for_the_reply_is_refused() {
        let model = tiny_model(1);
        let template = Template::new(&model.tokenisers);
        let mut r = request(&template, Some(Modality::Image), 0);
        r.prompt = vec![0; 130];
        let error =
            Generator::new(&model.transformer, template.vocabulary(), &r).expect_err("long");
        assert!(error.to_string().contains("130 tokens"), "{error}");
    }
}
