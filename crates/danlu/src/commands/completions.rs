use danlu_core::Result;

/// Print completions for a shell, for example: danlu completions bash > /etc/bash_completion.d/danlu
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which shell
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: Args, cli: &mut clap::Command) -> Result<()> {
    clap_complete::generate(args.shell, cli, "danlu", &mut std::io::stdout());
    Ok(())
}
