//! Every knob of chance in one place: each seed draws a different mixture (swarm testing),
//! because faults that are always on hide each other.
//!
//! Source: Groce et al., "Swarm Testing", ISSTA 2012.

use super::archivist::BackupFaults;
use super::crowd::RoomFaults;
use super::rng::Rng;
use super::watcher::LOOK_EVERY;
use ebla_kernel::meta::{Policy, TableKind, TableSpec};

/// Microseconds of simulated time, from and to.
pub type SpanUs = (u64, u64);

/// A second of simulated time.
pub const SECOND_US: u64 = 1_000_000;

/// What one seed's cluster looks like and what happens to it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Tablet servers.
    pub servers: usize,
    /// What the table promises.
    pub spec: TableSpec,
    /// Tablets, spread over the servers.
    pub tablets: usize,
    /// Clients, each with one operation at a time.
    pub clients: usize,
    /// Rows that all clients share; few, so that they meet.
    pub keys: u64,
    /// How long faults go on, in microseconds.
    pub chaos_us: u64,
    /// Pause of a client between two operations.
    pub think_us: SpanUs,
    /// How long a client waits for one answer.
    pub patience_us: SpanUs,
    /// The network.
    pub network: NetworkFaults,
    /// The disks.
    pub disk: DiskFaults,
    /// Pause between two crashes of servers; none without crashes.
    pub server_crash_us: Option<SpanUs>,
    /// Pause between two crashes of the metadata node; none without crashes.
    pub meta_crash_us: Option<SpanUs>,
    /// Pause between two elections that nothing but an operator asks for; none without them.
    pub depose_us: Option<SpanUs>,
    /// How long something that crashed stays away.
    pub down_us: SpanUs,
    /// Pause between two jumps of a server's wall clock; none without jumps.
    pub wall_jump_us: Option<SpanUs>,
    /// Greatest jump of a wall clock, either way, in milliseconds.
    pub wall_jump_ms_max: u64,
    /// Greatest difference of a server's wall clock from the first, either way, in milliseconds.
    pub skew_ms_max: u64,
    /// Greatest difference of a client's clock, either way, in milliseconds.
    pub client_skew_ms_max: u64,
    /// Requests of which the task is slow between reading and sequencing, per mille.
    pub slow_task_pm: u64,
    /// How long a slow task takes.
    pub slow_task_us: SpanUs,
    /// Entries above which a log is purged.
    pub log_entries_max: usize,
    /// Most entries in one message between copies.
    pub frame_entries_max: usize,
    /// Of 1,000 writes, how many wait for more copies than the leader's.
    pub wait_pm: u64,
    /// Of 1,000 reads, how many go to any copy.
    pub follower_read_pm: u64,
    /// How long a write may take, in milliseconds.
    pub deadline_ms: SpanUs,
    /// Pause between two transfers of leadership; none without them.
    pub transfer_us: Option<SpanUs>,
    /// Pause between two sleeps of a server; none without them.
    pub sleep_us: Option<SpanUs>,
    /// How long a server sleeps.
    pub asleep_us: SpanUs,
    /// Whether clocks run fast or slow.
    pub drifts: bool,
    /// Pause between two losses of a disk, and how far they go.
    pub wipe: Option<(SpanUs, WipeBudget)>,
    /// Pause between two power losses of everything; none without them.
    pub blackout_us: Option<SpanUs>,
    /// Pause between two wishes for splits; none without them.
    pub split_us: Option<SpanUs>,
    /// Pause between two wishes for merges; none without them.
    pub merge_us: Option<SpanUs>,
    /// Pause between two wishes for moves; none without them.
    pub move_us: Option<SpanUs>,
    /// Pause between two cancels of whatever job is under way; none without them.
    pub cancel_us: Option<SpanUs>,
    /// Whether copies that are lost or behind are built anew.
    pub repairs: bool,
    /// After how long the copies of a server that is away are built elsewhere; none: never.
    pub replace_after_ms: Option<u64>,
    /// How long the log of a retired tablet stays for its tokens.
    pub retired_us: u64,
    /// Of 1,000 looks at a log, how many find it so full that other copies lose.
    pub log_full_pm: u64,
    /// Of how many events the watch looks after one.
    pub watch_every: u64,
    /// Backups; none: nobody makes any.
    pub backups: Option<BackupFaults>,
    /// Rooms; none: nobody is in any.
    pub rooms: Option<RoomFaults>,
    /// Pause between two losses of all copies of a tablet in memory; none: as many copies stay as the
    /// table bears.
    pub bereave_us: Option<SpanUs>,
    /// Pause between two rows that have to make room; none: there is enough.
    pub evict_us: Option<SpanUs>,
}

