//! Tokenisers and tunings: watched like pretraining, and gone on with after a kill with the same bits.

use crate::lab::Lab;
use serde_json::Value;
use std::path::PathBuf;

impl Lab {
    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.join(name)).unwrap()
    }

    #[track_caller]
    fn same(&self, [a, b]: [&str; 2], files: &[&str]) {
        for file in files {
            let [of_a, of_b] = [a, b].map(|run| self.file(&format!("{run}/{file}")));
            assert!(of_a == of_b, "{file} of {b} is not that of {a}");
        }
    }

    #[track_caller]
    fn audited(&self, run: &str, wanted: &str) {
        let said = self.ok(&mut self.danlu(&["debug", &self.path(run), "--audit"]));
        assert!(said.contains("no sample was doubled or lost"), "{run}: {said}");
        assert!(said.contains(wanted), "{run}: expected {wanted:?} in {said}");
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }
}

#[test]
fn tokenisers_are_watched_and_go_on_with_the_same_bits() {
    let lab = Lab::new("tokenisers", "steps = 2\ncheckpoint = 2\nvalidate = 100");
    let recipe = std::fs::read_to_string(lab.0.join("tiny.toml")).unwrap();
    let recipe = recipe.replace("steps = 6\nbatch = 2", "steps = 100\nbatch = 2");
    let long = lab.write("long.toml", &recipe);
    // With a checkpoint by the clock after every step or so.
    let often = lab.write("often.toml", &format!("{recipe}[checkpoint]\nminutes = 0.00001\n"));
    let learn = |recipe: &str, run: &str| {
        lab.danlu(&["tokenizer", "train", recipe, "--out", &lab.path(run)])
    };
    let resume = |run: &str| lab.danlu(&["tokenizer", "train", "--resume", &lab.path(run)]);
    lab.ok(&mut learn(&long, "whole"));
    assert!(lab.incidents("whole").is_empty());
    lab.audited("whole", "audit of image: 100 steps on 200 samples");
    let files = [
        "tokenisers/image.safetensors",
        "tokenisers/audio.safetensors",
        "tokenisers/image-semantic.safetensors",
        "image-audit.jsonl",
        "audio-audit.jsonl",
    ];
    lab.counted("whole/image.jsonl");

    // Killed in a save, twice, with a weight that is no number on the way: found, and undone without a trace.
    let fault = "nan:encoder.first@24";
    lab.kill_at_with(&mut learn(&often, "parts"), "pointed", 12, fault);
    lab.kill_at_with(&mut resume("parts"), "part-synced", 30, fault);
    lab.ok(resume("parts").env("DANLU_FAULT", fault));
    lab.same(["whole", "parts"], &files);
    let losses = |run: &str| -> Vec<(Value, Value)> {
        let lines = lab.lines(&format!("{run}/image.jsonl"));
        lines.iter().map(|line| (line["step"].clone(), line["loss"].clone())).collect()
    };
    assert_eq!(losses("whole"), losses("parts"));
    let found = lab.incidents_of("parts", "image-");
    // Each process that comes by that step meets it once.
    assert!((1..=3).contains(&found.len()), "{found:?}");
    for one in &found {
        assert_eq!((&one["cause"], &one["phase"]), (&"hardware".into(), &"image".into()));
        assert_eq!(one["layer"], "encoder.first.0.norm.weight", "{one:?}");
    }

    // A rate that is twenty times too high from a step on.
    lab.ok(learn(&long, "rate").env("DANLU_FAULT", "rate:image@80=20"));
    let found = lab.incidents_of("rate", "image-");
    assert_eq!(found[0]["cause"], "rate_too_high", "{found:?}");
    assert!((81..=90).contains(&found[0]["step"].as_u64().unwrap()), "{found:?}");
    lab.audited("rate", "audit of image: 100 steps");
    let page = std::fs::read_to_string(lab.0.join("rate/tokenisers.html")).unwrap();
    assert!(page.contains("What went wrong"), "the tokenisers' own page tells of it");
}

