//! Who is in a room on this server, small for the common room of one.

use super::mailbox::{Mailbox, NotTaken};
use bytes::Bytes;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// What goes to a subscriber.
pub enum Parcel {
    /// A message of a room.
    Message(Message),
    /// A request is done.
    Answer(v1::SubscribeAnswer),
}

/// A message of a room. Copies share their bytes.
#[derive(Clone, Debug)]
pub struct Message {
    /// The room.
    pub room: Bytes,
    /// What was said.
    pub message: Bytes,
    /// Its number in the room.
    pub seq: u64,
}

impl Message {
    /// Bytes that it takes in a queue, with what goes around them.
    #[must_use]
    pub fn size(&self) -> usize {
        self.room.len() + self.message.len() + super::PARCEL_BYTES
    }
}

/// One stream of a subscriber.
pub struct Subscriber {
    /// Names it on this server.
    pub number: u64,
    /// Its queue.
    pub mailbox: Arc<Mailbox<Parcel>>,
}

impl Subscriber {
    /// Hands a message over. A subscriber that does not keep up is cut off: others must not
    /// wait for it.
    fn deliver(&self, message: &Message) -> bool {
        match self.mailbox.put(Parcel::Message(message.clone()), message.size()) {
            Ok(()) => true,
            Err(NotTaken::Ended) => false,
            Err(NotTaken::Full) => {
                let hint = "this subscriber read too slowly and was cut off; what was published since is \
                            lost for it: read faster, or spread the rooms over more streams, and subscribe again";
                self.mailbox.end(Some(ApiError::new(Reason::SubscriberTooSlow, hint).into()));
                metrics::counter!("ebla_room_subscribers_cut_total").increment(1);
                false
            }
        }
    }
}

type Many = Arc<Mutex<HashMap<u64, Arc<Subscriber>>>>;

/// The subscribers of one room.
#[derive(Clone, Default)]
pub enum Members {
    /// Nobody.
    #[default]
    None,
    /// The usual number.
    One(Arc<Subscriber>),
    /// More.
    Many(Many),
}

impl Members {
    /// Adds a subscriber that is not there.
    pub fn insert(&mut self, subscriber: Arc<Subscriber>) {
        match self {
            Self::None => *self = Self::One(subscriber),
            Self::One(first) => {
                let both = [Arc::clone(first), subscriber];
                let both = both.into_iter().map(|one| (one.number, one));
                *self = Self::Many(Arc::new(Mutex::new(both.collect())));
            }
            Self::Many(many) => {
                lock(many).insert(subscriber.number, subscriber);
            }
        }
    }

    /// Takes a subscriber out.
    pub fn remove(&mut self, number: u64) {
        match self {
            Self::None => {}
            Self::One(one) if one.number == number => *self = Self::None,
            Self::One(_) => {}
            Self::Many(many) => {
                let mut many = lock(many);
                many.remove(&number);
                let is_empty = many.is_empty();
                drop(many);
                if is_empty {
                    *self = Self::None;
                }
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(many) => lock(many).len(),
        }
    }

    /// Hands a message to everybody; gives how many took it.
    #[must_use]
    pub fn deliver(&self, message: &Message) -> u64 {
        match self {
            Self::None => 0,
            Self::One(one) => u64::from(one.deliver(message)),
            Self::Many(many) => lock(many).values().map(|one| u64::from(one.deliver(message))).sum(),
        }
    }
}

fn lock(many: &Many) -> MutexGuard<'_, HashMap<u64, Arc<Subscriber>>> {
    many.lock().expect("no holder of this lock panics")
}
