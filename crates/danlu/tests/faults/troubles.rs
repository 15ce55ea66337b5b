//! Troubles of pretraining that the guard must name and answer.

use crate::lab::Lab;

#[test]
fn troubles_are_named_and_answered_and_resumption_decides_alike() {
    let lab = Lab::new("trouble", "steps = 70\ncheckpoint = 10\nvalidate = 100\nrate = 4e-3");
    assert!(lab.incidents("base").is_empty(), "{:?}", lab.incidents("base"));
    lab.counted("base/train.jsonl");
    let page = std::fs::read_to_string(lab.0.join("base/index.html")).unwrap();
    assert!(page.contains("Upkeep"), "the page tells what watching costs");

    // A weight that is no number: named, and undone without a trace.
    let fault = "nan:layers.1.mlp.down@47";
    let said = lab.ok(lab.train("nan").env("DANLU_FAULT", fault));
    let found = lab.incidents("nan");
    assert_eq!(found.len(), 1, "{said}");
    assert_eq!(found[0]["cause"], "hardware", "{found:?}");
    assert_eq!(found[0]["layer"], "model.layers.1.mlp.down_proj.weight");
    assert!(found[0]["step"].as_u64().unwrap() <= 50, "{found:?}");
    assert!(found[0]["outcome"].as_str().unwrap().contains("went on"), "{found:?}");
    assert!(lab.model("nan") == lab.model("base"));
    let page = std::fs::read_to_string(lab.0.join("nan/index.html")).unwrap();
    assert!(page.contains("What went wrong"), "the page tells of it");

    // A weight that became large: no rate did that, and none is lowered for it.
    let said = lab.ok(lab.train("large").env("DANLU_FAULT", "large:layers.1.mlp.down@47"));
    let found = lab.incidents("large");
    assert_eq!(found.len(), 1, "{said}");
    assert_eq!(found[0]["cause"], "hardware", "{found:?}");
    assert_eq!(found[0]["layer"], "model.layers.1.mlp.down_proj.weight");
    assert!(lab.model("large") == lab.model("base"));

    // A rate that is twenty times too high from a step on.
    let fault = "rate@45=20";
    lab.ok(lab.train("rate").env("DANLU_FAULT", fault));
    let found = lab.incidents("rate");
    assert!(!found.is_empty(), "not seen");
    assert_eq!(found[0]["cause"], "rate_too_high", "{found:?}");
    let noticed = found[0]["step"].as_u64().unwrap();
    assert!((46..=56).contains(&noticed), "{found:?}");

    // The same, killed after it and gone on with: the same decisions and the same bits.
    lab.kill_at_with(&mut lab.train("again"), "pointed", 7, fault);
    lab.ok(lab.resume("again").env("DANLU_FAULT", fault));
    assert!(lab.model("again") == lab.model("rate"), "a resumed guard decided otherwise");

    // The same where it may not go back: it stops, and what it stopped for is on record.
    let text = std::fs::read_to_string(lab.path("tiny.toml")).unwrap();
    std::fs::write(lab.0.join("never.toml"), text + "[guard]\nrollbacks = 0\n").unwrap();
    let out = lab.path("never");
    let mut never = lab.danlu(&["train", &lab.path("never.toml"), "--out", &out]);
    lab.fails(never.env("DANLU_FAULT", fault), &["stopped at step", "gone back 0 times"]);
    let found = lab.incidents("never");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["cause"], "rate_too_high", "{found:?}");
    assert!(found[0]["action"].as_str().unwrap().contains("stopped the run"), "{found:?}");

    // Samples whose tokens are noise.
    let audit = std::fs::read_to_string(lab.0.join("base/audit.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(audit.lines().nth(45).unwrap()).unwrap();
    let fault = format!("noise:25@{}=0.8", line["from"]);
    lab.ok(lab.train("noise").env("DANLU_FAULT", &fault));
    let found = lab.incidents("noise");
    assert!(!found.is_empty(), "not seen");
    assert_eq!(found[0]["cause"], "bad_data", "{found:?}");
    assert!((46..=56).contains(&found[0]["step"].as_u64().unwrap()), "{found:?}");
    let said = lab.ok(&mut lab.danlu(&["debug", &lab.path("noise"), "--audit"]));
    assert!(said.contains("no sample was doubled or lost"), "{said}");

    // A batch whose loss is no number: the step is skipped, and its samples are logged.
    let (from, to) = (line["from"].as_u64().unwrap(), line["to"].as_u64().unwrap());
    let said =
        lab.ok(lab.train("infinite").env("DANLU_FAULT", format!("infinite:{}@{from}", to - from)));
    let found = lab.incidents("infinite");
    assert_eq!(found.len(), 1, "{said}");
    assert_eq!(found[0]["cause"], "overflow", "{found:?}");
    assert_eq!(
        (found[0]["step"].as_u64(), found[0]["samples"][0].as_u64()),
        (Some(46), Some(from))
    );
    assert_eq!(found[0]["action"], "skipped the step");
    assert!(found[0]["evidence"].to_string().contains("gradients of"), "{found:?}");
    assert!(found[0]["outcome"].as_str().unwrap().contains("went on"), "{found:?}");
    lab.counted("infinite/train.jsonl");

    // Many of them: it goes back and leaves them out. Where it may not, or nobody watches, it stops
    // with a checkpoint rather than to go on for ever.
    let many = format!("infinite:400@{from}");
    lab.ok(lab.train("many").env("DANLU_FAULT", format!("infinite:60@{from}")));
    let found = lab.incidents("many");
    let action = found[0]["action"].as_str().unwrap();
    assert!(action.contains("went back") && action.contains("leaves out"), "{found:?}");
    for (run, guard, wanted) in [
        ("few", "rollbacks = 0", "gone back 0 times"),
        ("patient", "skips = 100\nbad_steps = 3", "4 steps in a row were skipped"),
        ("alone", "on = false", "21 steps in a row were skipped"),
    ] {
        let text = std::fs::read_to_string(lab.path("tiny.toml")).unwrap();
        std::fs::write(lab.0.join(format!("{run}.toml")), text + "[guard]\n" + guard + "\n")
            .unwrap();
        // The tokenisers are those of the first run.
        drop(lab.train(run));
        let recipe = lab.path(&format!("{run}.toml"));
        let mut stopped = lab.danlu(&["train", &recipe, "--out", &lab.path(run)]);
        lab.fails(stopped.env("DANLU_FAULT", &many), &["stopped at step", wanted, "overflow"]);
        assert!(lab.0.join(run).join("checkpoints").is_dir());
    }

    // A step taken again has the bits that were logged, and shows its layers and samples.
    let said = lab.ok(&mut lab.danlu(&["debug", &lab.path("base"), "--step", "66"]));
    for wanted in ["bit for bit", "model.layers.1", "entropy", "name_en"] {
        assert!(said.contains(wanted), "{wanted:?} in {said}");
    }
    lab.fails(
        &mut lab.danlu(&["debug", &lab.path("base"), "--step", "71"]),
        &["--step", "1 to 70"],
    );

    // The doctor finds nothing wrong with it, and refuses what cannot fit.
    let recipe = lab.path("tiny.toml");
    let said = lab.ok(&mut lab.danlu(&["doctor", &recipe, "--out", &lab.path("base")]));
    for wanted in ["machine", "every file of the packs has its hash", "memory: about", "are free"] {
        assert!(said.contains(wanted), "{wanted:?} in {said}");
    }
    let huge = std::fs::read_to_string(&recipe).unwrap().replace("rows = 2", "rows = 40000000");
    std::fs::write(lab.0.join("huge.toml"), huge).unwrap();
    lab.fails(&mut lab.danlu(&["doctor", &lab.path("huge.toml")]), &["cannot work", "available"]);

    // A training is refused for it before its tokenisers are learnt, as for a store that this
    // build cannot open.
    let wrong = [
        ("huge", "", "training needs"),
        ("stored", "[checkpoint]\nstore = \"nowhere://bucket/run\"\n", "checkpoint.store"),
    ];
    for (name, more, wanted) in wrong {
        let text = std::fs::read_to_string(if more.is_empty() {
            lab.path("huge.toml")
        } else {
            recipe.clone()
        });
        std::fs::write(lab.0.join("wrong.toml"), text.unwrap() + more).unwrap();
        let out = lab.path(name);
        lab.fails(&mut lab.danlu(&["train", &lab.path("wrong.toml"), "--out", &out]), &[wanted]);
        assert!(!lab.0.join(name).join("tokenisers/tokenizer.json").exists(), "{name}");
    }
}
