//! What a server may be told.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where a server listens and how much it takes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 lets the system choose.
    pub port: u16,
    /// File of keys; see [`Keys::load`](crate::Keys::load). Without, anybody may ask.
    pub keys: Option<PathBuf>,
    /// Names that a `Host` header may have besides those of this machine's own loop. Empty: any,
    /// unless the server listens on the loop only and has no keys. Pages of these hosts may ask too.
    pub allowed_hosts: Vec<String>,
    /// Most open connections; fewer where the limit of open files is low.
    pub max_connections: usize,
    /// Most jobs that wait, beyond those that run.
    pub max_queue: usize,
    /// Most replies at a time.
    pub max_batch: usize,
    /// Whether replies of text guess what repeats an earlier text (prompt look-up decoding): they
    /// are the same, and come sooner where it does.
    pub lookup: bool,
    /// Most bytes of one body.
    pub max_body: usize,
    /// Most bytes of bodies in memory, all requests together.
    pub max_buffered: usize,
    /// Time for a request's head.
    pub head_time: Duration,
    /// Time between the requests of a connection. Proxies keep connections for a minute or more, so less
    /// than that makes them use one that is just being closed.
    pub idle_time: Duration,
    /// Time for a request's body.
    pub body_time: Duration,
    /// Time for a reply.
    pub reply_time: Duration,
    /// Time that a reader of a stream may take for one event.
    pub reader_time: Duration,
    /// Time for replies to end once the server was told to stop.
    pub drain_time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            keys: None,
            allowed_hosts: Vec::new(),
            max_connections: 1_024,
            max_queue: 64,
            max_batch: 8,
            lookup: true,
            max_body: 32 << 20,
            max_buffered: 256 << 20,
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            body_time: Duration::from_secs(30),
            reply_time: Duration::from_secs(300),
            reader_time: Duration::from_secs(30),
            drain_time: Duration::from_secs(30),
        }
    }
}