#[test]
fn tunings_are_watched_and_go_on_with_the_same_bits() {
    let lab = Lab::new("tunings", "steps = 12\ncheckpoint = 6\nvalidate = 100");
    let words = ["sky", "sea", "sun", "moon", "tree", "rose", "bee", "egg", "ink", "snow", "jam"];
    let pair = |i: usize| (words[i % 11], words[(3 * i + 1) % 11]);
    let rows = |row: &dyn Fn(&str, &str) -> String| -> String {
        (0..60).map(pair).map(|(a, b)| row(a, b) + "\n").collect()
    };
    let replies =
        rows(&|a, b| format!(r#"{{"instruction":"{a} and {b}?","output":"{b}, then {a}"}}"#));
    let pairs =
        rows(&|a, b| format!(r#"{{"prompt":"{a} or {b}?","chosen":"{b}","rejected":"{a}"}}"#));
    let asks = rows(&|a, b| {
        format!(r#"{{"messages":[{{"role":"user","content":"{a} {b}?"}}],"expected":"e"}}"#)
    });
    let made = |name: &str, rows: &str, objective: &str| -> (PathBuf, String) {
        let file = lab.write(&format!("{name}.jsonl"), rows);
        let base = lab.path("base");
        let text = format!(
            "name = \"{name}\"\nmodel = {base:?}\n[[data]]\nfile = {file:?}\n[train]\nsteps = 70\n\
             rows = 2\nwindow = 64\nrate = 4e-3\nwarmup = 5\ncheckpoint = 10\nvalidate = 70\n\
             [checkpoint]\nminutes = 0.0001\n[lora]\nrank = 4\ndropout = 0.05\n[objective]\n{objective}\n"
        );
        let recipe = lab.write(&format!("{name}.toml"), &text);
        lab.ok(&mut lab.danlu(&["tune", &recipe, "--out", &lab.path(name)]));
        assert!(lab.incidents(name).is_empty(), "{name}: {:?}", lab.incidents(name));
        lab.counted(&format!("{name}/train.jsonl"));
        (PathBuf::from(file), recipe)
    };
    let files = ["adapter/adapter_model.safetensors", "audit.jsonl"];
    let grpo = "kind = \"grpo\"\nreward = \"contains\"\nquestions = 2\nreplies = 4\nmax_tokens = 4";
    let all = [
        ("sft", &replies, "kind = \"reply\""),
        ("dpo", &pairs, "kind = \"dpo\"\npairs = 2"),
        ("grpo", &asks, grpo),
    ];
    for (name, rows, objective) in all {
        let (_, recipe) = made(name, rows, objective);
        let parts = format!("{name}-parts");
        let mut begin = lab.danlu(&["tune", &recipe, "--out", &lab.path(&parts)]);
        let resume = || lab.danlu(&["tune", "--resume", &lab.path(&parts)]);
        // A damaged adapter on the way is found and undone without a trace.
        let fault = "nan:lora_A@40";
        lab.kill_at_with(&mut begin, "renamed", 3, fault);
        lab.kill_at_with(&mut resume(), "shard-synced", 3, fault);
        lab.ok(resume().env("DANLU_FAULT", fault));
        lab.same([name, &parts], &files);
        lab.audited(&parts, "audit: 70 steps");
        let found = lab.incidents(&parts);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!((&found[0]["cause"], &found[0]["step"]), (&"hardware".into(), &41.into()));
        // A step of it again, with the bits that it had.
        let said = lab.ok(&mut lab.danlu(&["debug", &lab.path(name), "--step", "33"]));
        assert!(said.contains("both as they were logged, bit for bit"), "{name}: {said}");
        assert!(said.contains("model.layers.1"), "{name}: {said}");
        let shown = said.contains(&format!("{name}.jsonl"));
        assert_eq!(shown, name != "grpo", "{name}: samples by file in {said}");
        // A rate that is twenty times too high from a step on.
        let run = format!("{name}-rate");
        let mut tune = lab.danlu(&["tune", &recipe, "--out", &lab.path(&run)]);
        lab.ok(tune.env("DANLU_FAULT", "rate@40=20"));
        let found = lab.incidents(&run);
        assert_eq!(found[0]["cause"], "rate_too_high", "{name}: {found:?}");
        assert!((41..=50).contains(&found[0]["step"].as_u64().unwrap()), "{name}: {found:?}");
    }

    // Rows whose tokens are noise.
    let audit = std::fs::read_to_string(lab.0.join("sft/audit.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(audit.lines().nth(45).unwrap()).unwrap();
    let mut tune = lab.danlu(&["tune", &lab.path("sft.toml"), "--out", &lab.path("noise")]);
    lab.ok(tune.env("DANLU_FAULT", format!("noise:20@{}=0.9", line["from"])));
    let found = lab.incidents("noise");
    assert_eq!(found[0]["cause"], "bad_data", "{found:?}");
    assert!((46..=56).contains(&found[0]["step"].as_u64().unwrap()), "{found:?}");
    let page = String::from_utf8(lab.file("noise/index.html")).unwrap();
    assert!(page.contains("What went wrong"), "the page tells of it");
    // Other rows are not what the checkpoints were trained on.
    lab.write("sft.jsonl", &replies.replacen("sky", "sea", 1));
    let again = || lab.danlu(&["tune", "--resume", &lab.path("sft")]);
    lab.fails(&mut again(), &["sft.jsonl", "BLAKE3", "--changed-data"]);
    lab.ok(again().arg("--changed-data"));
    lab.ok(&mut again());
}
