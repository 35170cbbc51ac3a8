//! A watch of all keys: again and again it goes on with its token, at whoever serves a tablet,
//! by the same decisions as in production (`kernel::watch`).
//!
//! It takes a few entries at a time and stops anywhere, so that every look is a resumption. It
//! costs no event and no chance: without it a seed runs the same.

use super::server::Server;
use crate::oracle::{Oracle, Seen};
use ebla_kernel::ancestry::Ancestry;
use ebla_kernel::entry::LogEnd;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{Seq, TableId, TabletId};
use ebla_kernel::range::KeyRange;
use ebla_kernel::watch::{FirstEntry, History, Piece, Place, Shown, Start, Token, Window};

/// Of how many events a watch mostly looks after one.
pub const LOOK_EVERY: u64 = 7;

/// Most entries of one look, in the order of looks.
const ENTRIES_MAX: [usize; 5] = [1, 3, 100, 2, 10];

/// A watch and how far it is.
#[derive(Debug)]
pub struct Watcher {
    token: Token,
    looks: usize,
}

impl Default for Watcher {
    fn default() -> Self {
        let token = Token::new(TableId(1), KeyRange::all(), Place::Time(Hlc::MIN));
        Self { token, looks: 0 }
    }
}

impl Watcher {
    /// Looks at one server, at each tablet that it serves.
    pub fn look(&mut self, servers: &[Server], oracle: &Oracle, now_us: u64, seen: &mut Vec<Seen>) {
        self.looks += 1;
        let server = &servers[self.looks % servers.len()];
        if server.asleep_until_us > now_us {
            return;
        }
        let entries_max = ENTRIES_MAX[self.looks % ENTRIES_MAX.len()];
        for (tablet, _) in server.leases(now_us) {
            let history = oracle.history(tablet);
            server.show_changes((tablet, history), &mut self.token, entries_max, seen);
        }
    }
}

/// A copy that serves, as a watch looks at it.
struct Copy<'a> {
    server: &'a Server,
    tablet: TabletId,
    core: &'a ebla_kernel::tablet::Tablet,
    /// The last entry that is safe and applied.
    closed: LogEnd,
    base: LogEnd,
    ancestry: Ancestry,
}

impl Server {
    /// Shows a watch what it has not seen of a tablet.
    fn show_changes(
        &self,
        (tablet, ancestry): (TabletId, Ancestry),
        token: &mut Token,
        entries_max: usize,
        seen: &mut Vec<Seen>,
    ) {
        let Some(copy) = self.run.as_ref().and_then(|run| run.copies.get(&tablet)) else { return };
        let core = &copy.core;
        let Some(log) = self.disk.log.tablet(tablet) else { return };
        let Some(closed) = log.end_at(core.safe().min(core.applied_seq())) else { return };
        let replica = self.disk.registry.replicas.get(&tablet);
        let base = replica.map_or_else(LogEnd::default, |replica| replica.base);
        let copy = Copy { server: self, tablet, core, closed, base, ancestry };
        for piece in token.within(core.range()) {
            copy.go_on(piece, token, entries_max, seen);
        }
    }
}

impl Copy<'_> {
    fn go_on(&self, piece: Piece, token: &mut Token, entries_max: usize, seen: &mut Vec<Seen>) {
        let Piece { range, place } = piece;
        let log = self.server.disk.log.tablet(self.tablet);
        let first = log.and_then(|log| log.entries.front());
        let history = History {
            ancestry: self.ancestry,
            base: self.base,
            epochs: self.core.epochs(),
            safe: self.core.safe(),
            first: first.map(|entry| FirstEntry { seq: entry.seq(), ts: entry.ts }),
        };
        match history.start(&place) {
            Start::Log(after) => self.show_log(after, &range, token, entries_max, seen),
            Start::LogSince(ts) => {
                let entries = log.into_iter().flat_map(|log| &log.entries);
                let older = entries.take_while(|entry| entry.ts <= ts).last().map(|entry| entry.seq());
                let after = older.unwrap_or(history.base.pos.seq);
                self.show_log(after, &range, token, entries_max, seen);
            }
            Start::Versions(since) => self.show_versions(since, range, token, seen),
            Start::Rows(_) | Start::Lost(_) => self.show_rows(Piece { range, place }, token, seen),
            Start::Wait => {}
        }
    }

    fn show_log(
        &self,
        after: Seq,
        range: &KeyRange,
        token: &mut Token,
        entries_max: usize,
        seen: &mut Vec<Seen>,
    ) {
        let Some(log) = self.server.disk.log.tablet(self.tablet) else { return };
        // A log that begins later is read from there; whoever asks has made sure that nothing is missed.
        let after = after.max(log.base.pos.seq);
        let mut window = Window::after(after);
        if let Some(safe) = window.wants(self.core.safe()) {
            log.after(after).take_while(|entry| entry.seq() <= safe).for_each(|entry| window.look(entry));
            window.looked(safe);
        }
        for entry in log.after(after).take(entries_max) {
            match window.show(entry, self.core.applied_seq()) {
                Shown::NotYet => return,
                Shown::Void => {}
                Shown::Yes => {
                    let changes = entry.changes().iter().filter_map(|change| Seen::change(change, entry.ts));
                    seen.extend(changes.filter(|change| change.is_in(range)));
                }
            }
            self.move_to(entry.end(), range, token, seen);
        }
    }

    /// What the store has above `since`, each row's versions in their order.
    fn show_versions(&self, since: Hlc, range: KeyRange, token: &mut Token, seen: &mut Vec<Seen>) {
        for (key, versions) in self.server.disk.store.snapshot(&range, self.closed.ts) {
            let new = versions.into_values().filter(|version| version.ts > since);
            seen.extend(new.map(|version| Seen::Change { key: key.clone(), version }));
        }
        if self.core.sealed().is_some() {
            // The end may be the beginning of an epoch behind the seal, which no child knows.
            self.resolve(Place::Time(self.closed.ts), self.closed.ts, &range, token, seen);
        } else {
            self.move_to(self.closed, &range, token, seen);
        }
    }

    fn show_rows(&self, piece: Piece, token: &mut Token, seen: &mut Vec<Seen>) {
        let Piece { range, place } = piece;
        seen.push(Seen::Break { range: range.clone(), at: self.closed.ts, by: self.tablet, seen: place });
        for (key, versions) in self.server.disk.store.snapshot(&range, self.closed.ts) {
            let newest = versions.into_values().next_back();
            seen.extend(newest.map(|version| Seen::Change { key, version }));
        }
        self.resolve(Place::Time(self.closed.ts), self.closed.ts, &range, token, seen);
    }

    fn move_to(&self, end: LogEnd, range: &KeyRange, token: &mut Token, seen: &mut Vec<Seen>) {
        let place = Place::Entry { lineage: self.ancestry.lineage, pos: end.pos, ts: end.ts };
        self.resolve(place, end.ts, range, token, seen);
    }

    fn resolve(&self, place: Place, ts: Hlc, range: &KeyRange, token: &mut Token, seen: &mut Vec<Seen>) {
        token.put(Piece { range: range.clone(), place });
        seen.push(Seen::Resolved { range: range.clone(), ts });
    }
}
