//! Cards that show examples: what was asked, what came back, and whether it was right.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::html::{escape, language};

/// One example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Heading of the card, such as the task.
    pub title: String,
    /// What it shows, in reading order; an [`Part::Arrow`] parts the question from the reply.
    pub parts: Vec<Part>,
}

/// A piece of a [`Card`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Words about the example.
    Text(String),
    /// Words of the example: what a user or the model wrote.
    Quote(String),
    /// A picture. Small ones are enlarged with hard pixel edges.
    Picture {
        /// A PNG file.
        png: Vec<u8>,
        /// What it shows, for those who do not see it.
        alt: String,
        /// A word below it; may be empty.
        label: String,
    },
    /// A sound with a play button.
    Sound {
        /// A WAV file; of 16-bit PCM the waveform is drawn.
        wav: Vec<u8>,
        /// What it is, such as `asked` or `reference`; may be empty.
        label: String,
    },
    /// "Gives": what comes before led to what comes after.
    Arrow,
    /// Whether the reply was right. Always shown at the foot of its card.
    Verdict {
        /// Right or wrong.
        ok: bool,
        /// The reason in a few words.
        text: String,
    },
}

pub(crate) fn html(caption: &str, cards: &[Card]) -> String {
    let right = |card: &Card| {
        let ok = |part: &Part| match part {
            Part::Verdict { ok, .. } => Some(*ok),
            _ => None,
        };
        card.parts.iter().filter_map(ok).reduce(|a, b| a && b)
    };
    let count = |wanted: bool| cards.iter().filter(|card| right(card) == Some(wanted)).count();
    let (hits, misses) = (count(true), count(false));
    let mut out = String::from("<section class=\"gallery\">\n");
    out += &format!("<p class=\"caption\"{}>{}</p>\n", language(caption), escape(caption));
    if hits > 0 && misses > 0 {
        out += "<div class=\"filter\" role=\"group\" aria-label=\"Cards shown\">";
        for (keep, name, number) in
            [("all", "All", cards.len()), ("hit", "Hits", hits), ("miss", "Misses", misses)]
        {
            out += &format!(
                "<button type=\"button\" data-keep=\"{keep}\" aria-pressed=\"{}\">{name} {number}</button>",
                keep == "all"
            );
        }
        out += "</div>\n";
    }
    out += "<ul class=\"cards\">\n";
    for card in cards {
        let verdict = match right(card) {
            Some(true) => " data-verdict=\"hit\"",
            Some(false) => " data-verdict=\"miss\"",
            None => "",
        };
        out += &format!("<li{verdict}>{}</li>\n", card.html());
    }
    out + "</ul>\n</section>\n"
}

impl Card {
    fn html(&self) -> String {
        let mut out = String::new();
        if !self.title.is_empty() {
            out += &format!("<h3{}>{}</h3>", language(&self.title), escape(&self.title));
        }
        let (verdicts, parts): (Vec<&Part>, Vec<&Part>) =
            self.parts.iter().partition(|part| matches!(part, Part::Verdict { .. }));
        out += "<div class=\"flow\">";
        for (i, side) in parts.split(|part| **part == Part::Arrow).enumerate() {
            if i > 0 {
                out += "<span class=\"arrow\" role=\"img\" aria-label=\"gives\">→</span>";
            }
            out += "<div class=\"side\">";
            out.extend(side.iter().map(|part| part.html()));
            out += "</div>";
        }
        out += "</div>";
        out.extend(verdicts.into_iter().map(Part::html));
        out
    }
}

impl Part {
    fn html(&self) -> String {
        match self {
            Self::Text(text) => format!("<p{} dir=\"auto\">{}</p>", language(text), escape(text)),
            Self::Quote(text) if text.is_empty() => "<p class=\"empty\">(empty)</p>".into(),
            Self::Quote(text) => {
                format!("<blockquote{} dir=\"auto\">{}</blockquote>", language(text), escape(text))
            }
            Self::Picture { png, alt, label } => {
                let class = if png_longest_side(png).is_none_or(|side| side <= 96) {
                    " class=\"pixels\""
                } else {
                    ""
                };
                format!(
                    "<figure class=\"picture\"><img{class} src=\"data:image/png;base64,{}\" \
                     alt=\"{}\" loading=\"lazy\">{}</figure>",
                    STANDARD.encode(png),
                    escape(alt),
                    caption(label)
                )
            }
            Self::Sound { wav, label } => {
                let name = if label.is_empty() { "sound" } else { label };
                let (wave, seconds) = match Wave::read(wav) {
                    Some(wave) => (wave.drawing(), format!("{:.1} s", wave.seconds)),
                    None => Default::default(),
                };
                let below = match (label.is_empty(), seconds.is_empty()) {
                    (_, true) => label.clone(),
                    (true, false) => seconds,
                    (false, false) => format!("{label}, {seconds}"),
                };
                format!(
                    "<figure class=\"sound\">{wave}<audio controls preload=\"none\" \
                     aria-label=\"{}\" src=\"data:audio/wav;base64,{}\"></audio>{}</figure>",
                    escape(name),
                    STANDARD.encode(wav),
                    caption(&below)
                )
            }
            // Arrows are laid out by the card.
            Self::Arrow => String::new(),
            Self::Verdict { ok, text } => {
                let (class, sign, word) =
                    if *ok { ("hit", "✓", "Hit") } else { ("miss", "✗", "Miss") };
                format!(
                    "<p class=\"verdict {class}\"{}><span aria-hidden=\"true\">{sign}</span>\
                     <span class=\"quiet\">{word}: </span> {}</p>",
                    language(text),
                    escape(text)
                )
            }
        }
    }
}

