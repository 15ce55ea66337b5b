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

/// Bits a byte of each text, after what the model's texts begin with; the first token of a model
/// whose texts begin with nothing does not count, nor do its bytes.
pub fn bits_per_byte(model: &Model, texts: &[String]) -> Result<f64> {
    let mut bytes = 0;
    let window = WINDOW.min(model.transformer.config.context);
    // Windows, and how many nats at the beginning of each were counted before.
    let (mut windows, mut known) = (Vec::new(), Vec::new());
    for text in texts {
        let ids = begun(model, text);
        if ids.len() < 2 {
            continue;
        }
        let tokeniser = &model.tokenisers.text;
        let first = match tokeniser.begin() {
            Some(_) => 0,
            None => tokeniser.decode(&ids[..1]).len(),
        };
        bytes += text.len().saturating_sub(first);
        let (mut from, mut counted) = (0, 1);
        while counted < ids.len() {
            let to = (from + window + 1).min(ids.len());
            windows.push(ids[from..to].to_vec());
            known.push(counted - from - 1);
            counted = to;
            from = to.saturating_sub(window / 2 + 1);
        }
    }
    if bytes == 0 {
        return Err(Error::parameter("text", "texts of at least two tokens", "none"));
    }
    let each = nats(model, &windows);
    let sum: f64 = each.iter().zip(known).map(|(nats, n)| nats[n..].iter().sum::<f64>()).sum();
    Ok(sum / std::f64::consts::LN_2 / bytes as f64)
}

/// Which ending of each a model finds the likeliest, by its nats a byte, so that long ones are not
/// at a disadvantage (what lm-evaluation-harness calls `acc_norm`).
///
/// # Errors
/// If an ending is empty or a text is over the model's context, by the number of the choice, from 1.
pub fn choose(model: &Model, choices: &[Choice]) -> Result<Vec<usize>> {
    // Ids, where in them the ending begins, and its bytes.
    let (mut documents, mut begins, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    let most = model.transformer.config.context;
    for (number, choice) in choices.iter().enumerate() {
        let context = begun(model, &choice.context);
        for ending in &choice.endings {
            let ids = begun(model, &format!("{}{ending}", choice.context));
            // Where they part, even if the ending's first letter joined the token before.
            let same = context.iter().zip(&ids).take_while(|(a, b)| a == b).count();
            let refused = if ending.is_empty() || same >= ids.len() {
                Some(("endings that say something".to_string(), format!("{ending:?}")))
            } else if same == 0 {
                Some(("a beginning of at least one token".into(), format!("{:?}", choice.context)))
            } else if ids.len() > most + 1 {
                let wanted = format!("a beginning and an ending of at most {most} tokens together");
                Some((wanted, format!("{} tokens", ids.len())))
            } else {
                None
            };
            if let Some((wanted, found)) = refused {
                return Err(Error::parameter(format!("choice {}", number + 1), wanted, found));
            }
            documents.push(ids);
            begins.push(same - 1);
            bytes.push(ending.len());
        }
    }
    let each = nats(model, &documents);
    let rates = each.iter().zip(begins).zip(bytes);
    let mut rates =
        rates.map(|((nats, begin), bytes)| nats[begin..].iter().sum::<f64>() / bytes as f64);
    let best = |choice: &Choice| {
        let all: Vec<f64> = rates.by_ref().take(choice.endings.len()).collect();
        (0..all.len()).min_by(|&a, &b| all[a].total_cmp(&all[b])).unwrap_or(0)
    };
    Ok(choices.iter().map(best).collect())
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
        let got = choose(&model, &[choice.clone(), other]).expect("fits");
        let rate = |ending: &String| {
            let ids = model.tokenisers.text.encode(&format!("ok hi{ending}"));
            let from = model.tokenisers.text.encode("ok hi").len();
            nats(&model, &[ids])[0][from - 1..].iter().sum::<f64>() / ending.len() as f64
        };
        let rates: Vec<f64> = endings.iter().map(rate).collect();
        assert_eq!(got.len(), 2);
        assert!(rates.iter().all(|r| *r >= rates[got[0]] - 1e-6), "{rates:?} {got:?}");
        let empty = Choice { endings: vec![String::new()], ..choice.clone() };
        let error = choose(&model, &[choice, empty]).expect_err("empty").to_string();
        assert!(error.contains("choice 2"), "{error}");
    }
}
