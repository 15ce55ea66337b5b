//! The REST interface of an MLflow server. A thread of its own sends, so a slow server holds no step.

use super::{About, End, Track, http};
use crate::run::{Run, read};
use danlu_core::{Error, Result};
use danlu_model::io::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// Sends the figures of one run.
pub(super) struct Client {
    sender: Option<Sender<Message>>,
    thread: Option<JoinHandle<Result<()>>>,
}

enum Message {
    Figures { step: u64, at: u64, figures: Vec<(String, f64)> },
    End(End),
}

/// What is kept in the run's folder, so that a resumed run goes on with the same one of the server.
#[derive(Serialize, Deserialize)]
struct Kept {
    address: String,
    run_id: String,
    /// The last step whose figures the server has taken.
    #[serde(default)]
    sent: u64,
}

/// Where the server is and which run is written to.
struct Server {
    address: String,
    run_id: String,
    kept: PathBuf,
    /// What a run that was killed had logged and not sent.
    backlog: Vec<super::Figures>,
}

/// The most metrics and parameters that a server takes at one time.
const METRICS: usize = 1000;
const PARAMETERS: usize = 100;

/// The longest value of a parameter.
const LONGEST: usize = 500;

impl Client {
    /// Finds or makes the experiment and the run, and sends the recipe as parameters.
    pub(super) fn open(address: &str, about: &About<'_>, run: &Run, step: u64) -> Result<Self> {
        let server = Server::open(address, about, run, step)?;
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || server.serve(&receiver));
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    fn send(&mut self, message: Message) -> Result<()> {
        let sent = self.sender.as_ref().is_some_and(|s| s.send(message).is_ok());
        if sent { Ok(()) } else { self.join() }
    }

    /// Waits for the thread; why it ended if it should not have.
    fn join(&mut self) -> Result<()> {
        self.sender = None;
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let panicked = |_| Err(Error::Other("the thread that sends panicked".into()));
        thread.join().unwrap_or_else(panicked)
    }
}

impl Track for Client {
    fn name(&self) -> &'static str {
        "mlflow"
    }

    fn step(&mut self, step: u64, figures: &[(String, f64)]) -> Result<()> {
        self.send(Message::Figures { step, at: milliseconds(), figures: figures.to_vec() })
    }

    /// Metrics cannot be taken back; the new ones of the same steps have a later time.
    fn back(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, end: End) -> Result<()> {
        self.send(Message::End(end))?;
        self.join()
    }
}

impl Server {
    fn open(address: &str, about: &About<'_>, run: &Run, step: u64) -> Result<Self> {
        let mut this = Self {
            address: address.trim_end_matches('/').to_string(),
            run_id: String::new(),
            kept: run.folder.join("mlflow.json"),
            backlog: Vec::new(),
        };
        let experiment = about.track.experiment.as_deref().unwrap_or(about.name);
        let kept: Option<Kept> =
            read(&this.kept).ok().and_then(|text| serde_json::from_str(&text).ok());
        if let Some(kept) = kept.filter(|k| k.address == this.address) {
            this.run_id = kept.run_id;
            let logged = super::logged(run)?;
            this.backlog =
                logged.into_iter().filter(|(s, _)| *s > kept.sent && *s <= step).collect();
            this.status("RUNNING")?;
            return Ok(this);
        }
        let found = this.post(
            "experiments/search",
            &json!({
                "filter": format!("name = '{}'", experiment.replace('\'', "")), "max_results": 1
            }),
        )?;
        let id = match found["experiments"][0]["experiment_id"].as_str() {
            Some(id) => id.to_string(),
            None => {
                let made = this.post("experiments/create", &json!({ "name": experiment }))?;
                this.text(&made, "experiment_id")?
            }
        };
        let made = this.post(
            "runs/create",
            &json!({
                "experiment_id": id, "run_name": about.name, "start_time": milliseconds()
            }),
        )?;
        this.run_id = this.text(&made["run"]["info"], "run_id")?;
        let parameters = parameters(&about.recipe);
        for some in parameters.chunks(PARAMETERS) {
            this.post("runs/log-batch", &json!({ "run_id": this.run_id, "params": some }))?;
        }
        this.keep(0)?;
        Ok(this)
    }

    /// Keeps which run it is, and up to where the server has it.
    fn keep(&self, sent: u64) -> Result<()> {
        let kept = Kept { address: self.address.clone(), run_id: self.run_id.clone(), sent };
        let json = serde_json::to_string(&kept).map_err(|e| Error::Other(e.to_string()))?;
        write_atomically(&self.kept, json.as_bytes())
    }

    /// Sends metrics, several times if need be: a server may be away for a moment.
    fn log(&self, metrics: &[Value]) -> Result<()> {
        for some in metrics.chunks(METRICS) {
            let body = json!({ "run_id": self.run_id, "metrics": some });
            let mut wait = std::time::Duration::from_millis(500);
            for last in [false, false, false, true] {
                match self.post("runs/log-batch", &body) {
                    Ok(_) => break,
                    Err(e) if last => return Err(e),
                    Err(_) => std::thread::sleep(wait),
                }
                wait *= 3;
            }
        }
        Ok(())
    }

