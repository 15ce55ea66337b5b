//! Takes a step under the guard's eyes, answers the trouble it sees, and writes down what happened.

use super::damage::{Damage, Suspect};
use super::judge::judge;
use super::memory::{Ease, Memory, Open};
use super::subject::{Subject, memory_of};
use super::update::{before, moved};
use super::{Trouble, Verdict};
use crate::checkpoint::{Writer, folder};
use crate::incident::{self, Cause, Incident};
use crate::run::{Run, drop_after};
use crate::watch::{Event, Watcher};
use danlu_core::recipe::GuardRecipe;
use danlu_core::{Error, Result};
use std::time::Instant;

/// Steps before trouble that it may have begun with unseen.
const MARGIN: u64 = 2;

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// The weights have moved.
    Taken,
    /// They have not; training goes on with the next samples.
    Skipped,
    /// Training stands at an earlier step again.
    Back,
}

/// Before the first step of a training that was opened: cuts its logs and incidents back to where it
/// stands, and sees to it that there is a state to go back to.
pub(crate) fn begin<S: Subject>(
    r: &GuardRecipe,
    run: &Run,
    subject: &mut S,
    writer: &mut Writer,
) -> Result<()> {
    let step = subject.state().step;
    subject.logs().iter().try_for_each(|name| drop_after(&run.log(name), step))?;
    let phase = subject.phase();
    let memory = memory_of(subject);
    incident::forget(run, phase, memory.incidents)?;
    if r.on && memory.marks.is_empty() {
        memory.mark(step);
        writer.begin(|| subject.snapshot())?;
    }
    Ok(())
}

/// Begins to write a checkpoint. That the one before failed is told, and stops nothing. Without the
/// guard there is nothing to go back to, so a model that takes no more steps does not push out what it
/// was before.
pub(crate) fn keep<S: Subject>(
    r: &GuardRecipe,
    subject: &mut S,
    writer: &mut Writer,
    watcher: &mut dyn Watcher,
) {
    if !r.on && memory_of(subject).skipped > 0 {
        return;
    }
    let begun = writer.begin(|| subject.snapshot());
    begun.unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
}

/// Takes a step after its forward and backward pass: moves the weights, or answers trouble. Stops the
/// training with an error if it has been answered too often.
pub(crate) fn step<S: Subject>(
    r: &GuardRecipe,
    run: &Run,
    subject: &mut S,
    pass: &mut S::Pass,
    writer: &mut Writer,
    watcher: &mut dyn Watcher,
) -> Result<Done> {
    let started = Instant::now();
    let done = judged(r, run, subject, pass, writer, watcher);
    subject.state_mut().upkeep.guard += started.elapsed().as_secs_f64();
    done
}

/// The same. The time that moving the weights takes is taken off what the guard costs.
fn judged<S: Subject>(
    r: &GuardRecipe,
    run: &Run,
    subject: &mut S,
    pass: &mut S::Pass,
    writer: &mut Writer,
    watcher: &mut dyn Watcher,
) -> Result<Done> {
    let trouble = match judge(r, subject, pass)? {
        Verdict::Go => {
            let step = subject.state().step;
            let remembered = r.on.then(|| before(&*subject.module(), step));
            let usual = subject.usual_share();
            let started = Instant::now();
            subject.apply(pass);
            subject.state_mut().upkeep.guard -= started.elapsed().as_secs_f64();
            let first = S::figures(pass).samples[0];
            let trouble = remembered.and_then(|b| moved(r, subject, b, usual, first));
            if !r.on {
                memory_of(subject).skipped = 0;
            }
            match trouble {
                None => return Ok(Done::Taken),
                Some(trouble) => trouble,
            }
        }
        Verdict::Skip(trouble) => {
            subject.skip();
            let (phase, samples) = (subject.phase(), S::figures(pass).samples);
            let memory = memory_of(subject);
            let incident = record_skip(run, phase, memory, trouble.clone(), samples)?;
            watcher.tell(Event::Note(incident.headline()));
            let most = if r.on { r.bad_steps as u64 } else { 20 };
            if memory.skipped > most {
                let why = format!("{} steps in a row were skipped for it", memory.skipped);
                return Err(give_up(run, writer, &trouble, &why));
            }
            return Ok(Done::Skipped);
        }
        Verdict::Back(trouble) => trouble,
    };
    writer.wait().unwrap_or_else(|e| watcher.tell(Event::Note(e.to_string())));
    go_back(r, run, subject, trouble, S::figures(pass).samples[1], writer, watcher)?;
    Ok(Done::Back)
}

