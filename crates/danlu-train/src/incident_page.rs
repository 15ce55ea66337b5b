//! The section of a page on what went wrong: a run's, or a tuning's.

use crate::incident::{Incident, Seen};
use crate::page::chart;
use danlu_report::{NoteKind, Page, Series};

/// Incidents, with the steps before each.
pub(crate) fn went_wrong(page: &mut Page, all: Vec<Incident>) {
    if all.is_empty() {
        return;
    }
    page.section("What went wrong");
    for i in all {
        page.note(NoteKind::Warning, &i.headline());
        page.text(&i.evidence.join("\n"));
        page.text(if i.outcome.is_empty() {
            "What comes of it is still open."
        } else {
            &i.outcome
        });
        let points = |of: fn(&Seen) -> Option<f64>| -> Vec<(f64, f64)> {
            i.history.iter().map(|s| (s.step as f64, of(s).unwrap_or(f64::NAN))).collect()
        };
        let series = |name: &str, points, dashed| Series { name: name.into(), points, dashed };
        let of = format!("incident {} {}", i.number, i.phase);
        let title = format!("Loss before {}", of.trim());
        let losses = vec![
            series("loss", points(|s| s.loss), false),
            series("expected", points(|s| s.expected), true),
        ];
        chart(page, &title, "loss", losses);
        let title = format!("Gradient norm before {}", of.trim());
        chart(page, &title, "norm", vec![series("norm", points(|s| s.norm), false)]);
    }
}
