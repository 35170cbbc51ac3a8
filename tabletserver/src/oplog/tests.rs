//! The log against crashes: reopen, torn tails, damage, cuts, purges, many tablets.

use super::*;
use ebla_kernel::entry::{LogEnd, Payload, WriteRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Incarnation, ReplicaId};
use ebla_kernel::op::{AckLevel, Body, Change, OpResult};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

const T: TabletId = TabletId(5);

fn payload(value: &[u8]) -> Payload {
    let body = Body::Value(Bytes::copy_from_slice(value));
    let change = Change::Put { key: Bytes::from_static(b"k"), body, expires_ms: None };
    let (changes, results) = (vec![change], vec![OpResult::Done]);
    Payload::Write(WriteRecord { token: None, level: AckLevel::Leader, changes, results })
}

/// `count` entries that follow `end`, each with `bytes` of value that do not compress.
fn entries_after(mut end: LogEnd, count: usize, bytes: usize) -> Vec<Entry> {
    let mut noise = end.pos.seq.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next_byte = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as u8
    };
    let mut entries = Vec::new();
    for _ in 0..count {
        let value: Vec<u8> = (0..bytes).map(|_| next_byte()).collect();
        entries.push(end.follow(Epoch(1), end.ts.next(), payload(&value)));
        end = entries[entries.len() - 1].end();
    }
    entries
}

fn entries(count: usize) -> Vec<Entry> {
    entries_after(LogEnd::default(), count, 100)
}

fn logged(entries: &[Entry]) -> Vec<Arc<Logged>> {
    entries.iter().cloned().map(Logged::from).map(Arc::new).collect()
}

fn open(dir: &TempDir) -> Result<Oplog, OplogError> {
    Oplog::open(&dir.path().join("oplog"), &OplogConfig { file_bytes: 64 * 1024, purge_bytes: 64 * 1024 })
}

fn append(oplog: &Oplog, tablet: TabletId, tail: Tail, entries: &[Entry]) -> Result<usize, OplogError> {
    let entries = logged(entries);
    oplog.append_group(&[Append { tablet, tail, entries: entries.iter().collect() }], Fsync::Now)
}

/// A log of one group per entry, closed again, and its last file.
fn written(entries: &[Entry]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let oplog = open(&dir).unwrap();
    for entry in entries {
        append(&oplog, T, Tail::Continue, std::slice::from_ref(entry)).unwrap();
    }
    drop(oplog);
    let path = last_file(&dir);
    (dir, path)
}

fn last_file(dir: &TempDir) -> PathBuf {
    let files = fs::read_dir(dir.path().join("oplog")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "raftlog")).max().unwrap()
}

