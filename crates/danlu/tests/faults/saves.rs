//! Killed at every place of a save, stopped, out of room, on damaged checkpoints and changed data.

use crate::lab::{Lab, newest, root, signal, text, wait};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn killed_anywhere_in_a_save_a_run_ends_as_if_nothing_had_been() {
    let lab = Lab::new("kill", "steps = 60\ncheckpoint = 2\nvalidate = 100");
    // Every place of a save, one kill after the other in the same run; each is passed a second time
    // before it is held, so that there is something to lose.
    let places = [
        "shard-written",
        "shard-synced",
        "manifest-written",
        "manifest-synced",
        "part-synced",
        "renamed",
        "parent-synced",
        "pointer-written",
        "pointer-synced",
        "pointed",
        "pruning",
    ];
    lab.kill_at(&mut lab.train("a"), places[0], 2);
    for place in &places[1..] {
        lab.kill_at(&mut lab.resume("a"), place, 2);
    }
    lab.ok(&mut lab.resume("a"));
    lab.same_as_base("a");

    // Tokenisers too, with a checkpoint by the clock after every step or so.
    let clock = std::fs::read_to_string(lab.0.join("tiny.toml")).unwrap()
        + "[checkpoint]\nminutes = 0.00001\n";
    std::fs::write(lab.0.join("clock.toml"), clock).unwrap();
    let (recipe, out) = (lab.path("clock.toml"), lab.path("t"));
    let mut learn = lab.danlu(&["tokenizer", "train", &recipe, "--out", &out]);
    lab.kill_at(&mut learn, "pointed", 3);
    lab.kill_at(&mut lab.danlu(&["tokenizer", "train", "--resume", &out]), "renamed", 5);
    lab.ok(&mut lab.danlu(&["tokenizer", "train", "--resume", &out]));
    for file in ["image", "audio", "image-semantic"] {
        let read = |run: &str| {
            std::fs::read(lab.0.join(run).join(format!("tokenisers/{file}.safetensors"))).unwrap()
        };
        assert!(read("t") == read("base"), "{file} was learnt otherwise");
    }

    // Stopped for a while, then asked to stop: it goes on, saves and says how to go on.
    let mut child = lab.train("b").stderr(Stdio::piped()).spawn().unwrap();
    let run = lab.0.join("b");
    wait("a checkpoint", || newest(&run).is_some_and(|p| !p.ends_with("step-00000000")));
    signal(&child, "-STOP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "a stopped process is still there");
    signal(&child, "-CONT");
    signal(&child, "-INT");
    let out = child.wait_with_output().unwrap();
    let said = text(&out.stderr);
    assert!(!out.status.success() && said.contains("stopped at step"), "{said}");
    assert!(said.contains("danlu train --resume"), "{said}");
    child = lab.resume("b").stderr(Stdio::null()).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    lab.same_as_base("b");

    // Its terminal is gone: it stops with a checkpoint, or goes on if it was started to (nohup). From
    // another directory it finds its data.
    std::fs::create_dir_all(lab.0.join("c")).unwrap();
    let here = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&lab.0).env_remove("DANLU_FAULT");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let danlu = env!("CARGO_BIN_EXE_danlu");
    let begun = |child: &mut std::process::Child| {
        let run = lab.0.join("c");
        wait("a checkpoint", || {
            let past = newest(&run).is_some_and(|p| !p.ends_with("step-00000000"));
            past || child.try_wait().unwrap().is_some()
        });
    };
    let mut child = here(danlu, &["train", "tiny.toml", "--out", "c"]).spawn().unwrap();
    begun(&mut child);
    signal(&child, "-HUP");
    assert!(!child.wait().unwrap().success(), "it was asked to stop");
    let stopped = newest(&lab.0.join("c")).unwrap();
    assert!(stopped < lab.0.join("c/checkpoints/step-00000060"), "it stopped before its end");
    let c = lab.path("c");
    let mut child =
        here("nohup", &[danlu, "train", "--resume", &c]).current_dir(root()).spawn().unwrap();
    begun(&mut child);
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "-HUP");
    assert!(child.wait().unwrap().success(), "it goes on to its end");
    lab.same_as_base("c");
}

