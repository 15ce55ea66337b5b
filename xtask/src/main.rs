//! Chores of this repository: `cargo xtask tidy` checks the rules no compiler checks.

// The one thing this program does is to tell.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod source;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask tidy     check the repository's own rules; tells file, line and reason
cargo xtask rules    list them";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(),
        ["rules"] => {
            for rule in tidy::RULES {
                println!("{:<24} {}", rule.name, rule.what);
            }
            ExitCode::SUCCESS
        }
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("xtask does not know `{}`\n\n{HELP}", words.join(" "));
            ExitCode::from(2)
        }
    }
}

fn tidy() -> ExitCode {
    // The manifest of this crate lies one folder below the root.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = match source::repository(&root) {
        Ok(files) => files,
        Err(message) => {
            eprintln!("tidy: {message}");
            return ExitCode::from(2);
        }
    };
    let mut count = 0;
    for rule in tidy::RULES {
        for finding in (rule.check)(&files) {
            println!("{}:{}: {} [{}]", finding.path, finding.line, finding.reason, rule.name);
            count += 1;
        }
    }
    if count > 0 {
        eprintln!("tidy: {count} to mend");
        return ExitCode::FAILURE;
    }
    println!("tidy: {} rules hold over {} files", tidy::RULES.len(), files.len());
    ExitCode::SUCCESS
}