/// After a step that is logged: tells what came of an incident once its time has come.
pub(crate) fn conclude<S: Subject>(
    run: &Run,
    subject: &mut S,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let started = Instant::now();
    let (phase, step) = (subject.phase(), subject.state().step);
    say(outcome(run, phase, memory_of(subject), step)?, watcher);
    subject.state_mut().upkeep.guard += started.elapsed().as_secs_f64();
    Ok(())
}

/// Answers trouble by going back to an earlier checkpoint, or stops the run. `end` is the sample after
/// the last one of the step.
fn go_back<S: Subject>(
    r: &GuardRecipe,
    run: &Run,
    subject: &mut S,
    trouble: Trouble,
    end: u64,
    writer: &Writer,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let before = memory_of(subject).clone();
    if before.rollbacks >= r.rollbacks as u64 {
        let why = format!("it has gone back {} times already", before.rollbacks);
        record_stop(run, subject, &trouble, end, &why);
        return Err(give_up(run, writer, &trouble, &why));
    }
    let mut found = false;
    let asks = matches!(trouble.cause, Cause::RateTooHigh | Cause::Overflow);
    let suspect = asks.then(|| Suspect::of(&*subject.module()));
    let upkeep = subject.state().upkeep;
    for step in targets(&before, trouble.from[0], &on_disk(writer)) {
        match subject.restore(step) {
            Ok(()) => {
                found = true;
                break;
            }
            Err(e) => watcher.tell(Event::Note(e.to_string())),
        }
    }
    if !found {
        let why = "there is no checkpoint to go back to";
        record_stop(run, subject, &trouble, end, why);
        return Err(give_up(run, writer, &trouble, why));
    }
    // What it has cost does not come back.
    subject.state_mut().upkeep = upkeep;
    let step = subject.state().step;
    let damage = suspect.and_then(|s| s.damage(&*subject.module(), step));
    let trouble = match damage {
        Some(Damage { layer, evidence }) => trouble.of_damage(layer, evidence),
        None => trouble,
    };
    if let Some(told) = writer.drop_after(subject.state())? {
        watcher.tell(Event::Note(told));
    }
    subject.logs().iter().try_for_each(|name| drop_after(&run.log(name), step))?;
    let incident = record_back(r, run, before, subject, trouble, end)?;
    watcher.tell(Event::Note(incident.headline()));
    Ok(())
}

/// Records trouble that a step is skipped for: a new incident, or more of the one before.
pub(super) fn record_skip(
    run: &Run,
    phase: &str,
    memory: &mut Memory,
    trouble: Trouble,
    samples: [u64; 2],
) -> Result<Incident> {
    let [step, sample] = trouble.from;
    if memory.skipped == 0 {
        overtaken(run, phase, memory.open.take(), memory.incidents + 1)?;
        memory.incidents += 1;
        memory.skipped_from = [step, sample];
    }
    memory.skipped += 1;
    let loss = memory.history.iter().rev().find_map(|s| s.expected).unwrap_or(0.0);
    memory.open = Some(Open { incident: memory.incidents, due: step + 2, loss });
    let [began, first] = memory.skipped_from;
    let incident = Incident {
        phase: phase.into(),
        number: memory.incidents,
        step: step + 1,
        began: began + 1,
        samples: [first, samples[1]],
        layer: trouble.layer,
        cause: trouble.cause,
        evidence: trouble.evidence,
        action: match memory.skipped {
            1 => "skipped the step".into(),
            n => format!("skipped {n} steps"),
        },
        outcome: String::new(),
        history: memory.history.clone(),
    };
    incident.save(run)?;
    Ok(incident)
}

