//! Pictures and sounds that are bombs, lies, fragments or somewhere else.

use crate::api::{png, transcribe, wav};
use crate::support::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use danlu_core::{Picture, Rng, Sound};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

fn image(address: SocketAddr, url: &str) -> Response {
    chat(address, json!([{"type": "image_url", "image_url": {"url": url}}]), Value::Null)
}

fn image_of(address: SocketAddr, kind: &str, bytes: &[u8]) -> Response {
    image(address, &format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

fn sound(address: SocketAddr, bytes: &[u8]) -> Response {
    let data = json!({"data": STANDARD.encode(bytes), "format": "wav"});
    chat(address, json!([{"type": "input_audio", "input_audio": data}]), Value::Null)
}

#[test]
fn no_address_is_ever_fetched() {
    let server = server();
    // If anything came here, it would be counted.
    let trap = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    trap.set_nonblocking(true).expect("sets");
    let here = trap.local_addr().expect("an address");
    for url in [
        format!("http://{here}/cat.png"),
        format!("http://localhost:{}/", here.port()),
        format!("http://0x7f.1:{}/", here.port()),
        format!("http://2130706433:{}/", here.port()),
        format!("http://[::ffff:127.0.0.1]:{}/", here.port()),
        "https://example.com/redirect-to-private.png".into(),
        "http://169.254.169.254/latest/meta-data".into(),
        "http://10.0.0.1/".into(),
        "file:///etc/passwd".into(),
        "ftp://example.com/a.png".into(),
        "/etc/passwd".into(),
        "//example.com/a.png".into(),
        String::new(),
    ] {
        let error = image(server.address, &url).error(400);
        assert_eq!(error["param"], "messages[0].content[0].image_url.url");
        assert!(!error["message"].as_str().expect("text").contains("root:"));
    }
    let asked = trap.accept();
    assert!(asked.is_err(), "somebody asked: {asked:?}");
    assert_healthy(server.address);
    server.stop();
}

#[test]
fn a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded() {
    let server = server();
    let mut bytes = danlu_media::encode_png(&Picture::filled(10, 10, [1, 2, 3]));
    bytes[16..24].copy_from_slice(&[0, 0, 0xC3, 0x50, 0, 0, 0xC3, 0x50]);
    // The checksum of the head, so that only the size is wrong.
    let sum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    let start = Instant::now();
    let error = image_of(server.address, "png", &bytes).error(400);
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(error["code"], "invalid_media");
    // Wide rather than large, and still over the side.
    let wide = danlu_media::encode_png(&Picture::filled(9_000, 2, [1, 2, 3]));
    let error = image_of(server.address, "png", &wide).error(400);
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("9000x2 pixels") && message.contains("8192"), "{message}");
    assert_healthy(server.address);
    server.stop();
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 },
        )
    })
}

/// A GIF of one pixel a frame.
fn gif(frames: usize) -> Vec<u8> {
    let mut bytes = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    for _ in 0..frames {
        bytes.extend(b"!\xf9\x04\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0");
    }
    bytes.push(b';');
    bytes
}

#[test]
fn of_many_frames_the_first_is_looked_at() {
    let server = server();
    let time = |frames: usize| {
        let start = Instant::now();
        let answer = image_of(server.address, "gif", &gif(frames));
        assert_eq!(answer.status, 200, "{}", answer.text());
        start.elapsed()
    };
    time(1);
    assert!(time(10_000) < Duration::from_secs(2));
    server.stop();
}

#[test]
fn fragments_and_other_kinds_are_refused_without_internals() {
    let server = server();
    let a = server.address;
    let whole = danlu_media::encode_png(&Picture::filled(40, 40, [1, 2, 3]));
    let svg = b"<?xml version=\"1.0\"?><!DOCTYPE svg [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>\
        <svg xmlns=\"http://www.w3.org/2000/svg\"><text>&x;</text></svg>";
    let cases: [(&str, &[u8]); 6] = [
        ("png", &whole[..whole.len() / 2]),
        ("png", &whole[..20]),
        ("png", b""),
        ("png", b"this is text"),
        ("svg+xml", svg),
        ("png", svg),
    ];
    for (kind, bytes) in cases {
        let answer = image_of(a, kind, bytes);
        let error = answer.error(400);
        let message = error["message"].as_str().expect("text").to_lowercase();
        for internal in ["unexpected", "decoder", "panick", "src/", "io error", "/etc"] {
            assert!(!message.contains(internal), "{message}");
        }
    }
    for url in
        ["data:image/png;base64,@@@@", "data:image/png,abc", "data:text/html;base64,YQ==", "data:"]
    {
        image(a, url).error(400);
    }
    // JPEG bytes under the name of PNG are what they are.
    assert_eq!(image_of(a, "png", include_bytes!("tiny.jpg")).status, 200);
    // So are sounds.
    let data = json!({"data": STANDARD.encode(wav()), "format": "mp3"});
    let said = json!([{"type": "input_audio", "input_audio": data}]);
    assert_eq!(chat(a, said, Value::Null).status, 200);
    assert_healthy(a);
    server.stop();
}

