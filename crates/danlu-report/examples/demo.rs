//! Writes a page with one of everything: `cargo run -p danlu-report --example demo -- demo.html`.

use danlu_report::{
    Bar, BarChart, Card, Cell, Figure, LineChart, NoteKind, Page, Part, Series, Table,
};

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "demo.html".into());
    let mut page = Page::new("A run of the demonstration");
    page.lead(
        "Every number, picture and sound of this page is made up, to show what a page can hold.",
    );
    page.section("At a glance").figures(&[
        figure("Tokens a second", "1,840", "two cores"),
        figure("Held-out loss", "2.31", "was 9.12 at the start"),
        figure("Naming pictures", "41.7 %", "38.9 to 44.6"),
        figure("Parameters", "11.3 M", ""),
    ]);
    page.note(NoteKind::Good, "The run ended after 6,000 steps.")
        .note(NoteKind::Info, "语音由 espeak-ng 合成。 The speech of this set is synthetic.")
        .note(NoteKind::Warning, "Two rows were skipped: see the log beside this page.");

    page.section("Curves").text("Dashed lines are the unigram marginal of the same modality.");
    page.lines(&LineChart {
        title: "Loss by modality".into(),
        x_label: "step".into(),
        y_label: "nats per token".into(),
        log_y: false,
        series: vec![
            curve("text", 9.0, 2.2, 0.4),
            flat("text, marginal", 6.4),
            curve("image", 7.0, 4.1, 0.2),
            flat("image, marginal", 5.2),
            curve("sound", 6.2, 3.0, 0.25),
        ],
    });
    let mut rate = curve("gradient norm", 40.0, 0.35, 0.1);
    rate.points[1_500].1 = 75.0;
    rate.points[3_000].1 = f64::NAN;
    page.lines(&LineChart {
        title: "Gradient norm".into(),
        x_label: "step".into(),
        y_label: "norm".into(),
        log_y: true,
        series: vec![rate],
    });

    page.section("Scores").bars(&BarChart {
        title: "Right answers on held-out rows, 95 % intervals".into(),
        unit: "%".into(),
        mark_label: "ceiling: the tokeniser's own reconstruction".into(),
        bars: vec![
            bar("image to name", 41.7, 38.9, 44.6, None),
            bar("speech to name", 63.2, 59.8, 66.7, None),
            bar("text to image", 22.4, 19.6, 25.1, Some(81.0)),
            bar("speech to image", 17.0, 14.2, 19.9, Some(81.0)),
            bar("image to speech", 19.3, 16.6, 22.4, Some(72.5)),
        ],
    });
    page.table(&Table {
        caption: "By task".into(),
        head: ["task", "rows", "exact", "chrF", "seconds"].map(String::from).to_vec(),
        rows: vec![
            row("image to name", 1_200, 41.7, Some(52.3), 31.2),
            row("speech to name", 1_200, 63.2, Some(71.9), 44.0),
            row("text to image", 800, 22.4, None, 120.5),
            row("用中文说出名字", 1_200, 38.0, Some(44.1), 30.8),
        ],
    });

    page.section("Examples").gallery(
        "Held-out concepts, first of each task",
        &[
            card(
                "name",
                vec![
                    picture(0, "asked"),
                    Part::Quote("What is this?".into()),
                    Part::Arrow,
                    Part::Quote("a red circle".into()),
                    Part::Verdict { ok: true, text: "expected: a red circle".into() },
                ],
            ),
            card(
                "draw",
                vec![
                    Part::Quote("画一个蓝色的圆".into()),
                    Part::Arrow,
                    picture(1, "drawn"),
                    Part::Verdict { ok: true, text: "nearest reference: 蓝色的圆".into() },
                ],
            ),
            card(
                "draw what you hear",
                vec![
                    sound(440.0, "asked"),
                    Part::Arrow,
                    picture(2, "drawn"),
                    picture(0, "reference"),
                    Part::Verdict { ok: false, text: "nearest reference: a leaf, rank 14".into() },
                ],
            ),
            card(
                "say what you see",
                vec![
                    picture(1, "asked"),
                    Part::Arrow,
                    sound(300.0, "said"),
                    sound(330.0, "reference"),
                    Part::Verdict { ok: true, text: "rank 1 of 2,100".into() },
                ],
            ),
            card(
                "translate",
                vec![
                    Part::Quote("In Chinese: lighthouse".into()),
                    Part::Arrow,
                    Part::Quote(String::new()),
                    Part::Verdict { ok: false, text: "expected: 灯塔".into() },
                ],
            ),
            card(
                "reconstruction",
                vec![
                    picture(2, "original"),
                    Part::Arrow,
                    picture(2, "through 64 tokens"),
                    Part::Text("PSNR 31.4 dB, SSIM 0.96".into()),
                ],
            ),
        ],
    );

    page.section("How it was made").code(
        "Recipe",
        "toml",
        "# A small model for the demonstration.\n[model]\ndepth = 6\n\n[train]\nsteps = 6000\n",
    );
    page.write(path)
}

