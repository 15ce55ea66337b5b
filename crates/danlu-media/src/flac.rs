//! FLAC out: whole, correct and simple. Each block is stored as it is or by one fixed predictor with
//! Rice-coded residuals, whichever is shorter (RFC 9639).

use danlu_core::Sound;

/// Samples of a block.
const BLOCK: usize = 4_096;

/// Bits, the most significant first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Bits of the last byte that are used; 0: none is open.
    used: u32,
}

impl Bits {
    fn put(&mut self, value: u64, count: u32) {
        for i in (0..count).rev() {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((value >> i & 1) as u8) << (7 - self.used);
            self.used = (self.used + 1) % 8;
        }
    }

    fn align(&mut self) {
        self.used = 0;
    }
}

fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ byte, |c, _| if c & 0x80 != 0 { c << 1 ^ 0x07 } else { c << 1 })
    })
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |c, _| {
            if c & 0x8000 != 0 { c << 1 ^ 0x8005 } else { c << 1 }
        })
    })
}

/// A number as UTF-8 would write it, as frames count themselves (up to 16 bits).
fn put_number(bits: &mut Bits, n: u64) {
    match n {
        0..=0x7F => bits.put(n, 8),
        0x80..=0x7FF => bits.put(0xC080 | (n & 0x7C0) << 2 | n & 0x3F, 16),
        _ => bits.put(0xE0_8080 | (n & 0xF000) << 4 | (n & 0xFC0) << 2 | n & 0x3F, 24),
    }
}

/// The residuals of the fixed predictor of second order, after two samples.
fn residuals(block: &[i32]) -> Vec<u32> {
    block.windows(3).map(|w| w[2] - 2 * w[1] + w[0]).map(|r| (r << 1 ^ r >> 31) as u32).collect()
}

fn put_block(bits: &mut Bits, block: &[i32]) {
    let folded = residuals(block);
    let length = |k: u32| folded.iter().map(|&r| (r >> k) as u64 + 1 + u64::from(k)).sum::<u64>();
    let best = (0..15).min_by_key(|&k| length(k)).unwrap_or(0);
    if block.len() > 2 && length(best) + 42 < 16 * block.len() as u64 {
        // The kind of block: the fixed predictor of second order.
        bits.put(0x14, 8);
        block[..2].iter().for_each(|&s| bits.put(s as u64 & 0xFFFF, 16));
        // One partition with a parameter of four bits.
        bits.put(0, 6);
        bits.put(u64::from(best), 4);
        for &r in &folded {
            (0..r >> best).for_each(|_| bits.put(0, 1));
            bits.put(1, 1);
            bits.put(u64::from(r) & ((1 << best) - 1), best);
        }
    } else {
        // The kind of block: as it is.
        bits.put(0x02, 8);
        block.iter().for_each(|&s| bits.put(s as u64 & 0xFFFF, 16));
    }
}

/// The sound as a FLAC file of 16-bit samples; what is beyond -1..1 is clipped.
pub fn encode_flac(sound: &Sound) -> Vec<u8> {
    let samples: Vec<i32> = crate::pcm16(sound).map(i32::from).collect();
    let mut head = Bits::default();
    head.put(u64::from(u32::from_be_bytes(*b"fLaC")), 32);
    // The last block of metadata, of 34 bytes: the stream.
    head.put(0x8000_0022, 32);
    head.put((BLOCK << 16 | BLOCK) as u64, 32);
    head.put(0, 48);
    head.put(u64::from(sound.rate), 20);
    // One channel, 16 bits; the length; no checksum of the samples.
    head.put(0, 3);
    head.put(15, 5);
    head.put(samples.len() as u64, 36);
    (0..4).for_each(|_| head.put(0, 32));
    let mut out = head.bytes;
    for (i, block) in samples.chunks(BLOCK).enumerate() {
        let mut frame = Bits::default();
        // Fixed size of blocks; its length is told in 16 bits, the rate by the stream.
        frame.put(0xFFF8, 16);
        frame.put(0x70, 8);
        frame.put(0x08, 8);
        put_number(&mut frame, i as u64);
        frame.put(block.len() as u64 - 1, 16);
        frame.put(u64::from(crc8(&frame.bytes)), 8);
        put_block(&mut frame, block);
        frame.align();
        frame.put(u64::from(crc16(&frame.bytes)), 16);
        out.extend(frame.bytes);
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{RATE, decode_sound, encode_wav};

    #[test]
    fn flac_comes_back_and_is_shorter_than_wav() {
        let tone = |i: usize| 0.5 * (i as f32 * 0.1).sin();
        let noise = |i: usize| ((i * 7_919 % 1_000) as f32 / 500.0 - 1.0) * 1.2;
        for (samples, short) in [
            ((0..10_000).map(tone).collect::<Vec<_>>(), true),
            ((0..5_000).map(noise).collect(), false),
            (vec![0.25], false),
            ((0..600_000).map(tone).collect(), true),
        ] {
            let sound = Sound { rate: RATE, samples };
            let (flac, wav) = (encode_flac(&sound), encode_wav(&sound));
            assert_eq!(decode_sound(&flac, "x").unwrap(), decode_sound(&wav, "x").unwrap());
            assert!(!short || flac.len() * 4 < wav.len() * 3, "{} {}", flac.len(), wav.len());
        }
    }
}
