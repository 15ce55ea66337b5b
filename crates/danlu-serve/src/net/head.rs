//! Watches what a connection sends for a head that has both Content-Length and Transfer-Encoding:
//! the HTTP library drops the former silently, and a proxy in front may have believed it (request
//! smuggling). Tells also where in its requests a connection is, since a head must come in time and the
//! next request need not.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that is watched.
pub(super) struct Watched<S> {
    stream: S,
    scan: Scan,
    seen: Arc<Seen>,
}

/// What was seen of a connection so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// A head with both lengths.
    two_lengths: AtomicBool,
    /// Twice the heads that have come whole, and one more while another is coming.
    heads: AtomicU64,
}

impl Seen {
    /// Whether a head with both lengths was seen.
    pub(super) fn two_lengths(&self) -> bool {
        self.two_lengths.load(Ordering::Relaxed)
    }

    /// What changes whenever a head begins or ends, and whether a head is waited for: the first, or the
    /// rest of one that has begun.
    pub(super) fn head(&self) -> (u64, bool) {
        let heads = self.heads.load(Ordering::Relaxed);
        (heads, heads == 0 || heads % 2 == 1)
    }
}

impl<S> Watched<S> {
    /// The stream, and what is seen of it.
    pub(super) fn new(stream: S) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        (Self { stream, scan: Scan::default(), seen: seen.clone() }, seen)
    }
}

/// Where in the requests of a connection the next byte is.
#[derive(Debug, Default)]
struct Scan {
    head: Vec<u8>,
    /// Bytes of a body before the next head.
    body: u64,
    /// After a body in chunks the connection is closed, so nothing is left to watch.
    over: bool,
    /// Heads that have come whole.
    heads: u64,
}

impl Scan {
    /// Takes bytes; whether a head among them has both.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() && !self.over {
            let body = self.body.min(bytes.len() as u64) as usize;
            self.body -= body as u64;
            bytes = &bytes[body..];
            let Some(end) = self.end_of_head(bytes) else { break };
            let rest = &bytes[end..];
            let (length, chunked) = lengths(&self.head);
            self.head.clear();
            self.heads += 1;
            if length.is_some() && chunked {
                return true;
            }
            self.over = chunked;
            self.body = length.unwrap_or(0);
            bytes = rest;
        }
        false
    }

    /// Adds to the head; how many of `bytes` belong to it, if it ends among them.
    fn end_of_head(&mut self, bytes: &[u8]) -> Option<usize> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let ends = |w: &[u8]| w.starts_with(b"\n\n") || w.starts_with(b"\n\r\n");
        let at = (from..self.head.len()).find(|&i| ends(&self.head[i..]));
        let Some(at) = at else {
            // Longer heads are refused by the library.
            self.over |= self.head.len() > 2 * super::MAX_HEAD;
            return None;
        };
        let end = at + if self.head[at + 1] == b'\n' { 2 } else { 3 };
        self.head.truncate(end);
        Some(end - before)
    }
}

/// The length that a head tells, and whether it has a Transfer-Encoding.
fn lengths(head: &[u8]) -> (Option<u64>, bool) {
    let (mut length, mut chunked) = (None, false);
    for line in head.split(|&b| b == b'\n') {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let value = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            length = Some(value.unwrap_or(0));
        }
        chunked |= name.eq_ignore_ascii_case(b"transfer-encoding");
    }
    (length, chunked)
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.scan.take(&buf.filled()[before..]) {
            self.seen.two_lengths.store(true, Ordering::Relaxed);
        }
        let coming = !self.scan.over && !self.scan.head.is_empty();
        self.seen.heads.store(2 * self.scan.heads + u64::from(coming), Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str =
        "POST / HTTP/1.1\r\ncontent-LENGTH: 4\r\nTransfer-encoding : chunked\r\n\r\n";

    /// Whether it is found, fed in pieces of any size.
    fn found(text: &str) -> bool {
        let mut seen = [1, 2, 3, 7, 1_000].map(|size| {
            let mut scan = Scan::default();
            text.as_bytes().chunks(size).any(|piece| scan.take(piece))
        });
        seen.sort_unstable();
        assert_eq!(seen[0], seen[4], "{text:?}: it does not matter how it is cut");
        seen[0]
    }

    #[test]
    fn both_lengths_are_found_in_the_head_and_not_in_the_body() {
        assert!(found(BOTH));
        let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert!(!found(get));
        assert!(found(&format!("{get}{BOTH}")));
        let post =
            |body: &str| format!("POST / HTTP/1.1\ncontent-length: {}\n\n{body}", body.len());
        assert!(!found(&post(BOTH)), "a body may say what it likes");
        assert!(found(&format!("{}{BOTH}", post("abc"))));
    }
}
