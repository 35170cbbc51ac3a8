//! Directories and buckets as targets, the buckets in a real S3 server that also fails.

mod made;

use bytes::Bytes;
use ebla_backup::{
    BackupError, Content, KeptWhy, Listed, Location, PruneWish, Repository, Sign, Spared, Target,
    TargetError, Unpaced, open_target,
};
use ebla_bucket::Bucket;
use made::{Wish, make, repository};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// A target, and where its files lie on this machine.
struct Place {
    target: Arc<dyn Target>,
    dir: TempDir,
    bucket: Option<Bucket>,
}

impl Place {
    async fn directory() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::parse(&format!("file://{}/there", dir.path().display())).unwrap();
        Self { target: open_target(&location).await.unwrap(), dir, bucket: None }
    }

    async fn bucket() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::start(dir.path()).unwrap();
        for (name, value) in bucket.environment() {
            // SAFETY: the tests of this file set the same values, before anything reads them.
            unsafe { std::env::set_var(name, value) };
        }
        let location = Location::parse(&bucket.url("some/where")).unwrap();
        Self { target: open_target(&location).await.unwrap(), dir, bucket: Some(bucket) }
    }

    async fn both() -> [Self; 2] {
        [Self::directory().await, Self::bucket().await]
    }

    /// Where what has this name lies.
    fn path(&self, name: &str) -> std::path::PathBuf {
        let root = if self.bucket.is_some() { "backups/some/where" } else { "there" };
        self.dir.path().join(root).join(name)
    }
}

fn names(listed: &[Listed]) -> Vec<(&str, u64)> {
    listed.iter().map(|listed| (listed.name.as_str(), listed.bytes)).collect()
}

/// Bytes that differ from each other.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[6]).collect()
}

