//! Scoring replies.

use crate::bootstrap::{Interval, interval};
use crate::index::Question;
use crate::judges::{PictureJudge, SoundJudge};
use crate::metrics::{METRICS, metric};
use danlu_core::{Call, Error, Media, Modality, Part, Picture, Result, Sound, call};
use danlu_data::{Corpus, Pack, SoundKind, Split};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Questions between two calls of `done`.
const CHUNK: usize = 32;
/// Overlap from which on a reply with boxes counts as right.
const RIGHT_BOX: f64 = 0.5;
/// Languages that a task's name may end with, and that sounds are then compared within.
const LANGUAGES: [&str; 2] = ["en", "zh"];

/// One piece of a reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A picture.
    Picture(Picture),
    /// A sound.
    Sound(Sound),
}

/// Something that replies to questions.
pub trait Answerer {
    /// One reply to each question, in order. `done` is told how many there are so far.
    fn answer(
        &mut self,
        questions: &[Question],
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<Value>>>;
}

/// Where the pictures and sounds that questions name come from.
pub trait Assets: Sync {
    /// The picture behind `media`.
    fn picture(&self, media: &Media) -> Result<Arc<Picture>>;

    /// The sound behind `media`.
    fn sound(&self, media: &Media) -> Result<Arc<Sound>>;
}

/// Pictures and sounds in files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files;

impl Assets for Files {
    fn picture(&self, media: &Media) -> Result<Arc<Picture>> {
        match media {
            Media::File(path) => danlu_media::read_picture(path).map(Arc::new),
            Media::Asset(id) => Err(no_asset("picture", id.0)),
        }
    }

    fn sound(&self, media: &Media) -> Result<Arc<Sound>> {
        match media {
            Media::File(path) => danlu_media::read_sound(path).map(Arc::new),
            Media::Asset(id) => Err(no_asset("sound", id.0)),
        }
    }
}

impl Assets for Corpus {
    fn picture(&self, media: &Media) -> Result<Arc<Picture>> {
        match media {
            Media::Asset(id) => self
                .pictures
                .get(id.0 as usize)
                .map(|asset| asset.picture.clone())
                .ok_or_else(|| no_asset("picture", id.0)),
            file => Files.picture(file),
        }
    }

    fn sound(&self, media: &Media) -> Result<Arc<Sound>> {
        match media {
            Media::Asset(id) => self
                .sounds
                .get(id.0 as usize)
                .map(|asset| asset.sound.clone())
                .ok_or_else(|| no_asset("sound", id.0)),
            file => Files.sound(file),
        }
    }
}

fn no_asset(kind: &str, id: u32) -> Error {
    Error::Other(format!("the question names {kind} {id} of a corpus that is not at hand"))
}

/// References for the judges, by label.
#[derive(Debug, Clone, Default)]
pub struct Gallery {
    /// Pictures.
    pub pictures: Vec<(String, Arc<Picture>)>,
    /// Sounds with the language that is spoken in them, if any is.
    pub sounds: Vec<(String, Option<String>, Arc<Sound>)>,
}

impl Gallery {
    /// Every picture of every concept, and up to `voices` recordings of it in each language; those
    /// in voices that are held out, which a model cannot copy, come first.
    pub fn of_corpus(corpus: &Corpus, voices: usize) -> Gallery {
        let mut gallery = Gallery::default();
        for concept in &corpus.concepts {
            let label = concept.label();
            let pictures = concept.pictures.iter().map(|&id| &corpus.picture(id).picture);
            gallery.pictures.extend(pictures.map(|picture| (label.clone(), picture.clone())));
            let mut spoken: BTreeMap<&str, Vec<_>> = BTreeMap::new();
            for &id in &concept.sounds {
                let asset = corpus.sound(id);
                if asset.kind == Some(SoundKind::Speech) {
                    // With a concept that is held out, every sound of it is: no voice is first.
                    let held = asset.held == Some(danlu_data::Held::Voice);
                    spoken.entry(&asset.language).or_default().push((!held, asset));
                }
            }
            for (language, mut assets) in spoken {
                assets.sort_by_key(|(order, _)| *order);
                gallery.sounds.extend(assets.into_iter().take(voices).map(|(_, asset)| {
                    (label.clone(), Some(language.to_owned()), asset.sound.clone())
                }));
            }
        }
        gallery
    }

