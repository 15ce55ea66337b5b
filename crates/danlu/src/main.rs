//! The `danlu` command: one verb a file in `commands/`. The only crate that prints.

use std::io::Write;

/// Says a line on stdout, in place of the standard macro, which panics where nobody reads: a closed
/// pipe is the reader's way to say enough, and ends the command quietly.
macro_rules! println {
    ($($words:tt)*) => { crate::say(format_args!($($words)*)) };
}

/// Notes a line on stderr, in place of the standard macro, which panics where it cannot: neither a
/// closed pipe nor a full disk for the log may end a training.
macro_rules! eprintln {
    ($($words:tt)*) => { crate::note(format_args!($($words)*)) };
}

mod answer;
mod commands;
mod dashboard;
mod progress;
mod shrink;

use clap::{CommandFactory, Parser};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One base model for text, image and sound.
///
/// Every modality is tokens of one vocabulary, every task is an instruction and a reply, one
/// decoder-only transformer does them all.
///
/// Start here:
///
///   danlu quickstart                      learn from the sample pack, then look at runs/quickstart/index.html
///   danlu chat                            talk to the model in models/reference
///   danlu generate "Draw a cat." --to image -o cat.png
///
/// Your own data is one JSON object a line, a conversation as in chat APIs:
///
///   {"messages":[{"role":"user","content":[{"type":"text","text":"What is this?"},{"type":"image","image":"cat.png"}]},
///                {"role":"assistant","content":"a cat"}]}
///
/// Name the file in a recipe (recipes/*.toml), then `danlu train RECIPE`; `danlu eval` measures.
#[derive(Parser)]
#[command(name = "danlu", version, verbatim_doc_comment, arg_required_else_help = true)]
struct Cli {
    /// Threads to use (default: all processors). Results do not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    command: commands::Command,
}

fn say(words: std::fmt::Arguments<'_>) {
    match writeln!(std::io::stdout(), "{words}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            note(format_args!("error: the output could not be written: {e}"));
            std::process::exit(1);
        }
        Ok(()) => {}
    }
}

fn note(words: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    progress::outlive_full_files();
    if let Some(threads) = cli.threads {
        // The pool can be set once; nothing has used it yet.
        if rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global().is_err() {
            eprintln!(
                "error: `--threads`: expected a number that this machine can start, found {threads}"
            );
            return std::process::ExitCode::from(2);
        }
    }
    let run = |command| commands::run(command, &mut Cli::command());
    let result = match cli.command {
        // It waits, which must not take a thread of the pool; its model threads enter by themselves.
        command @ commands::Command::Serve(_) => run(command),
        // Inside the pool, so that the thread that hands out work also does some instead of sleeping.
        command => rayon::scope(|_| run(command)),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
