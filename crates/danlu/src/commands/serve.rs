use super::bench::{cache_format, weight_format};
use crate::answer::model_folder;
use danlu_core::{Error, Result, adapter_folder};
use danlu_model::Model;
use danlu_model::adapters::{Adapter, check_named};
use danlu_model::compress::{Rounding, quantise};
use danlu_model::engine::{
    CacheFormat, Decoder, Draft, EngineOptions, PAGE, Scheduler, WeightFormat,
};
use danlu_serve::{Catalogue, Host, Hosted, Options, Server};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Answer over HTTP: an OpenAI-compatible API and a page
///
/// Examples:
///   danlu serve                                        the model in models/reference; page at http://127.0.0.1:8080/
///   danlu serve --model runs/mine --port 9000
///   danlu serve --adapter formal=runs/formal           the base, and beside it what danlu tune made
///   danlu serve --model smollm2 --weights q8_0         an imported model, in eight bits
///   danlu serve --new-key alice                        prints a key, and its table for the file of keys
///   danlu serve --host 0.0.0.0 --keys keys.toml        for others, with keys
///
/// Clients of the OpenAI API are pointed at http://HOST:PORT/v1. Requests, errors, streams and the
/// names of metrics are theirs; /openapi.json has the details.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Model or run folder; several are told apart by their names (default: models/reference)
    #[arg(long, value_name = "DIR")]
    model: Vec<PathBuf>,
    /// An adapter beside its base, asked for by its name; DIR,DIR is a stack, the lowest first
    #[arg(long, value_name = "NAME=DIR", value_parser = named_stack)]
    adapter: Vec<Stack>,
    /// Address to listen on; other machines can ask only if it is not of the loop
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// Port to listen on; 0 lets the system choose
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// File of keys: who may ask, and how much (see --new-key)
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Print a new key and its table for the file of keys, and do nothing else
    #[arg(long, value_name = "NAME")]
    new_key: Option<String>,
    /// Let anybody on the network ask, without keys
    #[arg(long)]
    without_keys: bool,
    /// Host name that requests may be addressed to, and that the page may come from behind a proxy;
    /// may be given several times (default: any, and those of the loop alone if the server has no keys
    /// and listens there)
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// How weights are kept: f32, f16, q8_0, q4_0 or q4_k; fewer bits answer faster and less exactly.
    /// Those of a folder that keeps few bits (danlu compress) stay as they are
    #[arg(long, default_value = "f32", value_name = "FORMAT", value_parser = weight_format)]
    weights: WeightFormat,
    /// How keys and values of the context are kept: f32, f16 or q8
    #[arg(long, default_value = "f16", value_name = "FORMAT", value_parser = cache_format)]
    cache: CacheFormat,
    /// Most tokens whose keys and values are kept, of all replies and known prompts together
    /// (default: those of every reply at once, of 2,048 at most where the context is longer). Less than a
    /// whole context takes is refused
    #[arg(long, value_name = "TOKENS")]
    cache_tokens: Option<usize>,
    /// Do not guess what repeats an earlier text; replies are the same
    #[arg(long)]
    no_lookup: bool,
    /// A small model of the same ids (danlu compress makes some) that guesses where nothing is
    /// repeated; replies are the same
    #[arg(long, value_name = "DIR", conflicts_with = "no_lookup")]
    draft: Option<PathBuf>,
    /// Most replies at a time
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    max_batch: u16,
    /// Most requests that wait beyond those; more are told to come back later
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_queue: u16,
    /// Most open connections; fewer where the limit of open files (ulimit -n) is low
    #[arg(long, default_value_t = 1024, value_name = "N")]
    max_connections: u16,
    /// Most seconds between two requests of a connection; longer than a proxy in front keeps one
    #[arg(long, default_value_t = 75, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle: u64,
    /// Most megabytes of one request
    #[arg(long, default_value_t = 32, value_name = "MB", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_body: u16,
    /// Most seconds that a reply may take
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Most seconds for replies to end after the first SIGTERM or Ctrl-C
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    drain: u64,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if let Some(name) = args.new_key {
        return new_key(&name);
    }
    if !args.host.is_loopback() && args.keys.is_none() && !args.without_keys {
        return Err(Error::parameter(
            "--host",
            "an address of the loop, or --keys FILE (or --without-keys, if anybody may ask)",
            args.host,
        ));
    }
    danlu_ops::keep_no_pages();
    let named =
        if args.model.is_empty() { vec![None] } else { args.model.into_iter().map(Some).collect() };
    let folders = named.into_iter().map(model_folder).collect::<Result<Vec<_>>>()?;
    let width = args.max_batch as usize;
    let options = Options {
        host: args.host,
        port: args.port,
        keys: args.keys,
        allowed_hosts: args.allow_host,
        max_batch: width,
        max_queue: args.max_queue as usize,
        lookup: !args.no_lookup,
        max_connections: args.max_connections as usize,
        max_body: (args.max_body as usize) << 20,
        // Two of the largest at a time, or many small ones.
        max_buffered: ((args.max_body as usize) << 21).max(Options::default().max_buffered),
        idle_time: Duration::from_secs(args.idle),
        reply_time: Duration::from_secs(args.timeout),
        drain_time: Duration::from_secs(args.drain),
        ..Options::default()
    };
    let engine = Engine {
        weights: args.weights,
        cache: args.cache,
        cache_tokens: args.cache_tokens,
        batch: width,
    };
    let draft = args.draft.map(|folder| model_folder(Some(folder))).transpose()?;
    danlu_serve::logs::start();
    let server = Server::start(options, move |host| {
        let mut adapters = args.adapter;
        let draft = draft.as_deref();
        let all = folders.iter().map(|folder| hosted(host, folder, &mut adapters, engine, draft));
        let all = all.collect::<Result<_>>()?;
        if let Some((name, stack)) = adapters.first() {
            if let ([folder], Some(lowest)) = (&folders[..], stack.first()) {
                // Says by their hashes what it was learnt on.
                let (adapter, base) = (Adapter::load(lowest)?, Model::weights_hash(folder)?);
                adapter.check_base(&base, &[])?;
                check_named(&adapter, lowest, folder, &base)?;
            }
            let wanted = "an adapter that was learnt on one of the models";
            return Err(Error::parameter(format!("--adapter {name}"), wanted, "one of another"));
        }
        Catalogue::new(all)
    })?;
    eprintln!("listening on http://{}/ (API at /v1, Ctrl-C ends)", server.address);
    server.run()
}

