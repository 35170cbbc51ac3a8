//! Which bits a server wants in the rows of rooms, and what it says about them to their leaders.
//!
//! ```text
//!            join                       done
//!  Vacant ─────────▶ Wanted ──(Set)──▶ Set ──┐ said again every round, and when in doubt
//!    ▲                 ▲                │ ◀──┘
//!    │ done            │ join           │ nobody left for 5 s
//!    └──── Clearing ◀──┴────────────────┘   in doubt it is Wanted again
//! ```
//!
//! - A subscriber is told that it is in when the bit is set, never earlier: who comes while it is in
//!   doubt, or after what was said of it has failed, waits like the first.
//! - A room that is wanted anew after its clear has begun gets a new sequence, so that the clear,
//!   which names exactly the old one, takes nothing away however late it comes.
//! - A clear is said only when no set of the same sequence is under way.
//! - What is under way is bounded: ten thousand rooms in doubt are said one window after another.
//!
//! Knows no names: the shell gives each room a number.

use super::SubSeq;
use crate::ids::Tick;
use crate::limits::{ROOM_BITS_IN_FLIGHT_MAX, ROOM_CLEAR_DELAY_MS, ROOM_REASSERT_MS, ROOM_RETRY_MS};
use crate::mutated;
use std::collections::{BTreeSet, VecDeque};

/// A room of this server; a number that is free again is given anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RoomId(pub u32);

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A room has one more subscriber here.
    Join(RoomId),
    /// A room has one less.
    Leave(RoomId),
    /// What was said of the bit holds, on as many copies as the table wants.
    Done(RoomId, SubSeq),
    /// It was refused, or nobody knows.
    Failed(RoomId, SubSeq),
    /// Another leads the row, or its history broke: the bit may be gone.
    Doubt(RoomId),
    /// A message came though nobody is there: the bit is of this run and has this sequence.
    Stray(RoomId, SubSeq),
    /// Time passes.
    Tick,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Set the bit, then say `Done` or `Failed`.
    Set(RoomId, SubSeq),
    /// Clear the bit if it has exactly this sequence, then say `Done` or `Failed`.
    Clear(RoomId, SubSeq),
    /// Who waits for the bit of the room is in.
    Ready(RoomId),
    /// Nothing is wanted of the room any more: its number is free.
    Forget(RoomId),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    #[default]
    Vacant,
    Wanted,
    Set,
    Clearing,
}

/// One room; small, because there are millions.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    sub_seq: SubSeq,
    /// When the bit goes, if nobody has come until then.
    clear_at: Tick,
    subscribers: u32,
    phase: Phase,
    is_queued: bool,
    /// The present sequence was said and not answered.
    is_under_way: bool,
    is_leaving: bool,
    /// Came into doubt while something was under way: its answer may be of the past.
    is_doubted: bool,
}

/// The core: everything that one server wants of rooms.
#[derive(Clone, Debug)]
pub struct Subscriptions {
    slots: Vec<Slot>,
    last_seq: SubSeq,
    /// Rooms of which something is to be said.
    queue: VecDeque<RoomId>,
    under_way: usize,
    /// Rooms that somebody left, by when their bit goes.
    leaving: VecDeque<(Tick, RoomId)>,
    /// Rooms of which something is to be said again.
    again: BTreeSet<(Tick, RoomId)>,
    /// Where the round is that says everything again.
    cursor: usize,
    /// Up to when the round has been taken.
    round_at: Tick,
    period_ms: u64,
}

impl Subscriptions {
    /// Nobody is in any room. `jitter` shortens the round by up to a sixth, so that servers that
    /// start together do not stay together.
    #[must_use]
    pub fn new(now: Tick, jitter: u64) -> Self {
        Self {
            slots: Vec::new(),
            last_seq: SubSeq(0),
            queue: VecDeque::new(),
            under_way: 0,
            leaving: VecDeque::new(),
            again: BTreeSet::new(),
            cursor: 0,
            round_at: now,
            period_ms: ROOM_REASSERT_MS - jitter % (ROOM_REASSERT_MS / 6),
        }
    }

