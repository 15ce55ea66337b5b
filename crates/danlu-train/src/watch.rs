/// What a long job says while it works.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A part of the work begins, of so many steps.
    Phase {
        /// What it is, in a few words.
        name: String,
        /// Steps in all.
        steps: usize,
        /// Steps that an earlier, interrupted run has done.
        done: usize,
    },
    /// Steps done so far, and a few words of figures.
    Step {
        /// Steps done.
        done: usize,
        /// Figures.
        figures: String,
    },
    /// The figures of a training's step, as its log has them.
    Logged(Box<crate::pretrain::LogLine>),
    /// A part of the work is finished.
    PhaseDone {
        /// What came of it.
        result: String,
    },
    /// Something worth a line.
    Note(String),
}

/// Who is told.
pub trait Watcher {
    /// Takes an event.
    fn tell(&mut self, event: Event);

    /// Whether the person wants to stop: asked after every step.
    fn stop(&self) -> bool {
        false
    }
}

/// Nobody.
#[derive(Debug)]
pub struct Silent;

impl Watcher for Silent {
    fn tell(&mut self, _: Event) {}
}
