//! The verbs, one file each; adding one is a file and a line here.

mod bench;
mod chat;
mod checkpoint;
mod completions;
mod compress;
mod debug;
mod doctor;
pub(crate) mod eval;
mod export;
mod extend;
mod generate;
mod import;
pub(crate) mod merge;
mod parity;
mod publish;
mod questions;
mod quickstart;
mod serve;
mod tokenizer;
mod train;
mod tune;

use clap::Subcommand;
use danlu_core::Result;

/// The verbs.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// From the sample pack to a trained model and a page, in a few minutes
    Quickstart(quickstart::Args),
    /// Learn the text, image and audio tokenisers of a recipe
    Tokenizer(tokenizer::Args),
    /// Train a base model (or a single-task one) by a recipe, or go on with a run
    Train(train::Args),
    /// Adapt a base to rows of your own: an adapter (LoRA, DoRA) or all weights
    Tune(tune::Args),
    /// Give a text model the tokens of pictures and sounds
    Extend(extend::Args),
    /// Make adapters part of a model's weights
    Merge(merge::Args),
    /// Make a model smaller: fewer bits, fewer parts, healed by its own teaching; with a report
    Compress(compress::Args),
    /// Look at machine, files, recipe and data before a run, and reckon its memory and time
    Doctor(doctor::Args),
    /// Look into a training run: take a step again exactly, check its samples
    Debug(debug::Args),
    /// List the checkpoints of a run, or make a model of one
    Checkpoint(checkpoint::Args),
    /// Reply once, in text, image or sound
    Generate(generate::Args),
    /// Talk to a model in the terminal
    Chat(chat::Args),
    /// Answer over HTTP: an OpenAI-compatible API and a page
    Serve(serve::Args),
    /// Measure a model on a file of questions
    Eval(eval::Args),
    /// Write files of questions from data packs, for `danlu eval`
    Questions(questions::Args),
    /// Write a run's model as a folder to share, with a model card
    Publish(publish::Args),
    /// Make a model of a Hugging Face folder or a GGUF file
    Import(import::Args),
    /// Write a model for transformers or llama.cpp
    Export(export::Args),
    /// Hold models, or forms of one model, against each other
    Parity(parity::Args),
    /// Measure how fast this machine trains, what each operation takes, and matrix products
    Bench(bench::Args),
    /// Print completions for a shell
    Completions(completions::Args),
}

/// Runs one.
pub(crate) fn run(command: Command, cli: &mut clap::Command) -> Result<()> {
    match command {
        Command::Quickstart(args) => quickstart::run(args),
        Command::Tokenizer(args) => tokenizer::run(args),
        Command::Train(args) => train::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Extend(args) => extend::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Compress(args) => compress::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Debug(args) => debug::run(args),
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Questions(args) => questions::run(args),
        Command::Publish(args) => publish::run(args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Parity(args) => parity::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => completions::run(args, cli),
    }
}
