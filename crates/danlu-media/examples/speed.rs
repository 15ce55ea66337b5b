//! Times the signal processing on a sound file and writes what comes back from its log-mel frames:
//! `cargo run --release -p danlu-media --example speed -- in.ogg out.wav`
#![allow(clippy::print_stdout)]

use danlu_core::Rng;
use danlu_media::*;
use std::time::Instant;

fn main() -> danlu_core::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(input), Some(output)) = (args.next(), args.next()) else {
        println!("usage: speed SOUND OUT.wav");
        return Ok(());
    };
    let start = Instant::now();
    let sound = read_sound(&input)?;
    println!("read {:.2} s of sound in {:.1} ms", sound.seconds(), millis(start));
    for (low, high) in [(0.0, 8_000.0), (40.0, 7_800.0)] {
        let bank = MelBank::new(&MelConfig { low, high, ..MelConfig::default() });
        let start = Instant::now();
        let mel = bank.log_mel(&sound.samples);
        println!("log_mel of {} frames in {:.2} ms", mel.frames, millis(start));
        for iterations in [0, 16, 32, 60] {
            let start = Instant::now();
            let back = bank.griffin_lim(&mel, iterations, 1);
            let time = millis(start);
            let distance = mel_distance(&mel, &bank.log_mel(&back.samples));
            println!(
                "griffin_lim({iterations}) in {time:.1} ms: {distance:.2} dB from the original"
            );
            write_sound(&output, &back)?;
        }
    }
    let start = Instant::now();
    let altered = alter_sound(&sound, &mut Rng::new(1, 1));
    println!("alter_sound to {:.2} s in {:.2} ms", altered.seconds(), millis(start));
    let picture = danlu_core::Picture::filled(64, 64, [90, 120, 30]);
    let start = Instant::now();
    for stream in 0..100 {
        alter_picture(&picture, &mut Rng::new(1, stream));
    }
    println!("alter_picture in {:.3} ms", millis(start) / 100.0);
    Ok(())
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
