//! Golden scripts of the tablet core: protocol traces as readable files.
//!
//! A script holds comments (`#`), commands (`>`) and, indented below each command, the
//! effects that the core gave. The runner replays the commands and compares; `UPDATE=1`
//! rewrites the files, so that a change of the protocol is reviewed as a diff.
//!
//! The runner stands in for the shell: it keeps what is durable, folds applied entries into
//! rows, and reads evidence from them. `restart` forgets everything else.

mod scripts;

use scripts::tablet::Session;
use std::fmt::Write as _;
use std::path::Path;

/// Replays one script and gives it back with the effects as they are now.
fn replay(script: &str) -> String {
    let mut session = Session::new();
    let mut out = String::new();
    for line in script.lines() {
        if line.starts_with("  ") {
            continue;
        }
        writeln!(out, "{line}").unwrap();
        if let Some(command) = line.strip_prefix("> ") {
            for effect in session.run(command) {
                writeln!(out, "  {effect}").unwrap();
            }
        }
    }
    out
}

#[test]
fn scripts_say_what_the_core_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/tablet");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the scripts are gone");
    let update = std::env::var_os("UPDATE").is_some();
    let mut changed = Vec::new();
    for file in files {
        let expected = std::fs::read_to_string(&file).unwrap();
        let actual = replay(&expected);
        if expected == actual {
            continue;
        }
        if update {
            std::fs::write(&file, &actual).unwrap();
        } else {
            changed.push(format!("{}:\n{actual}", file.display()));
        }
    }
    assert!(changed.is_empty(), "scripts differ (UPDATE=1 rewrites them):\n{}", changed.join("\n"));
}
