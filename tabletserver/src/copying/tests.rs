//! A start in the middle of a bootstrap, and after it.

use crate::bootstrap::open;
use crate::config::Config;
use crate::oplog::{Append, Fsync, Logged, Tail};
use crate::registry::{EpochSpan, ReplicaRecord, ReplicaState};
use crate::replicas::Flushed;
use crate::store::{Applied, Store};
use bytes::Bytes;
use ebla_kernel::entry::{LogEnd, Payload, WriteRecord};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Epoch, Pos, ReplicaId, Seq, TableId, TabletId};
use ebla_kernel::op::{AckLevel, Body, Change, OpResult};
use std::sync::Arc;

fn learner() -> ReplicaRecord {
    ReplicaRecord {
        state: ReplicaState::Bootstrapping { attempt: 1 },
        promised_epoch: Epoch(3),
        ..ReplicaRecord::blank(TabletId(5), TableId(2), ReplicaId(9))
    }
}

fn row() -> Change {
    let body = Body::Value(Bytes::from_static(b"v"));
    Change::Put { key: Bytes::from_static(b"k"), body, expires_ms: None }
}

/// The entry at 40, the last one that the rows contain.
fn last_entry() -> Arc<Logged> {
    let before = LogEnd { pos: Pos::new(Epoch(3), Seq(39)), ts: Hlc(390), hash: 77 };
    let (changes, results) = (vec![row()], vec![OpResult::Done]);
    let record = WriteRecord { token: None, level: AckLevel::Leader, changes, results };
    Arc::new(before.follow(Epoch(3), Hlc(400), Payload::Write(record)).into())
}

#[test]
fn what_is_half_built_is_nothing_and_what_is_built_begins_at_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(Vec::new(), "127.0.0.1:0".to_owned(), dir.path().to_owned());
    let last = last_entry();
    {
        let opened = open(&config).unwrap();
        opened.replicas.put(vec![learner()]).unwrap();
        let row = row();
        opened.store.apply(&[Applied { table: TableId(2), ts: Hlc(400), change: &row }]).unwrap();
        opened.store.flush().unwrap();
        let entries = vec![&last];
        let append = Append { tablet: TabletId(5), tail: Tail::Continue, entries };
        opened.oplog.append_group(&[append], Fsync::Now).unwrap();
    }
    {
        let opened = open(&config).unwrap();
        assert!(opened.recovered.is_empty(), "the range and the log are garbage");
        let built = |replica| Flushed {
            tablet: TabletId(5),
            replica,
            end: last.entry.end(),
            epochs: vec![EpochSpan { epoch: Epoch(3), first: Seq(30) }],
            rows: 1,
            bytes: 2,
        };
        // Another try, or another copy, has taken its place.
        let later = ReplicaRecord { state: ReplicaState::Bootstrapping { attempt: 2 }, ..learner() };
        assert!(opened.replicas.end_bootstrap(&later, &built(later.replica), 7).unwrap().is_none());
        let other = ReplicaRecord { replica: ReplicaId(8), ..learner() };
        assert!(opened.replicas.end_bootstrap(&other, &built(other.replica), 7).unwrap().is_none());
        // A flush of rows says nothing of a copy that is not whole.
        assert!(opened.replicas.flushed(opened.replicas.cuts(), &[built(ReplicaId(9))]).unwrap());
        assert_eq!(opened.replicas.get(TabletId(5)), Some(learner()));
        let ended = opened.replicas.end_bootstrap(&learner(), &built(ReplicaId(9)), 7).unwrap();
        assert_eq!(ended.map(|record| record.state), Some(ReplicaState::Active));
    }
    let opened = open(&config).unwrap();
    let [recovered] = &opened.recovered[..] else { panic!("one copy") };
    assert_eq!(recovered.end, last.entry.end());
    assert_eq!(recovered.epochs, [EpochSpan { epoch: Epoch(3), first: Seq(30) }]);
    assert_eq!(recovered.record.promised_epoch, Epoch(3));
    assert_eq!(recovered.tokens.floor_ms(), 7, "tokens of what was before are forgotten, and no others");
}
