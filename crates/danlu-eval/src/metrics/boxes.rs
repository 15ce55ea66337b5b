use super::Metric;

/// Mean intersection over union of the boxes in two texts.
pub(super) struct Iou;

impl Metric for Iou {
    fn name(&self) -> &'static str {
        "iou"
    }

    fn help(&self) -> &'static str {
        "overlap of the boxes with the expected ones (intersection over union), best matches first"
    }

    fn applies(&self, expected: &str, _task: &str) -> bool {
        expected.contains("<loc")
    }

    fn score(&self, expected: &str, got: &str) -> f64 {
        mean_iou(&boxes(expected), &boxes(got))
    }
}

/// A box on the pixel grid; both corners belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Box2 {
    /// First column.
    pub x0: u32,
    /// First row.
    pub y0: u32,
    /// Last column.
    pub x1: u32,
    /// Last row.
    pub y1: u32,
}

impl Box2 {
    fn area(&self) -> f64 {
        f64::from(self.x1 - self.x0 + 1) * f64::from(self.y1 - self.y0 + 1)
    }

    /// Intersection over union with `other`.
    pub fn iou(&self, other: &Box2) -> f64 {
        let (x0, y0) = (self.x0.max(other.x0), self.y0.max(other.y0));
        let (x1, y1) = (self.x1.min(other.x1), self.y1.min(other.y1));
        if x0 > x1 || y0 > y1 {
            return 0.0;
        }
        let shared = Box2 { x0, y0, x1, y1 }.area();
        shared / (self.area() + other.area() - shared)
    }
}

/// The boxes in `text`: every four places in a row, `<locX0><locY0><locX1><locY1>`. Corners in the
/// wrong order are put right; fewer than four places before other text are passed over.
pub fn boxes(text: &str) -> Vec<Box2> {
    let mut found = Vec::new();
    let mut run = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("<loc") {
        if !rest[..start].trim().is_empty() {
            run.clear();
        }
        rest = &rest[start + 4..];
        let Some(end) = rest.find('>') else { break };
        match rest[..end].parse::<u16>() {
            Ok(place) => {
                run.push(u32::from(place));
                rest = &rest[end + 1..];
            }
            Err(_) => run.clear(),
        }
        if let [a, b, c, d] = run[..] {
            found.push(Box2 { x0: a.min(c), y0: b.min(d), x1: a.max(c), y1: b.max(d) });
            run.clear();
        }
    }
    found
}

/// Boxes are paired, the best overlap first; the sum of the overlaps over the larger number of
/// boxes, so that a box too many or too few costs. 1 if there are none on either side.
pub fn mean_iou(expected: &[Box2], got: &[Box2]) -> f64 {
    let most = expected.len().max(got.len());
    if most == 0 {
        return 1.0;
    }
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for (i, a) in expected.iter().enumerate() {
        pairs.extend(got.iter().enumerate().map(|(j, b)| (a.iou(b), i, j)));
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut left, mut right) = (vec![false; expected.len()], vec![false; got.len()]);
    let mut sum = 0.0;
    for (iou, i, j) in pairs {
        if !left[i] && !right[j] {
            (left[i], right[j]) = (true, true);
            sum += iou;
        }
    }
    sum / most as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn b(x0: u32, y0: u32, x1: u32, y1: u32) -> Box2 {
        Box2 { x0, y0, x1, y1 }
    }

    #[test]
    fn boxes_are_found_in_text() {
        let text = "cat<loc1><loc2><loc3><loc4>; dog <loc9> <loc8><loc7><loc6>. half <loc1><loc2>";
        assert_eq!(boxes(text), [b(1, 2, 3, 4), b(7, 6, 9, 8)]);
        assert_eq!(boxes("<loc1><loc2> and <loc3><loc4>"), []);
        assert_eq!(boxes("<loc1><locx><loc3><loc4><loc5><loc"), []);
        assert_eq!(boxes("<loc99999999><loc1><loc2><loc3><loc4>"), [b(1, 2, 3, 4)]);
    }

    #[test]
    fn overlap_by_hand() {
        assert_eq!(b(0, 0, 9, 9).iou(&b(5, 0, 14, 9)), 50.0 / 150.0);
        assert_eq!(b(0, 0, 9, 9).iou(&b(10, 0, 19, 9)), 0.0);
    }

    #[test]
    fn a_box_too_many_costs() {
        let (a, c) = (b(0, 0, 9, 9), b(20, 20, 29, 29));
        assert_eq!(mean_iou(&[a, c], &[c, a]), 1.0);
        assert_eq!(mean_iou(&[a], &[c, a]), 0.5);
        assert_eq!(mean_iou(&[a], &[]), 0.0);
    }
}