async fn get_file(target: &dyn Target, name: &str, to: &Path) -> Result<Content, TargetError> {
    let _ = fs::remove_file(to);
    target.get_file(name, to, &Unpaced).await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_targets_keep_files() {
    for place in Place::both().await {
        let target = &*place.target;
        let small = Bytes::from_static(b"small");
        for name in ["a/x", "a/b/y", "a/b/z", "ab"] {
            target.put(name, small.clone()).await.unwrap();
        }
        target.put("a/x", Bytes::from_static(b"other")).await.unwrap();
        assert_eq!(target.get("a/x", 5).await.unwrap(), &b"other"[..]);
        assert!(matches!(target.get("a/x", 4).await, Err(TargetError::Refused(_))));
        assert!(matches!(target.get("a/none", 4).await, Err(TargetError::NotFound(_))));
        assert_eq!(names(&target.list("a/").await.unwrap()), [("a/b/y", 5), ("a/b/z", 5), ("a/x", 5)]);
        assert_eq!(target.list("none/").await.unwrap(), []);
        assert!(target.list("a/").await.unwrap().iter().all(|listed| listed.modified_ms > 1_700_000_000_000));
        assert_eq!(target.list_directories("a/").await.unwrap(), ["b"]);
        assert_eq!(target.list_directories("none/").await.unwrap(), [""; 0]);
        target.delete(&["a/x".to_owned(), "none".to_owned()]).await.unwrap();
        assert_eq!(names(&target.list("a/").await.unwrap()), [("a/b/y", 5), ("a/b/z", 5)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_come_back() {
    for place in Place::both().await {
        let target = &*place.target;
        let (from, to) = (place.dir.path().join("from"), place.dir.path().join("to"));
        for bytes in [0, 1, 8 << 20, (8 << 20) + 1, 21 << 20] {
            let content = noise(bytes);
            let _ = fs::remove_file(&from);
            fs::write(&from, &content).unwrap();
            let put = target.put_file("d/file", &from, &Unpaced).await.unwrap();
            assert_eq!(put.bytes, bytes as u64);
            if bytes == 0 {
                continue;
            }
            assert_eq!(get_file(target, "d/file", &to).await.unwrap(), put);
            assert!(fs::read(&to).unwrap() == content, "{bytes} bytes");
        }
        assert!(matches!(get_file(target, "d/none", &to).await, Err(TargetError::NotFound(_))));
        assert_eq!(target.list_unfinished("").await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_disk_files_are_not_copied_and_on_two_they_are() {
    use std::os::unix::fs::MetadataExt as _;
    let place = Place::directory().await;
    let inode = |path: &Path| fs::metadata(path).map(|about| (about.dev(), about.ino())).unwrap();
    let (here, to) = (place.dir.path().join("from"), place.dir.path().join("to"));
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    for (from, is_one_disk) in [(here, true), (elsewhere.path().join("from"), false)] {
        fs::write(&from, b"some bytes").unwrap();
        let put = place.target.put_file("d/file", &from, &Unpaced).await.unwrap();
        let there = place.path("d/file");
        assert_eq!(inode(&from) == inode(&there), is_one_disk);
        fs::remove_file(&from).unwrap();
        assert_eq!(get_file(&*place.target, "d/file", &to).await.unwrap(), put);
        assert_eq!(inode(&to), inode(&there));
        assert!(place.target.get_file("d/file", &to, &Unpaced).await.is_err(), "it is no new file");
        fs::remove_file(&to).unwrap();
        assert_eq!(fs::read(&there).unwrap(), b"some bytes");
        let far = elsewhere.path().join("to");
        assert_eq!(get_file(&*place.target, "d/file", &far).await.unwrap(), put);
        assert_ne!(inode(&far), inode(&there));
        assert_eq!(fs::read(&far).unwrap(), b"some bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_stay_inside_of_a_directory() {
    let place = Place::directory().await;
    for name in ["../x", "a/../../x", "/etc/x", "", "a/./../x"] {
        assert!(matches!(place.target.put(name, Bytes::new()).await, Err(TargetError::Refused(_))), "{name}");
        assert!(matches!(place.target.get(name, 1).await, Err(TargetError::Refused(_))), "{name}");
    }
    let list = place.target.list("backups/").await;
    assert!(matches!(list, Err(TargetError::NotFound(_))), "a directory that is not there is no empty one");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_made_listed_and_checked() {
    for place in Place::both().await {
        for key in [None, Some(1)] {
            let repository = repository(Arc::clone(&place.target), key);
            let (full, more) = if key.is_none() { ("b1", "b2") } else { ("c1", "c2") };
            let first = make(&repository, &Wish::full(full, 100)).await.unwrap();
            let second = make(&repository, &Wish::incremental(more, 200, (full, 100))).await.unwrap();
            assert_eq!(repository.chain(more).await.unwrap(), [first.clone(), second.clone()]);
            assert_eq!(repository.chain(full).await.unwrap(), std::slice::from_ref(&first));
            assert_eq!(repository.parts(full).await.unwrap(), [], "a manifest takes the place of parts");
            check_all(&repository).await.unwrap();
            let totals = first.totals();
            assert_eq!((totals.rows, totals.versions, totals.files), (200, 300, 2));
        }
        let all = repository(Arc::clone(&place.target), None).list().await.unwrap();
        assert_eq!(all.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["b1", "c1", "b2", "c2"]);
        assert!(
            repository(Arc::clone(&place.target), None).garbage(&nothing_known()).await.unwrap().is_empty()
        );
    }
}

/// No cluster can be asked, and everything is old.
fn nothing_known() -> PruneWish {
    let spared = Spared::Alive { since_ms: u64::MAX };
    PruneWish { running: [].into(), over: [].into(), spared }
}

async fn check_all(repository: &Repository) -> Result<(), BackupError> {
    let scratch = tempfile::tempdir().unwrap();
    for manifest in repository.list().await? {
        repository.chain(&manifest.id).await?;
        repository.check(&manifest, scratch.path(), &Unpaced).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_fails_every_third_request_works() {
    let place = Place::bucket().await;
    let bucket = place.bucket.as_ref().unwrap();
    bucket.fail_every(3);
    let repository = repository(Arc::clone(&place.target), Some(1));
    // Two files in three parts each.
    let wish = Wish { rows: 20_000, value_bytes: 700, ..Wish::full("b", 100) };
    let manifest = make(&repository, &wish).await.unwrap();
    assert!(manifest.totals().stored_bytes > 40 << 20, "{:?}", manifest.totals());
    check_all(&repository).await.unwrap();
    repository.remove("b").await.unwrap();
    assert_eq!(repository.list().await.unwrap(), []);
    assert!(bucket.requests() > 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_bucket_says_so_and_leaves_nothing() {
    let place = Place::bucket().await;
    let bucket = place.bucket.as_ref().unwrap();
    let from = place.dir.path().join("from");
    fs::write(&from, noise(20 << 20)).unwrap();
    bucket.set_full(true);
    let error = place.target.put_file("d/file", &from, &Unpaced).await.unwrap_err();
    assert!(matches!(&error, TargetError::Full(text) if text.contains("free some space")), "{error}");
    let error = place.target.put("d/small", Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, TargetError::Full(_)), "{error}");
    bucket.set_full(false);
    assert_eq!(place.target.list("").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_directory_says_so_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no small file system can be mounted here");
        return;
    }
    let location = Location::parse(&format!("file://{}/there", dir.path().display())).unwrap();
    let target = open_target(&location).await.unwrap();
    let from = tempfile::NamedTempFile::new().unwrap();
    fs::write(from.path(), noise(5 << 20)).unwrap();
    let errors = [
        target.put_file("d/file", from.path(), &Unpaced).await.unwrap_err(),
        target.put("d/file", noise(5 << 20).into()).await.unwrap_err(),
    ];
    let left = target.list_unfinished("").await.unwrap();
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(left, []);
    for error in errors {
        assert!(matches!(&error, TargetError::Full(text) if text.contains("free some space")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_bucket_and_a_dead_server_are_told_apart() {
    let place = Place::bucket().await;
    let endpoint = place.bucket.as_ref().unwrap().endpoint();
    let location = Location::parse(&format!("s3://elsewhere/p?endpoint={endpoint}")).unwrap();
    let error = open_target(&location).await.unwrap().list("").await.unwrap_err();
    assert!(matches!(&error, TargetError::Refused(text) if text.contains("bucket")), "{error}");
    let missing = Location::parse("s3://b/p?ca=/no/such/file").unwrap();
    assert!(
        matches!(open_target(&missing).await, Err(TargetError::Refused(text)) if text.contains("/no/such/file"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_what_no_backup_needs() {
    for place in Place::both().await {
        let repository = repository(Arc::clone(&place.target), None);
        let manifest = make(&repository, &Wish::full("20260101T000000Z-00000001", 100)).await.unwrap();
        make(&repository, &Wish::full("20260101T000000Z-00000002", 100)).await.unwrap();
        make(&repository, &Wish::full("20260101T000000Z-00000003", 100)).await.unwrap();
        let put = |name: &'static str| place.target.put(name, Bytes::from_static(b"x"));
        place
            .target
            .delete(&[
                "backups/20260101T000000Z-00000002/manifest.json".into(),
                "backups/20260101T000000Z-00000003/manifest.json".into(),
            ])
            .await
            .unwrap();
        put("backups/20260101T000000Z-00000001/data/p9-0000.sst").await.unwrap();
        put("backups/20260101T000000Z-00000001/parts/p9.json").await.unwrap();
        put("probes/0000000000000001").await.unwrap();
        let mut expected = vec![
            "backups/20260101T000000Z-00000001/data/p9-0000.sst",
            "backups/20260101T000000Z-00000001/parts/p9.json",
            "backups/20260101T000000Z-00000002/data/p1-0000.sst",
            "backups/20260101T000000Z-00000002/data/p2-0000.sst",
            "probes/0000000000000001",
        ];
        if place.bucket.is_none() {
            fs::write(
                place.path("backups/20260101T000000Z-00000002/data/.unfinished-7-0-p3-0000.sst"),
                b"xy",
            )
            .unwrap();
            // Of an earlier try; the one that came after it is there.
            let earlier = "backups/20260101T000000Z-00000001/.unfinished-7-1-manifest.json";
            fs::write(place.path(earlier), b"xyz").unwrap();
        }
        // Young, but for what lies in a backup that is done.
        let spared = Spared::Written { since_ms: 1 };
        let young = repository.garbage(&PruneWish { spared, ..nothing_known() }).await.unwrap();
        assert_eq!(names(&young.files), [(expected[0], 1), (expected[1], 1)]);
        let running = ["20260101T000000Z-00000003".to_owned()].into();
        let garbage = repository.garbage(&PruneWish { running, ..nothing_known() }).await.unwrap();
        assert_eq!(
            garbage.kept.iter().map(|kept| kept.id.as_str()).collect::<Vec<_>>(),
            ["20260101T000000Z-00000003"]
        );
        let found: Vec<_> = garbage.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(found, expected);
        assert_eq!(garbage.backups, ["20260101T000000Z-00000002"]);
        let uploads: Vec<_> = garbage.uploads.iter().map(|upload| upload.bytes).collect();
        assert_eq!(uploads, if place.bucket.is_none() { vec![3, 2] } else { Vec::new() });
        repository.remove_garbage(&garbage).await.unwrap();
        expected.clear();
        assert!(
            !place.path("backups/20260101T000000Z-00000002").join("data").exists() || place.bucket.is_some()
        );
        assert_eq!(repository.list().await.unwrap(), [manifest]);
        check_all(&repository).await.unwrap();
        assert_eq!(place.target.list("backups/20260101T000000Z-00000003/").await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_of_life_keeps_a_backup_until_it_is_known_to_be_over() {
    for place in Place::both().await {
        let repository = repository(Arc::clone(&place.target), None);
        let sign = Sign::new(made::CLUSTER.to_owned(), 7, "somebody".to_owned(), 1);
        for id in ["20260101T000000Z-00000005", "20260101T000000Z-00000004", "20260101T000000Z-00000006"] {
            make(&repository, &Wish::full(id, 100)).await.unwrap();
            if id != "20260101T000000Z-00000006" {
                place.target.delete(&[format!("backups/{id}/manifest.json")]).await.unwrap();
            }
        }
        place
            .target
            .put("backups/20260101T000000Z-00000006/manifest.json", Bytes::from_static(b"x"))
            .await
            .unwrap();
        repository.put_sign("20260101T000000Z-00000004", &sign).await.unwrap();
        let now = Spared::Alive { since_ms: 1 };
        let garbage = async |over: &[&str], spared| {
            let over = over.iter().map(|&id| id.to_owned()).collect();
            let found = repository.garbage(&PruneWish { over, spared, ..nothing_known() }).await.unwrap();
            (found.backups, found.kept)
        };
        let (found, kept) = garbage(&[], now).await;
        assert_eq!(found, ["20260101T000000Z-00000005"]);
        assert_eq!(kept[0].why, KeptWhy::Alive(Some(sign)));
        assert!(matches!(kept[1].why, KeptWhy::Damaged(_)), "{kept:?}");
        assert_eq!(
            garbage(&["20260101T000000Z-00000004"], now).await.0,
            ["20260101T000000Z-00000004", "20260101T000000Z-00000005"]
        );
        // Its last sign was long ago.
        assert_eq!(
            garbage(&[], Spared::Alive { since_ms: u64::MAX }).await.0,
            ["20260101T000000Z-00000004", "20260101T000000Z-00000005"]
        );
        assert_eq!(garbage(&["20260101T000000Z-00000004"], Spared::Written { since_ms: 1 }).await.0, [""; 0]);
        // The manifest takes its place.
        make(&repository, &Wish::full("20260101T000000Z-00000004", 100)).await.unwrap();
        assert!(
            place
                .target
                .list("backups/20260101T000000Z-00000004/")
                .await
                .unwrap()
                .iter()
                .all(|it| !it.name.contains("sign"))
        );
    }
}
