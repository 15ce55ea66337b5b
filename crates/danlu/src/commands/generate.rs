use crate::answer::model_folder;
use danlu_core::{Error, Media, Message, Modality, Part, Result, Role, Sample};
use danlu_model::engine::{Generator, Request, Sampling};
use danlu_model::prompt::{FileCodes, Template, Value};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Reply once, in text, image or sound
///
/// Examples:
///   danlu generate "What is this?" --image cat.png
///   danlu generate "Draw a cat." --to image -o cat.png
///   danlu generate "Say what you see." --image cat.png --to audio -o cat.wav
///   danlu generate "Draw what you hear." --audio cat.wav --to image -o cat.png
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// What to ask
    text: Option<String>,
    /// Model or run folder (default: models/reference)
    #[arg(long)]
    model: Option<PathBuf>,
    /// Adapters to put on the model, the lowest first
    #[arg(long = "adapter", value_name = "FOLDER")]
    adapters: Vec<PathBuf>,
    /// A picture to show (PNG, JPEG, GIF, WebP; any size)
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A sound to play (WAV, FLAC, Ogg Vorbis, MP3; any rate)
    #[arg(long, value_name = "FILE")]
    audio: Vec<PathBuf>,
    /// What to reply with (default: what the ending of -o says, else text)
    #[arg(long, value_enum)]
    to: Option<To>,
    /// File for the reply: .png, .wav or .txt (default: text to the terminal)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

/// How replies are drawn.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct How {
    /// 0: always the likeliest; about 1: as the model believes (default: 0 for text, 0.7 for
    /// pictures and sounds)
    #[arg(long)]
    temperature: Option<f32>,
    /// Only the likeliest K tokens; 0: all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Repeat a reply
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How strongly a picture follows the prompt (classifier-free guidance; 1: not at all)
    #[arg(long, default_value_t = 1.5)]
    guidance: f32,
    /// Most tokens of the reply
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Debug)]
pub(crate) enum To {
    Text,
    Image,
    Audio,
    Any,
}

/// Refuses a number that is none, or out of its range, by its option.
pub(crate) fn within(name: &str, value: f32, range: RangeInclusive<f32>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let wanted = format!("a number from {} to {}", range.start(), range.end());
    Err(Error::parameter(name, wanted, value))
}

impl How {
    /// Refuses what cannot work, by name.
    pub(crate) fn check(&self) -> Result<()> {
        let temperature = self.temperature.unwrap_or(0.0);
        for (name, value, range) in [
            ("--temperature", temperature, 0.0..=100.0),
            ("--top-p", self.top_p, 1e-6..=1.0),
            ("--guidance", self.guidance, 0.0..=100.0),
        ] {
            within(name, value, range)?;
        }
        if self.max_tokens == 0 {
            return Err(Error::parameter("--max-tokens", "at least 1", 0));
        }
        Ok(())
    }

    /// The request of a prompt.
    pub(crate) fn request(
        &self,
        template: &Template<'_>,
        prompt: Vec<u32>,
        to: Option<Modality>,
    ) -> Request {
        let sampling = |default: f32| Sampling {
            temperature: self.temperature.unwrap_or(default),
            top_k: self.top_k,
            top_p: self.top_p,
        };
        Request {
            prompt,
            blank: template.blank_prompt(),
            to,
            max_tokens: self.max_tokens,
            text: sampling(0.0),
            media: sampling(0.7),
            guidance: self.guidance,
            seed: self.seed,
        }
    }
}

