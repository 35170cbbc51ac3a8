//! A file of rows, read a line at a time into chunks of rows with distinct keys. Whatever a
//! line is, reading goes on behind it: a line that is no row is counted, with its number and
//! what is wrong.
//!
//! Lines of `ebla export` are told from others and give their row back: JSON objects with key, value
//! and ts and nothing else but marks, and TSV lines that begin with [`ESCAPED_LINE`].

use crate::cli::{Load, LoadFormat};
use crate::exit::Failure;
use anyhow::Context as _;
use bytes::Bytes;
use ebla_client::Value;
use ebla_kernel::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use ebla_kernel::text::unescape;
use serde_json::{Map, Value as Json};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;
use tokio::sync::mpsc;

/// What a TSV line begins with whose key and value are escaped as `\xNN`.
pub const ESCAPED_LINE: &str = "\\:";

/// Rows at which a chunk is full: enough to share the cost of a log entry, few enough for
/// many chunks in flight.
const CHUNK_ROWS_MAX: usize = 256;

/// Bytes at which a chunk is full.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// Longest line that is taken: a JSON escape needs up to six bytes for one, and the object
/// has a little more than its key and value.
const LINE_BYTES_MAX: usize = 6 * (VALUE_BYTES_MAX + KEY_BYTES_MAX) + 64 * 1024;

/// Bytes read from the file at a time.
const READ_BYTES: usize = 256 * 1024;

/// A row and the line that it stood on, counted from 1.
#[derive(Debug)]
pub struct Loaded {
    pub line: u64,
    pub row: LoadedRow,
}

/// What a line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadedRow {
    pub key: Bytes,
    pub value: Value,
    /// When it ends by itself, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

impl LoadedRow {
    fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: Value::Bytes(value.into()), expires_ms: None }
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        let value = match &self.value {
            Value::Bytes(value) => value.len(),
            Value::Counter(_) => size_of::<i64>(),
        };
        self.key.len() + value
    }
}

/// A line that is no row.
#[derive(Debug)]
pub struct Rejected {
    pub line: u64,
    pub why: String,
}

/// Some rows with distinct keys, and the lines among them that are none.
#[derive(Default, Debug)]
pub struct Chunk {
    pub rows: Vec<Loaded>,
    pub rejected: Vec<Rejected>,
    /// Bytes of the file that it stands for.
    pub file_bytes: u64,
}

/// What a line must look like.
#[derive(Clone, Debug)]
pub struct Shape {
    format: LoadFormat,
    key_field: String,
    value_field: Option<String>,
}

/// What the end of a file's name says.
fn format_of(file: &Path) -> Option<LoadFormat> {
    let ending = file.extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "tsv" => Some(LoadFormat::Tsv),
        "jsonl" | "ndjson" => Some(LoadFormat::Jsonl),
        _ => None,
    }
}

impl Shape {
    /// The shape that the flags describe.
    ///
    /// # Errors
    /// When neither they nor the name of the file say what it is.
    pub fn new(args: &Load) -> Result<Self, Failure> {
        let format = args.format.or_else(|| format_of(&args.file)).ok_or_else(|| {
            let hint = "say what is in it with --format tsv or --format jsonl";
            Failure::usage(format!("the name {} does not end in .tsv or .jsonl: {hint}", args.file.display()))
        })?;
        Ok(Self { format, key_field: args.key_field.clone(), value_field: args.value_field.clone() })
    }

    /// Key and value of a line; none for a blank line between JSON objects.
    fn parse(&self, line: &[u8]) -> Result<Option<LoadedRow>, String> {
        let parsed = match self.format {
            LoadFormat::Tsv => Some(parse_tsv(line)?),
            LoadFormat::Jsonl => self.parse_json(line)?,
        };
        if let Some(row) = &parsed {
            check(row)?;
        }
        Ok(parsed)
    }

