//! What a log entry says to whoever watches a range.

use crate::entry::Entry;
use crate::op::{Body, Cause, Change};
use crate::range::KeyRange;
use bytes::Bytes;

/// One change of what is watched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A row has a value.
    Set {
        /// The row.
        key: Bytes,
        /// Its value.
        body: Body,
        /// Milliseconds since 1970 from which on it reads as gone.
        expires_ms: Option<u64>,
    },
    /// A row is gone.
    Gone {
        /// The row.
        key: Bytes,
        /// Why.
        cause: Cause,
    },
    /// Every row of a range is gone.
    RangeGone {
        /// What of the range is watched.
        range: KeyRange,
    },
}

impl Event {
    /// What `change` says of the keys in `watched`; none when it is about others. A range
    /// tombstone is clamped; of a single key that is watched it says that it was deleted.
    #[must_use]
    pub fn of(change: &Change, watched: &KeyRange) -> Option<Self> {
        match change {
            Change::Put { key, .. } if !watched.contains(key) => None,
            Change::Put { key, body: Body::Tombstone(cause), .. } => {
                Some(Self::Gone { key: key.clone(), cause: *cause })
            }
            Change::Put { key, body, expires_ms } => {
                Some(Self::Set { key: key.clone(), body: body.clone(), expires_ms: *expires_ms })
            }
            Change::RangeTombstone { from, to } => {
                let range = KeyRange::new(from.clone(), to.clone()).ok()?.intersect(watched)?;
                Some(match range.only_key() {
                    Some(key) => Self::Gone { key: key.clone(), cause: Cause::Deleted },
                    None => Self::RangeGone { range },
                })
            }
        }
    }

    /// Bytes that it costs in memory and on the wire, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Set { key, body, .. } => key.len() + body.bytes(),
            Self::Gone { key, .. } => key.len(),
            Self::RangeGone { range } => range.start().len() + range.end().map_or(0, Bytes::len),
        }
    }
}

/// What `entry` says of the keys in `watched`, in its order.
pub fn events_of<'a>(entry: &'a Entry, watched: &'a KeyRange) -> impl Iterator<Item = Event> + 'a {
    entry.changes().iter().filter_map(|change| Event::of(change, watched))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: &'static str, to: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from_static(from.as_bytes()), Some(Bytes::from_static(to.as_bytes()))).unwrap()
    }

    fn tombstone(from: &'static str, to: &'static str) -> Change {
        let range = range(from, to);
        Change::RangeTombstone { from: range.start().clone(), to: range.end().cloned() }
    }

    #[test]
    fn a_deleted_range_is_clamped_to_what_is_watched() {
        let event = Event::of(&tombstone("b", "k"), &range("d", "z"));
        assert_eq!(event, Some(Event::RangeGone { range: range("d", "k") }));
        assert_eq!(Event::of(&tombstone("b", "c"), &range("d", "z")), None);
    }

    #[test]
    fn a_deleted_range_deletes_the_one_key_that_is_watched() {
        let event = Event::of(&tombstone("b", "k"), &range("d", "d\0"));
        assert_eq!(event, Some(Event::Gone { key: Bytes::from_static(b"d"), cause: Cause::Deleted }));
    }

    #[test]
    fn rows_of_others_say_nothing() {
        let put = Change::Put { key: Bytes::from_static(b"a"), body: Body::Counter(1), expires_ms: None };
        assert_eq!(Event::of(&put, &range("b", "c")), None);
        assert!(Event::of(&put, &range("a", "c")).is_some());
    }
}
