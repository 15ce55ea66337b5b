//! What may happen to a training, what must come of it, and the tests that hold it: one visible list,
//! run and printed as a table.

use crate::source::File;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Something that may happen.
pub(crate) struct Fault {
    what: &'static str,
    must: &'static str,
    /// Functions, each found by its name alone.
    tests: &'static [&'static str],
}

/// All of them.
pub(crate) const FAULTS: &[Fault] = &[
    Fault {
        what: "SIGKILL at each of 11 places of a save, pretraining",
        must: "the same bits and samples",
        tests: &["killed_anywhere_in_a_save_a_run_ends_as_if_nothing_had_been"],
    },
    Fault {
        what: "SIGKILL in a save, tokenisers",
        must: "the same bits and samples",
        tests: &["tokenisers_are_watched_and_go_on_with_the_same_bits"],
    },
    Fault {
        what: "SIGKILL in a save, SFT, DPO and GRPO",
        must: "the same bits and samples",
        tests: &[
            "tunings_are_watched_and_go_on_with_the_same_bits",
            "adapters_learn_go_on_stack_and_merge",
        ],
    },
    Fault {
        what: "SIGKILL, gone on with on another number of threads",
        must: "the same bits",
        tests: &["from_data_to_replies_and_back_after_kill"],
    },
    Fault {
        what: "truncated, flipped or missing shard or manifest",
        must: "named; the one before is taken",
        tests: &[
            "damage_is_named_and_the_one_before_is_taken",
            "damage_lack_of_room_and_changed_data_are_told_and_cost_nothing",
            "tensors_come_back_and_other_readers_understand_the_file",
        ],
    },
    Fault {
        what: "disk full while saving",
        must: "the one before is intact; goes on",
        tests: &[
            "a_save_that_fails_says_what_is_left_and_leaves_it",
            "damage_lack_of_room_and_changed_data_are_told_and_cost_nothing",
        ],
    },
    Fault {
        what: "NaN in a weight",
        must: "named; undone without a trace",
        tests: &[
            "troubles_are_named_and_answered_and_resumption_decides_alike",
            "tokenisers_are_watched_and_go_on_with_the_same_bits",
            "tunings_are_watched_and_go_on_with_the_same_bits",
        ],
    },
    Fault {
        what: "NaN or infinity in a batch",
        must: "skipped, the samples named; many: gone back, or stopped",
        tests: &["troubles_are_named_and_answered_and_resumption_decides_alike"],
    },
    Fault {
        what: "poisoned samples, a burst of noise",
        must: "skipped; the samples are named",
        tests: &[
            "troubles_are_named_and_answered_and_resumption_decides_alike",
            "tunings_are_watched_and_go_on_with_the_same_bits",
            "steps_skipped_in_a_row_are_one_incident_with_an_outcome",
        ],
    },
    Fault {
        what: "loss spike, rate too high",
        must: "goes back, lowers the rate, says why",
        tests: &[
            "troubles_are_named_and_answered_and_resumption_decides_alike",
            "tokenisers_are_watched_and_go_on_with_the_same_bits",
            "tunings_are_watched_and_go_on_with_the_same_bits",
            "it_goes_back_to_before_the_trouble",
        ],
    },
    Fault {
        what: "nothing: noisy losses, gradients of nothing",
        must: "no alarm",
        tests: &[
            "noise_is_no_trouble_and_a_jump_is",
            "a_gradient_of_nothing_says_nothing_about_the_next",
        ],
    },
    Fault {
        what: "SIGSTOP; steps that take long",
        must: "goes on; told",
        tests: &[
            "killed_anywhere_in_a_save_a_run_ends_as_if_nothing_had_been",
            "a_pause_and_a_lasting_change_are_told_once",
        ],
    },
    Fault {
        what: "SIGINT",
        must: "a checkpoint, then the end",
        tests: &["killed_anywhere_in_a_save_a_run_ends_as_if_nothing_had_been"],
    },
    Fault {
        what: "data file changed between runs",
        must: "refused unless it is accepted",
        tests: &[
            "damage_lack_of_room_and_changed_data_are_told_and_cost_nothing",
            "tunings_are_watched_and_go_on_with_the_same_bits",
        ],
    },
    Fault {
        what: "corrupt picture, sound or JSON row",
        must: "skipped, counted, named, limited",
        tests: &["unusable_rows_are_named_counted_and_limited", "bad_rows_are_named_and_limited"],
    },
    Fault {
        what: "samples doubled or lost",
        must: "found by the audit",
        tests: &["doubled_and_lost_samples_are_found_and_left_out_ones_are_not_lost"],
    },
    Fault {
        what: "another number of workers; going on inside an epoch",
        must: "the same samples in the same order",
        tests: &[
            "follows_the_weights_and_depends_on_seed_and_index_alone",
            "every_row_comes_once_a_round_and_files_by_their_shares",
            "from_data_to_replies_and_back_after_kill",
        ],
    },
    Fault {
        what: "more memory needed than there is",
        must: "refused before the first step",
        tests: &["too_much_is_refused_with_what_would_help", "the_peak_is_what_was_predicted"],
    },
];

