//! What is printed and how: tables for people, JSON with stable names for programs. Bytes
//! that are not UTF-8 become `\xNN` (or hexadecimal digits) and are marked.

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{ContentArrangement, Table, TableComponent};
use ebla_client::{AckLevel, Cell, Row, Value, WatchChange, WatchEvent};
use ebla_kernel::text::escape;
use serde_json::{Map, Value as Json, json};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::os::unix::ffi::OsStrExt as _;

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// A JSON object a line.
    Jsonl,
}

/// Bytes that are kept in memory before they are handed to stdout.
const BUFFER_BYTES: usize = 64 * 1024;

/// Widest cell of a table on a terminal; longer texts are cut with an ellipsis.
const CELL_CHARS_MAX: usize = 60;

/// Stdout, and how to write to it.
pub struct Output {
    out: BufWriter<Stdout>,
    format: Format,
    hex: bool,
    /// Objects of a list written so far.
    listed: u64,
}

impl Output {
    /// Stdout in a format.
    pub fn new(format: Format, hex: bool) -> Self {
        Self { out: BufWriter::with_capacity(BUFFER_BYTES, io::stdout()), format, hex, listed: 0 }
    }

    /// Whether people read it.
    pub fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Writes one object, or the line that says the same to people.
    pub fn one(&mut self, object: &Json, line: impl FnOnce() -> String) -> anyhow::Result<()> {
        match self.format {
            Format::Table => writeln!(self.out, "{}", line())?,
            Format::Json | Format::Jsonl => writeln!(self.out, "{object}")?,
        }
        self.finish()
    }

    /// As `one`, where people have been told already.
    pub fn one_of_programs(&mut self, object: &Json) -> anyhow::Result<()> {
        if self.is_table() { Ok(()) } else { self.one(object, String::new) }
    }

    /// Writes a list of objects, as a table with the given columns for people.
    pub fn list(&mut self, columns: &[&str], objects: &[Json]) -> anyhow::Result<()> {
        match self.format {
            Format::Table => writeln!(self.out, "{}", table(columns, objects, fit))?,
            Format::Json => writeln!(self.out, "{}", Json::from(objects.to_vec()))?,
            Format::Jsonl => objects.iter().try_for_each(|object| writeln!(self.out, "{object}"))?,
        }
        self.finish()
    }

    /// The same, for texts that say why: none is cut, a terminal breaks them.
    pub fn list_whole(&mut self, columns: &[&str], objects: &[Json]) -> anyhow::Result<()> {
        if self.format != Format::Table {
            return self.list(columns, objects);
        }
        writeln!(self.out, "{}", table(columns, objects, one_line))?;
        self.finish()
    }

    /// Writes one object, as its fields below each other for people.
    pub fn describe(&mut self, object: &Json) -> anyhow::Result<()> {
        if self.format != Format::Table {
            return self.one(object, String::new);
        }
        let mut table = bare_table();
        for (name, value) in object.as_object().into_iter().flatten() {
            table.add_row([name.clone(), text(value)]);
        }
        writeln!(self.out, "{table}")?;
        self.finish()
    }

    /// Writes the next object of a list that is too long to be held.
    pub fn stream(&mut self, object: &Json, line: impl FnOnce() -> String) -> anyhow::Result<()> {
        match (self.format, self.listed) {
            (Format::Table, _) => writeln!(self.out, "{}", line())?,
            (Format::Json, 0) => write!(self.out, "[{object}")?,
            (Format::Json, _) => write!(self.out, ",\n{object}")?,
            (Format::Jsonl, _) => writeln!(self.out, "{object}")?,
        }
        self.listed += 1;
        Ok(())
    }

    /// Ends a streamed list.
    pub fn end_stream(&mut self) -> anyhow::Result<()> {
        match (self.format, self.listed) {
            (Format::Json, 0) => writeln!(self.out, "[]")?,
            (Format::Json, _) => writeln!(self.out, "]")?,
            (Format::Table | Format::Jsonl, _) => {}
        }
        self.finish()
    }