    fn parse_json(&self, line: &[u8]) -> Result<Option<LoadedRow>, String> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(None);
        }
        if std::str::from_utf8(line).is_err() {
            return Err("not UTF-8".to_owned());
        }
        let object: Map<String, Json> =
            serde_json::from_slice(line).map_err(|error| format!("not a JSON object: {error}"))?;
        if let Some(row) = self.exported(&object) {
            return row.map(Some);
        }
        let key = match object.get(&self.key_field) {
            Some(Json::String(key)) => key.clone(),
            Some(Json::Number(key)) => key.to_string(),
            Some(_) => return Err(format!("field {:?} is neither a string nor a number", self.key_field)),
            None => return Err(format!("no field {:?} for the key", self.key_field)),
        };
        let value = match &self.value_field {
            None => Bytes::copy_from_slice(line),
            Some(field) => match object.get(field) {
                Some(Json::String(value)) => Bytes::from(value.clone()),
                Some(value) => Bytes::from(value.to_string()),
                None => return Err(format!("no field {field:?} for the value")),
            },
        };
        Ok(Some(LoadedRow::new(key, value)))
    }

    /// The row of a line as `ebla export` prints them; none of any other line.
    fn exported(&self, object: &Map<String, Json>) -> Option<Result<LoadedRow, String>> {
        let fields = ["key", "value", "ts", "escaped", "expires_ms"];
        let wants_these =
            self.key_field == "key" && self.value_field.as_deref().is_none_or(|field| field == "value");
        if !wants_these || !object.keys().all(|field| fields.contains(&field.as_str())) {
            return None;
        }
        object.get("ts")?.as_str()?.parse::<u64>().ok()?;
        let is_escaped = object.get("escaped").is_some_and(|mark| mark == true);
        let bytes = |text: &str| match is_escaped {
            true => unescape(text).ok_or_else(|| "a backslash that begins no \\xNN".to_owned()),
            false => Ok(text.as_bytes().to_vec()),
        };
        let key = object.get("key")?.as_str()?;
        let value = match object.get("value")? {
            Json::String(text) => bytes(text).map(|value| Value::Bytes(value.into())),
            Json::Number(count) => Ok(Value::Counter(count.as_i64()?)),
            Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => return None,
        };
        let expires_ms = object.get("expires_ms").and_then(Json::as_u64);
        Some(bytes(key).and_then(|key| Ok(LoadedRow { key: key.into(), value: value?, expires_ms })))
    }
}

fn parse_tsv(line: &[u8]) -> Result<LoadedRow, String> {
    // Files from Windows end their lines in CR LF; a value's own last CR can be had as JSON.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let tab = line.iter().position(|byte| *byte == b'\t').ok_or("no TAB between key and value")?;
    let (key, value) = (&line[..tab], &line[tab + 1..]);
    let Some(key) = key.strip_prefix(ESCAPED_LINE.as_bytes()) else {
        return Ok(LoadedRow::new(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    };
    let bytes = |text| std::str::from_utf8(text).ok().and_then(unescape);
    let row = bytes(key).zip(bytes(value)).map(|(key, value)| LoadedRow::new(key, value));
    row.ok_or_else(|| format!("after {ESCAPED_LINE} stand key and value with their bytes escaped as \\xNN"))
}

fn check(row: &LoadedRow) -> Result<(), String> {
    match (row.key.len(), row.bytes() - row.key.len()) {
        (0, _) => Err("the key is empty".to_owned()),
        (bytes, _) if bytes > KEY_BYTES_MAX => {
            Err(format!("a key of {bytes} bytes is above the limit of {KEY_BYTES_MAX}"))
        }
        (_, bytes) if bytes > VALUE_BYTES_MAX => {
            Err(format!("a value of {bytes} bytes is above the limit of {VALUE_BYTES_MAX}"))
        }
        _ => Ok(()),
    }
}

/// Opens a file, or stdin for `-`; with its size where it has one.
pub fn open(path: &Path) -> anyhow::Result<(Box<dyn io::Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let open = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::other("it is a directory"));
        }
        Ok((file, metadata.is_file().then_some(metadata.len())))
    };
    let (file, size) = open().with_context(|| format!("cannot read {}", path.display()))?;
    Ok((Box::new(file), size))
}

