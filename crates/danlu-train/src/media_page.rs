//! What the tokenisers keep of pictures and sounds: figures against the originals, and examples.

use crate::incident;
use crate::incident_page::went_wrong;
use crate::run::Run;
use danlu_core::{Error, Picture, Result, Sound};
use danlu_data::{
    Classes, Corpus, Held, PictureAsset, SoundAsset, Split, picture_classes, sound_classes,
};
use danlu_media::{encode_png, encode_wav, mel_distance, psnr, ssim};
use danlu_model::Tokenisers;
use danlu_model::io::write_atomically;
use danlu_model::modality::{AudioTokeniser, ImageTokeniser};
use danlu_report::{Card, Cell, NoteKind, Page, Part, Table};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;

/// Reconstruction of one kind of data.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// Which pictures or sounds.
    pub of: String,
    /// How many were measured.
    pub n: usize,
    /// Figures by name: `psnr` (dB), `ssim`, or `mel_distance` (dB of log-mel, codes alone) and
    /// `mel_distance_sound` (after Griffin-Lim), with `floor` for Griffin-Lim without codes.
    pub figures: Vec<(&'static str, f64)>,
    /// Share of the codebook that occurs.
    pub codes_used: f64,
    /// Share of those with a class whose semantic token is that class, if there are such tokens.
    pub recognised: Option<f64>,
}

/// Most pictures and sounds that are measured of a kind.
const MOST: usize = 200;
/// Most of a kind that are recognised, which is quick.
const MOST_RECOGNISED: usize = 2000;

/// Measures the tokenisers on trained and held-out data, writes `tokenisers.html` and
/// `tokenisers.json` of a run, and returns the figures.
pub fn tokeniser_page(run: &Run, corpus: &Corpus, tokenisers: &Tokenisers) -> Result<Vec<Quality>> {
    let mut page = Page::new("What the tokenisers keep");
    page.lead(
        "Every picture and sound below was turned into tokens and back, without the language \
         model. This is the ceiling of everything that the model draws or says.",
    );
    for notice in &corpus.notices {
        page.note(NoteKind::Info, notice);
    }
    let mut all = Vec::new();
    page.section("Text");
    let mut rows = Vec::new();
    for language in ["en", "zh", "code"] {
        let texts: Vec<&str> = corpus
            .texts
            .iter()
            .filter(|t| t.language == language && t.split != Split::Train)
            .map(|t| t.text.as_str())
            .take(MOST)
            .collect();
        if texts.is_empty() {
            continue;
        }
        let bytes: usize = texts.iter().map(|t| t.len()).sum();
        let ids: Vec<Vec<u32>> = texts.iter().map(|t| tokenisers.text.encode(t)).collect();
        let exact =
            ids.iter().zip(&texts).filter(|(i, t)| tokenisers.text.decode(i) == **t).count();
        let tokens: usize = ids.iter().map(Vec::len).sum();
        rows.push(vec![
            language.into(),
            texts.len().into(),
            Cell::number(bytes as f64 / tokens.max(1) as f64, 2),
            format!("{exact} of {}", texts.len()).into(),
        ]);
    }
    table(
        &mut page,
        "Held-out text",
        &["Language", "Texts", "Bytes a token", "Came back exactly"],
        rows,
    );

    if let Some(image) = &tokenisers.image {
        pictures(corpus, tokenisers, image, &mut page, &mut all);
    }
    if let Some(audio) = &tokenisers.audio {
        sounds(corpus, tokenisers, audio, &mut page, &mut all);
    }
    went_wrong(&mut page, incident::of_tokenisers(run)?);
    let path = run.folder.join("tokenisers.html");
    page.write(&path).map_err(|e| Error::io(&path, e))?;
    let json = serde_json::to_string_pretty(&all).map_err(|e| Error::Other(e.to_string()))?;
    write_atomically(&run.folder.join("tokenisers.json"), json.as_bytes())?;
    Ok(all)
}