    fn text(&self, value: &Value, key: &str) -> Result<String> {
        let found = value[key].as_str().map(str::to_string);
        found.ok_or_else(|| Error::file(&self.address, format!("an answer with `{key}`"), value))
    }

    fn post(&self, what: &str, body: &Value) -> Result<Value> {
        let url = format!("{}/api/2.0/mlflow/{what}", self.address);
        let text = http::post(&url, &body.to_string())?;
        serde_json::from_str(&text).map_err(|e| Error::file(&url, "an answer in JSON", e))
    }

    fn status(&self, status: &str) -> Result<()> {
        let mut body = json!({ "run_id": self.run_id, "status": status });
        if status != "RUNNING" {
            body["end_time"] = milliseconds().into();
        }
        self.post("runs/update", &body).map(drop)
    }

    /// Sends what comes, as much at one time as has come meanwhile, until the end or until nobody is
    /// there who could send more.
    fn serve(&self, receiver: &Receiver<Message>) -> Result<()> {
        let (mut end, mut failed) = (None, None);
        let at = milliseconds();
        let before: Vec<Value> = self
            .backlog
            .iter()
            .flat_map(|(step, figures)| metrics_of(*step, at, figures))
            .collect();
        if let Err(e) = self.log(&before) {
            failed = Some(e);
        } else if let Some((step, _)) = self.backlog.last() {
            self.keep(*step)?;
        }
        while end.is_none() {
            let Ok(first) = receiver.recv() else { break };
            let (mut metrics, mut sent) = (Vec::new(), 0);
            for message in std::iter::once(first).chain(receiver.try_iter()) {
                match message {
                    Message::Figures { step, at, figures } => {
                        metrics.extend(metrics_of(step, at, &figures));
                        sent = step;
                    }
                    Message::End(how) => end = Some(how),
                }
            }
            // After a failure what comes is in the log, and a run that goes on sends it.
            if failed.is_some() || metrics.is_empty() {
                continue;
            }
            match self.log(&metrics) {
                Ok(()) => self.keep(sent)?,
                Err(e) => failed = Some(e),
            }
        }
        let status = self.status(match end {
            Some(End::Finished) => "FINISHED",
            Some(End::Failed) => "FAILED",
            Some(End::Stopped) | None => "KILLED",
        });
        match failed {
            Some(e) => Err(Error::Other(format!("figures from here on were not sent: {e}"))),
            None => status,
        }
    }
}

fn milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn metrics_of(step: u64, at: u64, figures: &[(String, f64)]) -> Vec<Value> {
    let finite = figures.iter().filter(|(_, value)| value.is_finite());
    let metric = |(key, value): &(String, f64)| json!({ "key": key, "value": value, "timestamp": at, "step": step });
    finite.map(metric).collect()
}

/// Every value of a recipe, by its dotted name.
fn parameters(recipe: &Value) -> Vec<Value> {
    fn walk(name: String, value: &Value, out: &mut Vec<Value>) {
        if let Value::Object(inner) = value {
            for (key, value) in inner {
                let dot = if name.is_empty() { "" } else { "." };
                walk(format!("{name}{dot}{key}"), value, out);
            }
            return;
        }
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        let text: String = text.chars().take(LONGEST).collect();
        out.push(json!({ "key": name, "value": text }));
    }
    let mut out = Vec::new();
    walk(String::new(), recipe, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::super::to_value;
    use super::*;
    use danlu_core::Recipe;

    #[test]
    fn a_recipe_becomes_parameters_and_only_numbers_are_sent() {
        let text = "name='a'\n[data]\npacks=['p']\n[train]\nsteps=10\n[mixture]\nname_en=1.0\n";
        let recipe = Recipe::parse(text).expect("valid");
        let all = parameters(&to_value(&recipe));
        for (key, value) in [("name", "a"), ("train.steps", "10"), ("data.packs", "[\"p\"]")] {
            assert!(all.contains(&json!({ "key": key, "value": value })), "{key}: {all:?}");
        }
        let figures = [("a".to_string(), 1.5), ("b".to_string(), f64::NAN)];
        let want = json!({ "key": "a", "value": 1.5, "timestamp": 9, "step": 3 });
        assert_eq!(metrics_of(3, 9, &figures), [want]);
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let text = "name='a'\n[data]\n[train]\nsteps=10\n[mixture]\nname_en=1.0\n";
        let recipe = Recipe::parse(text).expect("valid");
        let run = Run { folder: std::env::temp_dir().join("danlu-no-mlflow") };
        let about = About { track: &recipe.track, name: &recipe.name, recipe: to_value(&recipe) };
        let opened = Client::open("http://127.0.0.1:9", &about, &run, 0);
        let error = opened.err().expect("nobody listens there").to_string();
        assert!(error.contains("http://127.0.0.1:9/api/2.0/mlflow/experiments"), "{error}");
    }
}
