//! Escaping, and numbers as words.

/// `text` made safe inside an element or a quoted attribute. Control characters HTML forbids
/// become the replacement character.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

/// A ` lang="…"` attribute for text whose script tells its language, so that fonts and screen
/// readers choose rightly; empty for all other text.
pub(crate) fn language(text: &str) -> &'static str {
    if text.chars().any(|c| ('\u{3040}'..='\u{30ff}').contains(&c)) {
        " lang=\"ja\""
    } else if text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c)) {
        " lang=\"zh-Hans\""
    } else {
        ""
    }
}

/// A number with a fixed count of decimals and commas between the thousands.
pub(crate) fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "not a number".into() } else { format!("{value}") };
    }
    let plain = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut out = String::new();
    if value < 0.0 && plain.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        out.push('\u{2212}');
    }
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

/// A number with about four significant digits.
pub(crate) fn about(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e9).contains(&size) {
        return exponent(value, 3);
    }
    let decimals = if size == 0.0 { 0 } else { (3 - size.log10().floor() as i32).clamp(0, 6) };
    let text = fixed(value, decimals as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// A number of an axis whose neighbours are `step` away, short enough for a phone.
pub(crate) fn tick(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let (scale, suffix) = match value.abs() {
        v if v >= 1e9 => (1e9, "G"),
        v if v >= 1e6 => (1e6, "M"),
        v if v >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / scale).log10() - 1e-9).ceil().max(0.0);
    if decimals > 3.0 && value.abs() < 9e-4 {
        return exponent(value, 3);
    }
    fixed(value / scale, decimals as usize) + suffix
}

/// Scientific form without trailing zeros: `2.5e-4`.
fn exponent(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    match text.split_once('e') {
        Some((mantissa, power)) if mantissa.contains('.') => {
            format!("{}e{power}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(fixed(1234567.891, 2), "1,234,567.89");
        assert_eq!(fixed(-0.004, 2), "0.00");
        assert_eq!(fixed(-12.5, 1), "\u{2212}12.5");
        assert_eq!(fixed(f64::NAN, 1), "not a number");
        assert_eq!(about(0.0), "0");
        assert_eq!(about(2.345678), "2.346");
        assert_eq!(about(40.0), "40");
        assert_eq!(about(3e-4), "3e-4");
        assert_eq!(tick(20000.0, 5000.0), "20k");
        assert_eq!(tick(2500.0, 500.0), "2,500");
        assert_eq!(tick(0.30000000000000004, 0.1), "0.3");
        assert_eq!(tick(2.5e-5, 5e-6), "2.5e-5");
        assert_eq!(tick(1_500_000.0, 500_000.0), "1.5M");
    }

    #[test]
    fn script_tells_the_language() {
        assert_eq!(language("a cat"), "");
        assert_eq!(language("画一只猫"), " lang=\"zh-Hans\"");
        assert_eq!(language("猫です"), " lang=\"ja\"");
    }
}
