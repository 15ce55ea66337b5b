//! Event files for TensorBoard: protocol buffers in the framing of TFRecord.

use super::{End, Track};
use danlu_core::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one event file. Every start of a run writes another one into the same folder, and says from
/// which step on it replaces what others say.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// A new file in `folder` for a run that goes on from `step`.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        // TensorBoard reads files in the order of their names.
        let seconds = now().as_secs().max(last_second(folder).map_or(0, |last| last + 1));
        let process = std::process::id();
        let name = format!("events.out.tfevents.{seconds:010}.danlu.{process}.{step}");
        let path = folder.join(name);
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        let mut this = Self { path, file };
        this.put(&version())?;
        this.back(step)?;
        Ok(this)
    }

    fn put(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(|e| Error::io(&self.path, e))
    }
}

/// The second in the name of the last file: after it comes what is written now, whatever the clock says.
fn last_second(folder: &Path) -> Option<u64> {
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|e| e.file_name());
    let second = |name: std::ffi::OsString| {
        name.to_str()?.strip_prefix("events.out.tfevents.")?.split('.').next()?.parse().ok()
    };
    names.filter_map(second).max()
}

impl Track for Writer {
    fn name(&self) -> &'static str {
        "tensorboard"
    }

    fn step(&mut self, step: u64, figures: &[(String, f64)]) -> Result<()> {
        self.put(&summary(step, figures))
    }

    fn back(&mut self, step: u64) -> Result<()> {
        self.put(&start(step + 1))
    }

    fn end(&mut self, _: End) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Numbers of fields in `Event`, `Summary`, `Summary.Value` and `SessionLog` of TensorFlow's
/// `event.proto` and `summary.proto`.
mod field {
    pub(super) const WALL_TIME: u32 = 1;
    pub(super) const STEP: u32 = 2;
    pub(super) const FILE_VERSION: u32 = 3;
    pub(super) const SUMMARY: u32 = 5;
    pub(super) const SESSION_LOG: u32 = 7;
    pub(super) const VALUE: u32 = 1;
    pub(super) const TAG: u32 = 1;
    pub(super) const SIMPLE_VALUE: u32 = 2;
    pub(super) const STATUS: u32 = 1;
}

fn version() -> Vec<u8> {
    let mut out = time();
    bytes(&mut out, field::FILE_VERSION, b"brain.Event:2");
    out
}

/// Says that what was said before of `step` and later steps does not count.
fn start(step: u64) -> Vec<u8> {
    const START: u64 = 1;
    let mut log = Vec::new();
    number(&mut log, field::STATUS, START);
    let mut out = time();
    number(&mut out, field::STEP, step);
    bytes(&mut out, field::SESSION_LOG, &log);
    out
}

fn summary(step: u64, figures: &[(String, f64)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, value) in figures {
        let mut one = Vec::new();
        bytes(&mut one, field::TAG, name.as_bytes());
        key(&mut one, field::SIMPLE_VALUE, FIXED_32);
        one.extend((*value as f32).to_le_bytes());
        bytes(&mut all, field::VALUE, &one);
    }
    let mut out = time();
    number(&mut out, field::STEP, step);
    bytes(&mut out, field::SUMMARY, &all);
    out
}

fn time() -> Vec<u8> {
    let mut out = Vec::new();
    key(&mut out, field::WALL_TIME, FIXED_64);
    out.extend(now().as_secs_f64().to_le_bytes());
    out
}

/// Wire types of protocol buffers.
const VARINT: u32 = 0;
const FIXED_64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED_32: u32 = 5;

fn key(out: &mut Vec<u8>, field: u32, wire: u32) {
    varint(out, (field << 3 | wire) as u64);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    key(out, field, VARINT);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(out, field, LENGTH);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// Length, its checksum, the event, its checksum.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(event);
    out.extend(masked(crc32c(event)).to_le_bytes());
    out
}

/// As TFRecord stores checksums, so that one over data with checksums in it is no constant.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit-reflected.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, &b| TABLE[(crc as u8 ^ b) as usize] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_file_is_records_of_events() {
        let folder = std::env::temp_dir().join(format!("danlu-events-{}", std::process::id()));
        let mut writer = Writer::open(&folder, 300).expect("opens");
        writer.step(301, &[("loss/text".into(), 2.5), ("norm".into(), 0.5)]).expect("writes");
        writer.end(End::Finished).expect("flushes");
        let mut rest = &std::fs::read(&writer.path).expect("reads")[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().expect("8")) as usize;
            assert_eq!(rest[8..12], masked(crc32c(&rest[..8])).to_le_bytes());
            let event = &rest[12..12 + n];
            assert_eq!(rest[12 + n..16 + n], masked(crc32c(event)).to_le_bytes());
            events.push(event.to_vec());
            rest = &rest[16 + n..];
        }
        assert_eq!(events.len(), 3);
        assert!(events[0].ends_with(b"brain.Event:2"));
        // After the time: step 301 (two bytes of a varint), then the session log, status 1.
        assert_eq!(events[1][9..], [0x10, 0xad, 0x02, 0x3a, 0x02, 0x08, 0x01]);
        let mut one = vec![0x0a, 9];
        one.extend(b"loss/text");
        one.extend([0x15, 0, 0, 0x20, 0x40]);
        let at = events[2].windows(one.len()).position(|w| w == one);
        assert!(at.is_some(), "{:?}", events[2]);
        std::fs::remove_dir_all(&folder).expect("removes");
    }
}
