//! What operators and misfortune ask of the metadata.

use super::meta::Waits;
use super::world::{KEYS, World};
use bytes::Bytes;
use ebla_kernel::ids::TabletId;
use ebla_kernel::meta::{Command, JobEnd, Origin, Wish};

impl World {
    pub fn wish_split(&mut self) {
        let key = KEYS[1 + self.chance.below(KEYS.len() - 1)];
        let table = self.meta.state.tables().next().expect("it was created").id;
        let Some(tablet) = self.meta.state.tablet_at(table, key.as_bytes()).map(|tablet| tablet.id) else {
            return;
        };
        let wish = Wish::Split { tablet, at: vec![Bytes::from_static(key.as_bytes())] };
        let time_ms = self.now.0;
        self.propose(Command::StartJob { wish, origin: Origin::Operator, time_ms }, Waits::Nobody);
    }

    pub fn wish_merge(&mut self) {
        let table = self.meta.state.tables().next().expect("it was created").id;
        let ids: Vec<TabletId> = self.meta.state.tablets_of(table).map(|tablet| tablet.id).collect();
        if ids.len() < 2 {
            return;
        }
        let at = self.chance.below(ids.len() - 1);
        let (mut stays, mut comes) = (ids[at], ids[at + 1]);
        if self.chance.per_mille(500) {
            std::mem::swap(&mut stays, &mut comes);
        }
        let command = Command::StartJob {
            wish: Wish::Merge { stays, comes },
            origin: Origin::Operator,
            time_ms: self.now.0,
        };
        self.propose(command, Waits::Nobody);
    }

    pub fn cancel(&mut self) {
        let running = self.meta.state.jobs().find(|job| job.is_running()).map(|job| job.id);
        let last = self.meta.state.jobs().last().map(|job| job.id);
        if let Some(job) = running.or(last) {
            let time_ms = self.now.0;
            let end = JobEnd::Cancelled;
            self.propose(Command::EndJob { job, attempt: None, end, time_ms }, Waits::Nobody);
        }
    }

    pub fn depose(&mut self) {
        let count = self.meta.state.tablet_count();
        let victim = self.chance.below(count);
        let victim = self.meta.state.tablets().nth(victim).map(|tablet| (tablet.id, tablet.epoch));
        if let Some(victim) = victim {
            let tablets = vec![victim];
            self.propose(Command::Recover { tablets }, Waits::Nobody);
        }
    }
}