    /// The same of a pack on disk.
    pub fn of_pack(pack: &Pack, voices: usize) -> Result<Gallery> {
        let mut gallery = Gallery::default();
        for concept in pack.concepts() {
            let concept = concept?;
            let label = format!("{}/{}", pack.manifest().name, concept.id);
            for item in &concept.pictures {
                let picture =
                    danlu_media::decode_picture(&item.bytes, pack.folder().join(&item.file))?;
                gallery.pictures.push((label.clone(), Arc::new(picture)));
            }
            let mut spoken: BTreeMap<&str, Vec<_>> = BTreeMap::new();
            for item in concept.sounds.iter().filter(|s| s.kind == SoundKind::Speech) {
                spoken.entry(&item.language).or_default().push(item);
            }
            for (language, mut items) in spoken {
                items.sort_by_key(|item| item.split == Split::Train);
                for item in items.into_iter().take(voices) {
                    let sound =
                        danlu_media::decode_sound(&item.bytes, pack.folder().join(&item.file))?;
                    let language = Some(language.to_owned());
                    gallery.sounds.push((label.clone(), language, Arc::new(sound)));
                }
            }
        }
        Ok(gallery)
    }

    /// Adds what `other` has.
    pub fn extend(&mut self, other: Gallery) {
        self.pictures.extend(other.pictures);
        self.sounds.extend(other.sounds);
    }
}

/// Judges ready for the questions of a set.
pub struct Judges {
    pictures: Option<PictureJudge>,
    /// By language; `None` knows all sounds.
    sounds: HashMap<Option<&'static str>, SoundJudge>,
    picture_labels: usize,
    sound_labels: HashMap<Option<&'static str>, usize>,
}

/// A loaded reference.
enum Loaded {
    Picture(Arc<Picture>),
    Sound(Arc<Sound>),
}

impl Judges {
    /// Judges with the references of `gallery`. What a question expects is added under its label
    /// if the gallery has nothing under that label, so a set can be judged without a gallery: then
    /// its own expected pictures and sounds are all there is. Only what is needed is looked at.
    pub fn new(questions: &[Question], assets: &dyn Assets, gallery: &Gallery) -> Result<Judges> {
        let picture_known: BTreeSet<&str> =
            gallery.pictures.iter().map(|(label, _)| label.as_str()).collect();
        let sound_known: BTreeSet<(&str, Option<&str>)> = gallery
            .sounds
            .iter()
            .flat_map(|(l, language, _)| [(l.as_str(), language.as_deref()), (l.as_str(), None)])
            .collect();
        let mut own: Vec<(String, Option<&'static str>, Loaded)> = Vec::new();
        let (mut any_picture, mut scopes) = (false, BTreeSet::new());
        for question in questions {
            let label = label(question);
            let scope = language(question);
            for part in question.expected() {
                match part {
                    Part::Text(_) | Part::Call(_) => {}
                    Part::Image(media) => {
                        any_picture = true;
                        let known = picture_known.contains(label.as_str())
                            || (question.label.is_none() && !gallery.pictures.is_empty());
                        if !known {
                            own.push((
                                label.clone(),
                                None,
                                Loaded::Picture(assets.picture(media)?),
                            ));
                        }
                    }
                    Part::Audio(media) => {
                        scopes.insert(scope);
                        let known = sound_known.contains(&(label.as_str(), scope))
                            || (question.label.is_none() && !gallery.sounds.is_empty());
                        if !known {
                            own.push((label.clone(), scope, Loaded::Sound(assets.sound(media)?)));
                        }
                    }
                }
            }
        }
        let mut pictures: Vec<(String, &Picture)> =
            gallery.pictures.iter().map(|(l, p)| (l.clone(), p.as_ref())).collect();
        for (label, _, loaded) in &own {
            if let Loaded::Picture(picture) = loaded {
                pictures.push((label.clone(), picture));
            }
        }
        let mut judges = Judges {
            pictures: any_picture.then(|| PictureJudge::new(&pictures)),
            sounds: HashMap::new(),
            picture_labels: distinct(&pictures),
            sound_labels: HashMap::new(),
        };
        for scope in scopes {
            let mut sounds: Vec<(String, &Sound)> = gallery
                .sounds
                .iter()
                .filter(|(_, language, _)| scope.is_none() || language.as_deref() == scope)
                .map(|(label, _, sound)| (label.clone(), sound.as_ref()))
                .collect();
            for (label, language, loaded) in &own {
                if let Loaded::Sound(sound) = loaded
                    && (scope.is_none() || *language == scope)
                {
                    sounds.push((label.clone(), sound));
                }
            }
            judges.sound_labels.insert(scope, distinct(&sounds));
            judges.sounds.insert(scope, SoundJudge::new(&sounds));
        }
        Ok(judges)
    }

    fn picture(&self, picture: &Picture, k: usize) -> Vec<String> {
        let found = self.pictures.as_ref().map(|judge| judge.rank(picture, k));
        labels(found.unwrap_or_default())
    }

    fn sound(&self, scope: Option<&'static str>, sound: &Sound, k: usize) -> Vec<String> {
        let found = self.sounds.get(&scope).map(|judge| judge.rank(sound, k));
        labels(found.unwrap_or_default())
    }
}

fn labels(found: Vec<(String, f32)>) -> Vec<String> {
    found.into_iter().map(|(label, _)| label).collect()
}

fn distinct<T>(gallery: &[(String, T)]) -> usize {
    gallery.iter().map(|(label, _)| label).collect::<BTreeSet<_>>().len()
}

/// What the reply should be recognised as; without a label, every question is its own.
fn label(question: &Question) -> String {
    question.label.clone().unwrap_or_else(|| format!("line {}", question.line))
}

/// The language that sounds of this question are compared within.
fn language(question: &Question) -> Option<&'static str> {
    let ending = question.task.rsplit_once('_')?.1;
    LANGUAGES.into_iter().find(|&language| language == ending)
}

/// One metric of one task and view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Name of the task.
    pub task: String,
    /// What was held out; may be empty.
    pub view: String,
    /// Name of the metric.
    pub metric: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// How many questions.
    pub n: usize,
    /// Mean and 95 % interval.
    pub value: Interval,
    /// How many replies were not of the kind that is expected; they count as failures.
    pub wrong_kind: usize,
    /// What guessing gives, where that is known.
    pub chance: Option<f64>,
    /// What the judge says of the expected media themselves after the tokeniser, where measured.
    pub ceiling: Option<f64>,
}

