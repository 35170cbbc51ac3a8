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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_are_escaped() {
        assert_eq!(escape("ä".as_bytes()), "ä");
        assert_eq!(escape(b"a\xff\\"), "a\\xff\\x5c");
    }
}