impl To {
    fn modality(self) -> Option<Modality> {
        match self {
            To::Text => Some(Modality::Text),
            To::Image => Some(Modality::Image),
            To::Audio => Some(Modality::Audio),
            To::Any => None,
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    args.how.check()?;
    let to = kind(args.to, args.output.as_deref())?;
    let mut parts = Vec::new();
    parts.extend(args.text.map(Part::Text));
    parts.extend(args.image.into_iter().map(|p| Part::Image(Media::File(p))));
    parts.extend(args.audio.into_iter().map(|p| Part::Audio(Media::File(p))));
    if parts.is_empty() {
        return Err(Error::parameter("prompt", "a text, --image or --audio", "nothing"));
    }
    let folder = model_folder(args.model)?;
    let model = crate::answer::adapted(&folder, args.adapters)?;
    let template = Template::new(&model.tokenisers);
    let sample = Sample { messages: vec![Message::new(Role::User, parts)], ..Default::default() };
    let prompt = template.prompt(&sample, &mut FileCodes(&model.tokenisers))?;
    let request = args.how.request(&template, prompt, to.modality());
    let ids: Vec<u32> =
        Generator::new(&model.transformer, template.vocabulary(), &request)?.collect();
    for (i, value) in template.reply(&ids)?.into_iter().enumerate() {
        save(&value, args.output.as_deref(), i)?;
    }
    Ok(())
}

/// Endings of pictures and sounds in forms that are not written.
const OTHER_MEDIA: [&str; 12] =
    ["jpg", "jpeg", "gif", "webp", "bmp", "tif", "tiff", "flac", "ogg", "opus", "mp3", "m4a"];

/// What the reply is to be, by `--to` or by the ending of `-o`, which must fit.
fn kind(to: Option<To>, output: Option<&Path>) -> Result<To> {
    let ending = output.and_then(Path::extension).and_then(|e| e.to_str()).map(str::to_lowercase);
    let ending = ending.as_deref();
    let to = match (to, ending) {
        (Some(to), _) => to,
        (None, Some("png")) => To::Image,
        (None, Some("wav")) => To::Audio,
        _ => To::Text,
    };
    if output == Some(Path::new("-")) {
        let wanted = "a file; without one a text goes to the terminal";
        return Err(Error::parameter("-o", wanted, "-"));
    }
    let wanted = match (to, ending) {
        (_, Some(other)) if OTHER_MEDIA.contains(&other) => ".png, .wav or .txt",
        (To::Image, Some(other)) if other != "png" => ".png, for a picture",
        (To::Audio, Some(other)) if other != "wav" => ".wav, for a sound",
        (To::Text, Some("png" | "wav")) => ".txt, for a text",
        _ => return Ok(to),
    };
    let found = output.unwrap_or(Path::new("")).display();
    Err(Error::parameter("-o", format!("a file that ends in {wanted}"), found))
}

/// Writes one piece of a reply where it was asked for; text without a file goes to the terminal.
pub(crate) fn save(value: &Value, output: Option<&Path>, number: usize) -> Result<()> {
    let path = |ending: &str| -> PathBuf {
        let named = output.map_or_else(|| PathBuf::from("reply"), Path::to_path_buf);
        match number {
            0 if output.is_some_and(|o| o.extension().is_some()) => named,
            0 => named.with_extension(ending),
            n => named.with_extension(format!("{n}.{ending}")),
        }
    };
    match value {
        Value::Text(text) => match output {
            Some(_) => {
                let mut path = path("txt");
                // A text is no picture, whatever the file was to be.
                let media = ["png", "jpg", "jpeg", "gif", "webp", "wav", "flac", "ogg", "mp3"];
                if path.extension().is_some_and(|e| media.iter().any(|m| e.eq_ignore_ascii_case(m)))
                {
                    path.set_extension("txt");
                }
                danlu_model::io::write_atomically(&path, text.as_bytes())?;
                eprintln!("{}", path.display());
            }
            None => println!("{text}"),
        },
        Value::Picture(picture) => {
            let path = path("png");
            danlu_media::write_picture(&path, picture)?;
            eprintln!("{}", path.display());
        }
        Value::Sound(sound) => {
            let path = path("wav");
            danlu_media::write_sound(&path, sound)?;
            eprintln!("{}", path.display());
        }
    }
    Ok(())
}
