//! A folder to try things in, the real binary, and how it is stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder outside the checkout with a recipe, and what an undisturbed run of it left.
pub(crate) struct Lab(pub(crate) PathBuf);

impl Lab {
    /// `more` is added to `[train]`; the run is called `base`.
    pub(crate) fn new(name: &str, more: &str) -> Self {
        Self::of(name, "", more)
    }

    /// The same with `model` added to `[model]`.
    pub(crate) fn of(name: &str, model: &str, more: &str) -> Self {
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
             [model]\ndepth = 2\nwidth = 32\nhead_dim = 8\n{model}\n\
             [train]\nrows = 2\nwindow = 160\nwarmup = 5\n{more}\n\
             [mixture]\nname_en = 1.0\ntranscribe_en = 1.0\ntext_en = 0.5\nfile = 0.5\n"
        );
        std::fs::write(at.join("tiny.toml"), recipe).unwrap();
        let lab = Self(at);
        lab.ok(&mut lab.train("base"));
        lab
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }

    pub(crate) fn danlu(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_danlu"));
        command.args(arguments).current_dir(root()).env_remove("DANLU_FAULT");
        command
    }

    /// A fresh run of the recipe; all but the first take tokenisers and codes from `base`.
    pub(crate) fn train(&self, run: &str) -> Command {
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

    pub(crate) fn resume(&self, run: &str) -> Command {
        self.danlu(&["train", "--resume", &self.path(run)])
    }

    /// The lines of a log.
    pub(crate) fn lines(&self, log: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.0.join(log)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The last line of a log says what watching and keeping the run has cost.
    #[track_caller]
    pub(crate) fn counted(&self, log: &str) {
        let all = self.lines(log);
        let upkeep = &all.last().unwrap()["upkeep"];
        let of = |part: &str| upkeep[part].as_f64().unwrap();
        let parts = ["guard", "checkpoints", "audit", "writing"].map(of);
        assert!(parts.iter().all(|&seconds| seconds > 0.0), "{log}: {upkeep}");
        assert!(parts[..3].iter().sum::<f64>() < of("steps"), "{log}: {upkeep}");
    }

    #[track_caller]
    pub(crate) fn ok(&self, command: &mut Command) -> String {
        let out: Output = command.output().unwrap();
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(out.status.success(), "{command:?}: {said}");
        said
    }

    #[track_caller]
    pub(crate) fn fails(&self, command: &mut Command, wanted: &[&str]) {
        let out: Output = command.output().unwrap();
        let said = text(&out.stderr);
        assert!(!out.status.success(), "{command:?} should fail");
        for w in wanted {
            assert!(said.contains(w), "{command:?}: expected {w:?} in: {said}");
        }
    }

    /// Starts it held at a place of its saves, and kills it there from outside.
    #[track_caller]
    pub(crate) fn kill_at(&self, command: &mut Command, place: &str, time: usize) {
        self.kill_at_with(command, place, time, "");
    }

    /// The same, with other faults beside.
    #[track_caller]
    pub(crate) fn kill_at_with(&self, command: &mut Command, place: &str, time: usize, more: &str) {
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
    pub(crate) fn model(&self, run: &str) -> Vec<u8> {
        std::fs::read(self.0.join(run).join("model/model.safetensors")).unwrap()
    }

    #[track_caller]
    pub(crate) fn same_as_base(&self, run: &str) {
        assert!(self.model(run) == self.model("base"), "{run} is another model than base");
        let said = self.ok(&mut self.danlu(&["debug", &self.path(run), "--audit"]));
        assert!(said.contains("no sample was doubled or lost"), "{run}: {said}");
        let audit = |run: &str| std::fs::read(self.0.join(run).join("audit.jsonl")).unwrap();
        assert!(audit(run) == audit("base"), "{run} saw other samples than base");
    }

    /// Incidents of what a run is for.
    pub(crate) fn incidents(&self, run: &str) -> Vec<serde_json::Value> {
        self.incidents_of(run, "")
    }

    /// Those whose files begin with `of`.
    pub(crate) fn incidents_of(&self, run: &str, of: &str) -> Vec<serde_json::Value> {
        let file = |n: usize| self.0.join(run).join(format!("incidents/{of}{n:03}.json"));
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
pub(crate) fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < Duration::from_secs(120), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "kill {name}");
}

/// The newest checkpoint of a run.
pub(crate) fn newest(run: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).ok()?;
    let named = |p: &PathBuf| {
        let name = p.file_name().unwrap().to_string_lossy().to_string();
        name.starts_with("step-") && !name.contains('.')
    };
    entries.map(|e| e.unwrap().path()).filter(named).max()
}
