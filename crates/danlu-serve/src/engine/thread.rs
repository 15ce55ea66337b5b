//! The one thread that owns an engine. Handlers send it jobs and get events back; it never waits
//! for a client: the channel of a reply has room for every event that the reply can have.

use super::{Embedding, Engine, Event, FinishReason, Job, JobId};
use crate::metrics::Metrics;
use danlu_core::{Error, Result};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self as commands, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How many jobs a [`ModelThread`] takes at a time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs that may wait beyond those that the engine can run.
    pub queue: usize,
    /// Jobs that the engine runs at a time.
    pub batch: usize,
}

/// Why a job was not taken.
#[derive(Debug)]
pub enum Refusal {
    /// Every place is taken; try again in about this many seconds.
    Full {
        /// Seconds.
        retry: u64,
    },
    /// They are more than there are places.
    TooMany {
        /// Places.
        most: usize,
    },
    /// The engine's thread has ended.
    Gone,
}

/// What a reply is told: an event of the engine, or why there will be none, in a sentence.
pub type Told = Result<Event, String>;

enum Command {
    Add { ticket: u64, job: Box<Job>, events: mpsc::Sender<Told>, place: Place },
    Cancel { ticket: u64 },
    Finish { ticket: u64 },
    Embed { text: Vec<u32>, answer: oneshot::Sender<Result<Vec<f32>>> },
}

/// A handle to the thread that owns an engine. It ends when the last handle is dropped.
#[derive(Clone)]
pub struct ModelThread {
    commands: commands::Sender<Command>,
    tickets: Arc<AtomicU64>,
    taken: Arc<AtomicUsize>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

/// A reply in the making. Dropping it cancels it. Its place is free when it has ended, whether or not
/// it was read.
pub struct Running {
    events: mpsc::Receiver<Told>,
    ticket: u64,
    commands: commands::Sender<Command>,
}

/// One of as many requests as may run and wait, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The thread may have ended; then there is nothing to cancel.
        let _ = self.commands.send(Command::Cancel { ticket: self.ticket });
    }
}

impl Running {
    /// Asks for no more than there is: the last event follows.
    pub fn finish(&self) {
        // If the thread has ended, so have the events.
        let _ = self.commands.send(Command::Finish { ticket: self.ticket });
    }

    /// The next event; `None` after the last, or if the thread ended.
    pub async fn next(&mut self) -> Option<Told> {
        self.events.recv().await
    }
}

impl ModelThread {
    /// Starts the thread.
    pub fn start(
        engine: Box<dyn Engine>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = commands::channel();
        let (shared, model) = (metrics.clone(), metrics.model());
        std::thread::Builder::new().name("model".into()).spawn(move || {
            let (jobs, embeddings) = (HashMap::new(), VecDeque::new());
            Loop { engine, jobs, embeddings, metrics: shared, model }.run(&receiver)
        })?;
        Ok(Self {
            commands: sender,
            tickets: Arc::default(),
            taken: Arc::default(),
            limits,
            metrics,
        })
    }

    /// Hands jobs over, all of them or none.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<Vec<Running>, Refusal> {
        let places = self.places(jobs.len())?;
        let mut out = Vec::with_capacity(jobs.len());
        for (job, place) in jobs.into_iter().zip(places) {
            // A prompt is scored in as many events as it has ids, at the most.
            let scored = if job.score_prompt { job.prompt.len() } else { 0 };
            let (sender, events) = mpsc::channel(job.max_tokens + scored + 2);
            let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
            let job = Box::new(job);
            self.commands
                .send(Command::Add { ticket, job, events: sender, place })
                .map_err(|_| Refusal::Gone)?;
            out.push(Running { events, ticket, commands: self.commands.clone() });
        }
        Ok(out)
    }

    /// A place among the jobs, for the texts of one request that are to be embedded.
    pub fn place(&self) -> Result<Place, Refusal> {
        self.places(1)?.pop().ok_or(Refusal::Gone)
    }

    /// Embeds a text, a list of ids, a part of it after each step of the replies, at a place that was
    /// taken for it.
    pub async fn embed(&self, text: Vec<u32>, _: &Place) -> Result<Result<Vec<f32>>, Refusal> {
        let (answer, waits) = oneshot::channel();
        self.commands.send(Command::Embed { text, answer }).map_err(|_| Refusal::Gone)?;
        waits.await.map_err(|_| Refusal::Gone)
    }

    /// Takes places, all or none.
    fn places(&self, count: usize) -> Result<Vec<Place>, Refusal> {
        let most = self.limits.queue + self.limits.batch;
        if count > most {
            return Err(Refusal::TooMany { most });
        }
        let before = self.taken.fetch_add(count, Ordering::AcqRel);
        let places: Vec<Place> = (0..count).map(|_| Place(self.taken.clone())).collect();
        if before + count > most {
            // A rough guess: the mean time of a reply, for every batch in front.
            let batches = (before / self.limits.batch.max(1)) as f64;
            let seconds = self.metrics.mean_seconds().unwrap_or(1.0) * batches;
            return Err(Refusal::Full { retry: (seconds.ceil() as u64).clamp(1, 60) });
        }
        Ok(places)
    }
}

/// How long nothing is asked before the memory of the last passes is given back.
const REST: Duration = Duration::from_secs(1);