/// Records trouble that the run is stopped for, if it can: the trouble itself is what is to be told.
fn record_stop<S: Subject>(run: &Run, subject: &mut S, trouble: &Trouble, end: u64, why: &str) {
    let (phase, step) = (subject.phase(), subject.state().step);
    let memory = memory_of(subject);
    // One skipped for it before is the same incident.
    let number = memory.incidents + u64::from(memory.skipped == 0);
    let _ = overtaken(run, phase, memory.open.take(), number);
    let incident = Incident {
        phase: phase.into(),
        number,
        step: memory.history.last().map_or(step, |s| s.step),
        began: trouble.from[0] + 1,
        samples: [trouble.from[1], end],
        layer: trouble.layer.clone(),
        cause: trouble.cause,
        evidence: trouble.evidence.clone(),
        action: format!("stopped the run: {why}"),
        outcome: "the run ended here".into(),
        history: memory.history.clone(),
    };
    let _ = incident.save(run);
}

/// The checkpoints that may be gone back to for trouble that began at step `from` (from 0), the best
/// first: the newest that is a little before it, then older ones; the oldest if none is before it.
pub(super) fn targets(memory: &Memory, from: u64, there: &[u64]) -> Vec<u64> {
    let mut all: Vec<u64> =
        memory.marks.iter().rev().copied().filter(|&m| m + MARGIN <= from).collect();
    if all.is_empty() {
        all.extend(memory.marks.first());
    }
    // Those that were marked may have failed to be written.
    let older = there.iter().rev().filter(|&&step| step + MARGIN <= from);
    let older: Vec<u64> = older.copied().filter(|step| !all.contains(step)).collect();
    all.extend(older);
    all
}

/// The steps of the checkpoints that there are, in their order.
fn on_disk(writer: &Writer) -> Vec<u64> {
    let all = folder::list(writer.folder());
    let mut steps: Vec<u64> = all.iter().filter_map(|path| folder::step_of(path)).collect();
    steps.sort_unstable();
    steps.dedup();
    steps
}

/// The step (from 0) that a rate is lowered from, of a training that has gone back to `step` for trouble
/// that began at step `began`. What lies between went well and will go the same way again, so the rate
/// is lowered a little before the trouble; from the start, if that has been tried and did not help.
pub(super) fn lowered_from(eases: &[Ease], step: u64, began: u64) -> u64 {
    let tried = eases.iter().any(|e| (step..=began).contains(&e.from));
    if tried { step } else { step.max(began.saturating_sub(MARGIN)) }
}

/// Takes what is known about trouble over into the memory of the state that training has gone back
/// to, and records the incident.
fn record_back<S: Subject>(
    r: &GuardRecipe,
    run: &Run,
    before: Memory,
    subject: &mut S,
    trouble: Trouble,
    end: u64,
) -> Result<Incident> {
    let (phase, step) = (subject.phase(), subject.state().step);
    let seen_at = before.history.last().map_or(step, |s| s.step);
    let loss = before.history.iter().rev().find_map(|s| s.expected).unwrap_or(0.0);
    let memory = memory_of(subject);
    // One skipped for it before is the same incident.
    let number = before.incidents + u64::from(before.skipped == 0);
    overtaken(run, phase, before.open, number)?;
    memory.incidents = number;
    memory.rollbacks = before.rollbacks + 1;
    memory.eases = before.eases;
    memory.left_out = before.left_out;
    memory.fallen = match trouble.cause {
        Cause::RouterCollapse => Some(trouble.from[0]),
        _ => before.fallen,
    };
    memory.history = before.history.clone();
    let samples = [trouble.from[1], end];
    let mut action = format!("went back to step {step}");
    if trouble.leave_out && samples[0] < samples[1] {
        memory.left_out.push(samples);
        action += &format!(", leaves out samples {} to {}", samples[0], samples[1]);
    }
    if trouble.factor < 1.0 {
        let from = lowered_from(&memory.eases, step, trouble.from[0]);
        memory.eases.push(Ease { from, factor: trouble.factor, warmup: r.warmup as u64 });
        action += &format!(
            ", multiplies the learning rate by {:.3} from step {} on, after a warm-up of {} steps",
            trouble.factor,
            from + 1,
            r.warmup
        );
    }
    let due = seen_at + 5;
    memory.open = Some(Open { incident: number, due, loss });
    let incident = Incident {
        phase: phase.into(),
        number,
        step: seen_at,
        began: trouble.from[0] + 1,
        samples,
        layer: trouble.layer,
        cause: trouble.cause,
        evidence: trouble.evidence,
        action,
        outcome: String::new(),
        history: before.history,
    };
    incident.save(run)?;
    Ok(incident)
}

