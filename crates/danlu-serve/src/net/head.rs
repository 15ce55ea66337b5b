//! Watches what a connection sends for a head that has both Content-Length and Transfer-Encoding:
//! the HTTP library drops the former silently, and a proxy in front may have believed it (request
//! smuggling). Tells also where in its requests a connection is, since a head must come in time and the
//! next request need not, and whether answers get on. What the library answers itself to a request that
//! it cannot read is given the body of an error of the API.

use crate::http::error::ApiError;
use axum::http::StatusCode;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that is watched.
pub(super) struct Watched<S> {
    stream: S,
    scan: Scan,
    seen: Arc<Seen>,
    /// Requests that are being answered.
    busy: Arc<AtomicUsize>,
    /// What is sent in the place of the library's own answer, and how much of it was.
    instead: Option<(Vec<u8>, usize)>,
}

/// What was seen of a connection so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// A head with both lengths.
    two_lengths: AtomicBool,
    /// Twice the heads that have come whole, and one more while another is coming.
    heads: AtomicU64,
    /// Bytes that were sent.
    written: AtomicU64,
    /// There was no room for more of them.
    full: AtomicBool,
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

    /// Bytes that were sent so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether there is more to send than the client takes.
    pub(super) fn full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

impl<S> Watched<S> {
    /// The stream, whose requests `busy` counts, and what is seen of it.
    pub(super) fn new(stream: S, busy: Arc<AtomicUsize>) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        let scan = Scan::default();
        (Self { stream, scan, seen: seen.clone(), busy, instead: None }, seen)
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    /// Sends bytes; how many of them were taken.
    fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.seen.full.store(sent.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(count)) = &sent {
            self.seen.written.fetch_add(*count as u64, Ordering::Relaxed);
        }
        sent
    }
}

/// What is sent in the place of an answer of the library to a request that it cannot read: that is
/// a head alone, and nothing of ours has no body and such a status.
fn in_place_of(answer: &[u8]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(answer.strip_suffix(b"\r\n\r\n")?).ok()?;
    let mut lines = head.split("\r\n");
    let first = lines.next()?;
    let status: u16 = first.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    if !(400..500).contains(&status) || !lines.any(|line| line == "content-length: 0") {
        return None;
    }
    let message = match status {
        414 => "the address of the request is too long".to_string(),
        431 => format!(
            "the head of the request is too large: at most {} bytes and {} headers",
            super::MAX_HEAD,
            super::MAX_HEADERS
        ),
        _ => "this is not a valid request of HTTP/1.1".to_string(),
    };
    let body = ApiError::new(StatusCode::from_u16(status).ok()?, message).json().to_string();
    let length = body.len();
    let text = format!(
        "{first}\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    Some(text.into_bytes())
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
        let this = &mut *self;
        if this.instead.is_none() && this.busy.load(Ordering::Acquire) == 0 {
            this.instead = in_place_of(buf).map(|bytes| (bytes, 0));
        }
        let Some((bytes, mut done)) = this.instead.take() else { return this.send(cx, buf) };
        while done < bytes.len() {
            match this.send(cx, &bytes[done..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Ok(count)) => done += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.instead = Some((bytes, done));
                    return Poll::Pending;
                }
            }
        }
        // All that it stands for.
        Poll::Ready(Ok(buf.len()))
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

    /// Takes a few bytes every second time it is asked.
    #[derive(Default)]
    struct Narrow {
        taken: Vec<u8>,
        asked: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.asked += 1;
            if self.asked % 2 == 1 {
                return Poll::Pending;
            }
            let count = buf.len().min(50);
            self.taken.extend_from_slice(&buf[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What leaves of `bytes` while so many requests are answered.
    fn sent(bytes: &[u8], busy: usize) -> String {
        let (mut stream, seen) = Watched::new(Narrow::default(), Arc::new(busy.into()));
        let (mut at, mut was_full) = (0, false);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while at < bytes.len() {
            match Pin::new(&mut stream).poll_write(&mut cx, &bytes[at..]) {
                Poll::Ready(count) => at += count.expect("is taken"),
                Poll::Pending => was_full |= seen.full(),
            }
        }
        assert!(was_full && !seen.full());
        assert_eq!(seen.written(), stream.stream.taken.len() as u64);
        String::from_utf8(stream.stream.taken).expect("UTF-8")
    }

    #[test]
    fn what_cannot_be_read_is_answered_in_json() {
        let canned = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                      content-length: 0\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n";
        let answer = sent(canned.as_bytes(), 0);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 431 Request"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(sent(canned.as_bytes(), 1), canned, "a request is being answered");
        for other in [
            canned.replace("431", "200"),
            canned.replace("length: 0", "length: 7"),
            format!("{canned}more"),
        ] {
            assert_eq!(sent(other.as_bytes(), 0), other);
        }
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
