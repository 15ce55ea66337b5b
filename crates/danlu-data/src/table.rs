//! Rows of Parquet files, as the JSON objects that they would be in a file of JSON Lines.

use danlu_core::{Error, Result, Row};
use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use serde_json::{Map, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Whether a file is taken for Parquet: by its name.
pub fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

/// The rows of a Parquet file with their numbers, from 1. A row that has what JSON has not is an
/// [`Error::Row`]. Where the file is damaged it ends with an error of the whole file: how many rows are lost with the
/// one is not known.
pub(crate) fn objects(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Value)>> + use<>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let reader = guarded(|| SerializedFileReader::new(file))
        .map_err(|e| Error::file(path, "a Parquet file", e))?;
    let mut rows = reader.into_iter();
    let (path, mut i, mut broken) = (path.to_path_buf(), 0, false);
    Ok(std::iter::from_fn(move || {
        if broken {
            return None;
        }
        i += 1;
        let object = match guarded(|| rows.next().transpose()) {
            Ok(None) => return None,
            Ok(Some(row)) => object(row.into_columns()),
            Err(e) => {
                broken = true;
                let error = match e.contains("Disabled feature") {
                    true => Error::file(&path, "pages in snappy, zstd or as they are", e),
                    false => Error::file(&path, format!("a whole file; row {i} is damaged"), e),
                };
                return Some(Err(error));
            }
        };
        Some(object.map(|o| (i, o)).map_err(|message| Error::row(&path, i, message)))
    }))
}

/// What `f` gives, or in words why not. The library panics at some damage.
fn guarded<T>(f: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("values that do not fit each other".into()),
    }
}

/// Rows of samples with the numbers of their lines or rows.
pub type Rows = Box<dyn Iterator<Item = Result<(usize, Row)>>>;

/// The rows of a file of samples, JSON Lines or Parquet, one `(line or row, content)` at a time. What
/// is not a sample is an [`Error::Row`], so the caller decides how many to forgive.
pub fn read_rows(path: &Path) -> Result<Rows> {
    if !is_table(path) {
        return Ok(Box::new(danlu_core::read_rows(path)?));
    }
    let file = path.to_path_buf();
    Ok(Box::new(objects(path)?.map(move |object| {
        let (i, object) = object?;
        let base = file.parent().unwrap_or(Path::new("."));
        let row = Row::of(&object, base);
        row.map(|row| (i, row)).map_err(|message| Error::row(&file, i, message))
    })))
}

/// Columns by their names. Those without a value are left out: a table has every column in each row.
fn object(columns: Vec<(String, Field)>) -> Result<Value, String> {
    let mut map = Map::new();
    for (name, field) in columns {
        match value(field).map_err(|e| format!("`{name}`: {e}"))? {
            Value::Null => {}
            value => _ = map.insert(name, value),
        }
    }
    Ok(Value::Object(map))
}

fn value(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(v) => v.into(),
        Field::Byte(v) => v.into(),
        Field::Short(v) => v.into(),
        Field::Int(v) => v.into(),
        Field::Long(v) => v.into(),
        Field::UByte(v) => v.into(),
        Field::UShort(v) => v.into(),
        Field::UInt(v) => v.into(),
        Field::ULong(v) => v.into(),
        Field::Float(v) => v.into(),
        Field::Double(v) => v.into(),
        Field::Str(text) => text.into(),
        Field::Group(row) => object(row.into_columns())?,
        Field::ListInternal(list) => {
            list.elements().iter().cloned().map(value).collect::<Result<Vec<_>, _>>()?.into()
        }
        Field::Bytes(_) => {
            return Err("expected text, numbers, lists or groups, found bytes; media are given \
                        by the paths of their files"
                .into());
        }
        other => return Err(format!("expected text, numbers, lists or groups, found {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::Folder;
    use crate::{TuneRow, read_tuning};
    use danlu_core::{Media, Part};

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
    }

    #[test]
    fn a_table_says_what_the_same_lines_would() {
        let folder = Folder::new("table");
        let lines = folder.0.join("rows.jsonl");
        let text = [
            r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Add 1 and 1."},{"role":"assistant","content":"2"}],"task":"sums"}"#,
            r#"{"instruction":"Translate.","input":"cat","output":"猫"}"#,
            r#"{"text":"A plain text.\nOf two lines."}"#,
            r#"{"prompt":"Hi","chosen":"Hello.","rejected":"What?"}"#,
            r#"{"instruction":"No output."}"#,
            r#"{"conversations":[{"from":"human","value":"1 + 2?"},{"from":"gpt","value":"3"}]}"#,
            &format!(r#"{{"text":"{}"}}"#, "x".repeat(5000)),
        ];
        std::fs::write(&lines, text.join("\n")).expect("written");
        let (wanted, bad) = read_tuning(&lines).expect("lines");
        assert_eq!((wanted.len(), bad.len()), (6, 1));
        let (rows, bad) = read_tuning(&golden("rows.parquet")).expect("a table");
        assert_eq!(rows, wanted);
        assert!(bad[0].contains("rows.parquet:5: ") && bad[0].contains("`output`"), "{bad:?}");
    }

    #[test]
    fn contents_of_parts_and_samples_of_training() {
        let path = golden("parts.parquet");
        let (rows, bad) = read_tuning(&path).expect("a table");
        let [(1, TuneRow::Chat(sample))] = rows.as_slice() else { panic!("{rows:?} {bad:?}") };
        let cat = Part::Image(Media::File(golden("cat.png")));
        assert_eq!(sample.messages[0].parts[1], cat);
        let rows: Vec<_> = read_rows(&path).expect("a table").collect::<Result<_>>().expect("rows");
        assert_eq!(rows, [(1, Row::Chat(sample.clone()))]);
    }

    #[test]
    fn damaged_tables_are_named_and_never_panic() {
        let folder = Folder::new("table-damage");
        let whole = std::fs::read(golden("rows.parquet")).expect("the golden table");
        let path = folder.0.join("bad.parquet");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            read_tuning(&path)
        };
        for cut in [0, 3, 4, 11, whole.len() / 2, whole.len() - 1] {
            let error = read(&whole[..cut]).expect_err("a part of a file").to_string();
            assert!(error.contains("bad.parquet"), "{error}");
        }
        let mut rng = danlu_core::Rng::new(1, 7);
        for _ in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
            // It may say the same, other rows or an error.
            if let Ok((_, bad)) = read(&bytes) {
                assert!(bad.iter().all(|b| b.contains("bad.parquet:")), "{bad:?}");
            }
        }
    }
}