fn change_file(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn read_all(oplog: &Oplog, tablet: TabletId) -> Vec<Entry> {
    oplog.bounds(tablet).map_or(Vec::new(), |(first, _)| oplog.read(tablet, first, usize::MAX).unwrap())
}

#[test]
fn a_reopened_log_holds_what_was_appended() {
    let all = entries(20);
    let dir = tempfile::tempdir().unwrap();
    let oplog = open(&dir).unwrap();
    let other = entries_after(
        LogEnd { pos: ebla_kernel::ids::Pos::new(Epoch(1), Seq(40)), ..LogEnd::default() },
        3,
        10,
    );
    let (some, others) = (logged(&all), logged(&other));
    let group = [
        Append { tablet: T, tail: Tail::Continue, entries: some.iter().collect() },
        Append { tablet: TabletId(9), tail: Tail::Continue, entries: others.iter().collect() },
    ];
    oplog.append_group(&group, Fsync::Now).unwrap();
    drop(oplog);
    let oplog = open(&dir).unwrap();
    assert_eq!(oplog.tablets(), [T, TabletId(9)]);
    assert_eq!(oplog.bounds(T), Some((Seq(1), Seq(20))));
    assert_eq!(oplog.bounds(TabletId(9)), Some((Seq(41), Seq(43))));
    assert_eq!(read_all(&oplog, T), all);
    assert_eq!(read_all(&oplog, TabletId(9)), other);
    assert_eq!(oplog.read(T, Seq(21), 100).unwrap(), []);
    assert_eq!(oplog.read(T, Seq(7), 1).unwrap(), all[6..7]);
    assert_eq!(oplog.bounds(TabletId(77)), None);
    assert!(oplog.bytes_on_disk() > 0);
}

#[test]
fn a_hole_is_refused_and_a_cut_must_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let oplog = open(&dir).unwrap();
    let all = entries(10);
    append(&oplog, T, Tail::Continue, &all[..5]).unwrap();
    for (tail, from) in [(Tail::Continue, 6), (Tail::Cut, 6), (Tail::Continue, 4), (Tail::Continue, 2)] {
        let refused = append(&oplog, T, tail, &all[from..]);
        assert!(matches!(refused, Err(OplogError::NotContiguous { .. })), "{tail:?} {from}: {refused:?}");
    }
    let with_a_hole = logged(&[all[5].clone(), all[7].clone()]);
    let group = [Append { tablet: T, tail: Tail::Continue, entries: with_a_hole.iter().collect() }];
    assert!(matches!(oplog.append_group(&group, Fsync::Now), Err(OplogError::NotContiguous { .. })));
    assert_eq!(read_all(&oplog, T), all[..5]);

    let other = entries_after(all[2].end(), 1, 7);
    append(&oplog, T, Tail::Cut, &other).unwrap();
    drop(oplog);
    let oplog = open(&dir).unwrap();
    assert_eq!(read_all(&oplog, T), [&all[..3], &other[..]].concat());
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let all = entries(6);
    let (dir, path) = written(&all);
    let whole = fs::read(&path).unwrap();
    drop(dir);
    let (dir, path) = written(&all[..5]);
    let last_batch_at = fs::read(&path).unwrap().len();
    drop(dir);
    for len in last_batch_at..whole.len() {
        let (dir, path) = written(&all[..5]);
        fs::write(&path, &whole[..len]).unwrap();
        let oplog = open(&dir).unwrap();
        assert_eq!(read_all(&oplog, T), all[..5], "cut at {len}");
        append(&oplog, T, Tail::Continue, &all[5..]).unwrap();
        assert_eq!(read_all(&oplog, T), all);
    }
}

#[test]
fn a_garbled_or_zeroed_tail_is_cut() {
    let all = entries(6);
    for garble in [|byte: &mut u8| *byte ^= 0x55, |byte: &mut u8| *byte = 0] {
        let (dir, path) = written(&all);
        change_file(&path, |bytes| {
            let at = bytes.len() - 60;
            bytes[at..].iter_mut().for_each(garble);
            bytes.resize(bytes.len() + 10_000, 0);
        });
        assert_eq!(read_all(&open(&dir).unwrap(), T), all[..5]);
    }
}

#[test]
fn a_flipped_byte_before_the_last_record_is_damage() {
    let all = entries(6);
    let (dir, path) = written(&all[..5]);
    let last_batch_at = fs::read(&path).unwrap().len();
    drop(dir);
    for at in (0..last_batch_at).step_by(7) {
        let (dir, path) = written(&all);
        change_file(&path, |bytes| bytes[at] ^= 0x10);
        let opened = open(&dir).map(|_| ());
        assert!(matches!(opened, Err(OplogError::Damaged { .. })), "byte {at}: {opened:?}");
    }
}

#[test]
fn damage_in_an_older_file_is_found_at_open_or_read() {
    let all = entries_after(LogEnd::default(), 40, 10_000);
    for back in [20_000, 30_000, 45_000] {
        let (dir, _) = written(&all);
        let mut files: Vec<_> =
            fs::read_dir(dir.path().join("oplog")).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "raftlog"));
        files.sort();
        assert!(files.len() > 3);
        change_file(&files[1], |bytes| bytes[back] ^= 0x10);
        let found = open(&dir).and_then(|oplog| oplog.read(T, Seq(1), usize::MAX).map(drop));
        assert!(matches!(found, Err(OplogError::Damaged { .. })), "{found:?}");
        fs::remove_file(&files[1]).unwrap();
        assert!(matches!(open(&dir).map(drop), Err(OplogError::Damaged { .. })));
    }
}

