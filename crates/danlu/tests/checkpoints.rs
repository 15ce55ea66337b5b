//! Checkpoints with the real binary: the best of a run, by files that it never learns from, and models of any.
#![allow(clippy::unwrap_used)]

mod shared;

use serde_json::Value;
use shared::{fails, folder, works};
use std::path::Path;

fn write(at: &Path, name: &str, text: &str) -> String {
    let path = at.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}

/// Lines of a log.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Nats a token of a model on a text: what a run says of a held-out file must be this.
fn bits(model: &str, file: &str, at: &Path) -> f64 {
    let json = at.join("bits.json");
    works(&["eval", "--model", model, "--text", file, "--json", json.to_str().unwrap()]);
    let all: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    all[0]["bits_per_byte"].as_f64().unwrap()
}

/// A text of its own kind that is learnt by heart, so that another kind costs more and more.
fn recipe(rest: &str) -> String {
    format!(
        "name = \"kept\"\n[data]\nfiles = [\"learnt.jsonl\"]\nheld_out = [\"other.jsonl\"]\nscenes = 0\n\
         [text]\nvocabulary = 300\n[image]\nsteps = 0\n[audio]\nsteps = 0\n\
         [model]\ndepth = 1\nwidth = 32\nhead_dim = 8\n\
         [train]\nrate = 3e-2\nrows = 2\nwindow = 48\nwarmup = 1\n{rest}\n[mixture]\nfile = 1.0\n"
    )
}

