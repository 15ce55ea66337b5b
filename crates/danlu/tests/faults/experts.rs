//! A mixture of experts from its recipe to its forms: trained, killed and gone on with, its router
//! damaged, tuned, made smaller, handed to others.

use crate::lab::Lab;

#[test]
fn a_mixture_is_trained_watched_and_used_as_other_models_are() {
    let model = "hidden = 32\nexperts = 4\nexperts_per_token = 2";
    let lab = Lab::of("experts", model, "steps = 70\ncheckpoint = 10\nvalidate = 100\nrate = 4e-3");
    assert!(lab.incidents("base").is_empty(), "{:?}", lab.incidents("base"));
    let used = |run: &str, step: usize| -> Vec<f64> {
        let line = &lab.lines(&format!("{run}/train.jsonl"))[step - 1];
        let layers = ["model.layers.0", "model.layers.1"];
        layers.map(|layer| line["experts"][layer].as_f64().unwrap()).into()
    };
    for step in [1, 70] {
        assert!(used("base", step).iter().all(|n| (1.9..=4.001).contains(n)), "step {step}");
    }
    let page = std::fs::read_to_string(lab.0.join("base/index.html")).unwrap();
    assert!(page.contains("Experts that tokens are spread over"));

    // Killed while it writes a checkpoint, and with blocks that are run again: the same bits.
    lab.kill_at(&mut lab.train("killed"), "renamed", 4);
    lab.ok(&mut lab.resume("killed"));
    lab.same_as_base("killed");
    let text = std::fs::read_to_string(lab.path("tiny.toml")).unwrap();
    let again = text.replace("warmup = 5\n", "warmup = 5\nrecompute = \"all\"\n");
    std::fs::write(lab.0.join("again.toml"), again).unwrap();
    drop(lab.train("again"));
    lab.ok(&mut lab.danlu(&["train", &lab.path("again.toml"), "--out", &lab.path("again")]));
    assert!(lab.model("again") == lab.model("base"), "recomputed blocks gave other bits");

    // A router that sends every token to the same two experts.
    let said = lab.ok(lab.train("fallen").env("DANLU_FAULT", "collapse:layers.1.mlp.gate@47=4"));
    let found = lab.incidents("fallen");
    assert_eq!(found.len(), 1, "{said}");
    assert_eq!(found[0]["cause"], "router_collapse", "{found:?}");
    assert_eq!(found[0]["layer"], "model.layers.1", "{found:?}");
    let noticed = found[0]["step"].as_u64().unwrap();
    assert!((48..=57).contains(&noticed), "{found:?}");
    assert!(found[0]["action"].as_str().unwrap().contains("went back"), "{found:?}");
    assert!(found[0]["outcome"].as_str().unwrap().contains("went on"), "{found:?}");
    assert!(used("fallen", 70)[1] > 2.5, "{:?}", used("fallen", 70));

    // Its forms: as others read it, in few bits, smaller.
    let base = lab.path("base/model");
    for (format, out) in [("hf", "out"), ("gguf", "out.gguf")] {
        lab.ok(&mut lab.danlu(&["export", &base, "--format", format, "--out", &lab.path(out)]));
    }
    let config = std::fs::read_to_string(lab.0.join("out/config.json")).unwrap();
    assert!(config.contains("Qwen3MoeForCausalLM"), "{config}");
    let rows = (0..30).map(|i| format!("{{\"text\":\"The {i} cats are asleep.\"}}\n"));
    std::fs::write(lab.0.join("texts.jsonl"), rows.collect::<String>()).unwrap();
    let texts = lab.path("texts.jsonl");
    for method in ["rtn", "gptq"] {
        let out = lab.path(method);
        let how = ["--weights", "q8_0", "--method", method, "--data", &texts, "--out", &out];
        lab.ok(&mut lab.danlu(&[&["compress", "--model", &base][..], &how].concat()));
        lab.ok(&mut lab.danlu(&["parity", &base, &out, "--limits", "q8"]));
        lab.ok(&mut lab.danlu(&["generate", "The sun is", "--model", &out]));
    }
    let out = lab.path("fewer");
    let how = ["--drop-channels", "0.5", "--data", &texts, "--out", &out];
    lab.fails(
        &mut lab.danlu(&[&["compress", "--model", &base][..], &how].concat()),
        &["--drop-channels", "mixture of experts"],
    );
    let how = ["--drop-layers", "1", "--weights", "f16", "--data", &texts, "--out", &out];
    let dropped = lab.danlu(&[&["compress", "--model", &base][..], &how].concat()).output();
    assert!(lab.0.join("fewer/danlu.json").is_file(), "{dropped:?}");

    // A tuning of all weights, and an adapter on what every token goes through.
    let recipe = |name: &str, lora: &str| {
        let text = format!(
            "name = \"{name}\"\nmodel = \"base/model\"\n{lora}\n[[data]]\nfile = \"texts.jsonl\"\n\
             [train]\nsteps = 3\nrows = 2\nwindow = 64\nwarmup = 1\n"
        );
        std::fs::write(lab.0.join(format!("{name}.toml")), text).unwrap();
        lab.path(&format!("{name}.toml"))
    };
    let few = "[lora]\nrank = 2\ntargets = [\"q_proj\", \"o_proj\"]";
    for (name, lora) in [("whole", ""), ("few", few)] {
        lab.ok(&mut lab.danlu(&["tune", &recipe(name, lora), "--out", &lab.path(name)]));
    }
    lab.ok(&mut lab.danlu(&[
        "parity",
        &base,
        "--adapter",
        &lab.path("few/adapter"),
        "--form",
        "merged,swapped,decode,beside",
    ]));
    lab.fails(
        &mut lab.danlu(&["tune", &recipe("all", "[lora]\nrank = 2"), "--out", &lab.path("all")]),
        &["targets", "mixture of experts", "gate_proj"],
    );

    // What cannot be is refused by name before anything is learnt.
    for (model, wanted) in [
        ("experts = 4\nexperts_per_token = 5", "model.experts_per_token"),
        ("experts = 4\nbalance = -1.0", "model.balance"),
        ("experts = 5000", "model.experts"),
    ] {
        let text = std::fs::read_to_string(lab.path("tiny.toml")).unwrap();
        let text = text.replace("hidden = 32\nexperts = 4\nexperts_per_token = 2", model);
        std::fs::write(lab.0.join("wrong.toml"), text).unwrap();
        let out = lab.path("wrong");
        lab.fails(&mut lab.danlu(&["train", &lab.path("wrong.toml"), "--out", &out]), &[wanted]);
    }
}
