//! The filter `tojson` of templates: Python's `json.dumps`.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use std::io::{Result as Written, Write};

/// Most blanks of a step inwards.
const DEEPEST: usize = 16;

/// `tojson` as transformers has it, which leaves what is not ASCII as it is unless it is told to
/// escape it.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let wrong =
        |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(e);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let escape: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut plain = serde_json::to_value(value).map_err(wrong)?;
    if sorted == Some(true) {
        plain.sort_all_objects();
    }
    let [comma, colon] = match separators.as_deref() {
        None => [if indent.is_some() { "," } else { ", " }, ": "],
        Some([comma, colon]) => [comma.as_str(), colon.as_str()],
        Some(_) => {
            let message = "tojson: expected two `separators`";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    let indent = indent.map(|n| n.min(DEEPEST));
    let escape = escape == Some(true);
    let mut out = Vec::new();
    let form = Dumps { comma, colon, indent, escape, depth: 0, filled: false };
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, form);
    plain.serialize(&mut serializer).map_err(wrong)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// How it is written.
struct Dumps<'a> {
    comma: &'a str,
    colon: &'a str,
    indent: Option<usize>,
    /// Whether what is not ASCII is escaped.
    escape: bool,
    depth: usize,
    /// Whether what was opened last has something in it.
    filled: bool,
}

impl Dumps<'_> {
    fn line<W: ?Sized + Write>(&self, w: &mut W) -> Written<()> {
        match self.indent {
            Some(n) => write!(w, "\n{:1$}", "", n * self.depth),
            None => Ok(()),
        }
    }

    fn open<W: ?Sized + Write>(&mut self, w: &mut W, with: &[u8]) -> Written<()> {
        self.depth += 1;
        self.filled = false;
        w.write_all(with)
    }

    fn close<W: ?Sized + Write>(&mut self, w: &mut W, with: &[u8]) -> Written<()> {
        self.depth -= 1;
        if std::mem::replace(&mut self.filled, true) {
            self.line(w)?;
        }
        w.write_all(with)
    }

    fn next<W: ?Sized + Write>(&self, w: &mut W, first: bool) -> Written<()> {
        if !first {
            w.write_all(self.comma.as_bytes())?;
        }
        self.line(w)
    }
}

impl serde_json::ser::Formatter for Dumps<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> Written<()> {
        self.open(w, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> Written<()> {
        self.close(w, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> Written<()> {
        self.next(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Written<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> Written<()> {
        self.open(w, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> Written<()> {
        self.close(w, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> Written<()> {
        self.next(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> Written<()> {
        w.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Written<()> {
        self.filled = true;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, w: &mut W, text: &str) -> Written<()> {
        if !self.escape {
            return w.write_all(text.as_bytes());
        }
        for c in text.chars() {
            match c.is_ascii() {
                true => write!(w, "{c}")?,
                false => {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().try_for_each(|u| write!(w, "\\u{u:04x}"))?;
                }
            }
        }
        Ok(())
    }
}
