//! House rules as a test: what reviewers would otherwise have to look for each time.
//!
//! It reads the repository's own files and nothing else. A rule that gets in the way of
//! something sensible is changed here, in the same commit, with the reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Hard limit of the house: a longer file holds more than one idea.
const FILE_LINES_MAX: usize = 800;

/// Crates of the workspace, and what of ours each may depend on.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("cluster-tests/failpoints", &[]),
    ("kernel", &[]),
    ("proto", &["ebla-kernel"]),
    ("master", &["ebla-backup", "ebla-failpoints", "ebla-kernel", "ebla-proto"]),
    ("cluster-tests/bucket", &[]),
    ("tabletserver/backup", &["ebla-kernel", "ebla-proto"]),
    ("tabletserver", &["ebla-backup", "ebla-failpoints", "ebla-kernel", "ebla-proto"]),
    ("client", &["ebla-kernel", "ebla-proto"]),
    (
        "ebla",
        &[
            "ebla-backup",
            "ebla-failpoints",
            "ebla-kernel",
            "ebla-proto",
            "ebla-master",
            "ebla-tabletserver",
            "ebla-client",
        ],
    ),
];

/// Libraries that may be named only in some rooms: in stores and logs, in services, at the
/// ends of connections, and in the error that carries theirs as its source. Tests may.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "rocksdb",
        &[
            "tabletserver/src/store/",
            "tabletserver/src/registry",
            "tabletserver/backup/src/sst.rs",
            "bench/src/",
        ],
    ),
    ("aws_config", &["tabletserver/backup/src/target/s3/"]),
    ("aws_credential_types", &["tabletserver/backup/src/target/s3/"]),
    ("aws_sdk_s3", &["tabletserver/backup/src/target/s3/"]),
    ("aws_smithy_http_client", &["tabletserver/backup/src/target/s3/"]),
    ("aes_gcm", &["tabletserver/backup/src/encryption.rs"]),
    ("raft", &["master/src/raft/", "master/src/error.rs"]),
    (
        "tonic",
        &[
            "proto/",
            "client/",
            "master/src/backup/servers.rs",
            "master/src/service",
            "master/src/server",
            "master/src/controller",
            "master/src/forming",
            "master/src/error",
            "master/src/raft/transport",
            "tabletserver/src/service",
            "tabletserver/src/server",
            "tabletserver/src/error",
            "tabletserver/src/backup/mod.rs",
            "tabletserver/src/copying/",
            "tabletserver/src/master_link",
            "tabletserver/src/rooms/link",
            "tabletserver/src/rooms/mailbox",
            "tabletserver/src/watch/messages",
            "tabletserver/src/promises/",
            "tabletserver/src/front_door.rs",
            "tabletserver/src/replication/",
            "ebla/src/",
            "cluster-tests/",
            "bench/src/",
        ],
    ),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc"];

/// What the kernel may not even name, over and above its own `clippy.toml`.
const KERNEL_BANS: &[&str] = &[
    "HashMap",
    "HashSet",
    "std::fs",
    "std::net",
    "std::thread",
    "SystemTime",
    "Instant",
    "tokio",
    "tracing",
];

struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Numbered lines of code: without comment lines, and without the tests at the end.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("\n#[cfg(test)]\nmod tests").unwrap_or(self.text.len());
        let lines = self.text[..tests].lines().enumerate();
        lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(index, line)| (index + 1, line))
    }

    fn is_test(&self) -> bool {
        let in_tests = ["/tests/", "/examples/"].iter().any(|part| self.path.contains(part));
        in_tests || self.path.ends_with("tests.rs") || self.path.starts_with("cluster-tests/")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for (name, _) in DEPENDENCIES {
        collect(&root().join(name), &mut found);
    }
    collect(&root().join("cluster-tests"), &mut found);
    collect(&root().join("bench"), &mut found);
    assert!(found.len() > 20, "the sources of the workspace were not found under {}", root().display());
    found
}

fn collect(dir: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("a directory of the workspace can be listed") {
        let path = entry.expect("a directory entry can be read").path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file can be read");
            let relative = path.strip_prefix(root()).expect("found below the root");
            found.push(Source { path: relative.to_string_lossy().replace('\\', "/"), text });
        }
    }
}

/// Fails with all complaints at once.
fn check(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "house rules:\n  {}\n", complaints.join("\n  "));
}