/// The part about pictures: a table and examples.
fn pictures(
    corpus: &Corpus,
    tokenisers: &Tokenisers,
    image: &ImageTokeniser,
    page: &mut Page,
    all: &mut Vec<Quality>,
) {
    page.section("Pictures");
    let mut rows = Vec::new();
    let mut cards = Vec::new();
    let Classes { of: classes, count } = picture_classes(corpus);
    // One that was learnt on other data has other classes, under the same numbers.
    let recogniser = tokenisers.image_semantic.as_ref().filter(|r| r.classes() as usize == count);
    for (of, all_assets) in picture_kinds(corpus) {
        let recognised = recogniser.and_then(|r| {
            let (pictures, wanted): (Vec<&Picture>, Vec<u32>) = some(&all_assets, MOST_RECOGNISED)
                .filter_map(|&(i, a)| Some((a.picture.as_ref(), classes[i]?)))
                .unzip();
            share(&r.pictures(&pictures), &wanted)
        });
        let assets: Vec<&PictureAsset> = some(&all_assets, MOST).map(|&(_, a)| a).collect();
        let originals: Vec<&Picture> = assets.iter().map(|a| a.picture.as_ref()).collect();
        let codes = image.to_codes(&originals);
        let made = image.to_pictures(&codes);
        let mean = |f: &dyn Fn(&Picture, &Picture) -> f64| {
            let sum: f64 = originals.iter().zip(&made).map(|(a, b)| f(a, b).min(99.0)).sum();
            sum / made.len() as f64
        };
        let used: BTreeSet<u32> = codes.iter().flatten().copied().collect();
        let used = used.len() as f64 / image.fsq.size() as f64;
        let figures = vec![("psnr", mean(&psnr)), ("ssim", mean(&ssim))];
        rows.push(vec![
            of.as_str().into(),
            made.len().into(),
            Cell::number(figures[0].1, 2),
            Cell::number(figures[1].1, 3),
            Cell::number(100.0 * used, 1),
            percent(recognised),
        ]);
        for (asset, made) in assets.iter().zip(&made).take(6) {
            cards.push(Card {
                title: format!("{}, {of}", title(corpus, asset.concept)),
                parts: vec![
                    Part::Picture {
                        png: encode_png(&asset.picture),
                        alt: "original".into(),
                        label: "original".into(),
                    },
                    Part::Arrow,
                    Part::Picture {
                        png: encode_png(made),
                        alt: "from its tokens".into(),
                        label: format!("{:.1} dB", psnr(&asset.picture, made)),
                    },
                ],
            });
        }
        all.push(Quality { of, n: made.len(), figures, codes_used: used, recognised });
    }
    let head = ["Pictures", "Measured", "PSNR, dB", "SSIM", "Codebook used, %", "Recognised, %"];
    let caption = format!("{} tokens a picture, against the original", ImageTokeniser::TOKENS);
    table(page, &caption, &head, rows);
    page.gallery("Original and reconstruction", &cards);
}

/// The part about sounds: a table and examples.
fn sounds(
    corpus: &Corpus,
    tokenisers: &Tokenisers,
    audio: &AudioTokeniser,
    page: &mut Page,
    all: &mut Vec<Quality>,
) {
    page.section("Sounds");
    let mut rows = Vec::new();
    let mut cards = Vec::new();
    let Classes { of: classes, count } = sound_classes(corpus);
    let recogniser = tokenisers.audio_semantic.as_ref().filter(|r| r.classes() as usize == count);
    for (of, all_assets) in sound_kinds(corpus) {
        let recognised = recogniser.and_then(|r| {
            let (rows, wanted): (Vec<Vec<f32>>, Vec<u32>) = some(&all_assets, MOST_RECOGNISED)
                .filter_map(|&(i, a)| Some((audio.rows(&a.sound.samples), classes[i]?)))
                .unzip();
            share(&r.sounds(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>()), &wanted)
        });
        let assets: Vec<&SoundAsset> = some(&all_assets, MOST).map(|&(_, a)| a).collect();
        let measured: Vec<(Vec<u32>, Sound, [f64; 3])> = assets
            .par_iter()
            .map(|a| {
                let mel = audio.bank.log_mel(&a.sound.samples);
                let codes = audio.to_codes(&a.sound);
                let made = audio.to_sound(&codes);
                let back = audio.bank.log_mel(&made.samples);
                let floor = audio.bank.griffin_lim(&mel, 32, 1);
                let floor = mel_distance(&mel, &audio.bank.log_mel(&floor.samples)) as f64;
                let kept = mel_distance(&mel, &audio.to_mel(&codes)) as f64;
                (codes, made, [kept, mel_distance(&mel, &back) as f64, floor])
            })
            .collect();
        let n = measured.len();
        let mean = |i: usize| measured.iter().map(|m| m.2[i]).sum::<f64>() / n as f64;
        let figures =
            vec![("mel_distance", mean(0)), ("mel_distance_sound", mean(1)), ("floor", mean(2))];
        let used: BTreeSet<u32> = measured.iter().flat_map(|m| &m.0).copied().collect();
        let used = used.len() as f64 / audio.fsq.size() as f64;
        rows.push(vec![
            of.as_str().into(),
            n.into(),
            Cell::number(figures[0].1, 2),
            Cell::number(figures[1].1, 2),
            Cell::number(figures[2].1, 2),
            Cell::number(100.0 * used, 1),
            percent(recognised),
        ]);
        for (asset, (_, made, d)) in assets.iter().zip(&measured).take(4) {
            cards.push(Card {
                title: format!("{}, {of}", title(corpus, asset.concept)),
                parts: vec![
                    Part::Text(asset.text.clone()),
                    Part::Sound { wav: encode_wav(&asset.sound), label: "original".into() },
                    Part::Arrow,
                    Part::Sound { wav: encode_wav(made), label: format!("{:.1} dB", d[1]) },
                ],
            });
        }
        all.push(Quality { of, n, figures, codes_used: used, recognised });
    }
    let head = [
        "Sounds",
        "Measured",
        "Mel distance of the codes, dB",
        "after Griffin-Lim, dB",
        "Griffin-Lim without codes, dB",
        "Codebook used, %",
        "Recognised, %",
    ];
    let caption = format!("{:.1} tokens a second, against the original", audio.tokens_per_second());
    table(page, &caption, &head, rows);
    page.gallery("Original and reconstruction", &cards);
}

