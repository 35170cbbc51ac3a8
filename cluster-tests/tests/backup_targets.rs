//! Backups as operators look after them: in a bucket, encrypted, listed, verified and pruned, with
//! a cluster and without one.

use anyhow::{Result, ensure};
use ebla_bucket::{Bucket, SECRET_KEY};
use ebla_cluster_tests::cli::{Cli, exit};
use ebla_cluster_tests::cluster::Dev;
use std::fs;
use std::path::PathBuf;

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

type Environment = Vec<(&'static str, String)>;

/// Another value for one of the variables.
fn with(mut environment: Environment, name: &'static str, value: &str) -> Environment {
    environment.retain(|(known, _)| *known != name);
    environment.push((name, value.to_owned()));
    environment
}

fn fill(cli: &Cli, table: &str, rows: u32) {
    let lines: String = (0..rows).map(|row| format!("{row:05}\tvalue {row}\n")).collect();
    let load = ["load", table, "-", "--format", "tsv"];
    let _ = cli.run_with_input(&load, lines.as_bytes()).expect(exit::OK);
}

#[test]
fn a_bucket_holds_encrypted_backups_that_are_looked_after() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bucket = Bucket::start(dir.path())?;
    let environment = with(bucket.environment().to_vec(), "EBLA_BACKUP_KEY", KEY);
    let mut cluster = Dev::start_in(&environment, &["--servers", "2"])?;
    let cli = cluster.node.cli();
    let url = bucket.url("ours");
    let _ = cli.run(&["table", "create", "t", "--replicas", "1", "--split-at", "00500"]).expect(exit::OK);
    fill(&cli, "t", 1_000);
    bucket.fail_every(3);
    let full = cli.json(&["backup", "create", "--to", &url, "--table", "t", "--encrypt", "--wait"]);
    let full_id = full["id"].as_str().unwrap_or_default().to_owned();
    fill(&cli, "t", 1_200);
    let more = [
        "backup",
        "create",
        "--to",
        &url,
        "--table",
        "t",
        "--encrypt",
        "--incremental-from",
        &full_id,
        "--wait",
    ];
    let clear: Vec<&str> = more.into_iter().filter(|flag| *flag != "--encrypt").collect();
    let _ = cli.run(&clear).expect(exit::USAGE).saying(&["--encrypt", "full backup"]);
    let more = cli.json(&more);
    let listed = cli.json(&["backup", "list", "--to", &url]);
    ensure!(listed[0]["id"] == full["id"] && listed[1]["id"] == more["id"], "{listed}");
    ensure!(listed[0]["kind"] == "full" && listed[0]["rows"] == 1_000, "{listed}");
    ensure!(listed[1]["kind"] == "incremental" && listed[1]["parent"] == full["id"], "{listed}");
    ensure!(listed[0]["tables"] == serde_json::json!(["t"]), "{listed}");
    let verified = cli.json(&["backup", "verify", "--from", &url, "--sample", "50%"]);
    ensure!(verified["state"] == "ok" && verified["backups"] == 2, "{verified}");
    let sampled = verified["sampled"].as_u64().unwrap_or_default();
    ensure!((300..900).contains(&sampled) && verified["sample_skipped"].is_null(), "{verified}");

    // Without a cluster, and without the key.
    let alone = Cli::new(NOWHERE).with_environment(&environment);
    let described = alone.json(&["backup", "describe", "--to", &url]);
    ensure!(described["id"] == more["id"] && described["tables"][0]["name"] == "t", "{described}");
    let verified = alone.json(&["backup", "verify", "--from", &url, "--id", &full_id, "--sample", "10%"]);
    ensure!(verified["sampled"] == 0 && verified["sample_skipped"].is_string(), "{verified}");
    let wrong = with(environment.clone(), "EBLA_BACKUP_KEY", &KEY.replace('0', "1"));
    let verify = Cli::new(NOWHERE).with_environment(&wrong).run(&["backup", "verify", "--from", &url]);
    let _ = verify.expect(exit::FAILED).saying(&["EBLA_BACKUP_KEY_FILE"]);

    // Other credentials are refused, and named nowhere.
    let wrong = with(environment, "AWS_SECRET_ACCESS_KEY", "hunter2");
    let list = Cli::new(NOWHERE).with_environment(&wrong).run(&["backup", "list", "--to", &url]);
    let refused = list.expect(exit::FAILED);
    ensure!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
    ensure!(!cluster.node.process().log_text().contains(SECRET_KEY), "the log holds a secret");
    Ok(())
}

