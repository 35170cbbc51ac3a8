//! Where the program under test is: beside the test's own executable, built once if missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Overrides the search, for tests against another build.
const BINARY_VARIABLE: &str = "EBLA_BIN";

/// The `ebla` binary of this build profile.
///
/// # Panics
/// When it is neither there nor can be built: no test of this crate can run without it.
#[must_use]
pub fn ebla() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os(BINARY_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => beside_this_test(),
    })
}

/// Whether the program under test has failpoints.
#[must_use]
pub fn is_chaos_build() -> bool {
    let version = Command::new(ebla()).arg("--version").output();
    version.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("chaos build"))
}

/// `target/PROFILE`, as seen from `target/PROFILE/deps/this-test`.
fn profile() -> PathBuf {
    let this = env::current_exe().expect("a running test has a path");
    this.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").to_owned()
}

/// `target/PROFILE/ebla`.
fn beside_this_test() -> PathBuf {
    let profile = profile();
    let binary = profile.join("ebla");
    if !binary.exists() {
        build(&profile, &["--bin", "ebla"]);
    }
    assert!(binary.exists(), "there is no {}: run `make build`", binary.display());
    binary
}

/// An example of the client library, of this build profile.
///
/// # Panics
/// When it is neither there nor can be built.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let profile = profile();
    let binary = profile.join("examples").join(name);
    if !binary.exists() {
        build(&profile, &["--example", name]);
    }
    assert!(binary.exists(), "there is no {}: run `cargo build --examples`", binary.display());
    binary
}

/// Builds it. Cargo's own lock lets one of several test processes do it while the others wait.
fn build(profile: &Path, what: &[&str]) {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--workspace"]).args(what).current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building what is under test failed");
}