#[test]
fn a_purge_gives_space_back_and_keeps_what_must_stay() {
    let dir = tempfile::tempdir().unwrap();
    let oplog = open(&dir).unwrap();
    let idle = entries(1);
    append(&oplog, TabletId(9), Tail::Continue, &idle).unwrap();
    let all = entries_after(LogEnd::default(), 100, 10_000);
    for chunk in all.chunks(2) {
        append(&oplog, T, Tail::Continue, chunk).unwrap();
    }
    let before = oplog.bytes_on_disk();
    oplog.compact_to(&[(T, Seq(91)), (TabletId(77), Seq(3))]).unwrap();
    oplog.purge().unwrap();
    assert!(oplog.bytes_on_disk() < before / 2, "{} of {before} left", oplog.bytes_on_disk());
    drop(oplog);
    let oplog = open(&dir).unwrap();
    assert_eq!(oplog.bounds(T), Some((Seq(91), Seq(100))));
    assert_eq!(read_all(&oplog, T), all[90..]);
    assert_eq!(read_all(&oplog, TabletId(9)), idle);
    assert!(matches!(oplog.read(T, Seq(90), 1), Err(OplogError::Purged { .. })));
    oplog.remove(&[T]).unwrap();
    drop(oplog);
    let oplog = open(&dir).unwrap();
    assert_eq!(oplog.bounds(T), None);
    append(&oplog, T, Tail::Continue, &all[50..52]).unwrap();
    assert_eq!(oplog.bounds(T), Some((Seq(51), Seq(52))));
}

#[test]
fn a_cut_tail_stays_away() {
    let dir = tempfile::tempdir().unwrap();
    let oplog = open(&dir).unwrap();
    let all = entries(10);
    append(&oplog, T, Tail::Continue, &all).unwrap();
    append(&oplog, TabletId(9), Tail::Continue, &all).unwrap();
    oplog.compact_to(&[(T, Seq(4))]).unwrap();
    for keep in [Seq(10), Seq(7), Seq(7), Seq(4)] {
        oplog.cut_after(T, keep).unwrap();
        assert_eq!(oplog.bounds(T), Some((Seq(4), keep)));
    }
    assert!(matches!(oplog.cut_after(T, Seq(2)), Err(OplogError::Purged { .. })));
    oplog.cut_after(TabletId(9), Seq(0)).unwrap();
    drop(oplog);
    let oplog = open(&dir).unwrap();
    assert_eq!(read_all(&oplog, T), all[3..4]);
    assert_eq!(oplog.bounds(TabletId(9)), None);
    append(&oplog, T, Tail::Continue, &all[4..6]).unwrap();
    append(&oplog, TabletId(9), Tail::Continue, &all[..2]).unwrap();
    assert_eq!(oplog.bounds(T), Some((Seq(4), Seq(6))));
}

#[test]
fn ten_thousand_tablets_reopen_fast() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("oplog");
    let oplog = Oplog::open(&path, &OplogConfig::default()).unwrap();
    let start = Payload::EpochStart { replica: ReplicaId(1), incarnation: Incarnation(1) };
    let entry = LogEnd::default().follow(Epoch(1), Hlc(1), start);
    let logged = Arc::new(Logged::from(entry.clone()));
    let append = |tablet| Append { tablet: TabletId(tablet), tail: Tail::Continue, entries: vec![&logged] };
    oplog.append_group(&(1..=10_000).map(append).collect::<Vec<_>>(), Fsync::Now).unwrap();
    drop(oplog);
    let started = std::time::Instant::now();
    let oplog = Oplog::open(&path, &OplogConfig::default()).unwrap();
    assert_eq!(oplog.tablets().len(), 10_000);
    assert_eq!(read_all(&oplog, TabletId(10_000)), [entry]);
    assert!(started.elapsed().as_secs() < 3, "took {:?}", started.elapsed());
}

#[test]
fn two_logs_cannot_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(&dir).unwrap();
    assert!(matches!(open(&dir).map(drop), Err(OplogError::Open { .. })));
}

#[test]
fn worked_bytes_of_the_documentation() {
    let start = Payload::EpochStart { replica: ReplicaId(3), incarnation: Incarnation(7) };
    let entry = LogEnd::default().follow(Epoch(1), Hlc::new(1, 0), start);
    let stored = record(&Logged::from(entry.clone())).value;
    let text = include_str!("../../../docs/formats.md");
    crate::documented::check(text, "oplog-record", &stored);
    assert_eq!(read_record(T, Seq(1), &stored).unwrap(), entry);
}
