//! Chores of this repository: `cargo xtask tidy` checks the rules no compiler checks, `cargo xtask
//! faults` runs the fault tests of training and prints them as a table.

// The one thing this program does is to tell.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod faults;
mod source;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask tidy     check the repository's own rules; tells file, line and reason
cargo xtask rules    list them
cargo xtask faults   run the fault tests of training; prints what each fault must come to";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(),
        ["faults"] => match faults::run(&root()) {
            Ok(results) => {
                let (table, good) = faults::table(&results);
                print!("{table}");
                if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(message) => {
                eprintln!("faults: {message}");
                ExitCode::from(2)
            }
        },
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

/// The manifest of this crate lies one folder below the root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tidy() -> ExitCode {
    let files = match source::repository(&root()) {
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
