//! A backup brought back into another cluster: the metadata that records the restore and the run
//! that drives it are the ones of production, the servers a model of what they do.
//!
//! ```text
//!  StartJob ─▶ Create ─▶ orders ─▶ servers take rows, part by part ─▶ Restored ─▶ Activate
//!                │         ▲ a new master has the ledger and nothing else
//!                └─ EndJob: the tables go, and it begins again
//! ```
//!
//! - Masters die, and with them the run; servers lose power in the middle of a part, or their disks,
//!   and copies take the place of those; answers get lost; somebody cancels; somebody wants the tables
//!   opened too early.
//! - All the time: a table that is open has every row on every copy. What was cancelled left nothing.

use super::clock::EPOCH_MS;
use super::disk::Rows;
use super::rng::Rng;
use crate::oracle::Archived;
use bytes::Bytes;
use ebla_kernel::backup::import::{ImportOrder, RestoreRun};
use ebla_kernel::backup::site::{Map, map_of};
use ebla_kernel::backup::{Ended, Standing};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, JobId, ReplicaId, ServerId, TableId, TabletId, Tick};
use ebla_kernel::meta::{
    ClusterId, Command, Job, JobEnd, JobKind, NewTable, NewTablet, Origin, RegisterServer, Replica,
    ReplicaChange, Reply, RestoreStep, RestoreWish, RestoredCopy, State, TableSpec, Wish, apply, state_hash,
};
use ebla_kernel::range::KeyRange;
use std::collections::{BTreeMap, BTreeSet};

/// Rounds in which things go wrong; after them nothing does.
const ROUNDS_OF_FAULTS: u64 = 60;

/// Rounds after which it must be done.
const ROUNDS_MAX: u64 = 400;

/// Time between two rounds.
const ROUND_MS: u64 = 200;

/// The table in the backups.
const SOURCE: TableId = TableId(1);

/// What the table is called here.
const NAME: &str = "restored";

/// A server that takes rows in.
#[derive(Debug)]
struct Target {
    id: ServerId,
    /// How often it has lost its disk.
    disks: u64,
    runs: u64,
    /// When it is back.
    up_at: u64,
    copies: BTreeMap<ReplicaId, Rows>,
}

/// A copy on its way into a server.
#[derive(Debug)]
struct Import {
    order: ImportOrder,
    /// The master that waits for it.
    master: u64,
    /// Parts that are in.
    parts: usize,
}

/// A cluster, and a backup that is brought back.
#[derive(Debug)]
pub struct Restorer<'a> {
    rng: Rng,
    chain: Vec<&'a Archived>,
    /// The masters' log.
    log: Vec<Vec<u8>>,
    state: State,
    round: u64,
    master: u64,
    run: Option<RestoreRun>,
    targets: Vec<Target>,
    imports: Vec<Import>,
}

/// Brings a backup and those that it adds to back; gives the rows.
///
/// # Errors
/// What was seen that must never be, or that it does not end.
pub fn restore(rng: Rng, chain: Vec<&Archived>) -> Result<Rows, String> {
    let mut restorer = Restorer::new(rng, chain);
    while restorer.round < ROUNDS_MAX {
        restorer.round += 1;
        restorer.play()?;
        if restorer.is_open() {
            return Ok(restorer.rows());
        }
    }
    Err(format!("the restore does not end: {:?}", restorer.job()))
}

impl<'a> Restorer<'a> {
    fn new(mut rng: Rng, chain: Vec<&'a Archived>) -> Self {
        let servers = 1 + rng.below(5);
        let mut restorer = Self {
            rng,
            chain,
            log: Vec::new(),
            state: State::default(),
            round: 0,
            master: 0,
            run: None,
            targets: Vec::new(),
            imports: Vec::new(),
        };
        let cluster_id = ClusterId(78);
        let _ = restorer.command(Command::InitCluster { cluster_id, masters: BTreeMap::new() });
        (1..=servers).for_each(|number| restorer.register_new(number));
        restorer
    }

    fn now(&self) -> Tick {
        Tick(self.round * ROUND_MS)
    }

    fn time_ms(&self) -> u64 {
        EPOCH_MS + self.now().0
    }

    /// Puts a command into the masters' log.
    fn command(&mut self, command: Command) -> Reply {
        self.log.push(command.encode());
        let (reply, _) = apply(&mut self.state, self.log.len() as u64, command);
        reply
    }

