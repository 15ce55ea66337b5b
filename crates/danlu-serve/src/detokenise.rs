//! Bytes of tokens to text: characters that span tokens, and strings that end a reply.

/// Text in the making.
#[derive(Debug, Default)]
pub(crate) struct Detokeniser {
    /// Bytes that are no whole character yet.
    bytes: Vec<u8>,
    /// Text that could be the beginning of a stop string.
    held: String,
    stops: Vec<String>,
    stopped: bool,
}

impl Detokeniser {
    /// `stops` are not empty strings.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Whether a stop string came.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a token's bytes; the text that is certain now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.bytes.extend_from_slice(bytes);
        let text = self.whole_characters();
        self.release(&text, false)
    }

    /// The rest.
    pub(crate) fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        self.release(&rest, true)
    }

    /// Takes the characters that are complete; what can never be one becomes U+FFFD.
    fn whole_characters(&mut self) -> String {
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    out.push_str(text);
                    self.bytes.clear();
                    return out;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    let Some(bad) = error.error_len() else {
                        self.bytes.drain(..valid);
                        return out;
                    };
                    out.push('\u{FFFD}');
                    self.bytes.drain(..valid + bad);
                }
            }
        }
    }

    fn release(&mut self, text: &str, all: bool) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        if all {
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes at the end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    (1..=most)
        .rev()
        .find(|&n| {
            let (tail, head) = (&text.as_bytes()[text.len() - n..], &stop.as_bytes()[..n]);
            tail == head
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut d = Detokeniser::new(stops.iter().map(ToString::to_string).collect());
        let mut out: Vec<String> = pieces.iter().map(|p| d.push(p)).collect();
        out.push(d.finish());
        (out, d.stopped())
    }

    #[test]
    fn characters_that_span_tokens_come_whole() {
        let cat = "猫".as_bytes();
        let (out, _) = pieces(&[], &[&cat[..1], &cat[1..2], &cat[2..], b"a\xff", b"b\xe7"]);
        assert_eq!(out, ["", "", "猫", "a\u{FFFD}", "b", "\u{FFFD}"]);
    }

    #[test]
    fn nothing_of_a_stop_string_is_told() {
        let (out, stopped) = pieces(&["END", "。"], &[b"an E", b"N", b"d E", b"ND more", b"x"]);
        assert_eq!((out.concat().as_str(), stopped), ("an ENd ", true));
        assert_eq!(out[0], "an ");
        let (out, stopped) = pieces(&["。"], &["猫".as_bytes(), "。".as_bytes()]);
        assert_eq!((out.concat().as_str(), stopped), ("猫", true));
        let (out, stopped) = pieces(&["END"], &[b"at the E"]);
        assert_eq!((out.concat().as_str(), stopped), ("at the E", false));
    }
}