/// A name and the adapters that it stands for, the lowest first.
type Stack = (String, Vec<PathBuf>);

/// Reads NAME=DIR,DIR.
fn named_stack(text: &str) -> Result<Stack, String> {
    match text.split_once('=') {
        Some((name, folders)) if !name.is_empty() && !folders.is_empty() => {
            let folders = folders.split(',').map(|f| adapter_folder(f.into())).collect();
            Ok((name.into(), folders))
        }
        _ => Err("expected NAME=DIR, or NAME=DIR,DIR for a stack".into()),
    }
}

/// How a model is kept and how much it answers at a time.
#[derive(Clone, Copy)]
pub(super) struct Engine {
    pub(super) weights: WeightFormat,
    pub(super) cache: CacheFormat,
    pub(super) cache_tokens: Option<usize>,
    pub(super) batch: usize,
}

impl Engine {
    /// As the scheduler of a model with this context is told it. A `guided` reply reads two
    /// prompts, so that a model of such has room for two contexts at least.
    fn options(self, context: usize, guided: bool) -> Result<EngineOptions> {
        let usual = self.batch * context.min(USUAL);
        let least = context * if guided { 2 } else { 1 } + 2 * PAGE;
        if let Some(asked) = self.cache_tokens.filter(|&asked| asked < least) {
            let wanted = format!("at least {least}, which one request of a whole context takes");
            return Err(Error::parameter("--cache-tokens", wanted, asked));
        }
        Ok(EngineOptions {
            weights: self.weights,
            cache: self.cache,
            cache_tokens: Some(self.cache_tokens.unwrap_or(usual).max(least)),
            batch: self.batch,
            ..EngineOptions::default()
        })
    }
}

