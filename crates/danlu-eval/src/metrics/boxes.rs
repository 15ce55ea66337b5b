use super::{Metric, has_places, normalised};

/// A box: left, top, right, bottom.
pub type Place = [f64; 4];

/// Mean overlap of the boxes with those expected.
#[derive(Debug, Clone, Copy)]
pub struct BoxIou;

/// Share of boxes that overlap one expected by at least a half.
#[derive(Debug, Clone, Copy)]
pub struct BoxHits;

/// Names beside boxes, boxes aside.
#[derive(Debug, Clone, Copy)]
pub struct Names;

impl Metric for BoxIou {
    fn name(&self) -> &'static str {
        "box IoU"
    }

    fn help(&self) -> &'static str {
        "mean intersection over union with the expected boxes"
    }

    fn applies(&self, _task: &str, expected: &str) -> bool {
        has_places(expected)
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        mean(matched(&places(expected), &places(got)))
    }
}

impl Metric for BoxHits {
    fn name(&self) -> &'static str {
        "box at 0.5"
    }

    fn help(&self) -> &'static str {
        "share of boxes with an IoU of at least 0.5"
    }

    fn applies(&self, _task: &str, expected: &str) -> bool {
        has_places(expected)
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        let hits = matched(&places(expected), &places(got));
        mean(hits.into_iter().map(|iou| f64::from(iou >= 0.5)).collect())
    }
}

impl Metric for Names {
    fn name(&self) -> &'static str {
        "names F1"
    }

    fn help(&self) -> &'static str {
        "F1 of the names listed with the boxes"
    }

    fn applies(&self, _task: &str, expected: &str) -> bool {
        has_places(expected) && !names(expected).is_empty()
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        let (expected, mut got) = (names(expected), names(got));
        let total = expected.len() + got.len();
        let mut both = 0;
        for name in &expected {
            if let Some(at) = got.iter().position(|g| g == name) {
                got.swap_remove(at);
                both += 1;
            }
        }
        2.0 * both as f64 / total.max(1) as f64
    }
}

/// The boxes in a text: every run of four `<locN>` with nothing in between, corners put in order.
pub fn places(text: &str) -> Vec<Place> {
    let mut found = Vec::new();
    let mut run: Vec<f64> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("<loc") {
        if start > 0 {
            run.clear();
        }
        rest = &rest[start + 4..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        match rest[..digits].parse::<u32>() {
            Ok(n) if rest[digits..].starts_with('>') => {
                run.push(n as f64);
                rest = &rest[digits + 1..];
            }
            _ => run.clear(),
        }
        if let [a, b, c, d] = run[..] {
            found.push([a.min(c), b.min(d), a.max(c), b.max(d)]);
            run.clear();
        }
    }
    found
}

/// Intersection over union of two boxes. Their bounds are pixels that belong to them.
pub fn overlap(a: &Place, b: &Place) -> f64 {
    let side = |low: f64, high: f64| (high - low + 1.0).max(0.0);
    let area = |p: &Place| side(p[0], p[2]) * side(p[1], p[3]);
    let both = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
    both / (area(a) + area(b) - both)
}

/// The overlap of each pair, best first, no box in two pairs; 0 for those left over on either side.
fn matched(expected: &[Place], got: &[Place]) -> Vec<f64> {
    let mut pairs: Vec<(f64, usize, usize)> = (0..expected.len())
        .flat_map(|e| (0..got.len()).map(move |g| (e, g)))
        .map(|(e, g)| (overlap(&expected[e], &got[g]), e, g))
        .collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut used_e, mut used_g) = (vec![false; expected.len()], vec![false; got.len()]);
    let mut out = Vec::new();
    for (iou, e, g) in pairs {
        if !used_e[e] && !used_g[g] {
            (used_e[e], used_g[g]) = (true, true);
            out.push(iou);
        }
    }
    out.resize(expected.len().max(got.len()), 0.0);
    out
}

fn mean(values: Vec<f64>) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// What is before the boxes of each `;`-separated entry.
fn names(text: &str) -> Vec<String> {
    text.split([';', '；'])
        .map(|entry| normalised(entry.split("<loc").next().unwrap_or_default()))
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_read_from_any_text() {
        assert_eq!(places("a<loc1><loc2><loc3><loc4>; b"), [[1.0, 2.0, 3.0, 4.0]]);
        assert_eq!(places("<loc9><loc8><loc3><loc4>"), [[3.0, 4.0, 9.0, 8.0]]);
        for broken in ["<loc1><loc2><loc3>", "<loc1><loc2> <loc3><loc4>", "<loc><loc-1><locx>", "<loc"]
        {
            assert!(places(broken).is_empty(), "{broken}");
        }
    }

    #[test]
    fn iou_counts_missing_and_extra_boxes() {
        let (one, half) = ("<loc0><loc0><loc9><loc9>", "<loc0><loc0><loc9><loc4>");
        assert_eq!(BoxIou.score(one, half), 0.5);
        assert_eq!(BoxHits.score(one, half), 1.0);
        assert_eq!(BoxIou.score(one, &format!("{one} {half}")), 0.5);
        assert_eq!(BoxIou.score(&format!("{one}; {one}"), one), 0.5);
        assert_eq!(BoxIou.score(one, "<loc20><loc20><loc30><loc30>"), 0.0);
    }

    #[test]
    fn names_are_a_multiset() {
        let expected = "cat<loc1><loc2><loc3><loc4>; cat<loc5><loc6><loc7><loc8>";
        assert_eq!(Names.score(expected, "Cat<loc1>"), 2.0 / 3.0);
        assert!(!Names.applies("where_is", "<loc1><loc2><loc3><loc4>"));
    }
}
