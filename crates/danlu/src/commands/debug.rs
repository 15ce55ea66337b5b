use crate::answer::model_folder;
use crate::progress::Terminal;
use danlu_core::{Error, Result, TuneRecipe};
use danlu_model::{Model, Tokenisers};
use danlu_train::debug::{Replay, replay, replay_tuning};
use danlu_train::{CodeTable, Run, audit, incidents, pretrain, tune};
use std::path::PathBuf;

/// Look into a run of a training or a tuning: take a step again exactly, or check which samples were trained on
///
/// `--step K` goes on from the nearest checkpoint to step K and shows gradients and activations by
/// layer against the steps before it, and every sample of the step by itself. Nothing in the run is
/// changed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the run
    run: PathBuf,
    /// Step to take again, from 1
    #[arg(long)]
    step: Option<u64>,
    /// Check that no sample was trained twice or lost
    #[arg(long)]
    audit: bool,
    /// Samples of the step to show
    #[arg(long, default_value_t = 10)]
    samples: usize,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let run = Run::at(&args.run)?;
    if args.step.is_none() && !args.audit {
        let all = incidents(&run)?;
        for i in &all {
            println!("{}\n  {}", i.headline(), i.evidence.join("\n  "));
            if !i.outcome.is_empty() {
                println!("  {}", i.outcome);
            }
        }
        let none = if all.is_empty() { "no incident; " } else { "" };
        println!("{none}take a step again with --step K, check the samples with --audit");
        return Ok(());
    }
    if args.audit {
        check(&run)?;
    }
    let Some(step) = args.step else { return Ok(()) };
    if TuneRecipe::is_at(&run.recipe()) {
        let (run, recipe) = tune::resume(&args.run)?;
        let base = model_folder(Some(recipe.model.clone()))?;
        show(&replay_tuning(&recipe, &run, &base, step, &mut Terminal::new())?, args.samples);
        return Ok(());
    }
    let (run, recipe) = Run::resume(&args.run)?;
    let mut corpus = super::tokenizer::load(&recipe)?;
    let foreign = match &recipe.model.from {
        Some(base) => Model::vocabulary(base)?.foreign,
        None => None,
    };
    let tokenisers = Tokenisers::load(&run.tokenisers(), foreign, &danlu_ops::cpu_device())?;
    let print = pretrain::codes_fingerprint(&recipe, &run, &corpus)?;
    let path = run.folder.join("codes.bin");
    let codes = CodeTable::load(&path, &print)
        .ok_or_else(|| Error::file(&path, "the codes of this run's data", "none or others"))?;
    pretrain::check_lengths(&recipe, &mut corpus, &tokenisers, &codes)?;
    let told = &mut Terminal::new();
    let replay = replay(&recipe, &run, &corpus, &tokenisers, &codes, step, told)?;
    show(&replay, args.samples);
    Ok(())
}

fn check(run: &Run) -> Result<()> {
    let mut faults = Vec::new();
    for found in audit(run)? {
        let of = if found.of.is_empty() { "" } else { " of " };
        println!(
            "audit{of}{}: {} steps on {} samples, {} steps skipped, {} samples left out on purpose",
            found.of, found.steps, found.samples, found.skipped, found.left_out
        );
        faults.extend(found.faults.iter().map(|fault| format!("{fault}{of}{}", found.of)));
    }
    match &faults[..] {
        [] => println!("no sample was doubled or lost"),
        faults => return Err(Error::Other(faults.join("\n"))),
    }
    Ok(())
}

fn show(r: &Replay, samples: usize) {
    let number = |v: Option<f64>| v.map_or("not finite".into(), |v| format!("{v:.6}"));
    println!("step {}, from the checkpoint of step {}", r.step, r.from);
    println!("loss {}, gradient norm {}", number(r.loss[0]), number(r.norm[0]));
    match r.exact() {
        Some(true) => println!("both as they were logged, bit for bit"),
        Some(false) => {
            println!("logged: loss {}, gradient norm {}", number(r.loss[1]), number(r.norm[1]));
        }
        None => println!("the log has no such step: the run went back before it, or not so far"),
    }
    let pair = |[now, usual]: [Option<f64>; 2]| {
        let part = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.3e}"));
        let times = match (now, usual) {
            (Some(now), Some(usual)) if usual > 0.0 => format!("{:.1}x", now / usual),
            _ => String::new(),
        };
        format!("{:>10} {:>7}", part(now), times)
    };
    println!("\neach value, and how many times it is the mean of the {} steps before", r.window);
    println!("{:22}{:>18}{:>18}{:>18}{:>18}", "", "gradient", "output rms", "largest", "entropy");
    for row in &r.layers {
        let columns = [row.gradient, row.scale, row.largest, row.entropy].map(pair);
        let bad = if row.bad > 0 { format!("  {} NOT FINITE", row.bad) } else { String::new() };
        println!("{:22}{}{bad}", row.name, columns.join(""));
    }
    println!("\nsamples, those that cost most over their task first");
    println!(
        "{:>9} {:18}{:>7}{:>9}{:>9}{:>10}  text",
        "index", "task", "tokens", "loss", "usual", "gradient"
    );
    for s in r.samples.iter().take(samples) {
        let usual = s.usual.map_or("-".into(), |u| format!("{u:.3}"));
        println!(
            "{:>9} {:18}{:>7}{:>9.3}{:>9}{:>10.3}  {}",
            s.index, s.task, s.tokens, s.loss, usual, s.gradient, s.text
        );
    }
}
