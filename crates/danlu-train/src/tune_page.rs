//! The page of a tuning: where it stands, curves, the recipe.

use crate::incident::incidents;
use crate::incident_page::went_wrong;
use crate::page::{chart, figure, upkeep};
use crate::run::{Run, entries, read};
use crate::tune::TuneLine;
use danlu_core::{Error, Result, TuneRecipe};
use danlu_report::{Page, Series};
use std::collections::BTreeSet;

/// Writes `index.html` of a tuning from its log.
pub(crate) fn tune_page(run: &Run, recipe: &TuneRecipe) -> Result<()> {
    let log: Vec<TuneLine> = entries(&run.log(crate::run::LOG))?;
    let mut page = Page::new(format!("Danlu tuning {}", recipe.name));
    page.lead(&format!("What was learnt on top of {}.", recipe.model.display()));
    let Some(last) = log.last() else { return Ok(()) };
    page.section("Where it stands");
    let mut speeds: Vec<f64> = log.iter().map(|l| l.speed).collect();
    speeds.sort_by(f64::total_cmp);
    let mut figures = vec![
        figure("Step", format!("{} of {}", last.step, recipe.train.steps), ""),
        figure("Tokens", format!("{:.2} M", last.tokens as f64 / 1e6), "trained on"),
        figure("Speed", format!("{:.0}", speeds[speeds.len() / 2]), "tokens/s, median"),
    ];
    figures.extend(log.iter().rev().find_map(|l| l.upkeep).map(upkeep));
    page.figures(&figures);
    page.section("Curves");
    let points = |of: &dyn Fn(&TuneLine) -> Option<f64>| -> Vec<(f64, f64)> {
        log.iter().filter_map(|l| of(l).map(|v| (l.step as f64, v))).collect()
    };
    let line = |name: &str, points| Series { name: name.into(), points, dashed: false };
    let mut loss = vec![line("training", points(&|l| Some(l.loss)))];
    let held: BTreeSet<&String> = log.iter().flat_map(|l| l.held_out.keys()).collect();
    loss.extend(held.into_iter().map(|n| line(n, points(&|l| l.held_out.get(n).copied()))));
    chart(&mut page, "Loss", "nats a token", loss);
    let names: BTreeSet<&String> = log.iter().flat_map(|l| l.figures.keys()).collect();
    for name in names {
        chart(&mut page, name, name, vec![line(name, points(&|l| l.figures.get(name).copied()))]);
    }
    chart(
        &mut page,
        "Gradient norm before clipping",
        "norm",
        vec![line("norm", points(&|l| Some(l.norm)))],
    );
    chart(&mut page, "Speed", "tokens/s", vec![line("tokens/s", points(&|l| Some(l.speed)))]);
    went_wrong(&mut page, incidents(run)?);
    page.section("Recipe");
    page.code("Every value of this run", "toml", &read(&run.recipe())?);
    page.write(run.page()).map_err(|e| Error::io(run.page(), e))
}