/// The incident whose time has come, with what came of it.
pub(super) fn outcome(
    run: &Run,
    phase: &str,
    memory: &mut Memory,
    done: u64,
) -> Result<Option<Incident>> {
    let due = memory.open.as_ref().is_some_and(|o| done >= o.due && memory.skipped == 0);
    let Some(open) = memory.open.take_if(|_| due) else { return Ok(None) };
    let loss = memory.history.last().and_then(|s| s.loss).unwrap_or(f64::NAN);
    let expected = open.loss;
    let words = format!(
        "training went on; at step {done} the loss was {loss:.3}, where {expected:.3} was expected \
         before"
    );
    tell(run, phase, &open, words)
}

/// After the last step: what came of an incident whose time would have come later.
pub(crate) fn finish<S: Subject>(
    run: &Run,
    subject: &mut S,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let (phase, step) = (subject.phase(), subject.state().step);
    let memory = memory_of(subject);
    let Some(open) = memory.open.take() else { return Ok(()) };
    let lost = memory.history.last().and_then(|s| s.loss).unwrap_or(f64::NAN);
    let loss = match memory.skipped {
        0 => format!("with a loss of {lost:.3}, where {:.3} was expected before", open.loss),
        n => format!("with its last {n} steps skipped"),
    };
    let words = format!("the training ended soon after, at step {step}, {loss}");
    say(tell(run, phase, &open, words)?, watcher);
    Ok(())
}

fn say(told: Option<Incident>, watcher: &mut dyn Watcher) {
    if let Some(told) = told {
        watcher.tell(Event::Note(format!("incident {}: {}", told.number, told.outcome)));
    }
}

/// Of an incident that was still open when number `next`, another one, began.
fn overtaken(run: &Run, phase: &str, open: Option<Open>, next: u64) -> Result<()> {
    let Some(open) = open.filter(|open| open.incident != next) else { return Ok(()) };
    let words = format!("incident {next} came before training had gone on for long");
    tell(run, phase, &open, words).map(drop)
}

/// Writes down what came of an incident, if it is still there.
fn tell(run: &Run, phase: &str, open: &Open, outcome: String) -> Result<Option<Incident>> {
    let all = incident::of_phase(run, phase)?;
    let Some(mut incident) = all.into_iter().find(|i| i.number == open.incident) else {
        return Ok(None);
    };
    incident.outcome = outcome;
    incident.save(run)?;
    Ok(Some(incident))
}

/// Why a run is stopped that has gone back too often, or has nowhere to go back to.
fn give_up(run: &Run, writer: &Writer, trouble: &Trouble, why: &str) -> Error {
    let there: Vec<String> = on_disk(writer).iter().map(u64::to_string).collect();
    let there = match there.is_empty() {
        true => "there is no checkpoint".to_string(),
        false => format!(
            "checkpoints of steps {} are in {}",
            there.join(", "),
            writer.folder().display()
        ),
    };
    Error::Other(format!(
        "stopped at step {}: {} ({}), and {why}; {there}, what happened before is in {}",
        trouble.from[0] + 1,
        trouble.cause.words(),
        trouble.evidence.join("; "),
        run.incidents().display()
    ))
}