#[test]
fn damage_lack_of_room_and_changed_data_are_told_and_cost_nothing() {
    let lab = Lab::new("damage", "steps = 24\ncheckpoint = 3\nvalidate = 100");
    // A byte of the newest checkpoint is another one: the one before is taken.
    lab.kill_at(&mut lab.train("a"), "pointed", 4);
    let shard = newest(&lab.0.join("a")).unwrap().join("tensors-00001-of-00001.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    let said = lab.ok(&mut lab.resume("a"));
    assert!(
        said.contains("tensors-00001-of-00001.safetensors: expected a shard with BLAKE3"),
        "{said}"
    );
    assert!(said.contains("instead") && said.contains("going on from step"), "{said}");
    lab.same_as_base("a");

    // No checkpoint can be written: said each time, and the run goes on to its end.
    let said = lab.ok(lab.train("b").env("DANLU_FAULT", "fail:tensors"));
    assert!(said.contains("the checkpoint of step 3 was not written"), "{said}");
    assert!(lab.model("b") == lab.model("base"));

    // No file may grow over what a checkpoint takes: what was there stays, and can be gone on from.
    lab.kill_at(&mut lab.train("c"), "pointed", 3);
    let whole = newest(&lab.0.join("c")).unwrap();
    let blocks =
        std::fs::metadata(whole.join("tensors-00001-of-00001.safetensors")).unwrap().len() / 1024;
    let line =
        format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" train --resume \"$1\"", blocks * 3 / 4);
    let full = Command::new("bash")
        .args(["-c", &line, env!("CARGO_BIN_EXE_danlu"), &lab.path("c")])
        .current_dir(root())
        .output()
        .unwrap();
    let said = text(&full.stderr);
    assert!(said.contains("was not written") && said.contains("the newest is still"), "{said}");
    assert!(whole.join("manifest.json").exists(), "the checkpoint before is gone");
    lab.ok(&mut lab.resume("c"));
    lab.same_as_base("c");

    // Nor is one whose picture is another, though its rows are the same.
    lab.kill_at(&mut lab.train("e"), "pointed", 3);
    let picture = std::fs::read(lab.0.join("red.png")).unwrap();
    let blue = danlu_core::Picture::filled(30, 20, [0, 0, 200]);
    danlu_media::write_picture(lab.0.join("red.png"), &blue).unwrap();
    lab.fails(&mut lab.resume("e"), &["rows.jsonl, its pictures", "BLAKE3", "--changed-data"]);
    // Killed while a checkpoint is put in another's place, and told again.
    lab.kill_at(lab.resume("e").arg("--changed-data"), "set-aside", 1);
    lab.ok(lab.resume("e").arg("--changed-data"));
    assert!(lab.model("e") != lab.model("base"), "it was trained on another picture");
    std::fs::write(lab.0.join("red.png"), picture).unwrap();

    // A sample file with another answer is not the data that the run was trained on.
    lab.kill_at(&mut lab.train("d"), "pointed", 3);
    let rows = lab.0.join("rows.jsonl");
    let changed = std::fs::read_to_string(&rows).unwrap().replacen("\"red\"", "\"blue\"", 1);
    std::fs::write(&rows, changed).unwrap();
    lab.fails(&mut lab.resume("d"), &["rows.jsonl", "BLAKE3", "--changed-data"]);
    lab.ok(lab.resume("d").arg("--changed-data"));
    assert!(lab.model("d") != lab.model("base"), "it was trained on other data");
}

#[test]
fn killed_beside_a_save_a_run_has_its_whole_log_and_what_it_began_with() {
    let lab = Lab::new("beside", "steps = 24\ncheckpoint = 6\nvalidate = 12\n");
    // The step is on the disk, its measurements are not in the log: they are made again, also at the end.
    let rated = std::fs::read_to_string(lab.0.join("tiny.toml")).unwrap();
    std::fs::write(lab.0.join("tiny.toml"), rated + "[checkpoint]\nbest = true\n").unwrap();
    lab.kill_at(&mut lab.train("a"), "measuring", 1);
    lab.kill_at(&mut lab.resume("a"), "measuring", 2);
    lab.ok(&mut lab.resume("a"));
    lab.same_as_base("a");
    let measured = |run: &str| -> Vec<_> {
        let lines = lab.lines(&format!("{run}/train.jsonl"));
        lines.iter().map(|l| (l["step"].clone(), l["validation"].clone())).collect()
    };
    let (found, want) = (measured("a"), measured("base"));
    assert_eq!(found.len(), 24);
    assert_eq!(found, want);
    assert!(want[11].1.as_object().is_some_and(|m| !m.is_empty()), "{want:?}");
    let listed = lab.ok(&mut lab.danlu(&["checkpoint", &lab.path("a")]));
    assert!(listed.contains("validation loss"), "{listed}");

    // Killed before there is a checkpoint, it begins again with what it began with.
    let longer = std::fs::read_to_string(lab.0.join("tiny.toml")).unwrap();
    std::fs::write(lab.0.join("longer.toml"), longer.replace("steps = 24", "steps = 30")).unwrap();
    let start = |run: &str, option: &str| {
        let (recipe, base, out) = (lab.path("longer.toml"), lab.path("base"), lab.path(run));
        lab.danlu(&["train", &recipe, option, &base, "--out", &out])
    };
    for option in ["--from", "--tokenizers"] {
        let [whole, killed] = [0, 1].map(|i| format!("{}-{i}", &option[2..]));
        lab.ok(&mut start(&whole, option));
        lab.kill_at(&mut start(&killed, option), "encoding", 1);
        let said = lab.ok(&mut lab.resume(&killed));
        assert_eq!(said.contains("going on from step 24"), option == "--from", "{said}");
        assert!(lab.model(&whole) == lab.model(&killed), "{option}: another model");
    }
    // All checkpoints are gone: said, not hidden.
    std::fs::remove_dir_all(lab.0.join("a/checkpoints")).unwrap();
    let said = lab.ok(&mut lab.resume("a"));
    assert!(said.contains("no checkpoint is left of 24 steps"), "{said}");
    lab.same_as_base("a");
}