    /// Takes one input.
    pub fn step(&mut self, now: Tick, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Join(room) => self.join(room, effects),
            Input::Leave(room) => self.leave(now, room),
            Input::Done(room, sub_seq) => self.done(room, sub_seq, effects),
            Input::Failed(room, sub_seq) => self.failed(now, room, sub_seq),
            Input::Doubt(room) => self.doubt(room),
            Input::Stray(room, sub_seq) => self.stray(room, sub_seq),
            Input::Tick => self.tick(now),
        }
        self.say(effects);
    }

    /// When the next `Tick` is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let left = self.leaving.front().map(|(at, _)| *at);
        let again = self.again.first().map(|(at, _)| *at);
        let each_ms = self.period_ms / (self.slots.len() as u64).max(1);
        let round = (!self.slots.is_empty()).then(|| self.round_at.plus_ms(each_ms.max(1)));
        [left, again, round].into_iter().flatten().min()
    }

    /// Whether the bit of a room is set, as far as this server knows.
    #[must_use]
    pub fn is_set(&self, room: RoomId) -> bool {
        self.slots.get(room.0 as usize).is_some_and(|slot| slot.phase == Phase::Set)
    }

    /// Whether nothing is under way nor waits to be.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.under_way == 0 && self.queue.is_empty() && self.again.is_empty() && self.leaving.is_empty()
    }

    fn slot(&mut self, room: RoomId) -> &mut Slot {
        let at = room.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize(at + 1, Slot::default());
        }
        &mut self.slots[at]
    }

    fn join(&mut self, room: RoomId, effects: &mut Vec<Effect>) {
        let next = SubSeq(self.last_seq.0 + 1);
        let slot = self.slot(room);
        slot.subscribers += 1;
        match slot.phase {
            Phase::Vacant | Phase::Clearing => {
                (slot.phase, slot.sub_seq, slot.is_under_way) = (Phase::Wanted, next, false);
                self.last_seq = next;
                self.enqueue(room);
            }
            Phase::Set => effects.push(Effect::Ready(room)),
            // Nobody was there when it failed, perhaps.
            Phase::Wanted => self.enqueue(room),
        }
        if mutated!(SubscribedBeforeSet) {
            effects.push(Effect::Ready(room));
        }
    }

    fn leave(&mut self, now: Tick, room: RoomId) {
        let slot = self.slot(room);
        slot.subscribers = slot.subscribers.checked_sub(1).expect("who leaves a room has joined it");
        if slot.subscribers == 0 {
            self.clear_at(now.plus_ms(ROOM_CLEAR_DELAY_MS), room);
        }
    }

    fn clear_at(&mut self, at: Tick, room: RoomId) {
        let slot = self.slot(room);
        slot.clear_at = at;
        if !slot.is_leaving {
            slot.is_leaving = true;
            self.leaving.push_back((at, room));
        }
    }

    fn done(&mut self, room: RoomId, sub_seq: SubSeq, effects: &mut Vec<Effect>) {
        if !self.answered(room, sub_seq) {
            return;
        }
        let slot = self.slot(room);
        let is_doubted = std::mem::take(&mut slot.is_doubted);
        match slot.phase {
            Phase::Wanted | Phase::Set if is_doubted => self.enqueue(room),
            Phase::Wanted => {
                slot.phase = Phase::Set;
                effects.push(Effect::Ready(room));
            }
            Phase::Clearing => {
                slot.phase = Phase::Vacant;
                effects.push(Effect::Forget(room));
            }
            Phase::Vacant | Phase::Set => {}
        }
    }

    /// A set of unknown fate may still take effect: a room that nobody is in waits for that.
    fn failed(&mut self, now: Tick, room: RoomId, sub_seq: SubSeq) {
        if !self.answered(room, sub_seq) {
            return;
        }
        let slot = self.slot(room);
        match slot.phase {
            Phase::Wanted | Phase::Set if slot.subscribers == 0 => {
                slot.phase = Phase::Wanted;
                self.clear_at(now.plus_ms(ROOM_CLEAR_DELAY_MS), room);
            }
            Phase::Wanted | Phase::Set | Phase::Clearing => {
                self.again.insert((now.plus_ms(ROOM_RETRY_MS), room));
            }
            Phase::Vacant => {}
        }
    }

    /// Counts an answer; whether it is about the present sequence.
    fn answered(&mut self, room: RoomId, sub_seq: SubSeq) -> bool {
        self.under_way = self.under_way.checked_sub(1).expect("what is answered was said");
        let slot = self.slot(room);
        let is_present = slot.sub_seq == sub_seq && slot.is_under_way;
        if is_present {
            slot.is_under_way = false;
        }
        is_present
    }

    fn doubt(&mut self, room: RoomId) {
        let slot = self.slot(room);
        if matches!(slot.phase, Phase::Set | Phase::Wanted) && !mutated!(DoubtIgnored) {
            slot.phase = Phase::Wanted;
            slot.is_doubted = slot.is_under_way;
            self.enqueue(room);
        }
    }

    fn stray(&mut self, room: RoomId, sub_seq: SubSeq) {
        let slot = self.slot(room);
        if slot.phase == Phase::Vacant {
            (slot.phase, slot.sub_seq, slot.is_under_way) = (Phase::Clearing, sub_seq, false);
            self.enqueue(room);
        }
    }

    fn enqueue(&mut self, room: RoomId) {
        let slot = self.slot(room);
        if !slot.is_queued && !slot.is_under_way {
            slot.is_queued = true;
            self.queue.push_back(room);
        }
    }

    fn tick(&mut self, now: Tick) {
        while let Some((at, room)) = self.leaving.front().copied().filter(|(at, _)| *at <= now) {
            self.leaving.pop_front();
            self.left(now, at, room);
        }
        while let Some((at, room)) = self.again.first().copied().filter(|(at, _)| *at <= now) {
            self.again.remove(&(at, room));
            self.enqueue(room);
        }
        self.take_round(now);
    }

    /// Nobody came back in time, perhaps.
    fn left(&mut self, now: Tick, at: Tick, room: RoomId) {
        let slot = self.slot(room);
        slot.is_leaving = false;
        if slot.subscribers > 0 {
            return;
        }
        if slot.clear_at > at {
            let at = slot.clear_at;
            self.clear_at(at, room);
        } else if slot.is_under_way {
            // The set of this sequence first has to end.
            self.clear_at(now.plus_ms(ROOM_RETRY_MS), room);
        } else if matches!(slot.phase, Phase::Wanted | Phase::Set) {
            slot.phase = Phase::Clearing;
            self.enqueue(room);
        }
    }

    /// Says as many rooms again as the time since the last look asks for.
    fn take_round(&mut self, now: Tick) {
        let rooms = self.slots.len() as u64;
        let since_ms = now.ms_since(self.round_at).min(self.period_ms);
        let due = rooms * since_ms / self.period_ms;
        if due == 0 {
            return;
        }
        self.round_at = now;
        for _ in 0..due {
            self.cursor = (self.cursor + 1) % self.slots.len();
            let room = RoomId(u32::try_from(self.cursor).expect("rooms are numbered by 32 bits"));
            if self.slot(room).phase == Phase::Set {
                self.enqueue(room);
            }
        }
    }

    fn say(&mut self, effects: &mut Vec<Effect>) {
        while self.under_way < ROOM_BITS_IN_FLIGHT_MAX {
            let Some(room) = self.queue.pop_front() else { return };
            let slot = self.slot(room);
            slot.is_queued = false;
            let sub_seq = slot.sub_seq;
            let effect = match slot.phase {
                Phase::Vacant => continue,
                Phase::Wanted | Phase::Set => Effect::Set(room, sub_seq),
                Phase::Clearing => Effect::Clear(room, sub_seq),
            };
            slot.is_under_way = true;
            self.under_way += 1;
            effects.push(effect);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomId = RoomId(0);
    const FIRST: SubSeq = SubSeq(1);

    /// Gives the core inputs and keeps what it wants done.
    struct Core(Subscriptions, Vec<Effect>);

    impl Core {
        fn new() -> Self {
            Self(Subscriptions::new(Tick(0), 0), Vec::new())
        }

        fn at(&mut self, ms: u64, input: Input) -> Vec<Effect> {
            self.0.step(Tick(ms), input, &mut self.1);
            std::mem::take(&mut self.1)
        }

        /// A room with one subscriber and its bit.
        fn with_room() -> Self {
            let mut core = Self::new();
            core.at(0, Input::Join(ROOM));
            core.at(1, Input::Done(ROOM, FIRST));
            core
        }
    }

    #[test]
    fn a_subscriber_is_in_when_the_bit_is_set() {
        let mut core = Core::new();
        assert_eq!(core.at(0, Input::Join(ROOM)), [Effect::Set(ROOM, FIRST)]);
        assert_eq!(core.at(0, Input::Join(ROOM)), []);
        assert_eq!(core.at(9, Input::Done(ROOM, FIRST)), [Effect::Ready(ROOM)]);
        assert_eq!(core.at(9, Input::Join(ROOM)), [Effect::Ready(ROOM)]);
    }

    #[test]
    fn the_bit_goes_five_seconds_after_the_last_one_left() {
        let mut core = Core::with_room();
        core.at(100, Input::Leave(ROOM));
        core.at(2_000, Input::Join(ROOM));
        core.at(3_000, Input::Leave(ROOM));
        assert_eq!(core.at(5_100, Input::Tick), []);
        assert_eq!(core.at(7_999, Input::Tick), []);
        assert_eq!(core.at(8_000, Input::Tick), [Effect::Clear(ROOM, FIRST)]);
        assert_eq!(core.at(8_001, Input::Done(ROOM, FIRST)), [Effect::Forget(ROOM)]);
        assert!(core.0.is_quiet());
    }

    #[test]
    fn who_comes_while_the_bit_goes_gets_a_new_one() {
        let mut core = Core::with_room();
        core.at(0, Input::Leave(ROOM));
        assert_eq!(core.at(5_000, Input::Tick), [Effect::Clear(ROOM, FIRST)]);
        assert_eq!(core.at(5_001, Input::Join(ROOM)), [Effect::Set(ROOM, SubSeq(2))]);
        assert_eq!(core.at(5_002, Input::Done(ROOM, FIRST)), [], "the clear is nobody's business now");
        assert_eq!(core.at(5_003, Input::Done(ROOM, SubSeq(2))), [Effect::Ready(ROOM)]);
    }

    #[test]
    fn a_clear_waits_for_the_set_that_is_under_way() {
        let mut core = Core::new();
        core.at(0, Input::Join(ROOM));
        core.at(1, Input::Leave(ROOM));
        assert_eq!(core.at(5_001, Input::Tick), []);
        assert_eq!(core.at(5_100, Input::Failed(ROOM, FIRST)), []);
        assert_eq!(core.at(10_099, Input::Tick), []);
        assert_eq!(core.at(10_100, Input::Tick), [Effect::Clear(ROOM, FIRST)]);
    }

    #[test]
    fn what_failed_is_said_again() {
        let mut core = Core::new();
        core.at(0, Input::Join(ROOM));
        assert_eq!(core.at(10, Input::Failed(ROOM, FIRST)), []);
        assert_eq!(core.at(10 + ROOM_RETRY_MS, Input::Tick), [Effect::Set(ROOM, FIRST)]);
    }

    #[test]
    fn everything_is_said_again_once_a_round_and_when_in_doubt() {
        let mut core = Core::with_room();
        assert_eq!(core.at(5, Input::Doubt(ROOM)), [Effect::Set(ROOM, FIRST)]);
        assert_eq!(core.at(6, Input::Done(ROOM, FIRST)), [Effect::Ready(ROOM)]);
        assert_eq!(core.at(ROOM_REASSERT_MS - 1, Input::Tick), []);
        assert_eq!(core.at(ROOM_REASSERT_MS, Input::Tick), [Effect::Set(ROOM, FIRST)]);
    }

    #[test]
    fn an_answer_from_before_a_doubt_is_not_believed() {
        let mut core = Core::new();
        core.at(0, Input::Join(ROOM));
        assert_eq!(core.at(1, Input::Doubt(ROOM)), []);
        assert_eq!(core.at(2, Input::Done(ROOM, FIRST)), [Effect::Set(ROOM, FIRST)]);
        assert_eq!(core.at(3, Input::Done(ROOM, FIRST)), [Effect::Ready(ROOM)]);
    }

    #[test]
    fn who_comes_while_the_bit_is_in_doubt_waits() {
        let mut core = Core::with_room();
        assert_eq!(core.at(5, Input::Doubt(ROOM)), [Effect::Set(ROOM, FIRST)]);
        assert_eq!(core.at(6, Input::Join(ROOM)), []);
        assert_eq!(core.at(7, Input::Done(ROOM, FIRST)), [Effect::Ready(ROOM)]);
    }

    #[test]
    fn who_comes_after_the_bit_was_lost_with_nobody_there_gets_a_new_one() {
        let mut core = Core::with_room();
        core.at(10, Input::Leave(ROOM));
        assert_eq!(core.at(20, Input::Doubt(ROOM)), [Effect::Set(ROOM, FIRST)]);
        assert_eq!(core.at(30, Input::Failed(ROOM, FIRST)), []);
        assert_eq!(core.at(40, Input::Join(ROOM)), [Effect::Set(ROOM, FIRST)]);
        assert_eq!(core.at(50, Input::Done(ROOM, FIRST)), [Effect::Ready(ROOM)]);
    }

    #[test]
    fn a_storm_is_cut_into_windows() {
        let mut core = Core::new();
        let rooms = u32::try_from(ROOM_BITS_IN_FLIGHT_MAX).unwrap() + 7;
        let joins = (0..rooms).map(|room| core.at(0, Input::Join(RoomId(room))).len());
        assert_eq!(joins.sum::<usize>(), ROOM_BITS_IN_FLIGHT_MAX);
        let next = core.at(1, Input::Done(ROOM, FIRST));
        assert_eq!(next.len(), 2, "one is in and another is said: {next:?}");
    }

    #[test]
    fn a_bit_without_subscribers_is_taken_back_by_its_owner() {
        let mut core = Core::new();
        assert_eq!(core.at(0, Input::Stray(ROOM, SubSeq(4))), [Effect::Clear(ROOM, SubSeq(4))]);
        assert_eq!(core.at(1, Input::Done(ROOM, SubSeq(4))), [Effect::Forget(ROOM)]);
        let mut core = Core::with_room();
        assert_eq!(core.at(2, Input::Stray(ROOM, FIRST)), [], "somebody is here");
    }
}