    fn register_new(&mut self, number: u64) {
        let target = Target { id: ServerId(number), disks: 0, runs: 0, up_at: 0, copies: BTreeMap::new() };
        self.targets.push(target);
        let at = self.targets.len() - 1;
        self.register(at);
    }

    /// A server presents itself, with the disk that it has now.
    fn register(&mut self, at: usize) {
        let time_ms = self.time_ms();
        let target = &mut self.targets[at];
        target.runs += 1;
        let id = target.id;
        let is_known = self.state.server(id).is_some();
        let register = RegisterServer {
            cluster_id: is_known.then_some(ClusterId(78)),
            server_id: is_known.then_some(id),
            disk_generation: DiskGeneration(id.0 * 1_000 + target.disks),
            boot_id: id.0 * 1_000_000 + target.runs,
            starts: target.runs,
            address: format!("target-{}", id.0),
            zone: String::new(),
            time_ms,
        };
        let _ = self.command(Command::RegisterServer(register));
    }

    /// The restore under way.
    fn job(&self) -> Option<&Job> {
        self.state.jobs().find(|job| job.is_running() && matches!(job.kind, JobKind::Restore(_)))
    }

    fn tables(&self) -> Vec<TableId> {
        match self.job().map(|job| &job.kind) {
            Some(JobKind::Restore(restore)) => restore.tables.clone(),
            _ => Vec::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.state.table_named(NAME).is_some_and(|table| table.restoring.is_none())
    }

    /// One round: something may break, somebody does something, and it is looked at.
    fn play(&mut self) -> Result<(), String> {
        if self.round < ROUNDS_OF_FAULTS {
            self.break_something()?;
        }
        self.replace_lost()?;
        self.lead()?;
        self.take_rows();
        self.look()
    }

    fn break_something(&mut self) -> Result<(), String> {
        let at = self.rng.index(self.targets.len());
        match self.rng.below(20) {
            0 => self.fail_over()?,
            1 => self.crash(at),
            2 => {
                self.crash(at);
                self.targets[at].copies.clear();
                self.targets[at].disks += 1;
                self.register(at);
            }
            3 => {
                // Somebody is impatient.
                if let Some((job, attempt)) = self.job().map(|job| (job.id, job.attempt)) {
                    let step = RestoreStep::Activate { time_ms: self.time_ms() };
                    let _ = self.command(Command::ChangeRestore { job, attempt, step });
                }
            }
            4 => self.cancel()?,
            _ => {}
        }
        Ok(())
    }

    /// Another master leads: it has the log and nothing else.
    fn fail_over(&mut self) -> Result<(), String> {
        let mut state = State::default();
        for (index, bytes) in self.log.iter().enumerate() {
            let command = Command::decode(bytes).map_err(|error| error.to_string())?;
            apply(&mut state, index as u64 + 1, command);
        }
        if state_hash(&state) != state_hash(&self.state) {
            return Err("I17: a replayed metadata log gives another hash".into());
        }
        (self.state, self.run) = (state, None);
        self.master += 1;
        Ok(())
    }

    /// A server loses power: what it was taking in stays half there.
    fn crash(&mut self, at: usize) {
        let id = self.targets[at].id;
        self.targets[at].up_at = self.round + 1 + self.rng.below(5);
        let (lost, left) =
            std::mem::take(&mut self.imports).into_iter().partition(|import| import.order.server == id);
        self.imports = left;
        let lost: Vec<Import> = lost;
        for import in lost {
            self.ended(&import, Ended::Refused("the connection broke".into()));
        }
    }

    fn cancel(&mut self) -> Result<(), String> {
        let Some(job) = self.job().map(|job| job.id) else { return Ok(()) };
        let time_ms = self.time_ms();
        let _ = self.command(Command::EndJob { job, attempt: None, end: JobEnd::Cancelled, time_ms });
        self.run = None;
        self.imports.clear();
        match self.state.table_named(NAME) {
            Some(table) => Err(format!("a cancelled restore has left {table:?}")),
            None => Ok(()),
        }
    }

    /// Servers that were away come back; copies that are lost are replaced where they were.
    fn replace_lost(&mut self) -> Result<(), String> {
        for at in 0..self.targets.len() {
            if self.targets[at].up_at == self.round {
                self.register(at);
            }
        }
        for table in self.tables() {
            let tablets: Vec<_> = self.state.tablets_of(table).cloned().collect();
            for tablet in &tablets {
                let is_lost = |copy: &&Replica| !self.state.holds_data(copy);
                // One copy at a time is replaced; where no leader ends that, somebody begins again.
                let lost = match tablet.moving {
                    None => tablet.replicas.iter().find(is_lost),
                    Some(moving) => tablet.replica(moving.to).filter(is_lost),
                };
                if lost.is_none() && tablet.replicas.iter().all(|copy| is_lost(&copy)) {
                    return self.cancel();
                }
                let Some(lost) = lost else { continue };
                let change =
                    ReplicaChange::Add { tablet: tablet.id, server: lost.server, instead_of: Some(lost.id) };
                let time_ms = self.time_ms();
                let _ = self.command(Command::ChangeReplicas { changes: vec![change], time_ms });
            }
        }
        Ok(())
    }

    fn usable(&self) -> BTreeSet<ServerId> {
        self.targets.iter().filter(|target| target.up_at <= self.round).map(|target| target.id).collect()
    }

    fn map(&self) -> Map {
        map_of(&self.state, self.tables(), &BTreeMap::new())
    }

    fn ledger(&self, job: JobId) -> BTreeSet<ReplicaId> {
        self.state.ledger(job).map(|ledger| ledger.copies.clone()).unwrap_or_default()
    }

    /// The leading master takes the restore further.
    fn lead(&mut self) -> Result<(), String> {
        if self.is_open() {
            return Ok(());
        }
        let Some((job, attempt)) = self.job().map(|job| (job.id, job.attempt)) else {
            self.begin();
            return Ok(());
        };
        if self.tables().is_empty() {
            let step = RestoreStep::Create { tables: vec![self.new_table()] };
            let _ = self.command(Command::ChangeRestore { job, attempt, step });
            return Ok(());
        }
        let (now, map, ledger, usable) = (self.now(), self.map(), self.ledger(job), self.usable());
        let run = self.run.get_or_insert_with(|| RestoreRun::new(now));
        let standing = run.standing(now, &map, &ledger);
        let orders = run.plan(now, &map, &ledger, &usable);
        let running: BTreeSet<ReplicaId> = run.running().map(|order| order.replica).collect();
        let master = self.master;
        self.imports.retain(|import| import.master != master || running.contains(&import.order.replica));
        self.imports.extend(orders.into_iter().map(|order| Import { order, master, parts: 0 }));
        match standing {
            Standing::Running => Ok(()),
            Standing::GivenUp(why) => Err(format!("it is given up: {why}")),
            Standing::Done => {
                let step = RestoreStep::Activate { time_ms: self.time_ms() };
                match self.command(Command::ChangeRestore { job, attempt, step }) {
                    Reply::Rejected(why) => Err(format!("it is done and cannot be opened: {why}")),
                    _ => Ok(()),
                }
            }
        }
    }

    fn begin(&mut self) {
        let wish = RestoreWish {
            backup: "last".into(),
            url: "file:///simulated".into(),
            ts: self.chain.last().map_or(Hlc::MIN, |last| last.ts),
            tables: vec![(SOURCE, NAME.into())],
            replicas: None,
            rate_bytes: 0,
            by: "simulation".into(),
        };
        let (wish, time_ms) = (Wish::Restore(Box::new(wish)), self.time_ms());
        let _ = self.command(Command::StartJob { wish, origin: Origin::Operator, time_ms });
    }

    /// Cut as the last backup was, with as many copies as chance will have.
    fn new_table(&mut self) -> NewTable {
        let most = u64::from(u8::try_from(self.targets.len()).unwrap_or(u8::MAX)).min(3);
        let replicas = u8::try_from(1 + self.rng.below(most)).expect("few copies");
        let spec = TableSpec {
            replicas,
            min_in_sync: TableSpec::default_min_in_sync(replicas),
            ..TableSpec::default()
        };
        let last = self.chain.last().map_or(&[][..], |last| &last.parts[..]);
        let cuts: Vec<Bytes> =
            last.iter().map(|part| part.range.start().clone()).filter(|key| !key.is_empty()).collect();
        let ranges = KeyRange::cut_at(&cuts).expect("parts of a backup rise");
        let ids: Vec<ServerId> = self.targets.iter().map(|target| target.id).collect();
        let place = |(n, range)| NewTablet {
            range,
            servers: (0..usize::from(replicas)).map(|copy| ids[(n + copy) % ids.len()]).collect(),
        };
        NewTable { spec, tablets: ranges.into_iter().enumerate().map(place).collect() }
    }

    /// Servers take parts in; one that has them all says so, and may not be heard.
    fn take_rows(&mut self) {
        for mut import in std::mem::take(&mut self.imports) {
            let ImportOrder { tablet, replica, server, .. } = import.order;
            if self.rng.chance(300) {
                self.imports.push(import); // it is slow
                continue;
            }
            let parts = self.parts(tablet);
            let target = self.targets.iter_mut().find(|target| target.id == server);
            let Some(target) = target.filter(|target| target.up_at <= self.round) else { continue };
            let copy = target.copies.entry(replica).or_default();
            match parts.get(import.parts) {
                Some(part) => {
                    for (key, versions) in part {
                        copy.entry(key.clone()).or_default().extend(versions.clone());
                    }
                    import.parts += 1;
                    self.imports.push(import);
                }
                None if self.rng.chance(100) => {
                    self.ended(&import, Ended::Refused("the connection broke".into()));
                }
                None => self.restored(&import),
            }
        }
    }

    /// A copy has its rows: the ledger first, then the run.
    fn restored(&mut self, import: &Import) {
        let job = self.job().map(|job| (job.id, job.attempt));
        if let Some((job, attempt)) = job.filter(|_| import.master == self.master) {
            let ImportOrder { tablet, replica, .. } = import.order;
            let copies = vec![RestoredCopy { tablet, replica, rows: 1, bytes: 1 }];
            let step = RestoreStep::Restored { copies };
            let _ = self.command(Command::ChangeRestore { job, attempt, step });
            self.ended(import, Ended::Done);
        }
    }

    fn ended(&mut self, import: &Import, ended: Ended) {
        let now = self.now();
        if let Some(run) = self.run.as_mut().filter(|_| import.master == self.master) {
            run.ended(now, import.order.replica, ended);
        }
    }

    /// What a tablet is to have, in the parts in which it comes: the full backup first.
    fn parts(&self, tablet: TabletId) -> Vec<Rows> {
        let Some(range) = self.state.tablet(tablet).map(|tablet| tablet.range.clone()) else {
            return Vec::new();
        };
        let parts = self.chain.iter().flat_map(|backup| &backup.parts);
        let inside = |rows: &Rows| -> Rows {
            rows.iter()
                .filter(|(key, _)| range.contains(key))
                .map(|(key, rows)| (key.clone(), rows.clone()))
                .collect()
        };
        parts.map(|part| inside(&part.rows)).filter(|rows| !rows.is_empty()).collect()
    }

    fn wanted(&self, tablet: TabletId) -> Rows {
        let mut rows = Rows::new();
        for (key, versions) in self.parts(tablet).into_iter().flatten() {
            rows.entry(key).or_default().extend(versions);
        }
        rows
    }

    /// A table that is open has every row on every copy that counts.
    fn look(&self) -> Result<(), String> {
        let Some(table) = self.state.table_named(NAME).filter(|table| table.restoring.is_none()) else {
            return Ok(());
        };
        for tablet in self.state.tablets_of(table.id) {
            let wanted = self.wanted(tablet.id);
            for copy in tablet.replicas.iter().filter(|copy| self.state.holds_data(copy)) {
                let target = self.targets.iter().find(|target| target.id == copy.server);
                // A disk that is lost is known to be when its server is back.
                let Some(target) = target.filter(|target| target.up_at <= self.round) else { continue };
                let held = target.copies.get(&copy.id).cloned().unwrap_or_default();
                if held != wanted && !wanted.is_empty() {
                    return Err(format!(
                        "{} is open, and {} has {held:?} instead of {wanted:?}",
                        tablet.id, copy.id
                    ));
                }
            }
        }
        Ok(())
    }

    /// The rows of all tablets, each from a copy of chance.
    fn rows(&mut self) -> Rows {
        let mut rows = Rows::new();
        let Some(table) = self.state.table_named(NAME).map(|table| table.id) else { return rows };
        let tablets: Vec<_> = self.state.tablets_of(table).cloned().collect();
        for tablet in tablets {
            let held: Vec<_> = tablet.replicas.iter().filter(|copy| self.state.holds_data(copy)).collect();
            let Some(copy) = held.get(self.rng.index(held.len())) else { continue };
            let target = self.targets.iter().find(|target| target.id == copy.server);
            let copies = target.and_then(|target| target.copies.get(&copy.id));
            rows.extend(copies.into_iter().flatten().map(|(key, versions)| (key.clone(), versions.clone())));
        }
        rows
    }
}
