use danlu_core::{Error, Picture, Result, Rng};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use std::io::Cursor;
use std::path::Path;

/// Longest side of a picture that is decoded, in pixels.
const MAX_SIDE: u32 = 8192;
/// Most memory that decoding one picture may take, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a PNG, JPEG, GIF (its first frame) or WebP file. See [`decode_picture`].
pub fn read_picture(path: impl AsRef<Path>) -> Result<Picture> {
    let path = path.as_ref();
    decode_picture(&crate::read(path)?, path)
}

/// Decodes a PNG, JPEG, GIF (its first frame) or WebP file, turned as its orientation tag says and
/// laid on white where it is transparent. `origin` is where the bytes came from, for the error.
///
/// A picture of more than 8192 pixels a side or 256 MiB is refused before it is decoded.
pub fn decode_picture(bytes: &[u8], origin: impl AsRef<Path>) -> Result<Picture> {
    decode_picture_within(bytes, origin, MAX_SIDE, MAX_BYTES)
}

/// [`decode_picture`] with other limits: on the longest side in pixels, and on the memory that
/// decoding may take in bytes.
pub fn decode_picture_within(
    bytes: &[u8],
    origin: impl AsRef<Path>,
    max_side: u32,
    max_bytes: u64,
) -> Result<Picture> {
    let error = |found: String| Error::file(origin.as_ref(), "a PNG, JPEG, GIF or WebP", found);
    if bytes.is_empty() {
        return Err(error("an empty file".into()));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| error(e.to_string()))?;
    if reader.format().is_none() {
        return Err(error("bytes of another kind".into()));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_bytes);
    reader.limits(limits);
    let broken = |e: image::ImageError| error(format!("one that cannot be decoded: {e}"));
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (w, h) = decoder.dimensions();
    if w > max_side || h > max_side {
        let found = format!("one of {w}x{h} pixels, over the {max_side} that a side may have");
        return Err(error(found));
    }
    if decoder.total_bytes() > max_bytes {
        return Err(error(format!("one of {w}x{h} pixels, over {} MB", max_bytes >> 20)));
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(broken)?;
    decoded.apply_orientation(orientation);
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let rgb = if decoded.color().has_alpha() {
        let over_white = |p: &[u8]| {
            let alpha = p[3] as u32;
            let blend = move |c: u8| ((c as u32 * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
            [blend(p[0]), blend(p[1]), blend(p[2])]
        };
        decoded.into_rgba8().as_raw().chunks_exact(4).flat_map(over_white).collect()
    } else {
        decoded.into_rgb8().into_raw()
    };
    Ok(Picture { width, height, rgb })
}

/// The picture as a PNG file.
pub fn encode_png(picture: &Picture) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    to_image(picture)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("RGB of a matching size is encodable, and memory does not refuse writes");
    bytes.into_inner()
}

/// Writes a PNG file, whole or not at all.
pub fn write_picture(path: impl AsRef<Path>, picture: &Picture) -> Result<()> {
    let (w, h, values) = (picture.width, picture.height, picture.rgb.len());
    if w * h == 0 || values != w * h * 3 {
        let found = format!("{w}x{h} pixels and {values} values");
        return Err(Error::file(path, "a picture with pixels to write", found));
    }
    crate::write(path.as_ref(), &encode_png(picture))
}

/// The picture at `size` x `size`: its aspect kept, centred on white, antialiased.
pub fn fit(picture: &Picture, size: usize) -> Picture {
    if picture.width == size && picture.height == size {
        return picture.clone();
    }
    let mut out = Picture::filled(size, size, [255; 3]);
    if picture.width == 0 || picture.height == 0 || size == 0 {
        return out;
    }
    let longest = picture.width.max(picture.height) as f64;
    let scaled = |side: usize| ((side as f64 * size as f64 / longest).round() as usize).max(1);
    let (w, h) = (scaled(picture.width), scaled(picture.height));
    let small =
        image::imageops::resize(&to_image(picture), w as u32, h as u32, FilterType::CatmullRom);
    let (left, top) = ((size - w) / 2, (size - h) / 2);
    for (y, row) in small.as_raw().chunks_exact(w * 3).enumerate() {
        let start = ((top + y) * size + left) * 3;
        out.rgb[start..start + w * 3].copy_from_slice(row);
    }
    out
}

/// Shifts by up to a sixteenth of the side, scales by 0.85 to 1.1, turns by up to 8 degrees and
/// changes brightness, contrast, saturation and hue a little. Never mirrors: left and right mean
/// something. White stays white, so the background does not give the change away.
pub fn alter_picture(picture: &Picture, rng: &mut Rng) -> Picture {
    let (w, h) = (picture.width, picture.height);
    if w == 0 || h == 0 {
        return picture.clone();
    }
    let (dx, dy) = (rng.between(-1.0, 1.0) * w as f32, rng.between(-1.0, 1.0) * h as f32);
    let (dx, dy) = (dx / 16.0, dy / 16.0);
    let scale = rng.between(0.85, 1.1);
    let (sin, cos) = rng.between(-8.0, 8.0).to_radians().sin_cos();
    let (sin, cos) = (sin / scale, cos / scale);
    let colours = Colours::draw(rng);

    let (cx, cy) = ((w as f32 - 1.0) / 2.0, (h as f32 - 1.0) / 2.0);
    let (right, bottom) = (w as i32 - 1, h as i32 - 1);
    let pixel = |x: i32, y: i32| -> [f32; 3] {
        if x < 0 || y < 0 || x > right || y > bottom {
            return [255.0; 3];
        }
        let i = (y as usize * w + x as usize) * 3;
        [0, 1, 2].map(|c| picture.rgb[i + c] as f32)
    };
    let mut rgb = Vec::with_capacity(picture.rgb.len());
    for y in 0..h {
        for x in 0..w {
            // Where this pixel comes from.
            let (u, v) = (x as f32 - cx - dx, y as f32 - cy - dy);
            let (u, v) = (u * cos + v * sin + cx, v * cos - u * sin + cy);
            let (x0, y0) = (u.floor(), v.floor());
            let (fx, fy) = (u - x0, v - y0);
            let (x0, y0) = (x0 as i32, y0 as i32);
            let (a, b) = (pixel(x0, y0), pixel(x0 + 1, y0));
            let (c, d) = (pixel(x0, y0 + 1), pixel(x0 + 1, y0 + 1));
            let mixed = [0, 1, 2].map(|i| {
                let top = a[i] + (b[i] - a[i]) * fx;
                let low = c[i] + (d[i] - c[i]) * fx;
                top + (low - top) * fy
            });
            rgb.extend(colours.apply(mixed));
        }
    }
    Picture { width: w, height: h, rgb }
}

/// A change of colours that leaves white alone.
struct Colours {
    /// Contrast, saturation and hue at once: what multiplies the distance from white.
    ink: [[f32; 3]; 3],
    /// Brightness as a curve through black and white.
    curve: [u8; 256],
}

impl Colours {
    fn draw(rng: &mut Rng) -> Self {
        let contrast = rng.between(0.85, 1.12);
        let saturation = rng.between(0.75, 1.25);
        let (sin, cos) = rng.between(-10.0, 10.0).to_radians().sin_cos();
        let gamma = rng.between(-0.25, 0.25).exp();
        // Turning by the angle about the grey axis is `cos I + sin K + (1 - cos) J`, K being the
        // cross product with (1,1,1)/sqrt(3) and J the mean; saturation shrinks all but the mean.
        let k = 1.0 / 3f32.sqrt();
        let mut ink = [[0.0; 3]; 3];
        for (r, row) in ink.iter_mut().enumerate() {
            for (c, value) in row.iter_mut().enumerate() {
                let cross = match (c + 3 - r) % 3 {
                    0 => 0.0,
                    1 => -k,
                    _ => k,
                };
                let same = if r == c { cos } else { 0.0 };
                let turned = same + sin * cross - cos / 3.0;
                *value = contrast * (saturation * turned + 1.0 / 3.0);
            }
        }
        let curve = std::array::from_fn(|i| ((i as f32 / 255.0).powf(gamma) * 255.0).round() as u8);
        Self { ink, curve }
    }

    fn apply(&self, rgb: [f32; 3]) -> [u8; 3] {
        let ink = rgb.map(|c| 255.0 - c);
        self.ink.map(|row| {
            let value = 255.0 - (row[0] * ink[0] + row[1] * ink[1] + row[2] * ink[2]);
            self.curve[(value + 0.5) as u8 as usize]
        })
    }
}

fn to_image(picture: &Picture) -> RgbImage {
    RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.rgb.clone())
        .expect("a picture has width * height * 3 bytes")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use image::ImageFormat;

    fn square(at: usize) -> Picture {
        let mut picture = Picture::filled(64, 64, [255; 3]);
        for y in at..at + 20 {
            for x in at..at + 20 {
                picture.rgb[(y * 64 + x) * 3..][..3].copy_from_slice(&[200, 30, 60]);
            }
        }
        picture
    }

    #[test]
    fn png_comes_back_and_other_formats_are_read() {
        let picture = square(10);
        assert_eq!(decode_picture(&encode_png(&picture), "x.png").unwrap(), picture);
        for format in [ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP] {
            let mut bytes = Cursor::new(Vec::new());
            to_image(&picture).write_to(&mut bytes, format).unwrap();
            let back = decode_picture(bytes.get_ref(), "x").unwrap();
            assert!(crate::psnr(&picture, &back) > 25.0, "{format:?}");
        }
    }

    #[test]
    fn transparency_is_laid_on_white() {
        let image = image::RgbaImage::from_raw(3, 1, vec![9, 9, 9, 0, 0, 0, 0, 128, 7, 8, 9, 255]);
        let mut bytes = Cursor::new(Vec::new());
        image.unwrap().write_to(&mut bytes, ImageFormat::Png).unwrap();
        let picture = decode_picture(bytes.get_ref(), "x.png").unwrap();
        assert_eq!(picture.rgb, [255, 255, 255, 127, 127, 127, 7, 8, 9]);
    }

    #[test]
    fn what_is_no_picture_is_named() {
        let cut = &encode_png(&square(10))[..60];
        // The head of a PNG that claims 60000 x 60000 pixels.
        let mut huge = encode_png(&square(10));
        huge[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
        for (bytes, want) in [
            (&b""[..], "an empty file"),
            (b"hello, this is text", "bytes of another kind"),
            (cut, "cannot be decoded"),
            (&huge, "cannot be decoded"),
        ] {
            let error = decode_picture(bytes, "pictures/cat.png").unwrap_err().to_string();
            assert!(error.contains("pictures/cat.png") && error.contains(want), "{error}");
        }
        assert!(matches!(read_picture("no/such.png"), Err(Error::Io { .. })));
    }

    #[test]
    fn fit_keeps_the_aspect_and_the_centre() {
        let wide = Picture::filled(200, 100, [0, 0, 0]);
        let out = fit(&wide, 64);
        assert_eq!((out.width, out.height), (64, 64));
        assert_eq!(out.at(32, 32), [0; 3]);
        assert_eq!((out.at(32, 14), out.at(32, 50)), ([255; 3], [255; 3]));
        assert_eq!((out.at(0, 17), out.at(63, 46)), ([0; 3], [0; 3]));
        assert_eq!(fit(&Picture::filled(1, 300, [0; 3]), 64).at(31, 63), [0; 3]);
    }

    #[test]
    fn alter_is_mild_and_leaves_white_white() {
        let white = Picture::filled(64, 64, [255; 3]);
        let picture = square(22);
        let mut seen = Vec::new();
        for stream in 0..50 {
            let mut rng = Rng::new(3, stream);
            assert_eq!(alter_picture(&white, &mut rng), white);
            let other = alter_picture(&picture, &mut rng);
            let (mut ink, mut x, mut y) = (0.0, 0.0, 0.0);
            for row in 0..64 {
                for column in 0..64 {
                    let i = 255.0 - other.at(column, row)[1] as f64;
                    (ink, x, y) = (ink + i, x + i * column as f64, y + i * row as f64);
                }
            }
            let (x, y) = (x / ink, y / ink);
            assert!((x - 31.5).abs() < 4.6 && (y - 31.5).abs() < 4.6, "{x} {y}");
            let [r, g, b] = other.at(x as usize, y as usize);
            assert!(r > g && r > b, "still red: {r} {g} {b}");
            seen.push(other.rgb);
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 50);
    }
}