struct Waiting {
    ticket: u64,
    events: mpsc::Sender<Told>,
    since: Instant,
    last: Option<Instant>,
    _place: Place,
}

struct Loop {
    engine: Box<dyn Engine>,
    jobs: HashMap<JobId, Waiting>,
    embeddings: VecDeque<(Embedding, oneshot::Sender<Result<Vec<f32>>>)>,
    metrics: Arc<Metrics>,
    /// Its place there.
    model: usize,
}

fn failed() -> Error {
    Error::Other("the model failed on this input".into())
}

impl Loop {
    fn run(mut self, commands: &commands::Receiver<Command>) {
        // Opening a model has used what it does not need any more.
        let mut rested = false;
        loop {
            if self.jobs.is_empty() && self.embeddings.is_empty() {
                self.tell_usage();
                let next = match rested {
                    true => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    false => commands.recv_timeout(REST),
                };
                match next {
                    Ok(command) => self.obey(command),
                    Err(RecvTimeoutError::Timeout) => {
                        danlu_ops::give_back();
                        rested = true;
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                rested = false;
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            self.embed();
            if self.jobs.is_empty() {
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| self.engine.step())) {
                Ok(events) => events.into_iter().for_each(|event| self.tell(event)),
                Err(_) => self.fail_all(),
            }
            self.tell_usage();
        }
    }

    fn job(&self, ticket: u64) -> Option<JobId> {
        self.jobs.iter().find(|(_, w)| w.ticket == ticket).map(|(&id, _)| id)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add { ticket, job, events, place } => {
                let since = Instant::now();
                match self.engine.add(*job) {
                    Ok(id) => {
                        let waiting = Waiting { ticket, events, since, last: None, _place: place };
                        self.jobs.insert(id, waiting);
                    }
                    Err(error) => {
                        // If nobody listens any more, there is nothing to tell.
                        let _ = events.try_send(Err(error.to_string()));
                    }
                }
            }
            Command::Cancel { ticket } => {
                if let Some(id) = self.job(ticket) {
                    // What was read and made for it was work, though nobody hears of it.
                    match self.engine.finish(id) {
                        Some(Event::Done {
                            prompt_tokens,
                            cached_tokens,
                            completion_tokens,
                            ..
                        }) => self.metrics.tokens(prompt_tokens, cached_tokens, completion_tokens),
                        _ => self.engine.cancel(id),
                    }
                    if let Some(waiting) = self.jobs.remove(&id) {
                        self.metrics.request_seconds(waiting.since.elapsed().as_secs_f64());
                    }
                    self.metrics.finished(FinishReason::Cancelled);
                }
            }
            Command::Finish { ticket } => {
                let done = self.job(ticket).and_then(|id| self.engine.finish(id));
                done.into_iter().for_each(|event| self.tell(event));
            }
            Command::Embed { text, answer } => {
                match catch_unwind(AssertUnwindSafe(|| self.engine.begin_embedding(text))) {
                    Ok(Ok(text)) => self.embeddings.push_back((text, answer)),
                    Ok(Err(error)) => _ = answer.send(Err(error)),
                    Err(_) => _ = answer.send(Err(failed())),
                }
            }
        }
    }

    /// Reads a part of the text that has waited longest to be embedded.
    fn embed(&mut self) {
        let Some((mut text, answer)) = self.embeddings.pop_front() else { return };
        if answer.is_closed() {
            return;
        }
        match catch_unwind(AssertUnwindSafe(|| self.engine.embed(&mut text))) {
            Ok(None) => self.embeddings.push_front((text, answer)),
            Ok(Some(vector)) => _ = answer.send(Ok(vector)),
            Err(_) => _ = answer.send(Err(failed())),
        }
    }

    fn tell(&mut self, event: Event) {
        let now = Instant::now();
        let (Event::Token { id, .. } | Event::Scored { id, .. } | Event::Done { id, .. }) = event;
        let Some(waiting) = self.jobs.get_mut(&id) else { return };
        match &event {
            Event::Token { .. } => {
                match waiting.last.replace(now) {
                    None => self.metrics.first_token((now - waiting.since).as_secs_f64()),
                    Some(last) => self.metrics.next_token((now - last).as_secs_f64()),
                }
                // There is room; if the client has gone, its cancellation is on the way.
                let _ = waiting.events.try_send(Ok(event));
            }
            Event::Scored { .. } => _ = waiting.events.try_send(Ok(event)),
            Event::Done { reason, prompt_tokens, cached_tokens, completion_tokens, .. } => {
                self.metrics.finished(*reason);
                self.metrics.tokens(*prompt_tokens, *cached_tokens, *completion_tokens);
                self.metrics.request_seconds((now - waiting.since).as_secs_f64());
                let _ = waiting.events.try_send(Ok(event));
                self.jobs.remove(&id);
            }
        }
    }

    /// After a panic: what the engine held is not used again, and everybody is told.
    fn fail_all(&mut self) {
        tracing::error!(jobs = self.jobs.len(), "a step of the model panicked");
        self.engine.reset();
        for (_, waiting) in self.jobs.drain() {
            let message = "the model failed on a request of this batch".to_string();
            let _ = waiting.events.try_send(Err(message));
        }
    }

    fn tell_usage(&self) {
        self.metrics.usage(self.model, self.engine.usage());
    }
}
