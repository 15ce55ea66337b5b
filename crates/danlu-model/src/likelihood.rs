//! How likely a model finds texts: nats of a continuation, bits a byte, and which of several endings
//! it would choose. Knows nothing of files.

use crate::model::Model;
use danlu_core::{Error, Result};
use std::sync::Arc;

/// Tokens of a window over a long text; each window but the first begins with half of the one
/// before, which counts no more.
const WINDOW: usize = 1024;

/// A beginning and endings of which one is right.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The beginning.
    pub context: String,
    /// The endings, with the blank that comes before them.
    pub endings: Vec<String>,
    /// Which is right, from 0.
    pub label: usize,
}

/// Tokens that go through the model together.
const BATCH: usize = 2048;

/// Of every document, nats of each of `ids[1..]` after those before it; short documents share a
/// pass.
fn nats(model: &Model, documents: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let mut out = Vec::with_capacity(documents.len());
    let mut from = 0;
    while from < documents.len() {
        let (mut ids, mut targets, mut starts) = (Vec::new(), Vec::new(), vec![0u32]);
        let mut to = from;
        while to < documents.len() && (to == from || ids.len() + documents[to].len() <= BATCH) {
            let document = &documents[to];
            ids.extend(&document[..document.len() - 1]);
            targets.extend(&document[1..]);
            starts.push(ids.len() as u32);
            to += 1;
        }
        let spec = danlu_ops::HeadLoss {
            weights: vec![1.0; targets.len()].into(),
            targets: targets.into(),
            scale: 1.0,
            z_loss: 0.0,
        };
        let each = model.transformer.loss(&ids.into(), &Arc::from(starts.as_slice()), &spec).1;
        let of =
            |w: &[u32]| each[w[0] as usize..w[1] as usize].iter().map(|&v| f64::from(v)).collect();
        out.extend(starts.windows(2).map(of));
        from = to;
    }
    out
}

/// Ids of a text, after what the model's texts begin with.
fn begun(model: &Model, text: &str) -> Vec<u32> {
    let tokeniser = &model.tokenisers.text;
    tokeniser.begin().into_iter().chain(tokeniser.encode(text)).collect()
}

/// Bytes of a text that its first token says.
fn first_bytes(entries: &[Vec<u8>], id: u32, text: &str) -> usize {
    let Some(entry) = entries.get(id as usize) else { return 0 };
    // A blank before the first word may be the tokeniser's own.
    let own = !text.as_bytes().starts_with(entry) && entry.first() == Some(&b' ');
    entry.len() - usize::from(own)
}

/// Bits of each text and the bytes that they are for, after what the model's texts begin with; the
/// first token of a model whose texts begin with nothing does not count, nor do its bytes. Both are
/// 0 for a text of under two tokens.
pub fn bits(model: &Model, texts: &[String]) -> Vec<(f64, usize)> {
    let tokeniser = &model.tokenisers.text;
    let entries = tokeniser.begin().is_none().then(|| tokeniser.entries());
    let mut out = vec![(0.0, 0); texts.len()];
    let window = WINDOW.min(model.transformer.config.context);
    // Windows, and of each the text and how many nats at its beginning were counted before.
    let (mut windows, mut known) = (Vec::new(), Vec::new());
    for (text, (of, (_, bytes))) in texts.iter().zip(out.iter_mut().enumerate()) {
        let ids = begun(model, text);
        if ids.len() < 2 {
            continue;
        }
        let first = entries.as_ref().map_or(0, |entries| first_bytes(entries, ids[0], text));
        *bytes = text.len().saturating_sub(first);
        let (mut from, mut counted) = (0, 1);
        while counted < ids.len() {
            let to = (from + window + 1).min(ids.len());
            windows.push(ids[from..to].to_vec());
            known.push((of, counted - from - 1));
            counted = to;
            from = to.saturating_sub(window / 2 + 1);
        }
    }
    for (nats, (of, n)) in nats(model, &windows).into_iter().zip(known) {
        out[of].0 += nats[n..].iter().sum::<f64>() / std::f64::consts::LN_2;
    }
    out
}

