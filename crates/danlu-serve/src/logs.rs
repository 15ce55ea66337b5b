//! The log: one JSON object a line on the standard error, without any content of requests.

use tracing_subscriber::filter::LevelFilter;

/// Starts the log. Once a process; a second time changes nothing.
pub fn start() {
    let layer = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_max_level(LevelFilter::INFO)
        .with_writer(std::io::stderr);
    // Another log may be there already, as in tests.
    let _ = layer.try_init();
}
