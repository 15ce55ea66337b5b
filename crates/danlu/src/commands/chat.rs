use super::generate::{How, save};
use crate::answer::model_folder;
use danlu_core::{Media, Message, Modality, Part, Result, Role, Sample};
use danlu_model::Model;
use danlu_model::engine::Generator;
use danlu_model::prompt::{FileCodes, Template};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

const HELP: &str = "\
Write what you want to ask, and end with Enter. In a line of its own:
  /image FILE     show a picture with the next question
  /audio FILE     play a sound with the next question
  /to text|image|audio|any   what to reply with (now and from here on)
  /new            forget the conversation
  /help, /quit";

/// Talk to a model in the terminal
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model or run folder (default: models/reference)
    #[arg(long)]
    model: Option<PathBuf>,
    /// Adapters to put on the model, the lowest first
    #[arg(long = "adapter", value_name = "FOLDER")]
    adapters: Vec<PathBuf>,
    /// Folder for pictures and sounds that the model makes
    #[arg(long, default_value = "chat")]
    output: PathBuf,
    #[command(flatten)]
    how: How,
}

pub(crate) fn run(args: Args) -> Result<()> {
    args.how.check()?;
    let folder = model_folder(args.model)?;
    let model = crate::answer::adapted(&folder, args.adapters)?;
    let mut session = Session {
        model: &model,
        how: args.how,
        output: args.output,
        history: Vec::new(),
        waiting: Vec::new(),
        to: Some(Modality::Text),
        made: 0,
    };
    if std::io::stdin().is_terminal() {
        eprintln!("{} ({}), replies in text\n{HELP}", model.info.name, folder.display());
    }
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line.map_err(|e| danlu_core::Error::io(Path::new("standard input"), e))?;
        let line = String::from_utf8_lossy(&line);
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match word {
            "" => {}
            "/quit" | "/exit" => break,
            "/help" => eprintln!("{HELP}"),
            "/new" => session.forget(),
            "/image" => session.attach(Part::Image(Media::File(rest.trim().into())), rest.trim()),
            "/audio" => session.attach(Part::Audio(Media::File(rest.trim().into())), rest.trim()),
            "/to" => session.switch(rest.trim()),
            _ if word.starts_with('/') => eprintln!("unknown command {word}\n{HELP}"),
            // What goes wrong with one question is said; the conversation goes on.
            _ => {
                if let Err(error) = session.ask(line.trim()) {
                    eprintln!("error: {error}");
                    session.waiting.clear();
                }
            }
        }
    }
    Ok(())
}

struct Session<'a> {
    model: &'a Model,
    how: How,
    output: PathBuf,
    history: Vec<Message>,
    waiting: Vec<Part>,
    to: Option<Modality>,
    made: usize,
}

impl Session<'_> {
    fn forget(&mut self) {
        self.history.clear();
        self.waiting.clear();
        eprintln!("(forgotten)");
    }

    fn attach(&mut self, part: Part, file: &str) {
        if Path::new(file).is_file() {
            self.waiting.push(part);
            eprintln!("({file} goes with the next question)");
        } else {
            eprintln!("error: {file:?}: expected a file, found none");
        }
    }

    fn switch(&mut self, to: &str) {
        self.to = match to {
            "text" => Some(Modality::Text),
            "image" => Some(Modality::Image),
            "audio" => Some(Modality::Audio),
            "any" => None,
            other => {
                eprintln!("error: /to: expected text, image, audio or any, found {other:?}");
                return;
            }
        };
        eprintln!("(replies: {to})");
    }

    fn ask(&mut self, text: &str) -> Result<()> {
        let template = Template::new(&self.model.tokenisers);
        let mut parts = vec![Part::Text(text.to_string())];
        parts.append(&mut self.waiting);
        self.history.push(Message::new(Role::User, parts));
        let mut codes = FileCodes(&self.model.tokenisers);
        // The oldest turns are forgotten when the context is full.
        let room = self.model.transformer.config.context.saturating_sub(100);
        let prompt = loop {
            let sample = Sample { messages: self.history.clone(), ..Default::default() };
            let prompt = template.prompt(&sample, &mut codes);
            match prompt {
                Ok(prompt) if prompt.len() <= room || self.history.len() == 1 => break prompt,
                Ok(_) => {
                    self.history.drain(..2.min(self.history.len() - 1));
                }
                Err(error) => {
                    self.history.pop();
                    return Err(error);
                }
            }
        };
        let request = self.how.request(&template, prompt, self.to);
        let generator = Generator::new(&self.model.transformer, template.vocabulary(), &request);
        let generator = match generator {
            Ok(generator) => generator,
            Err(error) => {
                self.history.pop();
                return Err(error);
            }
        };
        let ids: Vec<u32> = generator.collect();
        let mut said = Vec::new();
        for value in template.reply(&ids)? {
            use danlu_model::prompt::Value;
            let (ending, part): (&str, fn(Media) -> Part) = match &value {
                Value::Text(text) => {
                    said.push(Part::Text(text.clone()));
                    save(&value, None, 0)?;
                    continue;
                }
                Value::Picture(_) => ("png", Part::Image),
                Value::Sound(_) => ("wav", Part::Audio),
            };
            std::fs::create_dir_all(&self.output)
                .map_err(|e| danlu_core::Error::io(&self.output, e))?;
            // Those of earlier sessions stay.
            let path = loop {
                self.made += 1;
                let free = |ending: &str| {
                    let path = self.output.join(format!("reply-{:03}.{ending}", self.made));
                    (!path.exists()).then_some(path)
                };
                if let (Some(png), Some(wav)) = (free("png"), free("wav")) {
                    break if ending == "png" { png } else { wav };
                }
            };
            save(&value, Some(&path), 0)?;
            said.push(part(Media::File(path)));
        }
        self.history.push(Message::new(Role::Assistant, said));
        std::io::stdout()
            .flush()
            .map_err(|e| danlu_core::Error::io(Path::new("standard output"), e))
    }
}
