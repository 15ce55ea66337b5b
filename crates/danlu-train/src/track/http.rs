//! The little of HTTP that sending figures takes: a POST of JSON and its answer, over plain TCP. A
//! server elsewhere that wants TLS is reached through a proxy on this machine.

use danlu_core::{Error, Result};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Longest time for a connection, for a write, and for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is read.
const LONGEST: u64 = 16 << 20;

/// Posts a JSON text to an address such as `http://127.0.0.1:5000/path`; the answer's text. Any status
/// but a 2xx is an error with what the server said.
pub(super) fn post(url: &str, body: &str) -> Result<String> {
    let (host, path) = split(url)?;
    let exchange = || -> std::io::Result<Vec<u8>> {
        let with_port = if host.contains(':') { host.to_string() } else { format!("{host}:80") };
        let mut last = None;
        for address in with_port.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(stream) => return talk(stream, host, path, body),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into()))
    };
    let answer = exchange().map_err(|e| Error::io(url, e))?;
    let text = String::from_utf8_lossy(&answer);
    let (head, said) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split_whitespace().nth(1).unwrap_or("none");
    if !status.starts_with('2') {
        return Err(Error::file(url, "status 200", format!("{status}: {said}")));
    }
    Ok(said.to_string())
}

/// Host with port, and path, of an address.
fn split(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").filter(|rest| !rest.is_empty());
    let rest = rest.ok_or_else(|| Error::file(url, "an address that begins with http://", url))?;
    Ok(match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    })
}

/// Version 1.0, so that the answer is in one piece and ends with the connection.
fn talk(mut stream: TcpStream, host: &str, path: &str, body: &str) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    // For all of it: a server that says a byte a second would hold whoever waits for ever.
    let until = Instant::now() + TIMEOUT;
    let (mut answer, mut some) = (Vec::new(), [0; 1 << 14]);
    while (answer.len() as u64) < LONGEST {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut some)? {
            0 => break,
            n => answer.extend_from_slice(&some[..n]),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one request with `answer`; what was asked.
    fn serve(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut asked = Vec::new();
            let mut some = [0; 1024];
            while !asked.ends_with(b"{}") {
                let n = stream.read(&mut some).expect("reads");
                asked.extend(&some[..n]);
            }
            stream.write_all(answer.as_bytes()).expect("answers");
            String::from_utf8(asked).expect("text")
        });
        (address, asked)
    }

    #[test]
    fn a_post_is_answered_and_a_refusal_is_told() {
        let (address, asked) = serve("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n[]");
        assert_eq!(post(&format!("{address}/a/b"), "{}").expect("an answer"), "[]");
        let asked = asked.join().expect("served");
        assert!(asked.starts_with("POST /a/b HTTP/1.0\r\nHost: 127.0.0.1:"), "{asked}");
        assert!(asked.contains("Content-Length: 2\r\n"), "{asked}");
        let (address, _) = serve("HTTP/1.0 404 Not Found\r\n\r\nno such run");
        let error = post(&address, "{}").expect_err("refused").to_string();
        assert!(error.contains("404") && error.contains("no such run"), "{error}");
        for wrong in ["ftp://x", "http://"] {
            assert!(post(wrong, "{}").expect_err(wrong).to_string().contains("http://"));
        }
    }
}