/// How many disks may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WipeBudget {
    /// As many as the table bears.
    Within,
    /// One more for good measure: then only the truth is owed.
    Beyond,
}

/// What the network does to messages.
#[derive(Clone, Debug)]
pub struct NetworkFaults {
    /// Time on the way.
    pub delay_us: SpanUs,
    /// Messages that get lost, per mille.
    pub drop_pm: u64,
    /// Messages that arrive twice, per mille.
    pub duplicate_pm: u64,
    /// Messages that are overtaken by many, per mille.
    pub late_pm: u64,
    /// How late those are.
    pub late_us: SpanUs,
    /// Pause between two one-way cuts of a link; none without cuts.
    pub cut_us: Option<SpanUs>,
}

/// What the disks do.
#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// Time of a group fsync or of a registry write.
    pub sync_us: SpanUs,
    /// Syncs that hang, per mille.
    pub hang_pm: u64,
    /// How long those hang.
    pub hang_us: SpanUs,
    /// Log groups that are refused, per mille.
    pub append_failure_pm: u64,
    /// Pause between two flushes of the data store.
    pub flush_every_us: SpanUs,
    /// Time of a flush.
    pub flush_us: SpanUs,
}

impl Profile {
    /// The mixture of one seed.
    #[must_use]
    pub fn draw(rng: &mut Rng) -> Self {
        let maybe = |rng: &mut Rng, span: SpanUs| rng.chance(600).then_some(span);
        let servers = [1, 2, 3, 3, 3, 3, 4, 5][rng.index(8)];
        let reshapes = rng.chance(400);
        let spec = draw_spec(rng, servers);
        let failover = (spec.replicas >= 3 && rng.chance(300))
            .then_some(((SECOND_US, 4 * SECOND_US), WipeBudget::Within));
        Self {
            servers,
            tablets: 1 + rng.index(3),
            wipe: if rng.chance(30) {
                failover.map(|(span, _)| (span, WipeBudget::Beyond))
            } else {
                failover
            },
            spec,
            clients: 2 + rng.index(5),
            frame_entries_max: [1, 3, 100][rng.index(3)],
            wait_pm: [0, 500, 500, 900][rng.index(4)],
            follower_read_pm: [0, 100, 400][rng.index(3)],
            deadline_ms: (20, 100 << rng.below(5)),
            transfer_us: rng.chance(300).then_some((300_000, 3 * SECOND_US)),
            sleep_us: rng.chance(300).then_some((300_000, 4 * SECOND_US)),
            asleep_us: (1_000, 300_000 << rng.below(4)),
            drifts: rng.chance(500),
            blackout_us: rng.chance(150).then_some((SECOND_US, 6 * SECOND_US)),
            keys: 2 + rng.below(10),
            chaos_us: (3 + rng.below(8)) * SECOND_US,
            think_us: (0, 1 << (8 + rng.below(10))),
            patience_us: (300_000, 300_000 + rng.below(2 * SECOND_US)),
            network: NetworkFaults::draw(rng),
            disk: DiskFaults::draw(rng),
            server_crash_us: rng.chance(700).then_some((300_000, 500_000 + rng.below(6) * SECOND_US)),
            meta_crash_us: maybe(rng, (500_000, 4 * SECOND_US)),
            depose_us: rng.chance(400).then_some((20_000, 1 << (16 + rng.below(6)))),
            down_us: (1_000, 1 << (12 + rng.below(11))),
            wall_jump_us: maybe(rng, (100_000, 2 * SECOND_US)),
            wall_jump_ms_max: [20, 600, 10_000, 3_600_000][rng.index(4)],
            skew_ms_max: [0, 50, 400][rng.index(3)],
            client_skew_ms_max: [0, 1_000, 5_000][rng.index(3)],
            slow_task_pm: [0, 20, 200][rng.index(3)],
            slow_task_us: (1_000, 800_000),
            log_entries_max: [5, 50, 100_000][rng.index(3)],
            split_us: (reshapes && rng.chance(750)).then_some((50_000, 400_000 << rng.below(3))),
            merge_us: None,
            move_us: (reshapes && rng.chance(500)).then_some((100_000, 2 * SECOND_US)),
            cancel_us: (reshapes && rng.chance(300)).then_some((100_000, 2 * SECOND_US)),
            repairs: reshapes,
            replace_after_ms: rng.chance(300).then_some(2_500),
            retired_us: [100_000, SECOND_US, 3 * SECOND_US][rng.index(3)],
            log_full_pm: [0, 0, 100][rng.index(3)],
            watch_every: LOOK_EVERY,
            backups: None,
            rooms: None,
            bereave_us: None,
            evict_us: None,
        }
    }