#[test]
fn the_best_of_a_run_can_be_had_after_it_got_worse() {
    let at = folder("best");
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    write(
        &at,
        "learnt.jsonl",
        &"{\"text\":\"red green red green red green red green\"}\n".repeat(3),
    );
    let other = write(&at, "other.jsonl", "{\"text\":\"grey dear reed neer dree ger grene\"}\n");
    let more = "steps = 60\nvalidate = 4\ncheckpoint = 4\n[checkpoint]\nkeep = 2\nbest = true";
    let kept = write(&at, "kept.toml", &recipe(more));
    works(&["train", &kept, "--out", &path("run")]);
    let log = lines(&at.join("run/train.jsonl"));
    let losses: Vec<(u64, f64)> = log
        .iter()
        .filter_map(|l| Some((l["step"].as_u64()?, l["validation"]["other.jsonl"].as_f64()?)))
        .collect();
    assert_eq!(losses.len(), 15, "{losses:?}");
    let best = *losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let last = losses[14];
    assert!(best.0 < 50 && best.1 < 0.9 * last.1, "it got worse: {losses:?}");
    assert!(std::fs::read_to_string(path("run/index.html")).unwrap().contains("Held-out files"));

    // The list tells it from the newest; its model predicts the file as the log says, better than the run's.
    let said = works(&["checkpoint", &path("run")]);
    assert!(said.contains(&format!("best, validation loss {:.4}", best.1)), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.contains("step-00000060") && last.ends_with("newest"), "{said}");
    works(&["checkpoint", &path("run"), "--step", "best", "--out", &path("best")]);
    works(&["checkpoint", &path("run"), "--step", "60", "--out", &path("last")]);
    assert!(bits(&path("best"), &other, &at) < 0.95 * bits(&path("last"), &other, &at));
    let file = |model: &str| std::fs::read(at.join(model).join("model.safetensors")).unwrap();
    assert_eq!(file("last"), file("run/model"), "the newest is what the run ended with");
    let info: Value =
        serde_json::from_slice(&std::fs::read(path("best/danlu.json")).unwrap()).unwrap();
    assert_eq!(info["steps"].as_u64(), Some(best.0), "{info}");
    for (step, wanted) in [("7", "newest, or one of the steps"), ("worst", "best, newest")] {
        fails(
            &["checkpoint", &path("run"), "--step", step, "--out", &path("x")],
            &["--step", wanted],
        );
    }
    fails(&["checkpoint", &path("run"), "--step", "best", "--out", &path("run")], &["--out"]);

    // Whether there are held-out files changes nothing that is learnt.
    let plain = recipe(more).replace("held_out = [\"other.jsonl\"]\n", "");
    let plain = write(&at, "plain.toml", &plain);
    works(&["train", &plain, "--out", &path("plain")]);
    assert_eq!(file("plain/model"), file("run/model"));
    fails(&["checkpoint", &path("plain"), "--step", "best", "--out", &path("x")], &["best = true"]);

    let said = works(&["doctor", &kept, "--out", &path("run")]);
    assert!(said.contains("for 60 steps of") && said.contains("1 rows are held out"), "{said}");

    // What cannot be measured is told before anything is learnt.
    let both = write(&at, "both.toml", &recipe("steps = 2").replace("other.jsonl", "learnt.jsonl"));
    fails(&["train", &both, "--out", &path("y")], &["data.held_out", "learnt.jsonl"]);
    let lost = write(&at, "lost.toml", &recipe("steps = 2").replace("other.jsonl", "lost.jsonl"));
    for command in ["train", "doctor"] {
        fails(&[command, &lost, "--out", &path("y")], &["lost.jsonl"]);
    }
    assert!(!at.join("y/tokenisers").exists());
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn another_run_is_gone_on_from_if_it_has_the_same_model() {
    let at = folder("from");
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    write(&at, "learnt.jsonl", "{\"text\":\"red green\"}\n");
    write(&at, "other.jsonl", "{\"text\":\"grey\"}\n");
    let first = write(&at, "first.toml", &recipe("steps = 3"));
    works(&["train", &first, "--out", &path("first")]);
    let deep = write(&at, "deep.toml", &recipe("steps = 5").replace("depth = 1", "depth = 2"));
    let (first, refused, second) = (path("first"), path("refused"), path("second"));
    fails(
        &["train", &deep, "--from", &first, "--out", &refused],
        &["model.layers.1.", "step-00000003"],
    );
    assert!(!at.join("refused/checkpoints").exists(), "nothing was taken over");
    let longer = write(&at, "longer.toml", &recipe("steps = 5"));
    let said = works(&["train", &longer, "--from", &first, "--out", &second]);
    assert!(said.contains("going on from step 3"), "{said}");
    assert_eq!(lines(&at.join("second/train.jsonl")).len(), 5, "the log goes on, too");
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn an_adapter_of_any_step_and_no_other_base() {
    let at = folder("steps");
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    write(&at, "learnt.jsonl", "{\"text\":\"red green\"}\n");
    write(&at, "other.jsonl", "{\"text\":\"grey\"}\n");
    for (name, steps) in [("base", 2), ("else", 3)] {
        let text = recipe(&format!("steps = {steps}"));
        let recipe = write(&at, &format!("{name}.toml"), &text);
        works(&["train", &recipe, "--out", &path(name)]);
    }
    write(&at, "rows.jsonl", "{\"instruction\":\"grass?\",\"output\":\"green\"}\n");
    let text = "name = \"few\"\nmodel = \"base\"\n[[data]]\nfile = \"rows.jsonl\"\n[lora]\nrank = 2\n\
                [train]\nsteps = 6\nrows = 2\nwindow = 48\nwarmup = 1\nvalidate = 3\ncheckpoint = 3\n\
                [[held_out]]\nfile = \"rows.jsonl\"\n[checkpoint]\nbest = true\n";
    let tune = write(&at, "few.toml", text);
    works(&["tune", &tune, "--out", &path("few")]);
    let file =
        |adapter: &str| std::fs::read(at.join(adapter).join("adapter_model.safetensors")).unwrap();
    for (step, out) in [("newest", "at-6"), ("best", "at-best"), ("3", "at-3")] {
        works(&["checkpoint", &path("few"), "--step", step, "--out", &path(out)]);
    }
    assert_eq!(file("at-6"), file("few/adapter"));
    assert_eq!(file("at-6"), file("at-best"), "what it learns is what is held out");
    assert_ne!(file("at-3"), file("at-6"));
    works(&["generate", "grass?", "--model", &path("base/model"), "--adapter", &path("at-3")]);

    // Another base is not the one that the tuning began with, whatever its data is.
    std::fs::rename(at.join("base"), at.join("gone")).unwrap();
    std::fs::rename(at.join("else"), at.join("base")).unwrap();
    for more in [&[][..], &["--changed-data"][..]] {
        let again = ["tune", "--resume", &path("few")];
        fails(&[&again[..], more].concat(), &["weights of the base", "began with, BLAKE3"]);
    }
    std::fs::remove_dir_all(&at).unwrap();
}