/// Bits a byte of all texts together, by [`bits`].
///
/// # Errors
/// If none has two tokens.
pub fn bits_per_byte(model: &Model, texts: &[String]) -> Result<f64> {
    together(&bits(model, texts))
}

/// Bits a byte of what [`bits`] found.
///
/// # Errors
/// As those of [`bits_per_byte`].
pub fn together(found: &[(f64, usize)]) -> Result<f64> {
    let (bits, bytes) = found.iter().fold((0.0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    match bytes {
        0 => Err(Error::parameter("text", "texts of at least two tokens", "none")),
        _ => Ok(bits / bytes as f64),
    }
}

/// Which ending of a choice a model finds the likeliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// By nats a character, the blank before the ending left out, so that long ones are not at a
    /// disadvantage (what lm-evaluation-harness calls `acc_norm`).
    pub by_character: usize,
    /// By nats alone (`acc`).
    pub by_sum: usize,
}

/// What the model reads of a choice, by ending: ids, and which nats are the ending's.
fn laid_out(model: &Model, choice: &Choice) -> Result<Vec<(Vec<u32>, usize)>, String> {
    let most = model.transformer.config.context;
    let context = begun(model, &choice.context);
    let whole = |ending: &String| begun(model, &format!("{}{ending}", choice.context));
    let all: Vec<Vec<u32>> = choice.endings.iter().map(whole).collect();
    // Where they part, even if an ending's first letter joined the token before: all are counted
    // from there, so that none is charged for more of the beginning than another.
    let same = |ids: &Vec<u32>| context.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let from = all.iter().map(same).min().unwrap_or(0);
    let one = |(mut ids, ending): (Vec<u32>, &String)| {
        if ending.is_empty() || same(&ids) >= ids.len() {
            return Err(format!("expected endings that say something, found {ending:?}"));
        }
        let mut begin = from;
        if from == 0 {
            // Nothing is before it: it is held against what texts come after.
            let tokenisers = &model.tokenisers;
            ids.insert(0, tokenisers.begin_of_text().unwrap_or_else(|| tokenisers.end_of_text()));
            begin = 1;
        }
        // Of a long beginning the last is read.
        let cut = ids.len().saturating_sub(most + 1);
        if cut >= begin {
            let found = ids.len() - begin;
            return Err(format!("expected endings of at most {most} tokens, found {found}"));
        }
        Ok((ids.split_off(cut), begin - cut - 1))
    };
    all.into_iter().zip(&choice.endings).map(one).collect()
}

/// Which ending of each a model finds the likeliest. Where a beginning and an ending are over the
/// model's context, the beginning is cut from the left.
///
/// What cannot be chosen from is a sentence in its place: an ending that is empty, or by itself over
/// the context.
pub fn choose(model: &Model, choices: &[Choice]) -> Vec<Result<Chosen, String>> {
    let (mut documents, mut begins) = (Vec::new(), Vec::new());
    let mut out = Vec::with_capacity(choices.len());
    for choice in choices {
        out.push(laid_out(model, choice).map(|all| {
            let (ids, from): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            documents.extend(ids);
            begins.extend(from);
        }));
    }
    let each = nats(model, &documents);
    let mut sums = each.iter().zip(begins).map(|(nats, begin)| nats[begin..].iter().sum::<f64>());
    let least = |all: &[f64]| (0..all.len()).min_by(|&a, &b| all[a].total_cmp(&all[b]));
    let best = |(choice, read): (&Choice, Result<(), String>)| {
        read?;
        let all: Vec<f64> = sums.by_ref().take(choice.endings.len()).collect();
        let characters = |ending: &String| ending.trim_start().chars().count().max(1) as f64;
        let rates = all.iter().zip(&choice.endings).map(|(sum, e)| sum / characters(e));
        let rates: Vec<f64> = rates.collect();
        let none = || "expected `endings`, found none".to_string();
        let by_character = least(&rates).ok_or_else(none)?;
        Ok(Chosen { by_character, by_sum: least(&all).ok_or_else(none)? })
    };
    choices.iter().zip(out).map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::tiny_model;

    #[test]
    fn windows_count_every_token_once() {
        let model = tiny_model(3);
        // The context is 160 tokens; the text is longer.
        let long = "ok hi a b c ".repeat(40);
        let got = bits_per_byte(&model, std::slice::from_ref(&long)).expect("measures");
        let ids = model.tokenisers.text.encode(&long);
        assert!(ids.len() > 200);
        // An untrained model finds everything about equally likely.
        let even = (model.transformer.config.vocabulary as f64).log2() * (ids.len() - 1) as f64;
        let even = even / (long.len() as f64 - 1.0);
        assert!((got / even - 1.0).abs() < 0.2, "{got} against {even}");
        assert!(bits_per_byte(&model, &["a".into()]).is_err());
    }

    #[test]
    fn the_likelier_ending_is_chosen_and_what_cannot_be_is_refused() {
        let model = tiny_model(3);
        let endings = vec![" hi".to_string(), " a b".into(), " c".into()];
        let choice = Choice { context: "ok hi".into(), endings: endings.clone(), label: 0 };
        let other = Choice { context: "a b".into(), ..choice.clone() };
        let got = choose(&model, &[choice.clone(), other]);
        let rate = |ending: &String| {
            let ids = model.tokenisers.text.encode(&format!("ok hi{ending}"));
            let from = model.tokenisers.text.encode("ok hi").len();
            nats(&model, &[ids])[0][from - 1..].iter().sum::<f64>()
        };
        let sums: Vec<f64> = endings.iter().map(rate).collect();
        // Without the blank: 2, 3 and 1 letters.
        let rates: Vec<f64> = sums.iter().zip([2.0, 3.0, 1.0]).map(|(s, n)| s / n).collect();
        let first = got[0].clone().expect("fits");
        assert_eq!(got.len(), 2);
        assert!(rates.iter().all(|r| *r >= rates[first.by_character] - 1e-6), "{rates:?} {got:?}");
        assert!(sums.iter().all(|s| *s >= sums[first.by_sum] - 1e-6), "{sums:?} {got:?}");
        // One that cannot be chosen from leaves the others as they are.
        let empty = Choice { endings: vec![String::new()], ..choice.clone() };
        let long = Choice { endings: vec![" a b c".repeat(90)], ..choice.clone() };
        // A beginning over the context is cut, and none at all is no harm.
        let cut = Choice { context: "ok hi ".repeat(200), ..choice.clone() };
        let bare = Choice { context: String::new(), ..choice.clone() };
        let got = choose(&model, &[empty, long, cut, bare, choice]);
        let error = |i: usize| got[i].clone().expect_err("refused");
        assert!(error(0).contains("say something"), "{got:?}");
        assert!(error(1).contains("at most 160 tokens"), "{got:?}");
        assert!(got[2].is_ok() && got[3].is_ok(), "{got:?}");
        assert_eq!(got[4], Ok(first));
    }

    #[test]
    fn texts_that_begin_within_a_character_are_measured() {
        let model = tiny_model(3);
        let texts = ["猫", "a", "\u{1F600}"].map(String::from);
        let found = bits(&model, &texts);
        // The tokeniser has no merges of these: the first byte does not count.
        assert_eq!(found.iter().map(|f| f.1).collect::<Vec<_>>(), [2, 0, 3]);
        assert!(found[0].0 > 0.0 && found[1].0 == 0.0, "{found:?}");
        let all = (found[0].0 + found[2].0) / 5.0;
        assert!((bits_per_byte(&model, &texts).expect("measures") - all).abs() < 1e-9);
        assert!(together(&found[1..2]).is_err());
    }
}
