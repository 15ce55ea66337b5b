//! The whole way with the real binary on a few concepts of the sample pack: tokenisers, training,
//! kill -9 and resume, generation in every direction, evaluation, and what bad input says.
#![allow(clippy::unwrap_used)]

mod shared;

use shared::{danlu, fails, folder, root, works};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A recipe that takes seconds, with rows of a sample file beside the pack.
fn recipe(at: &Path, steps: usize) -> PathBuf {
    let pack = root().join("packs/sample");
    let rows = at.join("rows.jsonl");
    let picture = at.join("red.png");
    danlu_media::write_picture(&picture, &danlu_core::Picture::filled(30, 20, [200, 0, 0]))
        .unwrap();
    let long = "word ".repeat(900);
    let good = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Colour?"},{"type":"image","image":"red.png"}]},{"role":"assistant","content":"red"}]}"#;
    let missing = good.replace("red.png", "gone.png");
    let unknown = good.replace("\"user\"", "\"robot\"");
    let over = good.replace("Colour?", &long);
    std::fs::write(&rows, [good, &missing, &unknown, &over].join("\n")).unwrap();
    let path = at.join("tiny.toml");
    let recipe = format!(
        "# A run of seconds, for tests.\nname = \"tiny\"\n\
         [data]\npacks = [{pack:?}]\nfiles = [\"rows.jsonl\"]\nscenes = 12\nvariants = 1\nconcepts = 8\n\
         [text]\nvocabulary = 400\ntrain_bytes = 20000\n\
         [image]\nlevels = [4, 4, 4]\nchannels = 8\nblocks = 1\nsteps = 6\nbatch = 2\n\
         semantic = {{ steps = 4, batch = 2, channels = 4, width = 8 }}\n\
         [audio]\nlevels = [4, 4, 4]\nchannels = 16\nblocks = 1\nsteps = 6\nbatch = 2\nclip = 8\n\
         semantic = {{ steps = 4, batch = 2, channels = 4, width = 8, seconds = 1.0 }}\n\
         [model]\ndepth = 2\nwidth = 32\nhead_dim = 8\n\
         [train]\nsteps = {steps}\nrows = 2\nwindow = 160\nwarmup = 2\ncheckpoint = 3\nvalidate = 8\n\
         [mixture]\nname_en = 1.0\ndraw_en = 1.0\nsay_en = 1.0\ndraw_heard_en = 1.0\n\
         transcribe_en = 1.0\ntext_en = 0.2\nfile = 0.5\n\
         [eval]\nquestions = 2\n"
    );
    std::fs::write(&path, recipe).unwrap();
    path
}

