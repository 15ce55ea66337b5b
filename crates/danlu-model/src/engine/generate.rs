use super::{EngineOptions, Event, Grammar, Guidance, Job, ReplyMask, Sampling, Scheduler};
use crate::arch::Transformer;
use danlu_core::{Error, Modality, Result, Vocabulary};
use danlu_ops::{CacheFormat, PAGE};
use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;

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
    scheduler: Scheduler,
    ready: VecDeque<u32>,
    transformer: PhantomData<&'a Transformer>,
}

impl<'a> Generator<'a> {
    /// Starts a reply.
    ///
    /// # Errors
    /// If the prompt leaves no room for it.
    pub fn new(
        transformer: &'a Transformer,
        vocabulary: &Vocabulary,
        request: &Request,
    ) -> Result<Self> {
        let job = job(transformer, vocabulary, request)?;
        let options = exact(std::slice::from_ref(request), 1, transformer);
        let mut scheduler = Scheduler::new(transformer, &options)?;
        scheduler.add(job)?;
        Ok(Self { scheduler, ready: VecDeque::new(), transformer: PhantomData })
    }
}

impl Iterator for Generator<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.ready.is_empty() {
            let usage = self.scheduler.usage();
            if usage.running + usage.waiting == 0 {
                return None;
            }
            let events = self.scheduler.step();
            self.ready.extend(events.into_iter().filter_map(|event| match event {
                Event::Token { token, .. } => Some(token),
                Event::Scored { .. } | Event::Done { .. } => None,
            }));
        }
        self.ready.pop_front()
    }
}

/// Replies to many requests, `width` of them at a time; a finished one makes room for the next.
/// `done` is told how many are finished. A reply does not depend on its neighbours.
///
/// # Errors
/// If a prompt leaves no room for its reply.
pub fn generate(
    transformer: &Transformer,
    vocabulary: &Vocabulary,
    requests: &[Request],
    width: usize,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let width = width.clamp(1, requests.len());
    let mut scheduler = Scheduler::new(transformer, &exact(requests, width, transformer))?;
    let mut numbers = HashMap::new();
    for (i, request) in requests.iter().enumerate() {
        numbers.insert(scheduler.add(job(transformer, vocabulary, request)?)?, i);
    }
    let mut replies: Vec<Vec<u32>> = vec![Vec::new(); requests.len()];
    let mut finished = 0;
    while finished < requests.len() {
        for event in scheduler.step() {
            match event {
                Event::Token { id, token, .. } => replies[numbers[&id]].push(token),
                Event::Scored { .. } => {}
                Event::Done { .. } => finished += 1,
            }
        }
        done(finished);
    }
    Ok(replies)
}

/// Weights and cache as exact as they are, and room for `batch` of the longest requests, with a prompt of
/// guidance beside each.
fn exact(requests: &[Request], batch: usize, transformer: &Transformer) -> EngineOptions {
    let context = transformer.config.context;
    let tokens = |r: &Request| {
        let prompt = r.prompt.len().max(r.blank.len());
        context.min(prompt.saturating_add(r.max_tokens)).next_multiple_of(PAGE) + PAGE
    };
    let longest = requests.iter().map(tokens).max().unwrap_or(2 * PAGE);
    EngineOptions {
        cache: CacheFormat::F32,
        cache_tokens: Some(2 * batch * longest.max(2 * PAGE)),
        batch,
        chunk: 1024,
        ..Default::default()
    }
}

/// A request as a job of the scheduler.
fn job(transformer: &Transformer, vocabulary: &Vocabulary, r: &Request) -> Result<Job> {
    let context = transformer.config.context;
    let lacks = match r.to {
        Some(Modality::Image) => vocabulary.image == 0,
        Some(Modality::Audio) => vocabulary.audio == 0,
        _ => false,
    };
    if let Some(to) = r.to.filter(|_| lacks) {
        let wanted = "a modality that the model has tokens for";
        return Err(Error::parameter("to", wanted, format!("{to:?}")));
    }
    let needed = Grammar::room(vocabulary, r.to);
    if r.max_tokens < needed {
        let wanted = format!("at least {needed}, which such a reply needs");
        return Err(Error::parameter("max_tokens", wanted, r.max_tokens));
    }
    let room = context.saturating_sub(r.prompt.len()).min(r.max_tokens);
    if r.prompt.is_empty() || room < needed {
        let most = context.saturating_sub(needed);
        let wanted = format!(
            "1 to {most} tokens, so that a reply of {needed} fits into the context of {context}"
        );
        return Err(Error::parameter("prompt", wanted, format!("{} tokens", r.prompt.len())));
    }
    let may_draw = vocabulary.image > 0 && r.to.is_none_or(|to| to == Modality::Image);
    let guided = r.guidance != 1.0 && may_draw;
    Ok(Job {
        sampling: r.text.seeded(r.seed),
        media: Some(r.media.seeded(r.seed)),
        mask: Some(Box::new(ReplyMask(Grammar::new(vocabulary, r.to, room)))),
        guidance: guided.then(|| Guidance { blank: r.blank.clone(), scale: r.guidance }),
        ..Job::new(r.prompt.clone(), room)
    })
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
