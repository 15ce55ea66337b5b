//! Making a model smaller with the real binary: fewer bits, fewer parts, healing, the search, the
//! report, and what bad input says.
#![allow(clippy::unwrap_used)]

mod shared;

use shared::{danlu, fails, folder, root, works};
use std::path::Path;

/// A base that has seen a little text, and texts that it can be looked at with.
fn base(at: &Path) -> String {
    let pack = root().join("packs/sample");
    let recipe = at.join("base.toml");
    let text = format!(
        "# A base of seconds.\nname = \"base\"\n[data]\npacks = [{pack:?}]\nconcepts = 2\nscenes = 0\n\
         [text]\nvocabulary = 320\ntrain_bytes = 20000\n[image]\nsteps = 0\n[audio]\nsteps = 0\n\
         [model]\ndepth = 3\nwidth = 64\nhead_dim = 8\nkv_heads = 2\nheads = 8\n\
         [train]\nsteps = 20\nrows = 2\nwindow = 96\nwarmup = 1\n[mixture]\ntext_en = 1.0\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let out = at.join("base");
    works(&["train", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let line =
        |i: usize| format!("{{\"text\":\"The sun is warm and the {i} cats are asleep.\"}}\n");
    std::fs::write(at.join("rows.jsonl"), (0..40).map(line).collect::<String>()).unwrap();
    std::fs::write(at.join("held.jsonl"), (40..50).map(line).collect::<String>()).unwrap();
    let choice = r#"{"context":"The sun is","endings":[" warm"," xqzk"],"label":0}"#;
    std::fs::write(at.join("choices.jsonl"), format!("{choice}\n{choice}\n")).unwrap();
    out.join("model").to_str().unwrap().to_string()
}

#[test]
fn smaller_forms_open_answer_and_report() {
    let at = folder("compress");
    let model = base(&at);
    let path = |name: &str| at.join(name).to_str().unwrap().to_string();
    let (rows, held, choices) = (path("rows.jsonl"), path("held.jsonl"), path("choices.jsonl"));
    let json = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(at.join(name).join("compress.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };

    // Eight bits, to the nearest: everything works on the result as on the model.
    let eight = path("eight");
    let out = ["compress", "--model", &model, "--out", &eight, "--weights", "q8_0"];
    works(&[&out[..], &["--text", &held, "--choices", &choices]].concat());
    assert!(at.join("eight/model.tiles.safetensors").is_file());
    assert!(!at.join("eight/model.safetensors").exists() && !at.join("eight/work").exists());
    let report = json("eight");
    let (before, after) = (&report["before"], &report["rows"][0]["measured"]);
    assert!(after["bytes"].as_f64().unwrap() < before["bytes"].as_f64().unwrap());
    let bits = |v: &serde_json::Value| v["bits_per_byte"].as_f64().unwrap();
    assert!((bits(before) - bits(after)).abs() < 0.02, "{report}");
    assert!(report["rows"][0]["parity"]["comparison"]["near"].as_bool().unwrap());
    let page = std::fs::read_to_string(at.join("eight/compress.html")).unwrap();
    assert!(page.contains("q8_0") && page.contains("<svg"), "a page with a chart");
    let ask = |model: &str| danlu(&["generate", "The sun is", "--model", model]).stdout;
    assert!(!ask(&eight).is_empty());
    works(&["parity", &model, &eight, "--limits", "q8"]);
    works(&["export", &eight, "--format", "gguf", "--out", &path("eight.gguf")]);
    let said = works(&["eval", "--model", &eight, "--text", &held, "--choices", &choices]);
    assert!(said.contains("bits a byte") && said.contains("of 2 choices right"), "{said}");

    // Four bits, calibrated, of a model with a layer, a head and a quarter of the channels fewer.
    let cut = ["--drop-layers", "1", "--drop-heads", "1", "--drop-channels", "0.25"];
    let four = path("four");
    let out = ["compress", "--model", &model, "--out", &four, "--data", &rows, "--heal", "12"];
    let said = works(&[&out[..], &cut, &["--rate", "1e-3", "--text", &held]].concat());
    assert!(said.contains("1 layers") && said.contains("another model"), "{said}");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at.join("four/config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 2);
    assert_eq!(
        (&config["num_key_value_heads"], &config["num_attention_heads"]),
        (&1.into(), &4.into())
    );
    assert!(!ask(&four).is_empty());
    // An adapter learns on it, and goes on it alone.
    let recipe = at.join("tune.toml");
    let text = "name = \"t\"\nmodel = \"four\"\n[lora]\nrank = 2\n[[data]]\nfile = \"rows.jsonl\"\n\
                [train]\nsteps = 3\nrows = 2\nwindow = 48\n";
    std::fs::write(&recipe, text).unwrap();
    works(&["tune", recipe.to_str().unwrap(), "--out", &path("tuned")]);
    works(&["generate", "The sun is", "--model", &four, "--adapter", &path("tuned")]);
    fails(&["generate", "The", "--model", &eight, "--adapter", &path("tuned")], &["base"]);

    // The smallest that keeps the score is found, and none is said to where there is none.
    let found = path("found");
    let search = ["compress", "--model", &model, "--data", &rows, "--text", &held, "--keep"];
    works(&[&search[..], &["0.97", "--out", &found]].concat());
    let kept = json("found");
    let tried = kept["rows"].as_array().unwrap();
    let score = |v: &serde_json::Value| v["measured"]["score"].as_f64().unwrap();
    let share = |v: &serde_json::Value| score(v) / kept["before"]["score"].as_f64().unwrap();
    assert!(share(tried.last().unwrap()) >= 0.97);
    assert!(tried[..tried.len() - 1].iter().all(|t| share(t) < 0.97), "{kept}");

    // A student of the same words learns from its teacher.
    let teach = ["compress", "--model", &model, "--data", &rows, "--text", &held];
    let taught = ["--student", &four, "--heal", "4", "--weights", "f16", "--out", &path("taught")];
    works(&[&teach[..], &taught].concat());

    let out = ["compress", "--model", &model, "--out", &path("bad")];
    for (more, wanted) in [
        (&["--weights", "q3"][..], &["q8_0, q4_0"][..]),
        (&["--heal", "3"], &["--heal", "--data"]),
        (&["--drop-layers", "1"], &["--drop-layers", "--data"]),
        (&["--drop-layers", "3", "--data", &rows], &["--drop-layers", "fewer than the 3"]),
        (&["--drop-channels", "1.5", "--data", &rows], &["--drop-channels"]),
        (&["--keep", "0.9"], &["--keep", "--questions"]),
        (&["--keep", "1.5", "--text", &held], &["--keep", "at most 1"]),
        (&["--text", &path("none.jsonl")], &["none.jsonl"]),
        (&["--student", &four, "--data", &rows], &["--student", "--heal"]),
    ] {
        fails(&[&out[..], more].concat(), wanted);
    }
    let itself = ["compress", "--model", &model, "--out", &model];
    fails(&itself, &["--out", "another folder"]);
    std::fs::remove_dir_all(&at).unwrap();
}