#[test]
fn from_data_to_replies_and_back_after_kill() {
    let at = folder("e2e-whole");
    let recipe = recipe(&at, 16);
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    let recipe = recipe.to_str().unwrap();
    let said = works(&["quickstart", "--recipe", recipe, "--out", &path("a")]);
    for wanted in ["rows.jsonl:2", "gone.png", "rows.jsonl:3", "unknown role `robot`"] {
        assert!(said.contains(wanted), "{wanted:?} in {said}");
    }
    assert!(said.contains("memory: about"), "the peak is told before the first step: {said}");
    for file in ["index.html", "eval.html", "eval.json", "tokenisers.html", "model/config.json"] {
        assert!(at.join("a").join(file).is_file(), "{file}");
    }
    let page = std::fs::read_to_string(at.join("a/index.html")).unwrap();
    assert!(page.contains("synthetic"), "the page says that the speech is synthetic");
    assert!(page.contains("rows.jsonl:4"), "a conversation over the context is named");

    // The same run killed from outside and gone on with, on one thread, has the same bits.
    let tokenizers = path("a");
    let b = path("b");
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_danlu"))
            .args(["--threads", "1", "train", recipe, "--out", &b, "--tokenizers", &tokenizers])
            .current_dir(root())
            .spawn()
            .unwrap()
    };
    let mut child = start();
    let began = Instant::now();
    while !at.join("b/checkpoints/step-00000006").exists() {
        assert!(began.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
        if child.try_wait().unwrap().is_some() {
            break;
        }
    }
    let _ = child.kill();
    child.wait().unwrap();
    works(&["train", "--resume", &b]);
    let weights = |run: &str| std::fs::read(at.join(run).join("model/model.safetensors")).unwrap();
    assert!(weights("a") == weights("b"), "killed and resumed on another number of threads");

    // More memory than any machine has is refused before it is asked for.
    let huge = std::fs::read_to_string(recipe).unwrap().replace("rows = 2", "rows = 40000000");
    std::fs::write(at.join("huge.toml"), huge).unwrap();
    fails(
        &["train", &path("huge.toml"), "--out", &path("huge"), "--tokenizers", &tokenizers],
        &["available", "train.rows (40000000)", "train.window (160)", "train.recompute"],
    );

    // Every direction.
    let model = path("a");
    let reply = works(&["generate", "Draw cat face", "--model", &model, "-o", &path("x.png")]);
    assert!(reply.contains("x.png"), "{reply}");
    works(&[
        "generate",
        "Say it",
        "--model",
        &model,
        "--image",
        &path("x.png"),
        "-o",
        &path("y.wav"),
    ]);
    works(&[
        "generate",
        "--model",
        &model,
        "--audio",
        &path("y.wav"),
        "--to",
        "image",
        "-o",
        &path("z.png"),
    ]);
    works(&["generate", "What is it?", "--model", &model, "--audio", &path("y.wav")]);
    let picture = danlu_media::read_picture(at.join("z.png")).unwrap();
    assert_eq!((picture.width, picture.height), (64, 64));
    works(&["generate", "Draw cat face", "--model", &model, "--seed", "5", "-o", &path("s1.png")]);
    works(&["generate", "Draw cat face", "--model", &model, "--seed", "5", "-o", &path("s2.png")]);
    assert_eq!(
        std::fs::read(at.join("s1.png")).unwrap(),
        std::fs::read(at.join("s2.png")).unwrap()
    );

    // Questions written as files, and measured.
    let pack = root().join("packs/sample");
    let sets = path("sets");
    works(&[
        "questions",
        pack.to_str().unwrap(),
        "-o",
        &sets,
        "--task",
        "draw_heard_en",
        "--view",
        "held_voice",
        "-n",
        "3",
    ]);
    let set = at.join("sets/draw_heard_en-held_voice/set.jsonl");
    let json = path("eval.json");
    works(&[
        "eval",
        "--model",
        &model,
        "--data",
        set.to_str().unwrap(),
        "--json",
        &json,
        "--html",
        &path("e.html"),
    ]);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["questions"], 3);
    assert!(report["scores"].as_array().unwrap().iter().any(|s| s["metric"] == "top1"));
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn bad_input_is_named() {
    let at = folder("e2e-bad");
    let file = recipe(&at, 4);
    let write = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from));
        std::fs::write(at.join("bad.toml"), text.replace(from, to)).unwrap();
    };
    let bad = at.join("bad.toml").to_str().unwrap().to_string();
    let out = at.join("run").to_str().unwrap().to_string();
    write("window = 160", "windw = 160");
    fails(&["train", &bad, "--out", &out], &["bad.toml", "windw", "did you mean `window`"]);
    write("name_en = 1.0", "name_ne = 1.0");
    fails(&["train", &bad, "--out", &out], &["name_ne", "name_en"]);
    write("variants = 1", "variants = 1\nmax_bad_rows = 1");
    let other = at.join("other").to_str().unwrap().to_string();
    fails(&["train", &bad, "--out", &other], &["rows.jsonl", "more than the allowed 1"]);
    fails(&["train", "no/such.toml"], &["no/such.toml"]);
    fails(&["train"], &["recipe"]);
    fails(&["generate", "hi", "--model", &out], &["--model", "config.json"]);
    fails(&["generate", "hi", "--temperature=-1"], &["--temperature", "-1"]);
    assert!(!at.join("other/model").exists(), "nothing half-written");
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn checkpoints_come_in_and_go_out() {
    let at = folder("e2e-checkpoints");
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    let (model, hf, gguf, small) = (path("model"), path("hf"), path("a.gguf"), path("q4.gguf"));
    let source = "golden/checkpoints/qwen2";
    let said = works(&["import", source, "--out", &model]);
    assert!(said.contains("2 layers of width 32"), "{said}");
    works(&["generate", "hi", "--model", &model, "--max-tokens", "5"]);
    fails(&["generate", "draw", "--model", &model, "--to", "image"], &["to", "Image"]);
    let said = works(&["export", &model, "--format", "hf", "--out", &hf]);
    assert!(said.contains("near") && said.contains("bit for bit"), "{said}");
    works(&["export", &model, "--format", "gguf", "--out", &gguf]);
    works(&["export", &model, "--format", "gguf", "--type", "q4_0", "--out", &small]);
    let said = works(&["parity", &model, source, &hf, &gguf]);
    assert_eq!(said.matches("bit for bit").count(), 3, "{said}");
    // Another model is far, in words, in JSON and in the exit status.
    let other = "golden/checkpoints/llama";
    fails(&["parity", &model, other], &["parity", "golden/checkpoints/llama"]);
    let out = danlu(&["parity", &model, other, "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(line["comparison"]["near"], false, "{line}");
    fails(&["parity", &model, &small], &["parity"]);
    works(&["parity", &model, &small, "--limits", "q4"]);
    fails(&["export", &model, "--format", "hf", "--type", "q8_0", "--out", &hf], &["--type"]);
    fails(&["import", source, "--out", root().join("crates").to_str().unwrap()], &["--out"]);
    fails(&["import", "Cargo.toml", "--out", &path("no")], &["Cargo.toml", "GGUF"]);
    fails(&["import", "no/such", "--out", &path("no")], &["no/such"]);
    assert!(!at.join("no").exists(), "nothing half-written");
    std::fs::remove_dir_all(&at).unwrap();
}

#[test]
fn help_teaches_and_completions_come() {
    let help = works(&["--help"]);
    for wanted in ["quickstart", "generate", "Start here", "\"messages\""] {
        assert!(help.contains(wanted), "{wanted}: {help}");
    }
    assert!(works(&["completions", "bash"]).contains("danlu"));
}
