//! Bytes as text that people and JSON can carry, and that can be read back.

use std::fmt::Write as _;

/// Everything that is UTF-8 as it is, all other bytes as `\xNN`; a backslash becomes `\x5c`,
/// so that the text can be read back.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\x5c"));
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string takes everything");
        }
    }
    text
}

/// The bytes that [`escape`] made a text of; none when it has a backslash that begins no `\xNN`.
#[must_use]
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let [b'x', high, low, ..] = after else { return None };
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(high)? << 4 | digit(low)?);
        rest = &after[3..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_are_escaped() {
        assert_eq!(escape("ä".as_bytes()), "ä");
        assert_eq!(escape(b"a\xff\\"), "a\\xff\\x5c");
    }

    #[test]
    fn what_is_escaped_reads_back() {
        for bytes in [&b""[..], b"a\xff\\x41", "ä\\".as_bytes(), &[0, 9, 10, 255]] {
            assert_eq!(unescape(&escape(bytes)).as_deref(), Some(bytes));
        }
        for wrong in ["\\", "\\x", "\\x4", "\\n", "\\xg0"] {
            assert_eq!(unescape(wrong), None, "{wrong}");
        }
    }
}
