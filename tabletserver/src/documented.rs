//! Compares the worked bytes of `docs/formats.md` with what the code writes.
//!
//! A block of worked bytes is fenced and named: ```` ```bytes NAME ````. Its lines hold bytes
//! in hexadecimal, then, after `;`, what they mean.

/// Panics unless the block `name` of `text` holds exactly `bytes`.
pub(crate) fn check(text: &str, name: &str, bytes: &[u8]) {
    let fence = format!("```bytes {name}\n");
    let (_, block) = text.split_once(&fence).unwrap_or_else(|| panic!("no block {name}"));
    let (block, _) = block.split_once("```").expect("a block ends");
    let code = block.lines().map(|line| line.split(';').next().unwrap_or(""));
    let documented: Vec<String> =
        code.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let written: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(documented.join(" "), written.join(" "), "worked bytes of {name}");
}