/// Reads everything into chunks until the end, an error of the file, or nobody wants more.
pub fn read_all(file: Box<dyn io::Read + Send>, shape: &Shape, chunks: &mpsc::Sender<io::Result<Chunk>>) {
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut filling = Filling::default();
    let mut line = Vec::new();
    for number in 1.. {
        let read = match read_line(&mut reader, &mut line, LINE_BYTES_MAX) {
            Ok(read) => read,
            Err(error) => {
                // What was read before the error is still written.
                let _ = chunks.blocking_send(Ok(filling.chunk));
                let _ = chunks.blocking_send(Err(error));
                return;
            }
        };
        let parsed = match read {
            LineRead::End => break,
            LineRead::TooLong { .. } => Err(format!("longer than {LINE_BYTES_MAX} bytes")),
            LineRead::Line { .. } => shape.parse(&line),
        };
        let (LineRead::Line { bytes } | LineRead::TooLong { bytes }) = read else { break };
        if let Some(full) = filling.add(number, parsed, bytes)
            && chunks.blocking_send(Ok(full)).is_err()
        {
            return;
        }
    }
    let _ = chunks.blocking_send(Ok(filling.chunk));
}

/// A chunk that grows.
#[derive(Default)]
struct Filling {
    chunk: Chunk,
    keys: HashSet<Bytes>,
    bytes: usize,
}

impl Filling {
    /// Adds a line; gives the chunk back when it is full or already has the row's key.
    fn add(
        &mut self,
        line: u64,
        parsed: Result<Option<LoadedRow>, String>,
        file_bytes: u64,
    ) -> Option<Chunk> {
        let is_full = match &parsed {
            Ok(Some(row)) => {
                self.keys.contains(&row.key)
                    || self.chunk.rows.len() >= CHUNK_ROWS_MAX
                    || (!self.chunk.rows.is_empty() && self.bytes + row.bytes() > CHUNK_BYTES_MAX)
            }
            Ok(None) => false,
            Err(_) => self.chunk.rejected.len() >= CHUNK_ROWS_MAX,
        };
        let full = is_full.then(|| std::mem::take(self).chunk);
        self.chunk.file_bytes += file_bytes;
        match parsed {
            Ok(Some(row)) => {
                self.bytes += row.bytes();
                self.keys.insert(row.key.clone());
                self.chunk.rows.push(Loaded { line, row });
            }
            Ok(None) => {}
            Err(why) => self.chunk.rejected.push(Rejected { line, why }),
        }
        full
    }
}

/// What was read of a line, with its bytes in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LineRead {
    Line { bytes: u64 },
    TooLong { bytes: u64 },
    End,
}

