//! How masters, servers and the CLI get into a bucket: whom they trust, whence their credentials
//! come, and that nobody sees these.

use anyhow::{Result, ensure};
use ebla_bucket::{ACCESS_KEY, Bucket, Instance, SECRET_KEY, other_authority};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::Dev;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

/// No command that cannot get in may take longer: nobody waits for a certificate to change.
const REFUSED_MAX: Duration = Duration::from_secs(20);

type Environment = Vec<(&'static str, String)>;

fn fill(cli: &Cli) {
    let _ = cli.run(&["table", "create", "t", "--replicas", "1"]).expect(exit::OK);
    let lines: String = (0..300).map(|row| format!("{row:05}\tvalue {row}\n")).collect();
    let _ = cli.run_with_input(&["load", "t", "-", "--format", "tsv"], lines.as_bytes()).expect(exit::OK);
}

/// A backup goes there and comes back.
fn check_way(cli: &Cli, url: &str) -> Result<()> {
    let made = cli.json(&["backup", "create", "--to", url, "--table", "t", "--wait"]);
    let restored = cli.json(&["backup", "restore", "--from", url, "--table", "t", "--as", "u"]);
    ensure!(made["rows"] == 300 && restored["rows"] == 300, "{made} {restored}");
    let verified = cli.json(&["backup", "verify", "--from", url, "--sample", "100%"]);
    ensure!(verified["sampled"] == 300, "{verified}");
    Ok(())
}

#[test]
fn a_bucket_behind_tls_is_trusted_by_its_authority_alone() -> Result<()> {
    let (dir, files) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let bucket = Bucket::start_tls(dir.path())?;
    let (own, other, none) =
        (files.path().join("own"), files.path().join("other"), files.path().join("none"));
    fs::write(&own, bucket.authority())?;
    fs::write(&other, other_authority()?)?;
    fs::write(&none, "nothing")?;
    let url = |ca: &Path| format!("{}&ca={}", bucket.url("tls"), ca.display());
    let cluster = Dev::start_in(&bucket.environment(), &["--servers", "1"])?;
    let cli = cluster.node.cli();
    fill(&cli);
    check_way(&cli, &url(&own))?;

    let plain = bucket.url("tls");
    let refusals = [
        (plain.clone(), "ca="),
        (url(&other), "ca="),
        (url(&none), "holds no certificate"),
        (url(&files.path().join("missing")), "cannot be read"),
    ];
    let since = Instant::now();
    for (url, word) in &refusals {
        let _ = cli.run(&["backup", "list", "--to", url]).expect(exit::FAILED).saying(&["certificate", word]);
    }
    ensure!(since.elapsed() < REFUSED_MAX, "it took {:?} to be refused", since.elapsed());
    // Nor does the cluster get in, and says the same.
    let created = cli.run(&["backup", "create", "--to", &url(&other), "--wait"]).expect(exit::FAILED);
    let _ = created.saying(&["certificate", "ca="]);
    let restored = cli.run(&["backup", "restore", "--from", &plain, "--table", "t", "--as", "v"]);
    let _ = restored.expect(exit::FAILED).saying(&["certificate", "AWS_CA_BUNDLE"]);

    let bundle = [("AWS_CA_BUNDLE", own.display().to_string())];
    let alone = Cli::new(NOWHERE).with_environment(&bucket.environment()).with_environment(&bundle);
    ensure!(alone.json(&["backup", "list", "--to", &plain])[0]["rows"] == 300, "the bundle is trusted");
    Ok(())
}

/// Everything that a process could take credentials from, but for what is given.
fn nothing_else(dir: &Path) -> Environment {
    let missing = dir.join("missing").display().to_string();
    vec![
        ("AWS_CONFIG_FILE", missing.clone()),
        ("AWS_SHARED_CREDENTIALS_FILE", missing),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

fn set(environment: &mut Environment, name: &'static str, value: String) {
    environment.retain(|(known, _)| *known != name);
    environment.push((name, value));
}

#[test]
fn credentials_come_from_a_file_by_profile() -> Result<()> {
    let (dir, files) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let bucket = Bucket::start(dir.path())?;
    let file = files.path().join("credentials");
    let profiles = format!(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n\
         [backups]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    );
    fs::write(&file, profiles)?;
    let mut environment = nothing_else(files.path());
    set(&mut environment, "AWS_SHARED_CREDENTIALS_FILE", file.display().to_string());
    set(&mut environment, "AWS_PROFILE", "backups".to_owned());
    let mut cluster = Dev::start_in(&environment, &["--servers", "1"])?;
    let cli = cluster.node.cli();
    fill(&cli);
    check_way(&cli, &bucket.url("file"))?;
    check_secrecy(&mut cluster, dir.path())?;

    set(&mut environment, "AWS_PROFILE", "default".to_owned());
    let other = Cli::new(NOWHERE).with_environment(&environment);
    let refused = other.run(&["backup", "list", "--to", &bucket.url("file")]).expect(exit::FAILED);
    let _ = refused.saying(&["AWS_PROFILE"]);
    let nobody = Cli::new(NOWHERE).with_environment(&nothing_else(files.path()));
    let refused = nobody.run(&["backup", "list", "--to", &bucket.url("file")]).expect(exit::FAILED);
    let _ = refused.saying(&["AWS_ACCESS_KEY_ID", "every process"]);
    Ok(())
}

#[test]
fn credentials_come_from_the_instance() -> Result<()> {
    let (dir, files) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (bucket, instance) = (Bucket::start(dir.path())?, Instance::start()?);
    let mut environment = nothing_else(files.path());
    set(&mut environment, "AWS_EC2_METADATA_DISABLED", "false".to_owned());
    environment.extend(instance.environment());
    environment.push(("EBLA_LOG", "debug".to_owned()));
    let mut cluster = Dev::start_in(&environment, &["--servers", "1"])?;
    let cli = cluster.node.cli();
    fill(&cli);
    check_way(&cli, &bucket.url("instance"))?;
    ensure!(instance.told() > 0, "nobody asked the instance");
    check_secrecy(&mut cluster, dir.path())
}

/// Neither logs nor metadata nor anything at the target has the secret.
fn check_secrecy(cluster: &mut Dev, target: &Path) -> Result<()> {
    let log = cluster.node.process().log_text();
    ensure!(!log.contains(SECRET_KEY), "the log holds a secret");
    for dir in [cluster.node.data_dir.as_path(), target] {
        let mut count = 0;
        for file in files(dir) {
            let bytes = fs::read(&file).unwrap_or_default();
            count += bytes.len();
            let shows = bytes.windows(SECRET_KEY.len()).any(|part| part == SECRET_KEY.as_bytes());
            ensure!(!shows, "{} holds a secret", file.display());
        }
        ensure!(count > 0, "nothing was looked at in {}", dir.display());
    }
    Ok(())
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(_) | Err(_) => found.push(entry.path()),
        }
    }
    found
}