/// What became of one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which question, from 0.
    pub question: usize,
    /// Its line in the set.
    pub line: usize,
    /// Name of the task.
    pub task: String,
    /// What was held out; may be empty.
    pub view: String,
    /// The question's words.
    pub prompt: String,
    /// The expected text, or the label of what is expected.
    pub expected: String,
    /// The reply, or what the judge took it for.
    pub got: String,
    /// Whether it counts as right.
    pub verdict: bool,
}

/// The outcome of an evaluation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// How many questions were asked.
    pub questions: usize,
    /// How many replies were not of the kind that is expected.
    pub wrong_kind: usize,
    /// Every metric of every task and view.
    pub scores: Vec<Scored>,
    /// Every question.
    pub records: Vec<Record>,
}

impl Report {
    /// The metric `metric` of `task` and `view`.
    pub fn score(&self, task: &str, view: &str, metric: &str) -> Option<&Scored> {
        self.scores.iter().find(|s| s.task == task && s.view == view && s.metric == metric)
    }

    /// Enters as ceilings what [`judge_only`] says of reconstructions.
    pub fn set_ceilings(&mut self, scores: &[Scored]) {
        for score in &mut self.scores {
            let same = |s: &&Scored| {
                (&s.task, &s.view, &s.metric) == (&score.task, &score.view, &score.metric)
            };
            if let Some(found) = scores.iter().find(same) {
                score.ceiling = Some(found.value.mean);
            }
        }
    }
}

