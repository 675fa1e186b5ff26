//! Parquet with bytes in it, as Hugging Face's data sets are kept: a row is an example, a column a field, and
//! a struct of `bytes` and `path` a file.
//!
//! Row groups are what can be read; a few decoded ones are kept by [`Source`](crate::Source).

use std::any::Any;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ::parquet::basic::{ConvertedType, LogicalType};
use ::parquet::errors::{ParquetError, Result as ParquetResult};
use ::parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use ::parquet::record::{Field, Row};
use ::parquet::schema::types::Type;
use bytes::Bytes;
use serde_json::Value as Json;

use crate::blob::{Blob, Cursor};
use crate::example::{Fields, Value};
use crate::index::Entry;

/// Rows of a byte of the file, at most: more are made to fill disks.
const DENSEST: u64 = 1 << 10;
/// The same of decoded bytes, but for the first so many.
const LARGEST_RATIO: u64 = 1 << 10;
const SMALL: u64 = 1 << 26;

/// A shard whose footer is read.
pub(crate) struct Table {
    reader: SerializedFileReader<Chunks>,
    /// Where row groups end, in rows.
    ends: Vec<u64>,
}

/// Rows of a row group: name and value of each column that is not null.
pub(crate) type Rows = Vec<Fields>;

impl Table {
    /// Reads the footer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(blob: &Arc<Blob>) -> Result<Self, String> {
        guarded(|| {
            let reader = SerializedFileReader::new(Chunks(Arc::clone(blob)));
            let reader = reader.map_err(|error| one_line(&error))?;
            let (mut rows, mut ends) = (0_u64, Vec::new());
            for group in reader.metadata().row_groups() {
                let more = u64::try_from(group.num_rows()).ok();
                let bytes = u64::try_from(group.total_byte_size()).ok();
                let most = blob.len().saturating_mul(LARGEST_RATIO).max(SMALL);
                let fits = bytes.is_some_and(|bytes| bytes <= most);
                let sum = more.and_then(|more| rows.checked_add(more)).filter(|_| fits);
                let sum = sum.filter(|&rows| rows <= blob.len().saturating_mul(DENSEST));
                rows = sum.ok_or("its footer tells of more than it can hold")?;
                ends.push(rows);
            }
            Ok(Self { reader, ends })
        })
    }

    fn rows(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Number of the row group with the row of that key, and the row's number in it.
    pub fn place(&self, key: &str) -> Option<(usize, usize)> {
        let row = key.parse::<u64>().ok()?.checked_sub(1)?;
        let group = self.ends.partition_point(|&end| end <= row);
        let start = if group == 0 { 0 } else { self.ends[group - 1] };
        (group < self.ends.len()).then_some((group, (row - start) as usize))
    }

    /// Where in the shard the row group is that has the row of that key.
    pub fn range(&self, key: &str) -> Option<(u64, u64)> {
        let group = self.reader.metadata().row_group(self.place(key)?.0);
        let columns = group.columns().iter().map(|column| column.byte_range());
        let ranges = columns.map(|(start, len)| (start, start.saturating_add(len)));
        ranges.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }

    /// Decodes a row group, and says how many bytes it takes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn row_group(&self, number: usize) -> Result<(Rows, u64), String> {
        guarded(|| {
            let failed = |error| format!("row group {number}: {}", one_line(&error));
            let group = self.reader.get_row_group(number).map_err(failed)?;
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for row in group.get_row_iter(None).map_err(failed)? {
                let mut fields = Vec::new();
                flatten("", row.map_err(failed)?, &mut fields);
                bytes += fields.iter().map(|(name, value)| weight(name, value)).sum::<u64>();
                rows.push(fields);
            }
            Ok((rows, bytes))
        })
    }

    /// Names of the fields that rows can have.
    pub fn columns(&self) -> Vec<String> {
        let mut names = Vec::new();
        for column in self.reader.metadata().file_metadata().schema().get_fields() {
            name_columns("", column, &mut names);
        }
        names
    }

    /// What the numbers of a column mean, as Hugging Face notes it.
    pub fn classes(&self, column: &str) -> Option<Vec<String>> {
        let notes = self.reader.metadata().file_metadata().key_value_metadata()?;
        let note = notes.iter().find(|note| note.key == "huggingface")?.value.as_deref()?;
        let note: Json = serde_json::from_str(note).ok()?;
        let names = note["info"]["features"][column]["names"].as_array()?;
        names.iter().map(|name| Some(name.as_str()?.to_owned())).collect()
    }
}

/// Finds the rows of a shard; `found` says whether to go on.
///
/// # Errors
/// What is wrong with the footer.
pub(crate) fn scan(blob: &Arc<Blob>, found: &mut dyn FnMut(Entry) -> bool) -> Result<(), String> {
    let rows = Table::open(blob)?.rows();
    (1..=rows).all(|row| found(Entry { key: row.to_string(), ..Entry::default() }));
    Ok(())
}

fn joined(outer: &str, name: &str) -> String {
    match (outer, name) {
        ("", name) => name.to_owned(),
        (outer, "bytes") => outer.to_owned(),
        (outer, name) => format!("{outer}.{name}"),
    }
}

fn name_columns(outer: &str, column: &Type, names: &mut Vec<String>) {
    let name = joined(outer, column.name());
    let info = column.get_basic_info();
    let is_struct = column.is_group()
        && !matches!(info.logical_type_ref(), Some(LogicalType::List | LogicalType::Map))
        && matches!(info.converted_type(), ConvertedType::NONE);
    if !is_struct {
        return names.push(name);
    }
    for inner in column.get_fields() {
        name_columns(&name, inner, names);
    }
}

fn flatten(outer: &str, row: Row, fields: &mut Fields) {
    for (name, field) in row.into_columns() {
        let name = joined(outer, &name);
        match field {
            Field::Null => {}
            Field::Group(row) => flatten(&name, row, fields),
            Field::Bytes(bytes) => {
                fields.push((name, Value::Bytes(Bytes::copy_from_slice(bytes.data()))))
            }
            Field::Str(text) => fields.push((name, Value::Text(text))),
            field => fields.push((name, json(&field).into())),
        }
    }
}

fn json(field: &Field) -> Json {
    match field {
        Field::Null => Json::Null,
        Field::Bool(truth) => (*truth).into(),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float16(number) => f32::from(*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        Field::MapInternal(map) => {
            let pair = |(key, value): &(Field, Field)| (text(key), json(value));
            Json::Object(map.entries().iter().map(pair).collect())
        }
        Field::Group(row) => {
            let pair = |(name, value): (&String, &Field)| (name.clone(), json(value));
            Json::Object(row.get_column_iter().map(pair).collect())
        }
        other => text(other).into(), // times, decimal numbers
    }
}

fn text(field: &Field) -> String {
    match field {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

fn weight(name: &str, value: &Value) -> u64 {
    let content = match value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Text(text) => text.len(),
        Value::Integer(_) | Value::Number(_) => 0,
        Value::Json(json) => json.to_string().len(),
    };
    (size_of::<(String, Value)>() + name.len() + content) as u64
}

/// A file's bytes may be anything: should the decoder panic, that is the file's error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(format!("the decoder gave up on its content ({})", message(panic.as_ref())))
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.and_then(|text| text.lines().next()).unwrap_or("no message")
}

fn one_line(error: &ParquetError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A blob as the decoder reads it.
struct Chunks(Arc<Blob>);

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(Cursor::new(&self.0, start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let failed = |error| ParquetError::EOF(format!("at byte {start}: {error}"));
        self.0.range(start, length as u64).map(Bytes::from).map_err(failed)
    }
}