/// Tokens of a conversation that room is kept for where a model's context is longer.
const USUAL: usize = 2_048;

/// Loads a model with those adapters that were learnt on it, which are taken out of the list, and
/// starts its thread.
pub(super) fn hosted(
    host: &Host,
    folder: &Path,
    adapters: &mut Vec<Stack>,
    engine: Engine,
    draft: Option<&Path>,
) -> Result<Hosted> {
    let device = danlu_ops::cpu_device();
    let model = Model::load(folder, &device)?;
    let context = model.transformer.config.context;
    let guided = model.tokenisers.vocabulary().image > 0;
    let mut plain = model.transformer;
    if plain.frozen_format().is_none() {
        // In place, so that the two forms of the weights are not in memory together.
        quantise(&mut plain, engine.weights, Rounding::Nearest, &mut |_| {})?;
        danlu_ops::give_back();
    }
    let mut scheduler = Scheduler::new(&plain, &engine.options(context, guided)?)?;
    if let Some(folder) = draft {
        let small = Model::load(folder, &device)?.transformer;
        let draft = Draft::new(Decoder::new(&small, engine.weights), engine.batch);
        scheduler = scheduler.with_draft(draft)?;
    }
    let base = if adapters.is_empty() { String::new() } else { Model::weights_hash(folder)? };
    let (mut names, mut others) = (Vec::new(), Vec::new());
    for (name, folders) in std::mem::take(adapters) {
        let stack = folders.iter().map(|f| Adapter::load(f)).collect::<Result<Vec<_>>>()?;
        let elsewhere = |(lowest, from): (&Adapter, &PathBuf)| {
            let here = lowest.check_base(&base, &[]);
            here.and_then(|()| check_named(lowest, from, folder, &base)).is_err()
        };
        if stack.first().zip(folders.first()).is_some_and(elsewhere) {
            others.push((name, folders));
            continue;
        }
        let (mut transformer, mut beneath) = (plain.clone(), Vec::new());
        for adapter in &stack {
            adapter.check_base(&base, &beneath)?;
            transformer.attach(adapter, &device)?;
            beneath.push(adapter.hash());
        }
        scheduler.add_adapter(&name, &transformer)?;
        names.push(name);
    }
    *adapters = others;
    host.host(&self::name(folder), model.tokenisers, context, Box::new(scheduler), names)
}

/// How requests call the model of a folder: the folder's name, or its run's.
pub(super) fn name(folder: &Path) -> String {
    let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    let own = whole.file_name().map(|n| n.to_string_lossy().into_owned());
    let run = whole.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    let name = match own {
        Some(own) if own == "model" => run.unwrap_or(own),
        own => own.unwrap_or_default(),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    name.chars().map(plain).take(64).collect()
}

/// Prints a key that nobody can guess, and what the file of keys has of it.
fn new_key(name: &str) -> Result<()> {
    let mut bytes = [0u8; 32];
    let source = Path::new("/dev/urandom");
    std::fs::File::open(source)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|e| Error::io(source, e))?;
    let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let key = format!("danlu-{digits}");
    eprintln!("The key is told once; keep it. Clients send `Authorization: Bearer KEY`.\n{key}\n");
    println!("[[key]]\nname = {name:?}\nblake3 = \"{}\"", danlu_serve::hash(&key));
    println!("# requests_per_minute = 60\n# concurrent = 4");
    Ok(())
}