fn table(page: &mut Page, caption: &str, head: &[&str], rows: Vec<Vec<Cell>>) {
    if !rows.is_empty() {
        let head = head.iter().map(|h| h.to_string()).collect();
        page.table(&Table { caption: caption.into(), head, rows });
    }
}

fn title(corpus: &Corpus, concept: Option<u32>) -> String {
    let entry = concept.map(|c| &corpus.concepts[c as usize]);
    entry.and_then(|c| c.name("en")).unwrap_or("a scene").to_string()
}

/// An even choice of at most `most`.
fn some<T>(all: &[T], most: usize) -> impl Iterator<Item = &T> {
    all.iter().step_by(all.len().div_ceil(most).max(1))
}

/// Share of `said` that is as `wanted`; `None` of nothing.
fn share(said: &[u32], wanted: &[u32]) -> Option<f64> {
    let right = said.iter().zip(wanted).filter(|(s, w)| s == w).count();
    (!wanted.is_empty()).then(|| right as f64 / wanted.len() as f64)
}

fn percent(share: Option<f64>) -> Cell {
    share.map_or_else(|| "".into(), |s| Cell::number(100.0 * s, 1))
}

/// Assets with their numbers, by kind.
type Kinds<'a, T> = Vec<(String, Vec<(usize, &'a T)>)>;

fn picture_kinds(corpus: &Corpus) -> Kinds<'_, PictureAsset> {
    let of = |test: &dyn Fn(&PictureAsset) -> bool| {
        let all = corpus.pictures.iter().enumerate();
        all.filter(|(_, p)| p.concept.is_some() && test(p)).collect::<Vec<_>>()
    };
    let kinds = [
        ("trained", of(&|p| p.split == Split::Train)),
        ("unseen style", of(&|p| p.held == Some(Held::Style))),
        ("unseen concept", of(&|p| p.held == Some(Held::Concept))),
    ];
    let kinds = kinds.into_iter().map(|(name, all)| (name.to_string(), all));
    kinds.filter(|(_, all)| !all.is_empty()).collect()
}

fn sound_kinds(corpus: &Corpus) -> Kinds<'_, SoundAsset> {
    let of = |test: &dyn Fn(&SoundAsset) -> bool| {
        corpus.sounds.iter().enumerate().filter(|(_, s)| test(s)).collect::<Vec<_>>()
    };
    let kinds = [
        ("trained, synthetic speech", of(&|s| s.split == Split::Train && s.synthetic)),
        ("unseen voice, synthetic speech", of(&|s| s.held == Some(Held::Voice) && s.synthetic)),
        ("trained, recorded", of(&|s| s.split == Split::Train && !s.synthetic)),
        ("unseen concept, recorded", of(&|s| s.held == Some(Held::Concept) && !s.synthetic)),
    ];
    let kinds = kinds.into_iter().map(|(name, all)| (name.to_string(), all));
    kinds.filter(|(_, all)| !all.is_empty()).collect()
}
