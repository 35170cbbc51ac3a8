//! Whatever happens to a backup at its target is seen before anything is restored.

mod made;

use ebla_backup::{
    BackupError, Location, Manifest, Repository, Target, Unpaced, check_manifest, open_target,
};
use made::{Wish, make, repository};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

struct Place {
    dir: TempDir,
    target: Arc<dyn Target>,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::parse(&format!("file://{}", dir.path().display())).unwrap();
        Self { target: open_target(&location).await.unwrap(), dir }
    }

    fn repository(&self, key: Option<u8>) -> Repository {
        repository(Arc::clone(&self.target), key)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("backups").join(name)
    }
}

async fn check(repository: &Repository, id: &str) -> Result<(), BackupError> {
    let scratch = tempfile::tempdir().unwrap();
    for manifest in repository.chain(id).await? {
        repository.check(&manifest, scratch.path(), &Unpaced).await?;
    }
    Ok(())
}

/// What is done to a backup.
type Harm = fn(&Place);

/// What is done to what a manifest says.
type Change = fn(&mut Manifest);

#[tokio::test(flavor = "multi_thread")]
async fn every_harm_is_seen_and_named() {
    let harms: [(&str, &str, Harm); 9] = [
        ("a missing file", "is missing", |place| fs::remove_file(place.path("b/data/p1-0000.sst")).unwrap()),
        ("a file cut short", "bytes, and had", |place| {
            let path = place.path("b/data/p2-0000.sst");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("swapped files", "p1-0000.sst", |place| {
            let (a, b) = (place.path("b/data/p1-0000.sst"), place.path("b/data/p2-0000.sst"));
            let other = place.path("b/data/other");
            fs::rename(&a, &other).unwrap();
            fs::rename(&b, a).unwrap();
            fs::rename(other, b).unwrap();
        }),
        ("a flipped bit", "its sha256 is another", |place| flip(place.path("b/data/p1-0000.sst"), 77)),
        ("a flipped bit of a manifest", "manifest.json", |place| flip(place.path("b/manifest.json"), 150)),
        ("a manifest cut short", "cut short", |place| {
            let path = place.path("b/manifest.json");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("the manifest of another backup", "is that of the backup a", |place| {
            fs::copy(place.path("a/manifest.json"), place.path("b/manifest.json")).unwrap();
        }),
        ("a missing parent", "which is missing", |place| fs::remove_dir_all(place.path("a")).unwrap()),
        ("a damaged parent", "a/data/p1-0000.sst", |place| flip(place.path("a/data/p1-0000.sst"), 99)),
    ];
    for key in [None, Some(1)] {
        for (name, expected, harm) in harms {
            let place = Place::new().await;
            let repository = place.repository(key);
            make(&repository, &Wish::full("a", 100)).await.unwrap();
            make(&repository, &Wish::incremental("b", 200, ("a", 100))).await.unwrap();
            check(&repository, "b").await.unwrap();
            harm(&place);
            let error = check(&repository, "b").await.unwrap_err();
            assert!(matches!(error, BackupError::Damaged(_)), "{name}: {error}");
            assert!(error.to_string().contains(expected), "{name}: {error}");
        }
    }
}

fn flip(path: PathBuf, at: usize) {
    let mut bytes = fs::read(&path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_of_one_cluster_and_in_order() {
    let place = Place::new().await;
    let repository = place.repository(None);
    make(&repository, &Wish::full("a", 100)).await.unwrap();
    let other =
        Wish { cluster: "ffffffffffffffffffffffffffffffff", ..Wish::incremental("b", 200, ("a", 100)) };
    make(&repository, &other).await.unwrap();
    assert!(repository.chain("b").await.unwrap_err().to_string().contains("of the cluster ffff"));
    make(&repository, &Wish::incremental("c", 200, ("a", 99))).await.unwrap();
    assert!(repository.chain("c").await.unwrap_err().to_string().contains("timestamps"));
    assert!(matches!(repository.chain("none").await, Err(BackupError::NoBackup(_))));
    assert!(matches!(repository.chain("../a").await, Err(BackupError::NoBackup(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_says_what_to_set() {
    let place = Place::new().await;
    make(&place.repository(Some(1)), &Wish::full("a", 100)).await.unwrap();
    for key in [None, Some(2)] {
        let error = check(&place.repository(key), "a").await.unwrap_err();
        assert!(matches!(&error, BackupError::Key(text) if text.contains("EBLA_BACKUP_KEY_FILE")), "{error}");
    }
    check(&place.repository(Some(1)), "a").await.unwrap();
    // Plain backups need none, and a key does no harm.
    make(&place.repository(None), &Wish::full("b", 100)).await.unwrap();
    check(&place.repository(Some(2)), "b").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manifest_says_must_fit() {
    let place = Place::new().await;
    let manifest = make(&place.repository(None), &Wish::full("a", 100)).await.unwrap();
    check_manifest(&manifest).unwrap();
    let wrong: [(&str, Change); 11] = [
        ("and its files have fewer", |manifest| manifest.tables[0].parts[0].files.clear()),
        ("and its files have fewer", |manifest| manifest.tables[0].parts[1].rows = 1_000),
        ("has no part for the keys", |manifest| drop(manifest.tables[0].parts.remove(0))),
        ("has no part for the keys", |manifest| manifest.tables[0].parts[0].end = Some("l".into())),
        ("keys of the one before", |manifest| manifest.tables[0].parts[0].end = Some("n".into())),
        ("another table or time", |manifest| manifest.tables[0].parts[0].ts = 99),
        ("does not fit its part", |manifest| manifest.tables[0].parts[0].files[0].max_key = "z".into()),
        ("does not fit its part", |manifest| manifest.tables[0].parts[0].files[0].max_ts = 101),
        ("twice", |manifest| manifest.tables.push(manifest.tables[0].clone())),
        ("cannot be one", |manifest| manifest.tables[0].parts[0].files[0].name = "../x".to_owned()),
        ("does not know", |manifest| manifest.tables[0].settings.kind = "woven".to_owned()),
    ];
    for (expected, change) in wrong {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        let error = check_manifest(&manifest).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_hold_what_their_manifest_says() {
    let place = Place::new().await;
    let repository = place.repository(None);
    let manifest = make(&repository, &Wish::full("a", 100)).await.unwrap();
    let wrong: [Change; 4] = [
        |manifest| manifest.tables[0].parts[0].files[0].versions += 1,
        |manifest| manifest.tables[0].parts[0].files[0].bytes += 1,
        |manifest| manifest.tables[0].parts[0].files[0].min_key = "a".into(),
        |manifest| manifest.tables[0].parts[0].files[0].min_ts = 98,
    ];
    for change in wrong {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        let scratch = tempfile::tempdir().unwrap();
        let checked = repository.check(&manifest, scratch.path(), &Unpaced).await;
        assert!(matches!(checked, Err(BackupError::Damaged(_))), "{checked:?}");
    }
}
