//! Adapting with the real binary: a base of text alone, adapters that learn, stop, go on, stack and
//! merge, preferences and rewards, and what bad input says.
#![allow(clippy::unwrap_used)]

mod shared;

use shared::{danlu, fails, folder, root, works};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A base that has seen a little text.
fn base(at: &Path) -> PathBuf {
    let pack = root().join("packs/sample");
    let recipe = at.join("base.toml");
    let text = format!(
        "# A base of seconds.\nname = \"base\"\n[data]\npacks = [{pack:?}]\nconcepts = 2\nscenes = 0\n\
         [text]\nvocabulary = 320\ntrain_bytes = 20000\n[image]\nsteps = 0\n[audio]\nsteps = 0\n\
         [model]\ndepth = 2\nwidth = 32\nhead_dim = 8\n\
         [train]\nsteps = 3\nrows = 2\nwindow = 96\nwarmup = 1\n[mixture]\ntext_en = 1.0\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let out = at.join("base");
    works(&["train", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(!out.join("model/image.safetensors").exists(), "no tokeniser of pictures");
    let log = std::fs::read_to_string(out.join("train.jsonl")).unwrap();
    assert!(log.contains("\"text\":{\"all\":"), "nats a byte in {log}");
    out.join("model")
}

fn write(at: &Path, name: &str, text: &str) -> String {
    let path = at.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}

/// A recipe that learns `rows` on the base; `more` is keys, a line `--`, and tables, or tables.
fn recipe(at: &Path, name: &str, rows: &str, steps: usize, more: &str) -> String {
    let (top, rest) = more.split_once("--\n").unwrap_or(("", more));
    let text = format!(
        "name = \"{name}\"\nmodel = \"base\"\n{top}\n[[data]]\nfile = \"{rows}\"\n[train]\nsteps = {steps}\n\
         rows = 2\nwindow = 48\nrate = 2e-2\nwarmup = 1\nvalidate = 50\ncheckpoint = 4\n{rest}"
    );
    write(at, &format!("{name}.toml"), &text)
}

const COLOURS: &str = r#"{"instruction":"grass?","output":"green"}
{"messages":[{"role":"user","content":"sky?"},{"role":"assistant","content":"blue"}]}
{"conversations":[{"from":"human","value":"blood?"},{"from":"gpt","value":"red"}]}
{"instruction":"snow?"}
"#;

#[test]
fn adapters_learn_go_on_stack_and_merge() {
    let at = folder("tune-lora");
    let model = base(&at);
    let model = model.to_str().unwrap();
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    write(&at, "colours.jsonl", COLOURS);
    let lora = "[lora]\nrank = 8\ndropout = 0.05\n";
    // On a base of four bits; the adapter goes with the base as it is.
    let few = recipe(&at, "few", "colours.jsonl", 60, "base = \"q4_0\"\n--\n[lora]\nrank = 8\n");
    works(&["tune", &few, "--out", &path("few")]);
    let learnt = losses(&at.join("few/train.jsonl"), "loss");
    assert!(learnt[59] < 0.6 * learnt[0], "{learnt:?}");
    let colours = recipe(&at, "colours", "colours.jsonl", 60, lora);
    let said = works(&["tune", &colours, "--out", &path("whole")]);
    assert!(said.contains("colours.jsonl:4") && said.contains("`output` is missing"), "{said}");
    assert!(at.join("whole/index.html").is_file());
    let ask = |question: &str, adapters: &[&str], model: &str| {
        let mut arguments = vec!["generate", question, "--model", model];
        adapters.iter().for_each(|a| arguments.extend(["--adapter", a]));
        danlu(&arguments).stdout
    };
    let whole = path("whole");
    for (question, answer) in [("grass?", "green"), ("sky?", "blue"), ("blood?", "red")] {
        let reply = ask(question, &[&whole], model);
        assert_eq!(String::from_utf8_lossy(&reply).trim(), answer, "{question}");
        assert_ne!(reply, ask(question, &[], model), "the base does not know");
    }

    // Stopped at a checkpoint and gone on: the same file.
    let mut child = Command::new(env!("CARGO_BIN_EXE_danlu"))
        .args(["tune", &colours, "--out", &path("parts"), "--threads", "1"])
        .current_dir(root())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::fs::read_to_string(at.join("parts/train.jsonl")).map_or(0, |t| t.lines().count()) < 9
    {
        assert!(std::time::Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    works(&["tune", "--resume", &path("parts")]);
    let file = "adapter/adapter_model.safetensors";
    assert_eq!(
        std::fs::read(at.join("whole").join(file)).unwrap(),
        std::fs::read(at.join("parts").join(file)).unwrap()
    );

    // A second layer on the first, which it needs.
    write(&at, "shapes.jsonl", "{\"instruction\":\"ball?\",\"output\":\"round\"}\n");
    let beneath = "adapters = [\"whole/adapter\"]\n--\n[lora]\nrank = 4\ndora = true\ntargets = [\"q_proj\", \"down_proj\"]\n";
    let shapes = recipe(&at, "shapes", "shapes.jsonl", 40, beneath);
    works(&["tune", &shapes, "--out", &path("second")]);
    let second = path("second");
    let stacked = ask("ball?", &[&whole, &second], model);
    assert_eq!(String::from_utf8_lossy(&stacked).trim(), "round");
    fails(
        &["generate", "ball?", "--model", model, "--adapter", &second],
        &["shapes", "beneath it"],
    );

    // Merged, the same answers; and the merged model is another base.
    let merged = path("merged");
    let merge = ["merge", "--model", model, "--adapter", &whole, "--adapter", &second, "--out"];
    let said = works(&[&merge[..], &[merged.as_str()]].concat());
    assert!(said.contains("100.00 % agree"), "{said}");
    assert_eq!(ask("ball?", &[], &merged), stacked);
    // Plain text is measured passage by passage; what an adapter learnt shows there, too.
    let texts = write(&at, "texts.jsonl", "{\"text\":\"green blue\"}\n{\"text\":\"red\"}\n");
    let said = works(&["eval", "--model", model, "--text", &texts, "--json", &path("t.json")]);
    assert!(said.contains("bits a byte"), "{said}");
    let bytes = std::fs::read(at.join("t.json")).unwrap();
    let found: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let of = |i: usize| (found[i]["bytes"].as_u64(), found[i]["bits_per_byte"].as_f64().unwrap());
    assert_eq!((of(0).0, of(1).0), (Some(10), Some(3)));
    assert!(of(0).1 > 0.0 && of(1).1 > 0.0 && of(0).1 != of(1).1, "{found}");

    // The gate's other forms: swapped, and the decode engine.
    let parity = ["parity", model, &merged, "--adapter", &whole, "--adapter", &second, "--form"];
    let said = works(&[&parity[..], &["merged,swapped,beside,decode"]].concat());
    assert_eq!(said.matches("near").count(), 5, "{said}");
    let alone = ["parity", model, "--adapter", &whole, "--form", "beside,decode", "--json"];
    assert_eq!(works(&alone).matches("\"near\":true").count(), 2);
    fails(&["parity", model, "--form", "merged"], &["--adapter"]);
    fails(&["parity", model, &merged], &["parity"]);
    // Without what is ours beside it, the folder is PEFT's, and is taken in again.
    let (peft, own) = (path("whole/adapter"), path("own"));
    let card = std::fs::read_to_string(Path::new(&peft).join("README.md")).unwrap();
    assert!(card.contains("base_model_relation: adapter"), "{card}");
    std::fs::remove_file(at.join("whole/adapter/danlu.json")).unwrap();
    let said = works(&["import", &peft, "--base", model, "--out", &own]);
    assert!(said.contains("rank 8 on 14 projections"), "{said}");
    assert_eq!(ask("sky?", &[&own], model), ask("sky?", &[&peft], model));
    fails(&["import", &own, "--base", &merged, "--out", &path("no")], &["a base with hash"]);
    fails(&["import", &peft, "--out", &path("no")], &["--base"]);
    fails(
        &["generate", "sky?", "--model", &merged, "--adapter", &own],
        &["`adapter`", "a base with hash"],
    );
    let info = std::fs::read_to_string(at.join("merged/danlu.json")).unwrap();
    assert_eq!(info.matches("\"from\"").count(), 1, "{info}");
    // Independent adapters combine; an adapter and its opposite leave nothing.
    let ties = ["merge", "--model", model, "--adapter", &whole, "--combine", "ties", "--out"];
    works(&[&ties[..], &[path("ties").as_str()]].concat());
    fails(
        &[
            "merge",
            "--model",
            model,
            "--adapter",
            &whole,
            "--adapter",
            &whole,
            "--combine",
            "linear",
            "--weights=1,-1",
            "--out",
            &path("nothing"),
        ],
        &["change a weight"],
    );
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn a_text_model_takes_pictures_and_sounds_and_goes_on() {
    let at = folder("tune-extend");
    let model = base(&at);
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    let reference = root().join("models/reference");
    let extend = ["extend", "--model", model.to_str().unwrap(), "--tokenizers"];
    let more = [reference.to_str().unwrap(), "--out", &path("wide")];
    let said = works(&[&extend[..], &more[..]].concat());
    assert!(said.contains("394 to "), "{said}");
    let pack = root().join("packs/sample");
    let text = format!(
        "# The tasks of three modalities on a text model.\nname = \"wide\"\n[data]\npacks = [{pack:?}]\n\
         concepts = 3\nscenes = 0\nvariants = 1\n[model]\nfrom = \"wide\"\n[train]\nsteps = 4\nrows = 2\n\
         window = 96\nwarmup = 1\n[mixture]\nname_en = 1.0\ndraw_en = 1.0\ntext_en = 0.5\n"
    );
    let recipe = write(&at, "wide.toml", &text);
    works(&["train", &recipe, "--out", &path("run")]);
    let png = path("cat.png");
    works(&["generate", "Draw cat face", "--to", "image", "--model", &path("run"), "-o", &png]);
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
    let info = std::fs::read_to_string(at.join("run/model/danlu.json")).unwrap();
    assert!(info.contains("\"from\""), "the base is remembered: {info}");
    fails(&[&extend[..], &more[..]].concat(), &["--out"]);
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn a_tuning_is_looked_at_before_tracked_and_refused_what_cannot_fit() {
    let at = folder("tune-doctor");
    base(&at);
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    write(&at, "colours.jsonl", COLOURS);
    let more = "[lora]\nrank = 4\n[track]\ntensorboard = true\nprometheus = \"danlu.prom\"\n\
                [[held_out]]\nfile = \"colours.jsonl\"\n";
    let good = recipe(&at, "good", "colours.jsonl", 6, more);
    let said = works(&["doctor", &good, "--out", &path("good"), "--per-hour", "3600"]);
    for wanted in [
        "for 6 steps of",
        "at 3600 an hour ",
        "the base, ",
        "memory: about",
        "colours.jsonl: 3 to learn from",
        "left out (bad rows allowed: 20)",
    ] {
        assert!(said.contains(wanted), "expected {wanted:?} in {said}");
    }
    assert!(!said.contains("BAD"), "{said}");
    let said = works(&["tune", &good, "--out", &path("good")]);
    assert!(said.contains("memory: about"), "{said}");
    let figures = std::fs::read_to_string(at.join("good/danlu.prom")).unwrap();
    for wanted in ["held_out", "gradient_norm", "good"] {
        assert!(figures.contains(wanted), "expected {wanted:?} in {figures}");
    }
    let events = std::fs::read_dir(at.join("good/tensorboard")).unwrap().count();
    assert_eq!(events, 1);
    let said = works(&["doctor", &good, "--out", &path("good")]);
    assert!(said.contains("goes on with this recipe"), "{said}");

    // Rows that no machine has the memory for, and a window over the context.
    let text = std::fs::read_to_string(&good).unwrap();
    let large = write(&at, "large.toml", &text.replace("rows = 2", "rows = 100000000"));
    for command in ["doctor", "tune"] {
        fails(&[command, &large, "--out", &path("large")], &["fewer train.rows (100000000)"]);
    }
    let wide = write(&at, "wide.toml", &text.replace("window = 48", "window = 4800"));
    fails(&["doctor", &wide, "--out", &path("wide")], &["train.window", "context, 96"]);
    let wrong = write(&at, "wrong.toml", &text.replace("rank = 4", "rank = 0"));
    fails(&["doctor", &wrong, "--out", &path("wrong")], &["lora.rank"]);
    let lost = write(&at, "lost.toml", &text.replace("colours.jsonl", "lost.jsonl"));
    fails(&["doctor", &lost, "--out", &path("lost")], &["lost.jsonl"]);
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn all_weights_preferences_and_rewards() {
    let at = folder("tune-others");
    base(&at);
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    // Some programs begin a file with a mark.
    write(
        &at,
        "text.jsonl",
        "\u{feff}{\"text\":\"one two three four five six seven eight nine ten\"}\n",
    );
    let full = recipe(&at, "full", "text.jsonl", 30, "").replace("2e-2", "1e-2");
    works(&["tune", &full, "--out", &path("full")]);
    let losses: Vec<f64> = losses(&at.join("full/train.jsonl"), "loss");
    assert!(losses[29] < 0.7 * losses[0], "{losses:?}");
    assert!(at.join("full/model/model.safetensors").is_file());

    let pairs = "{\"prompt\":\"hi?\",\"chosen\":\"yes\",\"rejected\":\"no\"}\n\
                 {\"prompt\":\"ho?\",\"chosen\":\"no\",\"rejected\":\"yes\"}\n";
    write(&at, "pairs.jsonl", pairs);
    let more = "[lora]\nrank = 4\n[objective]\nkind = \"dpo\"\npairs = 2\nbeta = 0.5\n";
    let dpo = recipe(&at, "dpo", "pairs.jsonl", 25, more);
    works(&["tune", &dpo, "--out", &path("dpo")]);
    let log = at.join("dpo/train.jsonl");
    let (loss, right) = (self::losses(&log, "loss"), self::losses(&log, "preferred"));
    assert!((loss[0] - 2f64.ln()).abs() < 1e-3, "it begins at the reference: {loss:?}");
    assert!(loss[24] < 0.3 && right[24] == 1.0, "{loss:?} {right:?}");

    // Whatever holds an `e` is rewarded, which a base hits now and then.
    write(
        &at,
        "tries.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a?\"}],\"expected\":\"e\"}\n",
    );
    let more = "[lora]\nrank = 4\n[objective]\nkind = \"grpo\"\nreward = \"contains\"\nquestions = 2\n\
                replies = 16\nmax_tokens = 6\nbeta = 0.01\n";
    let grpo = recipe(&at, "grpo", "tries.jsonl", 140, more);
    works(&["tune", &grpo, "--out", &path("grpo")]);
    let reward = self::losses(&at.join("grpo/train.jsonl"), "reward");
    let mean = |r: &[f64]| r.iter().sum::<f64>() / r.len() as f64;
    assert!(mean(&reward[100..]) > 1.5 * mean(&reward[..10]), "{reward:?}");

    fails(&["tune", &recipe(&at, "odd", "pairs.jsonl", 2, "[lora]\nrank = 0\n")], &["lora.rank"]);
    fails(
        &["tune", &recipe(&at, "none", "gone.jsonl", 2, ""), "--out", &path("x")],
        &["gone.jsonl"],
    );
    let wrong = recipe(&at, "wrong", "text.jsonl", 2, "[objective]\nkind = \"dpo\"\n");
    fails(&["tune", &wrong, "--out", &path("y")], &["text.jsonl", "at least one usable row"]);
    std::fs::remove_dir_all(&at).unwrap();
}

/// One figure of every line of a log.
fn losses(log: &Path, name: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(log).unwrap();
    let key = format!("\"{name}\":");
    let number = |line: &str| -> f64 {
        let rest = &line[line.find(&key).unwrap() + key.len()..];
        rest[..rest.find([',', '}']).unwrap()].parse().unwrap()
    };
    text.lines().map(number).collect()
}
