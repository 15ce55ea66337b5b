//! Values of metadata keys.

use std::io::{Result, Write};

/// The value of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned, of 8 to 64 bits; written with 32 bits where it fits, else with 64.
    Unsigned(u64),
    /// Signed, of 8 to 64 bits; written with 32 bits where it fits, else with 64.
    Signed(i64),
    /// 32 or 64 bits; written with 32.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Values of one type.
    List(Vec<Value>),
}

/// Numbers of the types in files.
pub(super) mod code {
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const TEXT: u32 = 8;
    pub(crate) const LIST: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
}

/// Fewest bytes of a value of a type; `None` if there is no such type.
pub(super) fn least_bytes(code: u32) -> Option<u64> {
    Some(match code {
        0 | 1 | code::BOOL => 1,
        2 | 3 => 2,
        code::U32 | code::I32 | code::F32 => 4,
        code::TEXT | code::U64 | code::I64 | 12 => 8,
        code::LIST => 12,
        _ => return None,
    })
}

impl Value {
    /// What it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "an unsigned integer",
            Value::Signed(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Bool(_) => "a boolean",
            Value::Text(_) => "a string",
            Value::List(_) => "an array",
        }
    }

    fn code(&self) -> u32 {
        match self {
            Value::Unsigned(v) if u32::try_from(*v).is_ok() => code::U32,
            Value::Unsigned(_) => code::U64,
            Value::Signed(v) if i32::try_from(*v).is_ok() => code::I32,
            Value::Signed(_) => code::I64,
            Value::Float(_) => code::F32,
            Value::Bool(_) => code::BOOL,
            Value::Text(_) => code::TEXT,
            Value::List(_) => code::LIST,
        }
    }

    fn write_bare(&self, out: &mut dyn Write) -> Result<()> {
        match self {
            Value::Unsigned(v) => match u32::try_from(*v) {
                Ok(v) => out.write_all(&v.to_le_bytes()),
                Err(_) => out.write_all(&v.to_le_bytes()),
            },
            Value::Signed(v) => match i32::try_from(*v) {
                Ok(v) => out.write_all(&v.to_le_bytes()),
                Err(_) => out.write_all(&v.to_le_bytes()),
            },
            Value::Float(v) => out.write_all(&(*v as f32).to_le_bytes()),
            Value::Bool(v) => out.write_all(&[u8::from(*v)]),
            Value::Text(v) => write_text(out, v),
            Value::List(all) => {
                // An empty list has no type of its own; of strings is what readers expect.
                let of = all.first().map_or(code::TEXT, Value::code);
                out.write_all(&of.to_le_bytes())?;
                out.write_all(&(all.len() as u64).to_le_bytes())?;
                all.iter().try_for_each(|v| v.write_bare(out))
            }
        }
    }

    /// Writes the type, then the value.
    pub(super) fn write(&self, out: &mut dyn Write) -> Result<()> {
        out.write_all(&self.code().to_le_bytes())?;
        self.write_bare(out)
    }
}

/// Writes a length in bytes, then UTF-8.
pub(super) fn write_text(out: &mut dyn Write, text: &str) -> Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::Text(v.into())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Self {
        Value::Text(v)
    }
}

impl From<usize> for Value {
    fn from(v: usize) -> Self {
        Value::Unsigned(v as u64)
    }
}

impl From<f32> for Value {
    fn from(v: f32) -> Self {
        Value::Float(v.into())
    }
}

impl From<bool> for Value {
    fn from(v: bool) -> Self {
        Value::Bool(v)
    }
}