fn caption(label: &str) -> String {
    if label.is_empty() {
        return String::new();
    }
    format!("<figcaption{}>{}</figcaption>", language(label), escape(label))
}

/// The longer of width and height, from the header of a PNG file.
fn png_longest_side(png: &[u8]) -> Option<u32> {
    let side = |at: usize| {
        let bytes = png.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    (png.get(12..16)? == b"IHDR").then_some(())?;
    Some(side(16)?.max(side(20)?))
}

/// What a card draws of a sound.
struct Wave {
    seconds: f64,
    /// Peaks of equal stretches, from 0 to 1 of the loudest; empty unless 16-bit PCM.
    peaks: Vec<f64>,
}

impl Wave {
    const BARS: usize = 48;

    /// Reads the chunks of a WAV file; nothing if it is not one.
    fn read(wav: &[u8]) -> Option<Self> {
        (wav.get(..4)? == b"RIFF" && wav.get(8..12)? == b"WAVE").then_some(())?;
        let u16_at =
            |b: &[u8], at: usize| Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?));
        let u32_at =
            |b: &[u8], at: usize| Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?));
        let mut format = None;
        let mut rest = &wav[12..];
        loop {
            let size = u32_at(rest, 4)? as usize;
            let body = &rest[8..rest.len().min(8usize.saturating_add(size))];
            match &rest[..4] {
                b"fmt " => {
                    let pcm16 = matches!(u16_at(body, 0)?, 1 | 0xfffe) && u16_at(body, 14)? == 16;
                    format = Some((u32_at(body, 8)?, pcm16));
                }
                b"data" => {
                    let (bytes_per_second, pcm16) = format.filter(|f| f.0 > 0)?;
                    let seconds = body.len() as f64 / f64::from(bytes_per_second);
                    let peaks = if pcm16 { Self::peaks(body) } else { Vec::new() };
                    return Some(Self { seconds, peaks });
                }
                _ => {}
            }
            rest = rest.get(8usize.saturating_add(size).saturating_add(size % 2)..)?;
        }
    }

    fn peaks(pcm: &[u8]) -> Vec<f64> {
        let samples: Vec<i16> =
            pcm.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect();
        let peak = |stretch: &[i16]| {
            f64::from(stretch.iter().map(|s| s.unsigned_abs()).max().unwrap_or(0))
        };
        let loudest = peak(&samples).max(1.0);
        let n = samples.len();
        (0..Self::BARS)
            .map(|i| peak(&samples[i * n / Self::BARS..(i + 1) * n / Self::BARS]) / loudest)
            .collect()
    }

    fn drawing(&self) -> String {
        if self.peaks.is_empty() {
            return String::new();
        }
        let mut path = String::new();
        for (i, peak) in self.peaks.iter().enumerate() {
            let (x, half) = (i as f64 * 2.0 + 1.0, (peak * 15.0).max(0.5));
            path += &format!("M{x:.0} {:.1}V{:.1}", 16.0 - half, 16.0 + half);
        }
        format!(
            "<svg class=\"wave\" viewBox=\"0 0 {} 32\" preserveAspectRatio=\"none\" \
             aria-hidden=\"true\"><path d=\"{path}\"/></svg>",
            Self::BARS * 2
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wav(samples: &[i16]) -> Vec<u8> {
        let mut out = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
        out.extend(16_000u32.to_le_bytes());
        out.extend(32_000u32.to_le_bytes());
        out.extend(b"\x02\0\x10\0LIST\x03\0\0\0abc\0data");
        out.extend((samples.len() as u32 * 2).to_le_bytes());
        out.extend(samples.iter().flat_map(|s| s.to_le_bytes()));
        out
    }

    #[test]
    fn waves_are_read_past_other_chunks() {
        let mut samples = vec![100i16; 24_000];
        samples[12_000] = i16::MIN;
        let file = wav(&samples);
        let wave = Wave::read(&file).unwrap();
        assert_eq!(wave.seconds, 1.5);
        assert_eq!(wave.peaks[24], 1.0);
        assert!(wave.peaks[0] < 0.01);
        // Cut anywhere, it neither panics nor hangs.
        for end in 0..80 {
            let _ = Wave::read(&file[..end]);
        }
        assert!(Wave::read(b"not a wave file").is_none());
        assert!(!Wave::read(&wav(&[])).unwrap().drawing().contains("NaN"));
    }

    #[test]
    fn small_pictures_keep_hard_edges() {
        let png = |side: u32| {
            let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
            file.extend([side.to_be_bytes(), 8u32.to_be_bytes()].concat());
            let (alt, label) = ("a cat".into(), String::new());
            Part::Picture { png: file, alt, label }.html()
        };
        assert!(png(64).contains("class=\"pixels\""));
        assert!(!png(640).contains("class=\"pixels\""));
    }

    #[test]
    fn verdicts_sort_the_cards() {
        let card = |ok: Option<bool>| Card {
            title: String::new(),
            parts: [Part::Quote("q".into()), Part::Arrow, Part::Quote(String::new())]
                .into_iter()
                .chain(ok.map(|ok| Part::Verdict { ok, text: "t".into() }))
                .collect(),
        };
        let page = html("c", &[card(Some(true)), card(Some(false)), card(Some(false)), card(None)]);
        assert!(page.contains(">All 4</button>") && page.contains(">Misses 2</button>"));
        assert_eq!(page.matches("data-verdict=\"miss\"").count(), 2);
        assert_eq!(page.matches("(empty)").count(), 4);
        assert!(!html("c", &[card(Some(true))]).contains("class=\"filter\""));
    }
}