/// Reads up to the next newline, of which at most `bytes_max` are kept in `line`.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, bytes_max: usize) -> io::Result<LineRead> {
    line.clear();
    let limit = bytes_max as u64 + 1;
    let mut bytes = reader.by_ref().take(limit).read_until(b'\n', line)? as u64;
    if bytes == 0 {
        return Ok(LineRead::End);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(LineRead::Line { bytes });
    }
    if bytes < limit {
        return Ok(LineRead::Line { bytes });
    }
    bytes += reader.skip_until(b'\n')? as u64;
    Ok(LineRead::TooLong { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(format: LoadFormat, value_field: Option<&str>) -> Shape {
        Shape { format, key_field: "key".to_owned(), value_field: value_field.map(str::to_owned) }
    }

    fn row(key: &'static str, value: &'static str) -> Result<Option<LoadedRow>, String> {
        Ok(Some(LoadedRow::new(key, value)))
    }

    #[test]
    fn the_end_of_a_name_tells_what_is_in_a_file() {
        let told = |name: &str| format_of(Path::new(name));
        assert_eq!(told("a/rows.TSV"), Some(LoadFormat::Tsv));
        assert_eq!(told("rows.jsonl"), Some(LoadFormat::Jsonl));
        assert_eq!((told("rows.csv"), told("tsv"), told("-")), (None, None, None));
    }

    #[test]
    fn lines_of_an_export_give_their_rows_back() {
        let tsv = shape(LoadFormat::Tsv, None);
        let escaped = LoadedRow::new(&b"a\t\xff"[..], &b"\\\n"[..]);
        assert_eq!(tsv.parse(b"\\:a\\x09\\xff\t\\x5c\\x0a"), Ok(Some(escaped.clone())));
        assert!(tsv.parse(b"\\:a\tb\\").is_err());
        let json = shape(LoadFormat::Jsonl, None);
        let line = br#"{"key":"a\t\\xff","value":"\\x5c\n","ts":"7","escaped":true}"#;
        assert_eq!(json.parse(line), Ok(Some(escaped)));
        let counter = LoadedRow { value: Value::Counter(-5), expires_ms: Some(9), ..LoadedRow::new("a", "") };
        assert_eq!(json.parse(br#"{"key":"a","value":-5,"ts":"7","expires_ms":9}"#), Ok(Some(counter)));
        // Everything else is an object of its own.
        let other = r#"{"key":"a","value":1,"ts":7}"#;
        assert_eq!(json.parse(other.as_bytes()), row("a", other));
        assert_eq!(
            shape(LoadFormat::Jsonl, Some("ts")).parse(br#"{"key":"a","value":1,"ts":"7"}"#),
            row("a", "7")
        );
    }

    #[test]
    fn a_tsv_line_is_cut_at_its_first_tab() {
        let shape = shape(LoadFormat::Tsv, None);
        assert_eq!(shape.parse(b"k\ta\tb"), row("k", "a\tb"));
        assert_eq!(shape.parse(b"k\t"), row("k", ""));
        assert_eq!(shape.parse(b"k\tv\r"), row("k", "v"));
        for bad in [&b""[..], b"no tab", b"\tv"] {
            assert!(shape.parse(bad).is_err(), "{bad:?}");
        }
        assert!(shape.parse(&[vec![b'k'; KEY_BYTES_MAX + 1], b"\tv".to_vec()].concat()).is_err());
    }

    #[test]
    fn a_json_object_is_the_value_unless_a_field_is() {
        let whole = shape(LoadFormat::Jsonl, None);
        assert_eq!(whole.parse(b" {\"key\":\"a\",\"n\":1} \r"), row("a", "{\"key\":\"a\",\"n\":1}"));
        assert_eq!(whole.parse(b"  "), Ok(None));
        let field = shape(LoadFormat::Jsonl, Some("v"));
        assert_eq!(field.parse(b"{\"key\":7,\"v\":\"x\"}"), row("7", "x"));
        assert_eq!(field.parse(b"{\"key\":\"a\",\"v\":[1, 2]}"), row("a", "[1,2]"));
        for bad in [
            &b"{\"key\":\"a\"}"[..],
            b"{\"v\":1}",
            b"{\"key\":\"\",\"v\":1}",
            b"{\"key\":\"a\",\"v",
            b"[]",
            b"\xff\xfe",
            b"{\"key\":null,\"v\":1}",
        ] {
            assert!(field.parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_line_too_long_is_skipped_as_a_whole() {
        let mut reader = BufReader::with_capacity(3, &b"abcdefghij\nok\nend"[..]);
        let mut line = Vec::new();
        let mut next = |line: &mut Vec<u8>| read_line(&mut reader, line, 4).unwrap();
        assert_eq!(next(&mut line), LineRead::TooLong { bytes: 11 });
        assert_eq!((next(&mut line), &line[..]), (LineRead::Line { bytes: 3 }, &b"ok"[..]));
        assert_eq!((next(&mut line), &line[..]), (LineRead::Line { bytes: 3 }, &b"end"[..]));
        assert_eq!(next(&mut line), LineRead::End);
    }

    #[test]
    fn chunks_have_distinct_keys_and_lose_no_line() {
        let (sender, mut receiver) = mpsc::channel(100);
        let file: &[u8] = b"a\t1\nb\t2\nbad\na\t3\nc\t4";
        read_all(Box::new(file), &shape(LoadFormat::Tsv, None), &sender);
        drop(sender);
        let mut lines = Vec::new();
        let mut file_bytes = 0;
        while let Some(chunk) = receiver.blocking_recv() {
            let chunk = chunk.unwrap();
            file_bytes += chunk.file_bytes;
            lines.push((
                chunk.rows.iter().map(|row| row.line).collect::<Vec<_>>(),
                chunk.rejected.iter().map(|rejected| rejected.line).collect::<Vec<_>>(),
            ));
        }
        assert_eq!(lines, [(vec![1, 2], vec![3]), (vec![4, 5], vec![])]);
        assert_eq!(file_bytes, file.len() as u64);
    }
}