    /// Hands everything to stdout.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.out.flush().context("cannot write to stdout")
    }

    /// A row as an object: key, value unless only keys are wanted, ts, and a mark when some
    /// of its bytes are not UTF-8.
    pub fn row_json(&self, row: &Row, keys_only: bool) -> Json {
        let mut object = Map::new();
        let mut is_text = self.put_bytes(&mut object, "key", &row.key);
        if !keys_only {
            is_text &= self.put_value(&mut object, &row.value);
        }
        if !is_text && !self.hex {
            // A mark is for both: whoever reads them back need not guess.
            object.insert("key".to_owned(), escape(&row.key).into());
            if let (false, Value::Bytes(value)) = (keys_only, &row.value) {
                object.insert("value".to_owned(), escape(value).into());
            }
        }
        object.insert("ts".to_owned(), row.ts.0.to_string().into());
        self.mark(&mut object, is_text);
        object.into()
    }

    /// A cell of a key as an object.
    pub fn cell_json(&self, key: &[u8], cell: &Cell) -> Json {
        let key = bytes::Bytes::copy_from_slice(key);
        let row = Row { key, value: cell.value.clone(), ts: cell.ts, expires_ms: None };
        self.row_json(&row, false)
    }

    /// An object whose first fields are bytes: marked when some of them are not UTF-8.
    pub fn bytes_json(&self, fields: &[(&str, &[u8])], others: Json) -> Json {
        let mut object = Map::new();
        let mut is_text = true;
        for (name, bytes) in fields {
            is_text &= self.put_bytes(&mut object, name, bytes);
        }
        object.extend(others.as_object().cloned().unwrap_or_default());
        self.mark(&mut object, is_text);
        object.into()
    }

    /// An event of a watch as an object: type, what it is about, ts, token.
    pub fn event_json(&self, event: &WatchEvent) -> Json {
        let mut object = Map::new();
        object.insert("type".to_owned(), type_name(&event.change).into());
        let (mut is_text, mut at) = (true, None);
        match &event.change {
            WatchChange::Set { key, value, ts } => {
                is_text = self.put_bytes(&mut object, "key", key);
                is_text &= self.put_value(&mut object, value);
                at = Some(*ts);
            }
            WatchChange::Delete { key, ts, is_evicted } => {
                is_text = self.put_bytes(&mut object, "key", key);
                if *is_evicted {
                    object.insert("reason".to_owned(), "evicted".into());
                }
                at = Some(*ts);
            }
            WatchChange::Expire { key, ts } => {
                is_text = self.put_bytes(&mut object, "key", key);
                at = Some(*ts);
            }
            WatchChange::DeleteRange { from, to, ts } => {
                is_text = self.put_bytes(&mut object, "from", from);
                is_text &= self.put_bytes(&mut object, "to", to);
                at = Some(*ts);
            }
            WatchChange::Resolved { ts } => at = Some(*ts),
            WatchChange::Break { from, to, reason } => {
                is_text = self.put_bytes(&mut object, "from", from);
                is_text &= self.put_bytes(&mut object, "to", to);
                object.insert("reason".to_owned(), reason.as_str().into());
            }
        }
        if let Some(ts) = at {
            object.insert("ts".to_owned(), ts.0.to_string().into());
        }
        object.insert("token".to_owned(), event.token.to_string().into());
        self.mark(&mut object, is_text);
        object.into()
    }

    /// Bytes as people read them.
    pub fn text(&self, bytes: &[u8]) -> String {
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) if self.hex => hex(bytes),
            Err(_) => escape(bytes),
        }
    }

    /// A value as people read it.
    pub fn value_text(&self, value: &Value) -> String {
        match value {
            Value::Bytes(bytes) => self.text(bytes),
            Value::Counter(count) => count.to_string(),
        }
    }

    fn put_bytes(&self, object: &mut Map<String, Json>, name: &str, bytes: &[u8]) -> bool {
        object.insert(name.to_owned(), self.text(bytes).into());
        std::str::from_utf8(bytes).is_ok()
    }

    fn put_value(&self, object: &mut Map<String, Json>, value: &Value) -> bool {
        match value {
            Value::Bytes(bytes) => self.put_bytes(object, "value", bytes),
            Value::Counter(count) => {
                object.insert("value".to_owned(), (*count).into());
                true
            }
        }
    }

    fn mark(&self, object: &mut Map<String, Json>, is_text: bool) {
        if !is_text {
            object.insert(self.mark_name().to_owned(), true.into());
        }
    }

    /// Name of the field that marks an object some of whose bytes are not UTF-8.
    pub fn mark_name(&self) -> &'static str {
        if self.hex { "hex" } else { "escaped" }
    }

    /// Cuts a text so that a row stays on one line of a terminal; whole anywhere else.
    pub fn fit(&self, text: String) -> String {
        if io::stdout().is_terminal() { shorten(&text) } else { text }
    }
}

/// A key or value argument as bytes; with `hex`, pairs of hexadecimal digits are read as such.
pub fn argument_bytes(argument: &OsStr, hex: bool) -> bytes::Bytes {
    let raw = argument.as_bytes();
    let decoded = if hex { from_hex(raw) } else { None };
    decoded.map_or_else(|| bytes::Bytes::copy_from_slice(raw), bytes::Bytes::from)
}

