//! Rooms: keys whose rows say, as bits, which servers have subscribers.
//!
//! ```text
//!  subscriber ── server ──(Set bit)──▶ leader of the room's row ◀──(publish)── server ── publisher
//!      ▲           │                        │ reads the row
//!      └───────────┴◀───── deliver ─────────┘ once per server with a current bit
//! ```
//!
//! - A bit carries a stamp: the run of its server and that server's subscription sequence. Only a
//!   stamp of the present run counts, so a restart takes back all bits at once ([`row`]).
//! - A server sets its bit with its first subscriber and clears it a while after the last
//!   ([`subscriptions`]); nobody else takes away a bit of a present run.
//! - Nothing is kept of messages: what is published while nobody listens is gone.

pub mod row;
pub mod subscriptions;

use crate::ids::{Incarnation, Ordinal};
use crate::limits::{ROOM_MESSAGE_BYTES_MAX, ROOM_NAME_BYTES_MAX};
use std::collections::BTreeMap;
use std::fmt;

/// The table of room rows.
pub const ROOMS_TABLE: &str = "ebla.rooms";

/// Counts how often a server has begun to want the bit of any room; rises within a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct SubSeq(pub u64);

/// Whose bit it is, exactly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    /// The run of the server.
    pub incarnation: Incarnation,
    /// When in that run the bit was wanted.
    pub sub_seq: SubSeq,
}

/// The present run of every server that is known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerRuns {
    /// By the servers' bits.
    pub runs: BTreeMap<Ordinal, Incarnation>,
}

impl ServerRuns {
    /// Whether a run is over for sure. Ordinals are given in rising order and never twice: one
    /// that is missing below a known one was forgotten, one above all is news that has not come.
    #[must_use]
    pub fn is_over(&self, ordinal: Ordinal, incarnation: Incarnation) -> bool {
        match self.runs.get(&ordinal) {
            Some(present) => incarnation < *present,
            None => self.runs.last_key_value().is_some_and(|(last, _)| ordinal < *last),
        }
    }

    /// Whether this is the present run, as far as is known.
    #[must_use]
    pub fn is_present(&self, ordinal: Ordinal, incarnation: Incarnation) -> bool {
        self.runs.get(&ordinal) == Some(&incarnation)
    }
}

/// A name or a message that no room takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadRoom {
    /// A name of no bytes.
    EmptyName,
    /// A name above the limit.
    NameTooLong(usize),
    /// A message above the limit.
    MessageTooLong(usize),
}

impl fmt::Display for BadRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyName => f.write_str("the room has no name: give one of at least one byte"),
            Self::NameTooLong(bytes) => write!(
                f,
                "a room name of {bytes} bytes is above the limit of {ROOM_NAME_BYTES_MAX}: shorten or hash it"
            ),
            Self::MessageTooLong(bytes) => write!(
                f,
                "a message of {bytes} bytes is above the limit of {ROOM_MESSAGE_BYTES_MAX}: \
                 put it into a row and send the row's key"
            ),
        }
    }
}

impl std::error::Error for BadRoom {}

/// Checks the name of a room.
///
/// # Errors
/// `EmptyName` or `NameTooLong`.
pub fn check_name(name: &[u8]) -> Result<(), BadRoom> {
    match name.len() {
        0 => Err(BadRoom::EmptyName),
        bytes if bytes > ROOM_NAME_BYTES_MAX => Err(BadRoom::NameTooLong(bytes)),
        _ => Ok(()),
    }
}

/// Checks a message to a room.
///
/// # Errors
/// What is wrong with name or message.
pub fn check_message(room: &[u8], message: &[u8]) -> Result<(), BadRoom> {
    check_name(room)?;
    match message.len() {
        bytes if bytes > ROOM_MESSAGE_BYTES_MAX => Err(BadRoom::MessageTooLong(bytes)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_messages_have_limits() {
        assert_eq!(check_name(b""), Err(BadRoom::EmptyName));
        assert_eq!(check_name(&[b'x'; 1024]), Ok(()));
        assert_eq!(check_name(&[b'x'; 1025]), Err(BadRoom::NameTooLong(1025)));
        assert_eq!(check_message(b"r", &vec![0; 1024 * 1024]), Ok(()));
        assert_eq!(check_message(b"r", &vec![0; 1024 * 1024 + 1]), Err(BadRoom::MessageTooLong(1_048_577)));
    }

    #[test]
    fn only_what_is_known_to_be_over_is_over() {
        let runs = BTreeMap::from([(Ordinal(1), Incarnation(3)), (Ordinal(4), Incarnation(1))]);
        let runs = ServerRuns { runs };
        assert!(runs.is_over(Ordinal(1), Incarnation(2)) && !runs.is_over(Ordinal(1), Incarnation(3)));
        assert!(!runs.is_over(Ordinal(1), Incarnation(4)), "a newer run than is known");
        assert!(runs.is_over(Ordinal(2), Incarnation(9)), "a forgotten server");
        assert!(!runs.is_over(Ordinal(5), Incarnation(1)), "a server that is new");
        assert!(runs.is_present(Ordinal(4), Incarnation(1)) && !runs.is_present(Ordinal(5), Incarnation(1)));
    }
}
