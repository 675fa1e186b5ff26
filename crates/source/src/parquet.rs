//! Parquet shards as in Hugging Face datasets: a row is an example, a column is a field, and a
//! struct of `bytes` and `path` is a file.
//!
//! The unit of reading is a row group; [`Source`](crate::Source) caches decoded ones.

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

/// Maximum rows per byte of the file; more indicates a decompression bomb.
const MAX_ROWS_PER_BYTE: u64 = 1 << 10;
/// Maximum decoded bytes of a row group per byte of the file, beyond [`MIN_DECODED_LIMIT`].
const MAX_COMPRESSION_RATIO: u64 = 1 << 10;
/// Decoded bytes of a row group that are always allowed.
const MIN_DECODED_LIMIT: u64 = 1 << 26;

/// An open shard with its footer.
pub(crate) struct Table {
    reader: SerializedFileReader<Chunks>,
    /// End row of each row group.
    ends: Vec<u64>,
}

/// Rows of a row group, each with its non-null fields.
pub(crate) type Rows = Vec<Fields>;

impl Table {
    /// Reads the footer.
    ///
    /// # Errors
    /// The cause if the footer is invalid or declares more data than the file can contain.
    pub fn open(blob: &Arc<Blob>) -> Result<Self, String> {
        catch_panic(|| {
            let reader = SerializedFileReader::new(Chunks(Arc::clone(blob)));
            let reader = reader.map_err(|error| one_line(&error))?;
            let (mut rows, mut ends) = (0_u64, Vec::new());
            for group in reader.metadata().row_groups() {
                let more = u64::try_from(group.num_rows()).ok();
                let bytes = u64::try_from(group.total_byte_size()).ok();
                let most = blob.len().saturating_mul(MAX_COMPRESSION_RATIO).max(MIN_DECODED_LIMIT);
                let fits = bytes.is_some_and(|bytes| bytes <= most);
                let sum = more.and_then(|more| rows.checked_add(more)).filter(|_| fits);
                let sum = sum.filter(|&rows| rows <= blob.len().saturating_mul(MAX_ROWS_PER_BYTE));
                rows = sum.ok_or("the footer declares more data than the file can contain")?;
                ends.push(rows);
            }
            Ok(Self { reader, ends })
        })
    }

    fn rows(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the row group and the row within it of the example `key`.
    pub fn locate(&self, key: &str) -> Option<(usize, usize)> {
        let row = key.parse::<u64>().ok()?.checked_sub(1)?;
        let group = self.ends.partition_point(|&end| end <= row);
        let start = if group == 0 { 0 } else { self.ends[group - 1] };
        (group < self.ends.len()).then_some((group, (row - start) as usize))
    }

    /// Returns the byte range of the row group of the example `key`.
    pub fn range(&self, key: &str) -> Option<(u64, u64)> {
        let group = self.reader.metadata().row_group(self.locate(key)?.0);
        let columns = group.columns().iter().map(|column| column.byte_range());
        let ranges = columns.map(|(start, len)| (start, start.saturating_add(len)));
        ranges.reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }

    /// Decodes a row group; returns its rows and their memory in bytes.
    ///
    /// # Errors
    /// The cause if it cannot be decoded.
    pub fn row_group(&self, number: usize) -> Result<(Rows, u64), String> {
        catch_panic(|| {
            let failed = |error| format!("row group {number}: {}", one_line(&error));
            let group = self.reader.get_row_group(number).map_err(failed)?;
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for row in group.get_row_iter(None).map_err(failed)? {
                let mut fields = Vec::new();
                flatten("", row.map_err(failed)?, &mut fields);
                bytes += fields.iter().map(|(name, value)| memory_bytes(name, value)).sum::<u64>();
                rows.push(fields);
            }
            Ok((rows, bytes))
        })
    }

    /// Returns the names of the fields that rows can have.
    pub fn columns(&self) -> Vec<String> {
        let mut names = Vec::new();
        for column in self.reader.metadata().file_metadata().schema().get_fields() {
            name_columns("", column, &mut names);
        }
        names
    }

    /// Returns the class names of a `ClassLabel` column, from Hugging Face's metadata.
    pub fn classes(&self, column: &str) -> Option<Vec<String>> {
        let notes = self.reader.metadata().file_metadata().key_value_metadata()?;
        let note = notes.iter().find(|note| note.key == "huggingface")?.value.as_deref()?;
        let note: Json = serde_json::from_str(note).ok()?;
        let names = note["info"]["features"][column]["names"].as_array()?;
        names.iter().map(|name| Some(name.as_str()?.to_owned())).collect()
    }
}

/// Passes the rows of a shard to `found`, until it returns false.
///
/// # Errors
/// The cause if the footer is invalid.
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
        other => text(other).into(), // timestamps, decimals
    }
}

fn text(field: &Field) -> String {
    match field {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

fn memory_bytes(name: &str, value: &Value) -> u64 {
    let content = match value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Text(text) => text.len(),
        Value::Integer(_) | Value::Number(_) => 0,
        Value::Json(json) => json.to_string().len(),
    };
    (size_of::<(String, Value)>() + name.len() + content) as u64
}

/// Converts a panic of the decoder into an error: the file may contain anything.
fn catch_panic<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(format!("the Parquet decoder panicked ({})", message(panic.as_ref())))
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.and_then(|text| text.lines().next()).unwrap_or("unknown panic")
}

fn one_line(error: &ParquetError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Adapts a blob to the decoder.
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
        self.0.read_range(start, length as u64).map(Bytes::from).map_err(failed)
    }
}