/// A number of things: `1 file`, `3 files`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The word for a kind of change.
pub fn type_name(change: &WatchChange) -> &'static str {
    match change {
        WatchChange::Set { .. } => "set",
        WatchChange::Delete { .. } => "delete",
        WatchChange::Expire { .. } => "expire",
        WatchChange::DeleteRange { .. } => "delete_range",
        WatchChange::Resolved { .. } => "resolved",
        WatchChange::Break { .. } => "break",
    }
}

/// An acknowledgement level as an optional field.
pub fn level_json(level: Option<AckLevel>) -> Json {
    level.map_or(Json::Null, |level| json!(level.to_string()))
}

fn table(columns: &[&str], objects: &[Json], cell: fn(String) -> String) -> Table {
    let mut table = bare_table();
    table.set_header(columns.iter().map(|column| column.replace('_', " ")));
    for object in objects {
        table.add_row(columns.iter().map(|column| cell(text(&object[*column]))));
    }
    table
}

/// A cell that stays on one line of a terminal; whole anywhere else, but for its line ends.
fn fit(text: String) -> String {
    if io::stdout().is_terminal() { shorten(&text) } else { one_line(text) }
}

/// Line ends and tabs as blanks, and what else would act on a terminal as `\xNN`.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let shown = |character: char| match character {
        '\n' | '\t' => " ".to_owned(),
        _ if character.is_control() => format!("\\x{:02x}", u32::from(character)),
        _ => character.to_string(),
    };
    text.chars().map(shown).collect()
}

fn bare_table() -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    // One line under the header; rows stand close, so that many fit on a screen.
    for component in [
        TableComponent::HorizontalLines,
        TableComponent::MiddleIntersections,
        TableComponent::LeftBorderIntersections,
        TableComponent::RightBorderIntersections,
        TableComponent::TopBorder,
        TableComponent::TopBorderIntersections,
        TableComponent::TopLeftCorner,
        TableComponent::TopRightCorner,
        TableComponent::BottomBorder,
        TableComponent::BottomBorderIntersections,
        TableComponent::BottomLeftCorner,
        TableComponent::BottomRightCorner,
    ] {
        table.remove_style(component);
    }
    table
}

/// A field as people read it.
fn text(value: &Json) -> String {
    match value {
        Json::Null => "-".to_owned(),
        Json::String(text) => text.clone(),
        Json::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Json::Number(number) => number.to_string(),
        Json::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Json::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
        }
    }
}

fn shorten(text: &str) -> String {
    let is_long = text.chars().nth(CELL_CHARS_MAX).is_some();
    let mut short = one_line(text.chars().take(CELL_CHARS_MAX).collect());
    if is_long {
        short.push('…');
    }
    short
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ebla_client::Hlc;

    fn row(key: &'static [u8], value: &'static [u8]) -> Row {
        Row {
            key: Bytes::from_static(key),
            value: Value::Bytes(Bytes::from_static(value)),
            ts: Hlc(u64::MAX),
            expires_ms: None,
        }
    }

    #[test]
    fn timestamps_are_strings_and_text_is_not_marked() {
        let out = Output::new(Format::Json, false);
        let json = out.row_json(&row(b"k", "ä\\".as_bytes()), false);
        assert_eq!(json, json!({"key": "k", "value": "ä\\", "ts": "18446744073709551615"}));
    }

    #[test]
    fn other_bytes_are_escaped_and_marked() {
        let out = Output::new(Format::Json, false);
        let json = out.row_json(&row(b"k", b"a\xff\\"), false);
        assert_eq!((&json["value"], &json["escaped"]), (&json!("a\\xff\\x5c"), &json!(true)));
        let out = Output::new(Format::Json, true);
        assert_eq!(out.row_json(&row(b"k", b"a\xff"), false)["value"], json!("61ff"));
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        assert_eq!(one_line("a\tb\nc\0d\u{1b}[0m".to_owned()), "a b c\\x00d\\x1b[0m");
        assert_eq!(shorten(&"ä".repeat(CELL_CHARS_MAX + 1)).chars().count(), CELL_CHARS_MAX + 1);
    }

    #[test]
    fn a_counter_is_a_number() {
        let out = Output::new(Format::Json, false);
        let cell = Cell { value: Value::Counter(-5), ts: Hlc(1) };
        assert_eq!(out.cell_json(b"k", &cell)["value"], json!(-5));
    }

    #[test]
    fn arguments_are_bytes() {
        let bytes = |text: &[u8], hex| argument_bytes(OsStr::from_bytes(text), hex).to_vec();
        assert_eq!(bytes(b"\xff", false), b"\xff");
        assert_eq!(bytes(b"00ff", false), b"00ff");
        assert_eq!(bytes(b"00fF", true), [0, 255]);
        assert_eq!(bytes(b"key", true), b"key");
    }
}