#[test]
fn sounds_that_lie_or_are_too_short_or_too_long() {
    let server = server();
    let a = server.address;
    let encode = |n: usize| danlu_media::encode_wav(&Sound { rate: 16_000, samples: vec![0.1; n] });
    let mut false_length = encode(1_600);
    false_length[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    false_length[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut false_rate = encode(1_600);
    false_rate[24..28].copy_from_slice(&0u32.to_le_bytes());
    let mut no_channels = encode(1_600);
    no_channels[22..24].copy_from_slice(&0u16.to_le_bytes());
    let (whole, one) = (wav(), encode(1));
    // A million seconds of silence would be a bomb in FLAC: an hour of it is 230 kB.
    let hour =
        danlu_media::encode_flac(&Sound { rate: 16_000, samples: vec![0.0; 57_600_000 / 4] });
    let both = |bytes: &[u8]| [sound(a, bytes), transcribe(a, bytes, &[])];
    for good in [&false_length, &one, &whole] {
        for answer in both(good) {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    let start = Instant::now();
    for bad in
        [&encode(0)[..], &hour, &encode(16_000 * 30), &false_rate, &no_channels, b"RIFF", b""]
    {
        for answer in both(bad) {
            answer.error(400);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    // Opus is not a kind that is read.
    let opus = b"OggS\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x13OpusHead\x01\x02";
    for answer in both(opus) {
        answer.error(400);
    }
    let data = json!({"data": "@@", "format": "wav"});
    chat(a, json!([{"type": "input_audio", "input_audio": data}]), Value::Null).error(400);
    let data = json!({"data": "", "format": "midi"});
    let error =
        chat(a, json!([{"type": "input_audio", "input_audio": data}]), Value::Null).error(400);
    assert_eq!(error["param"], "messages[0].content[0].input_audio.format");
    assert_healthy(a);
    server.stop();
}

#[test]
fn a_hundred_pictures_in_one_request_are_refused() {
    let server = server();
    let one = json!({"type": "image_url", "image_url": {"url": png()}});
    let error = chat(server.address, json!(vec![one; 100]), Value::Null).error(400);
    assert!(error["message"].as_str().expect("text").contains("at most 16"));
    server.stop();
}

#[test]
fn pictures_are_made_small_one_by_one_and_only_if_all_can_fit() {
    let server = server();
    let one = |bytes: &[u8]| {
        let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
        json!({"type": "image_url", "image_url": {"url": url}})
    };
    let large = one(&danlu_media::encode_png(&Picture::filled(4_000, 4_000, [1, 2, 3])));
    assert_eq!(chat(server.address, json!([large]), Value::Null).status, 200);
    let before = most_resident();
    // Each is 48 megabytes, all together at their full size more than 500.
    assert_eq!(chat(server.address, json!(vec![large; 11]), Value::Null).status, 200);
    let grown = most_resident() - before;
    assert!(grown < 250 << 10, "{grown} kB more for ten pictures more");
    // More than the context holds are not even looked at.
    let error = chat(server.address, json!(vec![one(b"none"); 12]), Value::Null).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    server.stop();
}

/// The most memory that this process had, in kilobytes, where the system tells.
fn most_resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Changed files never end a request in anything but an answer.
#[test]
fn changed_files_are_answered() {
    let server = server();
    let files: [(&str, Vec<u8>); 5] = [
        ("png", danlu_media::encode_png(&Picture::filled(12, 9, [9, 80, 7]))),
        ("gif", gif(2)),
        ("wav", wav()[..2_000].to_vec()),
        ("flac", danlu_media::encode_flac(&Sound { rate: 16_000, samples: vec![0.2; 900] })),
        ("jpeg", include_bytes!("tiny.jpg").to_vec()),
    ];
    let mut rng = Rng::new(2, 0);
    for round in 0..300 {
        let (kind, good) = &files[round % files.len()];
        let mut bytes = good.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len().min(300));
            bytes[at] = rng.below(256) as u8;
        }
        if rng.below(4) == 0 {
            bytes.truncate(rng.below(bytes.len()).max(1));
        }
        let answer = match *kind {
            "wav" | "flac" => transcribe(server.address, &bytes, &[]),
            kind => image_of(server.address, kind, &bytes),
        };
        assert!([200, 400].contains(&answer.status), "{kind}: {}", answer.text());
    }
    assert_healthy(server.address);
    server.stop();
}