fn figure(label: &str, value: &str, note: &str) -> Figure {
    Figure { label: label.into(), value: value.into(), note: note.into() }
}

fn curve(name: &str, from: f64, to: f64, noise: f64) -> Series {
    let mut state = name.len() as u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 24) - 0.5
    };
    let points = (0..6_000)
        .map(|i| {
            let mean = to + (from - to) * (-f64::from(i) / 700.0).exp();
            (f64::from(i), mean * (1.0 + noise * random()))
        })
        .collect();
    Series { name: name.into(), points, dashed: false }
}

fn flat(name: &str, y: f64) -> Series {
    Series { name: name.into(), points: vec![(0.0, y), (5_999.0, y)], dashed: true }
}

fn bar(label: &str, value: f64, low: f64, high: f64, mark: Option<f64>) -> Bar {
    Bar { label: label.into(), value, low, high, mark }
}

fn row(task: &str, rows: usize, exact: f64, chrf: Option<f64>, seconds: f64) -> Vec<Cell> {
    let interval =
        Cell::Interval { value: exact, low: exact - 2.8, high: exact + 2.9, decimals: 1 };
    let chrf = chrf.map_or(Cell::Missing, |v| Cell::number(v, 1));
    vec![task.into(), rows.into(), interval, chrf, Cell::number(seconds, 1)]
}

fn card(title: &str, parts: Vec<Part>) -> Card {
    Card { title: title.into(), parts }
}

/// A disc of one of three colours.
fn picture(colour: usize, label: &str) -> Part {
    let (r, g, b) = [(220, 60, 40), (50, 90, 220), (60, 160, 80)][colour];
    let mut pixels = Vec::new();
    for y in 0..64i32 {
        pixels.push(0); // each row of a PNG begins with its filter
        for x in 0..64i32 {
            let inside = (x - 32).pow(2) + (y - 32).pow(2) < 26 * 26;
            pixels.extend(if inside { [r, g, b] } else { [255, 255, 255] });
        }
    }
    let alt = ["a red disc", "a blue disc", "a green disc"][colour];
    Part::Picture { png: png(64, 64, &pixels), alt: alt.into(), label: label.into() }
}

/// A PNG file of uncompressed RGB rows.
fn png(width: u32, height: u32, rows: &[u8]) -> Vec<u8> {
    let mut data = vec![0x78, 0x01, 1];
    data.extend((rows.len() as u16).to_le_bytes());
    data.extend((!(rows.len() as u16)).to_le_bytes());
    data.extend(rows);
    let (a, b) = rows.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    data.extend(((b << 16) | a).to_be_bytes());
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]);
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, body) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        let chunk = [name.as_slice(), body].concat();
        let crc = !chunk.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ ((c & 1) * 0xedb8_8320))
        });
        out.extend((body.len() as u32).to_be_bytes());
        out.extend(chunk);
        out.extend(crc.to_be_bytes());
    }
    out
}

/// A second of a fading tone.
fn sound(pitch: f64, label: &str) -> Part {
    let mut wav = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    wav.extend(16_000u32.to_le_bytes());
    wav.extend(32_000u32.to_le_bytes());
    wav.extend(b"\x02\0\x10\0data");
    wav.extend(32_000u32.to_le_bytes());
    for i in 0..16_000 {
        let t = f64::from(i) / 16_000.0;
        let loud = (1.0 - t) * (9.0 * t).sin().abs();
        let sample = (loud * 9_000.0 * (t * pitch * std::f64::consts::TAU).sin()) as i16;
        wav.extend(sample.to_le_bytes());
    }
    let size = (wav.len() as u32 - 8).to_le_bytes();
    wav[4..8].copy_from_slice(&size);
    Part::Sound { wav, label: label.into() }
}
