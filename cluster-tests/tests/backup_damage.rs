//! Whatever happens to backups at their target: `verify` and `restore` say it, and nothing comes
//! back that is smaller than it was. What was left of a backup that died goes when it is wanted.

use anyhow::{Context as _, Result, ensure};
use ebla_bucket::Bucket;
use ebla_cluster_tests::cli::{Cli, Output, exit};
use ebla_cluster_tests::cluster::{Dev, eventually};
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

/// Longest wait for something that takes a moment.
const SOON: Duration = Duration::from_secs(60);

fn fill(cli: &Cli, rows: u32) {
    let lines: String = (0..rows).map(|row| format!("{row:05}\tvalue {row}\n")).collect();
    let _ = cli.run_with_input(&["load", "t", "-", "--format", "tsv"], lines.as_bytes()).expect(exit::OK);
}

fn create_table(cli: &Cli) {
    let create = ["table", "create", "t", "--replicas", "1", "--split-at", "00200"];
    let _ = cli.run(&create).expect(exit::OK);
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn id(made: &Json) -> Result<String> {
    Ok(made["id"].as_str().context("a backup has an id")?.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}

/// A chain of two, and a backup of another cluster.
struct Chain {
    dir: PathBuf,
    full: String,
    more: String,
    foreign: String,
}

impl Chain {
    /// A copy, to be harmed.
    fn copy(&self, to: PathBuf) -> Result<Self> {
        copy(&self.dir, &to)?;
        let Self { full, more, foreign, .. } = self;
        Ok(Self { dir: to, full: full.clone(), more: more.clone(), foreign: foreign.clone() })
    }

    fn manifest(&self, backup: &str) -> PathBuf {
        self.dir.join("backups").join(backup).join("manifest.json")
    }

    /// The files of a backup.
    fn data(&self, backup: &str) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join("backups").join(backup).join("data");
        let mut found: Vec<PathBuf> =
            fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        found.sort();
        Ok(found)
    }
}

fn flip(path: &Path, at: usize) -> Result<()> {
    let mut bytes = fs::read(path)?;
    bytes[at] ^= 4;
    Ok(fs::write(path, bytes)?)
}

/// What is done to a chain, and a word of what is said then.
type Harm = (&'static str, &'static str, fn(&Chain) -> Result<()>);

const HARMS: [Harm; 9] = [
    ("a missing file", "is missing", |chain| Ok(fs::remove_file(&chain.data(&chain.full)?[0])?)),
    ("a file cut short", "bytes, and had", |chain| {
        let file = &chain.data(&chain.more)?[0];
        let bytes = fs::read(file)?;
        Ok(fs::write(file, &bytes[..bytes.len() - 1])?)
    }),
    ("swapped files", ".sst", |chain| {
        let files = chain.data(&chain.full)?;
        let (one, other) = (fs::read(&files[0])?, fs::read(&files[1])?);
        fs::write(&files[0], other)?;
        Ok(fs::write(&files[1], one)?)
    }),
    ("a flipped bit", "sha256", |chain| flip(&chain.data(&chain.more)?[0], 100)),
    ("a flipped bit in the full backup", "sha256", |chain| flip(&chain.data(&chain.full)?[1], 100)),
    ("a flipped bit in a manifest", "manifest.json", |chain| flip(&chain.manifest(&chain.more), 200)),
    ("a manifest cut short", "cut short", |chain| {
        let bytes = fs::read(chain.manifest(&chain.more))?;
        Ok(fs::write(chain.manifest(&chain.more), &bytes[..bytes.len() / 2])?)
    }),
    ("a manifest of another cluster", "is that of the backup", |chain| {
        fs::copy(chain.manifest(&chain.foreign), chain.manifest(&chain.full))?;
        Ok(())
    }),
    ("a missing parent", "which is missing", |chain| {
        Ok(fs::remove_dir_all(chain.dir.join("backups").join(&chain.full))?)
    }),
];

#[test]
fn every_harm_ends_verify_and_restore_in_a_clear_error() -> Result<()> {
    let place = tempfile::tempdir()?;
    let dir = place.path().join("whole");
    let to = url(&dir);
    let (cluster, other) = (Dev::start(&["--servers", "1"])?, Dev::start(&["--servers", "1"])?);
    let (cli, elsewhere) = (cluster.node.cli(), other.node.cli());
    let mut ids = Vec::new();
    for cli in [&elsewhere, &cli] {
        create_table(cli);
        fill(cli, 400);
        ids.push(id(&cli.json(&["backup", "create", "--to", &to, "--wait"]))?);
    }
    let [foreign, full] = <[String; 2]>::try_from(ids).map_err(|_| anyhow::anyhow!("two backups"))?;
    fill(&cli, 500);
    let add =
        |parent: &str| cli.run(&["backup", "create", "--to", &to, "--incremental-from", parent, "--wait"]);
    let _ = add(&foreign).expect(exit::FAILED).saying(&["cluster", "make a full one"]);
    let _ = add(&full).expect(exit::OK);
    let listed = cli.json(&["backup", "list", "--to", &to]);
    let more = id(&listed[2])?;
    let chain = Chain { dir, full, more, foreign };
    let _ = cli.run(&["backup", "verify", "--from", &to]).expect(exit::OK);

    for (number, (name, word, harm)) in HARMS.iter().enumerate() {
        let harmed = chain.copy(place.path().join(format!("{number}")))?;
        harm(&harmed).with_context(|| (*name).to_owned())?;
        let from = url(&harmed.dir);
        for verify in [
            &["backup", "verify", "--from", &from][..],
            &["backup", "verify", "--from", &from, "--id", &chain.more],
        ] {
            check_said(name, word, &Cli::new(NOWHERE).run(verify))?;
        }
        if *word == "which is missing" {
            let listed = Cli::new(NOWHERE).json(&["backup", "list", "--to", &from]);
            ensure!(listed[1]["state"] == "parent missing", "{listed}");
        }
        let table = format!("t{number}");
        let restore =
            ["backup", "restore", "--from", &from, "--id", &chain.more, "--table", "t", "--as", &table];
        check_said(name, word, &cli.run(&restore))?;
        let _ = cli.run(&["table", "describe", &table]).expect(exit::NOT_FOUND);
    }
    // One that cannot be read hides no other.
    let hidden = chain.copy(place.path().join("hidden"))?;
    fs::remove_file(hidden.manifest(&chain.more))?;
    fs::create_dir(hidden.manifest(&chain.more))?;
    let from = url(&hidden.dir);
    let listed = Cli::new(NOWHERE).json(&["backup", "list", "--to", &from]);
    let states: Vec<&Json> = listed.as_array().into_iter().flatten().map(|backup| &backup["state"]).collect();
    ensure!(states == ["complete", "complete", "unreadable"], "{listed}");
    let report = Cli::new(NOWHERE).run(&["backup", "verify", "--from", &from, "-o", "json"]);
    ensure!(report.code != exit::OK && report.text().contains("\"unchecked\":[{"), "{report}");
    // What was not harmed can still be had: the oldest of all, in another cluster.
    let from = ["backup", "restore", "--from", &to, "--id", &chain.foreign, "--table", "t", "--as", "theirs"];
    ensure!(cli.json(&from)["rows"] == 400, "a backup of another cluster comes back");
    let newest = cli.json(&["backup", "restore", "--from", &to, "--table", "t", "--as", "ours"]);
    ensure!(newest["rows"] == 500, "{newest}");
    Ok(())
}

#[test]
fn what_is_harmed_takes_no_other_table_along_and_is_not_added_to() -> Result<()> {
    let place = tempfile::tempdir()?;
    let cluster = Dev::start(&["--servers", "1"])?;
    let (cli, to) = (cluster.node.cli(), url(place.path()));
    create_table(&cli);
    fill(&cli, 300);
    let _ = cli.run(&["table", "create", "other", "--replicas", "1"]).expect(exit::OK);
    let _ = cli.run(&["set", "other", "k", "v"]).expect(exit::OK);
    let full = id(&cli.json(&["backup", "create", "--to", &to, "--wait"]))?;
    let dir = place.path().join("backups").join(&full);
    let manifest: Json = serde_json::from_slice(&fs::read(dir.join("manifest.json"))?)?;
    let tables = manifest["manifest"]["tables"].as_array().context("tables")?;
    let of_t = tables.iter().find(|table| table["name"] == "t").context("t")?;
    let file = of_t["parts"][0]["files"][0]["name"].as_str().context("a file")?;
    fs::remove_file(dir.join(file))?;

    let restore = |table: &str, name: &str| {
        cli.run(&["backup", "restore", "--from", &to, "--table", table, "--as", name])
    };
    let _ = restore("t", "u").expect(exit::FAILED).saying(&[file, "is missing"]);
    let _ = restore("other", "another").expect(exit::OK);
    ensure!(cli.json(&["get", "another", "k"])["value"] == "v");
    let add = cli.run(&["backup", "create", "--to", &to, "--incremental-from", &full]);
    let _ = add.expect(exit::FAILED).saying(&[file, "is missing"]);
    Ok(())
}

fn check_said(name: &str, word: &str, output: &Output) -> Result<()> {
    ensure!(output.code == exit::FAILED, "{name}: {output}");
    ensure!(output.stderr.contains(word), "{name}: {word:?} is missing from {output}");
    Ok(())
}

/// A small file system, and whether there may be one here.
struct Small(PathBuf);

impl Small {
    fn mount(dir: PathBuf, size: &str) -> Result<Option<Self>> {
        fs::create_dir_all(&dir)?;
        let size = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&dir).output()?;
        Ok(mounted.status.success().then_some(Self(dir)))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_target_that_runs_full_leaves_no_backup() -> Result<()> {
    let place = tempfile::tempdir()?;
    let bucket = Bucket::start(&place.path().join("bucket"))?;
    let cluster = Dev::start_in(&bucket.environment(), &["--servers", "1"])?;
    let cli = cluster.node.cli();
    create_table(&cli);
    fill(&cli, 400);
    let to = bucket.url("full");
    let first = id(&cli.json(&["backup", "create", "--to", &to, "--wait"]))?;
    bucket.set_full(true);
    check_full(&cli, &to)?;
    bucket.set_full(false);
    check_whole(&cli, &to, &first)?;

    // Values that do not compress, more than the target takes.
    let noise =
        |row: u32| (0..1_500_u32).map(|at| format!("{:08x}", mixed(row * 1_500 + at))).collect::<String>();
    let lines: String = (0..400).map(|row| format!("n{row:05}\t{}\n", noise(row))).collect();
    let small = Small::mount(place.path().join("small"), "2m")?;
    let Some(small) = small else {
        eprintln!("skipped: no small file system can be mounted here");
        return Ok(());
    };
    let to = url(&small.0);
    let first = id(&cli.json(&["backup", "create", "--to", &to, "--wait"]))?;
    let _ = cli.run_with_input(&["load", "t", "-", "--format", "tsv"], lines.as_bytes()).expect(exit::OK);
    check_full(&cli, &to)?;
    check_whole(&cli, &to, &first)
}

fn mixed(number: u32) -> u32 {
    let mixed = (number ^ (number >> 16)).wrapping_mul(0x45d9_f3b5);
    (mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d)
}

fn check_full(cli: &Cli, to: &str) -> Result<()> {
    let full = cli.run(&["backup", "create", "--to", to, "--wait", "-o", "json"]).expect(exit::FAILED);
    ensure!(full.stderr.contains("free some space"), "{full}");
    Ok(())
}

/// The first backup is the only one, and nothing is left of others.
fn check_whole(cli: &Cli, to: &str, first: &str) -> Result<()> {
    let listed = cli.json(&["backup", "list", "--to", to]);
    ensure!(listed.as_array().is_some_and(|all| all.len() == 1) && listed[0]["id"] == first, "{listed}");
    let _ = cli.run(&["backup", "verify", "--from", to]).expect(exit::OK);
    let _ = cli.run(&["backup", "prune", "--to", to, "--yes"]).expect(exit::OK);
    let pruned = cli.json(&["backup", "prune", "--to", to]);
    ensure!(pruned["state"] == "clean" && pruned["kept"] == serde_json::json!([]), "{pruned}");
    let table = format!("again{}", to.len());
    let restored = cli.json(&["backup", "restore", "--from", to, "--table", "t", "--as", &table]);
    ensure!(restored["rows"] == 400, "{restored}");
    Ok(())
}

#[test]
fn a_bucket_that_fails_every_third_request_loses_nothing() -> Result<()> {
    let place = tempfile::tempdir()?;
    let bucket = Bucket::start(place.path())?;
    let cluster = Dev::start_in(&bucket.environment(), &["--servers", "1"])?;
    let cli = cluster.node.cli();
    create_table(&cli);
    fill(&cli, 400);
    bucket.fail_every(3);
    let to = bucket.url("flaky");
    let made = cli.json(&["backup", "create", "--to", &to, "--wait"]);
    let verified = cli.json(&["backup", "verify", "--from", &to, "--sample", "100%"]);
    let restored = cli.json(&["backup", "restore", "--from", &to, "--table", "t", "--as", "u"]);
    ensure!([&made["rows"], &verified["sampled"], &restored["rows"]].iter().all(|rows| **rows == 400));
    // One that never answers is an error that says so.
    bucket.fail_every(1);
    let patient = cli.with_patience(Duration::from_secs(300));
    let failed = patient.run(&["backup", "list", "--to", &to]).expect(exit::UNAVAILABLE);
    let _ = failed.saying(&["look at the server of the bucket"]);
    Ok(())
}

/// Kills a cluster in the middle of a backup.
fn kill_within(cluster: &mut Dev, to: &str, is_within: impl Fn() -> bool) -> Result<Json> {
    let cli = cluster.node.cli();
    let begun = cli.json(&["backup", "create", "--to", to, "--table", "big", "--rate", "1MiB/s"]);
    eventually("something is on its way", SOON, is_within)?;
    cluster.node.process().kill()?;
    Ok(begun)
}

fn create_big(cli: &Cli) {
    let _ = cli.run(&["table", "create", "big", "--replicas", "1"]).expect(exit::OK);
    let noise =
        |row: u32| (0..12_500_u32).map(|at| format!("{:08x}", mixed(row * 12_500 + at))).collect::<String>();
    let lines: String = (0..300).map(|row| format!("n{row:05}\t{}\n", noise(row))).collect();
    let _ = cli.run_with_input(&["load", "big", "-", "--format", "tsv"], lines.as_bytes()).expect(exit::OK);
}

#[test]
fn what_a_killed_backup_has_left_goes_when_it_is_wanted() -> Result<()> {
    let place = tempfile::tempdir()?;
    let bucket = Bucket::start(&place.path().join("bucket"))?;
    let mut cluster = Dev::start_in(&bucket.environment(), &["--servers", "1"])?;
    let (cli, dir) = (cluster.node.cli(), place.path().join("dir"));
    create_big(&cli);
    let alone = Cli::new(NOWHERE).with_environment(&bucket.environment());
    let unfinished = |dir: &Path| files(dir).iter().filter(|name| name.contains(".unfinished")).count();
    for to in [url(&dir), bucket.url("killed")] {
        let is_bucket = to.starts_with("s3:");
        let within = || if is_bucket { !bucket.open_uploads().is_empty() } else { unfinished(&dir) > 0 };
        let begun = kill_within(&mut cluster, &to, within)?;
        // Nobody can say yet that it is dead: it gave a sign of life a moment ago.
        let kept = alone.run(&["backup", "prune", "--to", &to, "--yes", "-o", "json"]).expect(exit::OK);
        ensure!(kept.json()["state"] == "clean" && kept.json()["kept"][0] == begun["id"], "{kept}");
        ensure!(kept.stderr.contains("--min-age 0s") && within(), "{kept}");

        // Its cluster comes back, makes it no longer, and says so at once.
        cluster.node.start()?;
        cluster.node.wait_for_ready_line()?;
        let _ = cli.run(&["job", "cancel", &begun["job"].to_string()]).expect(exit::OK);
        eventually("its uploads are gone", SOON, || {
            let pruned = cli.run(&["backup", "prune", "--to", &to, "--yes", "-o", "json"]);
            // A server that has not heard of the end yet may leave something once more.
            pruned.code == exit::OK && !within() && pruned.json()["state"] == "clean"
        })?;

        // Another one, and nobody to ask.
        kill_within(&mut cluster, &to, within)?;
        let gone = alone.json(&["backup", "prune", "--to", &to, "--min-age", "0s", "--yes"]);
        ensure!(gone["state"] == "removed" && gone["uploads"].as_u64() > Some(0) && !within(), "{gone}");
        ensure!(alone.json(&["backup", "list", "--to", &to]) == serde_json::json!([]));
        // The job goes on when its cluster is back: from the beginning, to a good end.
        cluster.node.start()?;
        cluster.node.wait_for_ready_line()?;
        eventually("the job has ended", Duration::from_secs(180), || {
            cli.list(&["backup", "log"]).is_some_and(|all| all.iter().all(|job| job["state"] != "running"))
        })?;
        let _ = alone.run(&["backup", "verify", "--from", &to]).expect(exit::OK);
    }
    Ok(())
}

/// Names of all files below a directory.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(_) | Err(_) => found.push(entry.path().to_string_lossy().into_owned()),
        }
    }
    found
}