/// Tests of the list that no file has.
fn missing(files: &[File]) -> Vec<&'static str> {
    let has = |name: &str| {
        let function = format!("fn {name}(");
        files.iter().any(|file| file.code.contains(&function))
    };
    names().into_iter().filter(|name| !has(name)).collect()
}

fn names() -> Vec<&'static str> {
    let mut all: Vec<&str> = FAULTS.iter().flat_map(|f| f.tests).copied().collect();
    all.sort();
    all.dedup();
    all
}

/// Runs every test of the list; whether each passed, by its name.
pub(crate) fn run(root: &Path) -> Result<BTreeMap<String, bool>, String> {
    let gone = missing(&crate::source::repository(root)?);
    if !gone.is_empty() {
        return Err(format!("no such tests: {}", gone.join(", ")));
    }
    let output = Command::new(env!("CARGO"))
        .args(["test", "--release", "--workspace", "--no-fail-fast", "--tests", "--"])
        .args(names())
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    Ok(results(&String::from_utf8_lossy(&output.stdout)))
}

/// What the test runner said of each test: `test path::to::name ... ok`.
fn results(said: &str) -> BTreeMap<String, bool> {
    let line = |line: &str| {
        let (path, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let name = path.rsplit("::").next().unwrap_or(path);
        Some((name.to_string(), result.trim() == "ok"))
    };
    let mut all = BTreeMap::new();
    for (name, passed) in said.lines().filter_map(line) {
        *all.entry(name).or_insert(true) &= passed;
    }
    all
}

/// The table, and whether all of it holds.
pub(crate) fn table(results: &BTreeMap<String, bool>) -> (String, bool) {
    let mut out = format!(
        "{:<54} {:<38} {:>6} {:>7}\n",
        "what happens", "what must come of it", "tests", "passed"
    );
    let (mut tests, mut passed) = (0, 0);
    for fault in FAULTS {
        let good = fault.tests.iter().filter(|t| results.get(**t) == Some(&true)).count();
        let mark = if good == fault.tests.len() { "" } else { "  FAILED" };
        out += &format!(
            "{:<54} {:<38} {:>6} {good:>7}{mark}\n",
            fault.what,
            fault.must,
            fault.tests.len()
        );
        tests += fault.tests.len();
        passed += good;
    }
    let lines = FAULTS.len();
    out += &format!(
        "{:<54} {:<38} {tests:>6} {passed:>7}\n",
        format!("{lines} lines, {} tests", names().len()),
        ""
    );
    (out, tests == passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_tests_that_there_are() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let files = crate::source::repository(&root).expect("reads");
        assert_eq!(missing(&files), Vec::<&str>::new());
        assert!(FAULTS.iter().all(|f| !f.tests.is_empty()));
        assert_eq!(missing(&[]).len(), names().len(), "what is not there is found");
    }

    #[test]
    fn a_test_that_failed_or_did_not_run_fails_its_line() {
        let all: String = names().iter().map(|n| format!("test a::b::{n} ... ok\n")).collect();
        assert!(table(&results(&all)).1);
        let first = names()[0];
        for said in [
            all.replace(&format!("{first} ... ok"), &format!("{first} ... FAILED")),
            all.replace(first, "x"),
        ] {
            let (text, good) = table(&results(&said));
            assert!(!good && text.contains("  FAILED"), "{text}");
        }
    }
}
