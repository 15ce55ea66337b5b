//! Faults with the real binary: killed at every place of a save, stopped, out of room, on damaged
//! checkpoints and changed data; and troubles of training that the guard must answer. What comes of
//! each is held against an undisturbed run, bit for bit.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder outside the checkout with a recipe, and what an undisturbed run of it left.
struct Lab(PathBuf);

impl Lab {
    /// `more` is added to `[train]`; the run is called `base`.
    fn new(name: &str, more: &str) -> Self {
        let at = std::env::temp_dir().join(format!("danlu-faults-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&at);
        std::fs::create_dir_all(&at).unwrap();
        let pack = root().join("packs/sample");
        let red = danlu_core::Picture::filled(30, 20, [200, 0, 0]);
        danlu_media::write_picture(at.join("red.png"), &red).unwrap();
        let row = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Colour?"},{"type":"image","image":"red.png"}]},{"role":"assistant","content":"red"}]}"#;
        std::fs::write(at.join("rows.jsonl"), format!("{row}\n{row}\n")).unwrap();
        let recipe = format!(
            "# A run of seconds, for tests.\nname = \"tiny\"\n\
             [data]\npacks = [{pack:?}]\nfiles = [\"rows.jsonl\"]\nscenes = 8\nvariants = 1\nconcepts = 8\n\
             [text]\nvocabulary = 400\ntrain_bytes = 20000\n\
             [image]\nlevels = [4, 4, 4]\nchannels = 8\nblocks = 1\nsteps = 6\nbatch = 2\n\
             semantic = {{ steps = 2, batch = 2, channels = 4, width = 8 }}\n\
             [audio]\nlevels = [4, 4, 4]\nchannels = 16\nblocks = 1\nsteps = 6\nbatch = 2\nclip = 8\n\
             semantic = {{ steps = 2, batch = 2, channels = 4, width = 8, seconds = 1.0 }}\n\
             [model]\ndepth = 2\nwidth = 32\nhead_dim = 8\n\
             [train]\nrows = 2\nwindow = 160\nwarmup = 5\n{more}\n\
             [mixture]\nname_en = 1.0\ntranscribe_en = 1.0\ntext_en = 0.5\nfile = 0.5\n"
        );
        std::fs::write(at.join("tiny.toml"), recipe).unwrap();
        let lab = Self(at);
        lab.ok(&mut lab.train("base"));
        lab
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }

    fn danlu(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_danlu"));
        command.args(arguments).current_dir(root()).env_remove("DANLU_FAULT");
        command
    }

    /// A fresh run of the recipe; all but the first take tokenisers and codes from `base`.
    fn train(&self, run: &str) -> Command {
        let out = self.0.join(run);
        if run != "base" {
            std::fs::create_dir_all(out.join("tokenisers")).unwrap();
            let base = self.0.join("base");
            std::fs::copy(base.join("codes.bin"), out.join("codes.bin")).unwrap();
            std::fs::copy(base.join("tokenisers.html"), out.join("tokenisers.html")).unwrap();
            for entry in std::fs::read_dir(base.join("tokenisers")).unwrap() {
                let path = entry.unwrap().path();
                let to = out.join("tokenisers").join(path.file_name().unwrap());
                if path.is_file() {
                    std::fs::copy(&path, to).unwrap();
                }
            }
        }
        self.danlu(&["train", &self.path("tiny.toml"), "--out", &self.path(run)])
    }

    fn resume(&self, run: &str) -> Command {
        self.danlu(&["train", "--resume", &self.path(run)])
    }

    #[track_caller]
    fn ok(&self, command: &mut Command) -> String {
        let out: Output = command.output().unwrap();
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(out.status.success(), "{command:?}: {said}");
        said
    }

    #[track_caller]
    fn fails(&self, command: &mut Command, wanted: &[&str]) {
        let out: Output = command.output().unwrap();
        let said = text(&out.stderr);
        assert!(!out.status.success(), "{command:?} should fail");
        for w in wanted {
            assert!(said.contains(w), "{command:?}: expected {w:?} in: {said}");
        }
    }

    /// Starts it held at a place of its saves, and kills it there from outside.
    #[track_caller]
    fn kill_at(&self, command: &mut Command, place: &str, time: usize) {
        self.kill_at_with(command, place, time, "");
    }

    /// The same, with other faults beside.
    #[track_caller]
    fn kill_at_with(&self, command: &mut Command, place: &str, time: usize, more: &str) {
        let reached = self.0.join("reached");
        let _ = std::fs::remove_file(&reached);
        let fault = format!("{more};hold:{place}@{time}={}", reached.display());
        let mut child = command.env("DANLU_FAULT", fault).stderr(Stdio::null()).spawn().unwrap();
        wait(place, || reached.exists() || child.try_wait().unwrap().is_some());
        assert!(reached.exists(), "{place} was not reached: {:?}", child.wait());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The bits of a run's model.
    fn model(&self, run: &str) -> Vec<u8> {
        std::fs::read(self.0.join(run).join("model/model.safetensors")).unwrap()
    }

    #[track_caller]
    fn same_as_base(&self, run: &str) {
        assert!(self.model(run) == self.model("base"), "{run} is another model than base");
        let said = self.ok(&mut self.danlu(&["debug", &self.path(run), "--audit"]));
        assert!(said.contains("no sample was doubled or lost"), "{run}: {said}");
        let audit = |run: &str| std::fs::read(self.0.join(run).join("audit.jsonl")).unwrap();
        assert!(audit(run) == audit("base"), "{run} saw other samples than base");
    }

    fn incidents(&self, run: &str) -> Vec<serde_json::Value> {
        let file = |n: usize| self.0.join(run).join(format!("incidents/{n:03}.json"));
        let read = |n: usize| serde_json::from_slice(&std::fs::read(file(n)).unwrap()).unwrap();
        (1..).take_while(|&n| file(n).exists()).map(read).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < Duration::from_secs(120), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "kill {name}");
}

/// The newest checkpoint of a run.
fn newest(run: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).ok()?;
    let named = |p: &PathBuf| {
        let name = p.file_name().unwrap().to_string_lossy().to_string();
        name.starts_with("step-") && !name.contains('.')
    };
    entries.map(|e| e.unwrap().path()).filter(named).max()
}

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
fn troubles_are_named_and_answered_and_resumption_decides_alike() {
    let lab = Lab::new("trouble", "steps = 70\ncheckpoint = 10\nvalidate = 100\nrate = 4e-3");
    assert!(lab.incidents("base").is_empty(), "{:?}", lab.incidents("base"));

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
}