/// Whether `line` names the crate `name` as a path.
fn names_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn files_hold_one_idea() {
    let long = |source: &Source| {
        let lines = source.text.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines, at most {FILE_LINES_MAX}", source.path))
    };
    check(sources().iter().filter_map(long).collect());
}

#[test]
fn modules_say_what_they_are_for() {
    let silent = |source: &&Source| !source.path.ends_with("build.rs") && !source.text.starts_with("//!");
    let complain = |source: &Source| format!("{}: does not begin with `//!`", source.path);
    check(sources().iter().filter(silent).map(complain).collect());
}

#[test]
fn names_say_something() {
    let empty = |source: &&Source| {
        let stem = Path::new(&source.path).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let folders = source.path.split('/').map(str::to_owned);
        folders.chain(stem).any(|name| EMPTY_NAMES.contains(&name.as_str()))
    };
    check(sources().iter().filter(empty).map(|source| source.path.clone()).collect());
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (library, rooms) in ROOMS {
            if rooms.iter().any(|room| source.path.starts_with(room)) {
                continue;
            }
            let named = source.code().find(|(_, line)| names_crate(line, library));
            complaints.extend(named.map(|(line, _)| format!("{}:{line}: names {library}", source.path)));
        }
    }
    check(complaints);
}

#[test]
fn the_kernel_is_pure() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("kernel/src/")) {
        for (line, text) in source.code() {
            let banned = KERNEL_BANS.iter().find(|ban| text.contains(**ban));
            complaints.extend(banned.map(|ban| format!("{}:{line}: names {ban}", source.path)));
        }
    }
    check(complaints);
}

#[test]
fn dependencies_point_one_way() {
    let mut complaints = Vec::new();
    for (name, allowed) in DEPENDENCIES {
        for dependency in own_dependencies(name) {
            if !allowed.contains(&dependency.as_str()) {
                complaints.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    check(complaints);
}

/// Crates of ours that the manifest of `name` lists as dependencies.
fn own_dependencies(name: &str) -> BTreeSet<String> {
    let manifest = root().join(name).join("Cargo.toml");
    let text = fs::read_to_string(manifest).expect("every crate has a manifest");
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && line.starts_with("ebla") {
            found.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    found
}

#[test]
fn nothing_unwraps_or_is_left_undone() {
    let marks = [".unwrap()", "todo!(", "unimplemented!(", "dbg!("];
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (line, text) in source.code() {
            let mark = marks.iter().find(|mark| text.contains(**mark));
            complaints.extend(mark.map(|mark| format!("{}:{line}: {mark}", source.path)));
        }
    }
    check(complaints);
}

/// Names of the failpoints that a source has.
fn failpoints(source: &Source) -> impl Iterator<Item = &str> {
    let marks = source.code().flat_map(|(_, line)| line.split("failpoint!(\"").skip(1));
    marks.filter_map(|rest| rest.split('"').next())
}

#[test]
fn every_failpoint_is_listed_and_stands_in_the_code() {
    let sources = sources();
    let servers =
        sources.iter().filter(|s| s.path.starts_with("tabletserver/") || s.path.starts_with("master/"));
    let mut found = BTreeSet::new();
    let mut complaints = Vec::new();
    for (path, name) in servers.flat_map(|source| failpoints(source).map(|name| (&source.path, name))) {
        if !found.insert(name) {
            complaints.push(format!("{path}: a second failpoint {name}"));
        }
        if !ebla_failpoints::ALL.contains(&name) {
            complaints.push(format!("{path}: {name} is not in ebla_failpoints::ALL"));
        }
    }
    let lost = ebla_failpoints::ALL.iter().filter(|name| !found.contains(*name));
    complaints.extend(lost.map(|name| format!("{name} is listed and stands nowhere")));
    check(complaints);
}

#[test]
fn every_decision_is_numbered_and_dated() {
    let mut numbers = BTreeSet::new();
    let mut complaints = Vec::new();
    for entry in fs::read_dir(root().join("docs/decisions")).expect("there are decisions") {
        let path = entry.expect("a directory entry can be read").path();
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a decision can be read");
        if !numbers.insert(name[..4].to_owned()) {
            complaints.push(format!("{name}: its number is taken"));
        }
        for part in ["**Problem.**", "**Decision.**", "**Rejected.**", "**Consequences.**", "\n20"] {
            if !text.contains(part) {
                complaints.push(format!("{name}: lacks {part:?}"));
            }
        }
    }
    check(complaints);
}