/// The scores of one reply.
struct Outcome {
    scores: Vec<(&'static str, f64, Option<f64>)>,
    wrong_kind: bool,
    expected: String,
    got: String,
    verdict: bool,
}

/// Scores `answers`, one per question. `done` is told how many are scored so far.
///
/// Each kind of media that a question expects is scored apart: text by [`METRICS`], pictures and
/// sounds by whether the judge takes them for what they should be (`top1`) or has that among its
/// first five (`top5`). A reply without that kind of media fails them all.
pub fn evaluate(
    questions: &[Question],
    answers: &[Vec<Value>],
    assets: &dyn Assets,
    judges: &Judges,
    done: &mut dyn FnMut(usize),
) -> Result<Report> {
    let outcomes = outcomes(questions, answers, assets, judges, false, done)?;
    let records = outcomes.iter().zip(questions).enumerate().map(|(i, (outcome, q))| Record {
        question: i,
        line: q.line,
        task: q.task.clone(),
        view: q.view.clone(),
        prompt: q.prompt(),
        expected: outcome.expected.clone(),
        got: outcome.got.clone(),
        verdict: outcome.verdict,
    });
    Ok(Report {
        questions: questions.len(),
        wrong_kind: outcomes.iter().filter(|o| o.wrong_kind).count(),
        records: records.collect(),
        scores: scores(questions, &outcomes),
    })
}

/// The judged scores alone. With the tokenisers' reconstruction of what is expected as `answers`,
/// these are the ceilings of a model that writes perfect tokens; see [`Report::set_ceilings`].
pub fn judge_only(
    questions: &[Question],
    answers: &[Vec<Value>],
    assets: &dyn Assets,
    judges: &Judges,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Scored>> {
    Ok(scores(questions, &outcomes(questions, answers, assets, judges, true, done)?))
}

fn outcomes(
    questions: &[Question],
    answers: &[Vec<Value>],
    assets: &dyn Assets,
    judges: &Judges,
    media_only: bool,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Outcome>> {
    if questions.len() != answers.len() {
        return Err(Error::Other(format!(
            "{} questions got {} replies; expected one each",
            questions.len(),
            answers.len()
        )));
    }
    let mut outcomes = Vec::with_capacity(questions.len());
    for (questions, answers) in questions.chunks(CHUNK).zip(answers.chunks(CHUNK)) {
        let scored = questions
            .par_iter()
            .zip(answers)
            .map(|(question, answer)| outcome(question, answer, assets, judges, media_only))
            .collect::<Result<Vec<_>>>()?;
        outcomes.extend(scored);
        done(outcomes.len());
    }
    Ok(outcomes)
}

fn outcome(
    question: &Question,
    answer: &[Value],
    assets: &dyn Assets,
    judges: &Judges,
    media_only: bool,
) -> Result<Outcome> {
    let mut out = Outcome {
        scores: Vec::new(),
        wrong_kind: false,
        expected: String::new(),
        got: String::new(),
        verdict: true,
    };
    let expected = question.expected();
    for modality in Modality::ALL {
        match modality {
            Modality::Text if !media_only => {
                let calls: Vec<&Call> = expected.iter().filter_map(Part::call).collect();
                // Of a reply that calls tools, the calls are what counts.
                let texts = expected.iter().filter_map(|part| match part {
                    Part::Text(text) if calls.is_empty() => Some(text.clone()),
                    Part::Call(call) => Some(call.words()),
                    _ => None,
                });
                let want = texts.collect::<Vec<_>>().join(" ");
                if !want.trim().is_empty() {
                    text_outcome(&mut out, question, answer, &want, &calls);
                }
            }
            Modality::Text => {}
            Modality::Image => {
                let Some(media) = expected.iter().find_map(|part| match part {
                    Part::Image(media) => Some(media),
                    _ => None,
                }) else {
                    continue;
                };
                let got = answer.iter().find_map(|value| match value {
                    Value::Picture(picture) => Some(judges.picture(picture, 5)),
                    _ => None,
                });
                let want = match &question.label {
                    Some(label) => label.clone(),
                    None => first(judges.picture(&*assets.picture(media)?, 1)),
                };
                judged(&mut out, want, got, judges.picture_labels);
            }
            Modality::Audio => {
                let Some(media) = expected.iter().find_map(|part| match part {
                    Part::Audio(media) => Some(media),
                    _ => None,
                }) else {
                    continue;
                };
                let scope = language(question);
                let got = answer.iter().find_map(|value| match value {
                    Value::Sound(sound) => Some(judges.sound(scope, sound, 5)),
                    _ => None,
                });
                let want = match &question.label {
                    Some(label) => label.clone(),
                    None => first(judges.sound(scope, &*assets.sound(media)?, 1)),
                };
                let known = judges.sound_labels.get(&scope).copied().unwrap_or(0);
                judged(&mut out, want, got, known);
            }
        }
    }
    // Where nothing was asked for, nothing is right.
    out.verdict &= !out.scores.is_empty();
    Ok(out)
}

fn first(labels: Vec<String>) -> String {
    labels.into_iter().next().unwrap_or_default()
}

fn text_outcome(
    out: &mut Outcome,
    question: &Question,
    answer: &[Value],
    want: &str,
    calls: &[&Call],
) {
    let texts: Vec<&str> = answer
        .iter()
        .filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let missing = texts.is_empty();
    let mut got = texts.join(" ");
    let said = if calls.is_empty() { Vec::new() } else { call::said(&got) };
    if !said.is_empty() {
        // Equal calls may be written in many ways.
        got = match call::same(calls, &said) {
            true => want.to_string(),
            false => said.iter().map(Call::words).collect::<Vec<_>>().join(" "),
        };
    }
    let (mut exact, mut overlap) = (false, None);
    for m in METRICS.iter().filter(|m| m.applies(want, &question.task)) {
        let score = match missing {
            true => f64::from(!m.higher_is_better()),
            false => m.score(want, &got),
        };
        match m.name() {
            "exact" => exact = score == 1.0,
            "iou" => overlap = Some(score),
            _ => {}
        }
        out.scores.push((m.name(), score, None));
    }
    out.wrong_kind |= missing;
    out.verdict &= overlap.map_or(exact, |iou| iou >= RIGHT_BOX);
    note(&mut out.expected, want);
    note(&mut out.got, if missing { "(no text)" } else { &got });
}

fn judged(out: &mut Outcome, want: String, got: Option<Vec<String>>, known: usize) {
    let chance = |k: usize| Some((k as f64 / known.max(1) as f64).min(1.0));
    let found = got.as_ref().and_then(|labels| labels.iter().position(|label| *label == want));
    out.scores.push(("top1", f64::from(found == Some(0)), chance(1)));
    out.scores.push(("top5", f64::from(found.is_some()), chance(5)));
    out.wrong_kind |= got.is_none();
    out.verdict &= found == Some(0);
    note(&mut out.expected, &want);
    let first = got.as_ref().map(|labels| labels.first().map_or("(nothing)", String::as_str));
    note(&mut out.got, first.unwrap_or("(no such media)"));
}

fn note(to: &mut String, text: &str) {
    if !to.is_empty() {
        to.push_str(" | ");
    }
    to.push_str(text);
}

fn scores(questions: &[Question], outcomes: &[Outcome]) -> Vec<Scored> {
    let mut groups: BTreeMap<(&str, &str), Vec<&Outcome>> = BTreeMap::new();
    for (question, outcome) in questions.iter().zip(outcomes) {
        groups.entry((&question.task, &question.view)).or_default().push(outcome);
    }
    let mut out = Vec::new();
    for ((task, view), outcomes) in groups {
        let names = METRICS.iter().map(|m| m.name()).chain(["top1", "top5"]);
        for name in names {
            let found: Vec<_> = outcomes
                .iter()
                .flat_map(|o| &o.scores)
                .filter(|(metric, _, _)| *metric == name)
                .collect();
            let Some(&&(_, _, chance)) = found.first() else { continue };
            let values: Vec<f64> = found.iter().map(|(_, score, _)| *score).collect();
            out.push(Scored {
                task: task.into(),
                view: view.into(),
                metric: name.into(),
                higher_is_better: metric(name).is_none_or(|m| m.higher_is_better()),
                n: values.len(),
                value: interval(&values),
                wrong_kind: outcomes.iter().filter(|o| o.wrong_kind).count(),
                chance,
                ceiling: None,
            });
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use danlu_core::{AssetId, Message, Role, Sample};

    /// Pictures of one colour and sounds of one tone, by number.
    pub(crate) struct Made;

    impl Assets for Made {
        fn picture(&self, media: &Media) -> Result<Arc<Picture>> {
            let Media::Asset(AssetId(id)) = media else { panic!("no files here") };
            Ok(Arc::new(picture(*id as u8)))
        }

        fn sound(&self, media: &Media) -> Result<Arc<Sound>> {
            let Media::Asset(AssetId(id)) = media else { panic!("no files here") };
            Ok(Arc::new(sound(*id)))
        }
    }

    fn picture(id: u8) -> Picture {
        Picture::filled(64, 64, [id * 60, 255 - id * 60, 40])
    }

    fn sound(id: u32) -> Sound {
        // A chirp, whose direction and place depend on `id`.
        let samples = (0..8000)
            .map(|i| {
                let t = i as f32 / 8000.0;
                let hz = 300.0 + 700.0 * id as f32 * if id.is_multiple_of(2) { t } else { 1.0 - t };
                (hz * t * 3.0).sin() * 0.5
            })
            .collect();
        Sound { rate: 16_000, samples }
    }

    pub(crate) fn question(line: usize, task: &str, expected: Part) -> Question {
        let ask = Part::Text("What is it?".into());
        let sample = Sample {
            messages: vec![Message::new(Role::User, vec![ask])],
            expected: Some(vec![expected]),
            task: Some(task.into()),
            label: Some(format!("p/{}", line % 4)),
            ..Sample::default()
        };
        Question::new(line, sample, "seen").unwrap()
    }

    fn text(line: usize, task: &str, expected: &str) -> Question {
        question(line, task, Part::Text(expected.into()))
    }

    fn run(questions: &[Question], answers: &[Vec<Value>]) -> Report {
        let judges = Judges::new(questions, &Made, &Gallery::default()).unwrap();
        evaluate(questions, answers, &Made, &judges, &mut |_| {}).unwrap()
    }

    #[test]
    fn texts_are_scored_by_task() {
        let questions = [
            text(1, "name_en", "cat"),
            text(2, "name_en", "dog"),
            text(3, "transcribe_en", "red heart"),
            text(4, "where", "<loc0><loc0><loc9><loc9>"),
        ];
        let answers = [
            vec![Value::Text("Cat.".into())],
            vec![Value::Sound(sound(1))],
            vec![Value::Text("red hat".into())],
            vec![Value::Text("<loc0><loc0><loc9><loc5>".into())],
        ];
        let report = run(&questions, &answers);
        let value = |task, metric| report.score(task, "seen", metric).unwrap().value.mean;
        assert_eq!(value("name_en", "exact"), 0.5);
        assert_eq!(value("transcribe_en", "wer"), 0.5);
        assert!((value("where", "iou") - 0.6).abs() < 1e-9);
        assert!(report.score("name_en", "seen", "wer").is_none());
        assert_eq!(report.score("name_en", "seen", "exact").unwrap().wrong_kind, 1);
        assert_eq!(report.wrong_kind, 1);
        let verdicts: Vec<bool> = report.records.iter().map(|r| r.verdict).collect();
        assert_eq!(verdicts, [true, false, false, true]);
        let mut nothing = text(1, "name_en", "cat");
        nothing.sample.expected = Some(vec![Part::Text(" ".into())]);
        assert!(!run(&[nothing], &[vec![Value::Text("cat".into())]]).records[0].verdict);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[test]
    fn media_are_judged_and_ceilings_entered() {
        let media = |i: usize| Media::Asset(AssetId(i as u32));
        let questions: Vec<Question> = (0..4)
            .map(|i| question(i, "draw_en", Part::Image(media(i))))
            .chain((4..8).map(|i| question(i, "say_en", Part::Audio(media(i % 4)))))
            .collect();
        // Pictures: all right but the last; sounds: the first is text, the second that of another.
        let perfect: Vec<Vec<Value>> = (0..8)
            .map(|i| match i < 4 {
                true => vec![Value::Picture(picture(i as u8))],
                false => vec![Value::Sound(sound(i % 4))],
            })
            .collect();
        let mut answers = perfect.clone();
        answers[3] = vec![Value::Picture(picture(0))];
        answers[4] = vec![Value::Text("meow".into())];
        answers[5] = vec![Value::Sound(sound(2))];
        let mut report = run(&questions, &answers);
        let drawn = report.score("draw_en", "seen", "top1").unwrap().clone();
        assert_eq!((drawn.value.mean, drawn.chance, drawn.n), (0.75, Some(0.25), 4));
        let said = report.score("say_en", "seen", "top1").unwrap().clone();
        assert_eq!((said.value.mean, said.wrong_kind), (0.5, 1));
        assert_eq!(report.records[3].got, "p/0");
        assert_eq!(report.records[5].got, "p/2");
        let judges = Judges::new(&questions, &Made, &Gallery::default()).unwrap();
        let ceilings = judge_only(&questions, &perfect, &Made, &judges, &mut |_| {}).unwrap();
        report.set_ceilings(&ceilings);
        assert_eq!(report.score("draw_en", "seen", "top1").unwrap().ceiling, Some(1.0));
        assert!(evaluate(&questions, &answers[1..], &Made, &judges, &mut |_| {}).is_err());
    }

    #[test]
    fn a_gallery_is_used_within_the_language() {
        let questions = [question(1, "say_en", Part::Audio(Media::Asset(AssetId(1))))];
        let entry = |label: &str, language: &str, id| {
            (label.to_owned(), Some(language.to_owned()), Arc::new(sound(id)))
        };
        let gallery = Gallery {
            pictures: Vec::new(),
            sounds: vec![entry("p/1", "en", 1), entry("p/2", "en", 2), entry("p/3", "zh", 3)],
        };
        let judges = Judges::new(&questions, &Made, &gallery).unwrap();
        let answers = [vec![Value::Sound(sound(3))]];
        let report = evaluate(&questions, &answers, &Made, &judges, &mut |_| {}).unwrap();
        assert_ne!(report.records[0].got, "p/3");
        assert_eq!(report.scores[0].chance, Some(0.5));
    }
}