    /// The table is in memory: a process that ends loses its copies, and they are built anew.
    pub fn keep_in_memory(&mut self) {
        self.spec.kind = TableKind::Memory;
        self.repairs = true;
        self.blackout_us = None;
        self.wipe = None;
    }

    /// The table is in memory, loses every copy of a tablet, and rows have to make room.
    pub fn bereave(&mut self) {
        self.keep_in_memory();
        // What a backup was made of before is not what is restored after.
        self.backups = None;
        self.bereave_us = Some((SECOND_US, 4 * SECOND_US));
        self.evict_us = Some((10_000, 300_000));
    }

    /// The same cluster without any fault: what it must recover in.
    pub fn heal(&mut self) {
        self.network = NetworkFaults {
            delay_us: (100, 1_000),
            drop_pm: 0,
            duplicate_pm: 0,
            late_pm: 0,
            late_us: (0, 0),
            cut_us: None,
        };
        self.disk.hang_pm = 0;
        self.disk.append_failure_pm = 0;
        self.disk.sync_us = (200, 2_000);
        self.server_crash_us = None;
        self.meta_crash_us = None;
        self.depose_us = None;
        self.transfer_us = None;
        self.sleep_us = None;
        self.wipe = None;
        self.blackout_us = None;
        (self.split_us, self.merge_us, self.move_us, self.cancel_us) = (None, None, None, None);
        self.evict_us = None;
        self.log_full_pm = 0;
        self.deadline_ms = (1_000, 2_000);
        self.wall_jump_us = None;
        self.slow_task_pm = 0;
        if let Some(backups) = &mut self.backups {
            (backups.kill_pm, backups.unheard_pm) = (0, 0);
        }
    }
}

/// A table that can be created: R copies on as many servers, D of them for every wait.
fn draw_spec(rng: &mut Rng, servers: usize) -> TableSpec {
    let most = u8::try_from(servers).expect("a handful of servers");
    let replicas = if rng.chance(700) {
        most.min(3)
    } else {
        1 + u8::try_from(rng.below(u64::from(most))).expect("few")
    };
    let min_in_sync = match replicas {
        3 if rng.chance(700) => 2,
        _ => 1 + u8::try_from(rng.below(u64::from(replicas))).expect("few"),
    };
    let is_degraded = rng.chance(200) || (replicas >= 3 && min_in_sync == 1);
    let policy = if is_degraded { Policy::Degraded } else { Policy::Strict };
    TableSpec { replicas, min_in_sync, policy, ..TableSpec::default() }
}

impl NetworkFaults {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            delay_us: (50, 200 << rng.below(8)),
            drop_pm: [0, 0, 5, 50][rng.index(4)],
            duplicate_pm: [0, 0, 10, 100][rng.index(4)],
            late_pm: [0, 0, 10, 100][rng.index(4)],
            late_us: (10_000, 3 * SECOND_US),
            cut_us: rng.chance(400).then_some((200_000, 3 * SECOND_US)),
        }
    }
}

impl DiskFaults {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            sync_us: (100, 500 << rng.below(7)),
            hang_pm: [0, 0, 5][rng.index(3)],
            hang_us: (100_000, 2 * SECOND_US),
            append_failure_pm: [0, 0, 5, 20][rng.index(4)],
            flush_every_us: (50_000, 100_000 << rng.below(6)),
            flush_us: (1_000, 1_000 << rng.below(9)),
        }
    }
}