#[test]
fn damage_is_found_without_a_cluster_and_garbage_goes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let url = format!("file://{}", dir.path().display());
    let cluster = Dev::start(&["--servers", "1"])?;
    let (cli, alone) = (cluster.node.cli(), Cli::new(NOWHERE));
    let _ = alone.run(&["backup", "verify", "--from", &url]).expect(exit::NOT_FOUND);
    let _ = alone.run(&["backup", "list", "--to", &format!("{url}/none")]).expect(exit::NOT_FOUND);
    let _ = alone.run(&["backup", "list", "--to", "s3://me:hunter2@b"]).expect(exit::USAGE);
    let _ = cli.run(&["table", "create", "t", "--replicas", "1"]).expect(exit::OK);
    fill(&cli, "t", 500);
    let made = cli.json(&["backup", "create", "--to", &url, "--table", "t", "--wait"]);
    let id = made["id"].as_str().unwrap_or_default();
    let own = dir.path().join("backups").join(id);

    // What no backup needs: nobody says that it makes the half one.
    let half_id = "20260101T000000Z-00000000";
    let half_data = dir.path().join("backups").join(half_id).join("data");
    let (half, stray) = (half_data.join("p-0000.sst"), own.join("data/stray-0000.sst"));
    fs::create_dir_all(&half_data)?;
    fs::write(&half, b"x")?;
    fs::write(&stray, b"x")?;
    // And what is somebody else's.
    let photos = dir.path().join("backups/photos/data");
    let foreign = [dir.path().join("backups/README"), photos.join("a-0000.sst"), own.join("data/notes.sst")];
    fs::create_dir_all(&photos)?;
    foreign.iter().try_for_each(|path| fs::write(path, b"x"))?;
    let young = ["backup", "prune", "--to", &url, "--min-age", "1h", "--yes", "-o", "json"];
    let kept = alone.run(&young).expect(exit::OK);
    ensure!(kept.stderr.contains("--min-age") && half.exists() && !stray.exists(), "{}", kept.stderr);
    let found = cli.json(&["backup", "prune", "--to", &url]);
    let half_name = format!("backups/{half_id}/data/p-0000.sst");
    ensure!(found["state"] == "found" && found["backups"][0] == half_id && half.exists(), "{found}");
    ensure!(found["names"] == serde_json::json!([half_name]), "{found}");
    let removed = alone.json(&["backup", "prune", "--to", &url, "--yes"]);
    ensure!(removed["state"] == "removed" && !half.exists(), "{removed}");
    ensure!(cli.json(&["backup", "prune", "--to", &url])["state"] == "clean", "nothing is left");
    ensure!(foreign.iter().all(|path| path.exists()), "nobody asked for these to go");
    fs::remove_file(&foreign[2])?;
    let _ = alone.run(&["backup", "verify", "--from", &url]).expect(exit::OK);

    // A flipped bit, and a file that is gone. What was found in one backup hides nothing in others.
    let second = cli.json(&["backup", "create", "--to", &url, "--wait"]);
    let third = cli.json(&["backup", "create", "--to", &url, "--wait"]);
    let id_of = |made: &serde_json::Value| made["id"].as_str().unwrap_or_default().to_owned();
    let (second, third) = (id_of(&second), id_of(&third));
    let file_of = |id: &str| -> Result<PathBuf> {
        let data = dir.path().join("backups").join(id).join("data");
        Ok(fs::read_dir(data)?.next().expect("a backup has a file")?.path())
    };
    let file = file_of(id)?;
    for damaged in [&file, &file_of(&second)?] {
        let mut bytes = fs::read(damaged)?;
        bytes[10] ^= 1;
        fs::write(damaged, &bytes)?;
    }
    fs::write(dir.path().join("backups").join(&third).join("manifest.json"), b"{}")?;
    let verify = alone.run(&["backup", "verify", "--from", &url]).expect(exit::FAILED);
    let _ = verify.saying(&["sha256", "3 of 3 backups are damaged", id, &second, &third]);
    let verify = alone.run(&["backup", "verify", "--from", &url, "-o", "json"]).expect(exit::FAILED);
    let damaged = verify.json()["damaged"].as_array().map_or(0, Vec::len);
    ensure!(damaged == 3 && verify.json()["state"] == "damaged", "{}", verify.text());
    fs::remove_dir_all(dir.path().join("backups").join(&third))?;
    fs::remove_file(&file)?;
    let verify = alone.run(&["backup", "verify", "--from", &url, "--id", id]);
    let _ = verify.expect(exit::FAILED).saying(&["is missing"]);
    let _ = alone.run(&["backup", "describe", "--to", &url, "none"]).expect(exit::NOT_FOUND);
    Ok(())
}
