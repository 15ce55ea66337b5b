use danlu_core::Result;
use std::io::Write;

/// Print completions for a shell, for example: danlu completions bash > /etc/bash_completion.d/danlu
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which shell
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: Args, cli: &mut clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, cli, "danlu", &mut script);
    // Who reads a part of it has what was wanted.
    match std::io::stdout().write_all(&script) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(danlu_core::Error::io(std::path::Path::new("standard output"), e))
        }
        _ => Ok(()),
    }
}
