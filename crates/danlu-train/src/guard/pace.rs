//! How fast steps are. What is seen here changes no decision about the training, for time is no
//! function of the samples.

/// Tells of steps that take much longer than they did.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    recent: Vec<f64>,
    slow: usize,
}

/// Steps that the usual time is the median of.
const MEMORY: usize = 50;

/// Slow steps in a row before they are told of.
const SLOW: usize = 20;

impl Pace {
    /// Takes the seconds of a step in; what is to be told, if anything.
    pub(crate) fn step(&mut self, seconds: f64) -> Option<String> {
        if self.recent.len() < 10 {
            self.recent.push(seconds);
            return None;
        }
        let mut sorted = self.recent.clone();
        sorted.sort_by(f64::total_cmp);
        let usual = sorted[sorted.len() / 2];
        if seconds > 30.0 && seconds > 20.0 * usual {
            return Some(format!(
                "a step took {seconds:.0} s where {usual:.2} s are usual: the process was held"
            ));
        }
        self.slow = if seconds > 3.0 * usual { self.slow + 1 } else { 0 };
        if self.slow < SLOW {
            if self.slow == 0 {
                self.recent.push(seconds);
                let over = self.recent.len().saturating_sub(MEMORY);
                self.recent.drain(..over);
            }
            return None;
        }
        // From here on this is the usual pace.
        self.recent = vec![seconds; 10];
        self.slow = 0;
        Some(format!(
            "{SLOW} steps in a row took over three times as long as usual: {seconds:.2} s instead \
             of {usual:.2} s"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_and_a_lasting_change_are_told_once() {
        let mut pace = Pace::default();
        let mut told = |seconds: f64| pace.step(seconds);
        assert!((0..40).all(|i| told(0.1 + 0.01 * (i % 3) as f64).is_none()));
        assert!(told(60.0).expect("a pause").contains("60 s"));
        assert!(told(0.1).is_none());
        let slow: Vec<String> = (0..60).filter_map(|_| told(0.5)).collect();
        assert_eq!(slow.len(), 1, "{slow:?}");
    }
}
