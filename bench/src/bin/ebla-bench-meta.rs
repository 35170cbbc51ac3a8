//! `ebla-bench-meta`: the metadata core at the size of a large cluster, without network or disk.
//!
//! It registers servers, creates tables, elects a leader for every tablet through the control
//! core, then measures what one master holds and does: memory, a snapshot, the loss of a
//! server, one input of a session, one tick. Every figure is printed for a cluster and for one
//! of a quarter of the size: what grows faster than the cluster shows as a factor above 4.

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Parser;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{DiskGeneration, Epoch, Incarnation, Pos, Seq, ServerId, TabletId, Tick};
use ebla_kernel::meta::{
    AutoMerge, ClusterId, Command, Control, Effect, Fence, FenceAnswer, Input, NewTablet, RegisterServer,
    State, TableSpec, apply, cut_ranges, decode_snapshot, encode_snapshot, state_hash,
};
use ebla_kernel::plan::{Observed, Picture, PlanSettings, Planner, Room, Size};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Tablets of one table.
const TABLETS_PER_TABLE: u64 = 10_000;

#[derive(Parser)]
#[command(about = "Measures the metadata core at the size of a large cluster and prints a markdown table")]
struct Args {
    /// Tablet servers
    #[arg(long, default_value_t = 1_000)]
    servers: u64,
    /// Tablets, three copies each
    #[arg(long, default_value_t = 1_000_000)]
    tablets: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let quarter = measure(args.servers / 4, args.tablets / 4)?;
    let whole = measure(args.servers, args.tablets)?;
    let (servers, tablets) = (args.servers, args.tablets);
    println!("| {servers} servers, {tablets} tablets of three copies | whole | a quarter | factor |");
    println!("|---|---:|---:|---:|");
    for (one, other) in whole.iter().zip(&quarter) {
        println!("| {} | {} | {} | {:.1} |", one.what, one.text(), other.text(), one.value / other.value);
    }
    Ok(())
}

/// One line of the table.
struct Figure {
    what: &'static str,
    value: f64,
    unit: &'static str,
}

impl Figure {
    fn text(&self) -> String {
        format!("{:.1} {}", self.value, self.unit)
    }
}

fn ms(what: &'static str, time: Duration) -> Figure {
    Figure { what, value: time.as_secs_f64() * 1e3, unit: "ms" }
}

fn us(what: &'static str, time: Duration) -> Figure {
    Figure { what, value: time.as_secs_f64() * 1e6, unit: "µs" }
}

fn mib(what: &'static str, bytes: usize) -> Figure {
    Figure { what, value: bytes as f64 / (1 << 20) as f64, unit: "MiB" }
}

/// One master: the state and the control core, driven as the shell drives them.
struct Master {
    state: State,
    control: Control,
    now: Tick,
    fences: Vec<(ServerId, Vec<Fence>)>,
}

fn measure(servers: u64, tablets: u64) -> Result<Vec<Figure>> {
    let before = resident_bytes()?;
    let mut master = Master::new();
    let began = Instant::now();
    for server in 1..=servers {
        master.register(server);
    }
    master.create_tables(servers, tablets);
    let created = began.elapsed();
    let began = Instant::now();
    master.elect();
    let elected = began.elapsed();
    let led = master.state.tablets().filter(|tablet| tablet.leader.is_some()).count() as u64;
    ensure!(led == tablets, "{led} of {tablets} tablets are led");
    let resident = resident_bytes()?.saturating_sub(before);
    let mut figures = vec![
        mib("memory of state and control core", resident),
        ms("servers registered, tables created", created),
        ms("a leader elected for every tablet", elected),
    ];
    figures.extend(measure_snapshot(&master.state)?);
    figures.extend(master.measure_inputs());
    figures.extend(measure_plan(&master.state));
    Ok(figures)
}

fn measure_snapshot(state: &State) -> Result<[Figure; 4]> {
    let began = Instant::now();
    let snapshot = encode_snapshot(state);
    let encoded = began.elapsed();
    let began = Instant::now();
    let decoded = decode_snapshot(&snapshot)?;
    let read = began.elapsed();
    let began = Instant::now();
    ensure!(state_hash(&decoded) == state_hash(state), "a snapshot gives the same state");
    let hashed = began.elapsed() / 2;
    Ok([
        mib("snapshot", snapshot.len()),
        ms("snapshot written", encoded),
        ms("snapshot read", read),
        ms("state hashed", hashed),
    ])
}

/// Rounds of the plan, as the leading master makes them every few seconds: with nothing to do, and
/// with much.
fn measure_plan(state: &State) -> [Figure; 5] {
    let size = |id: TabletId| Size { bytes: 100_000_000 + id.0 % 1_000, requests: id.0 % 100 };
    let mut observed = Observed {
        up: state.servers().map(|server| (server.id, Room { takes_copies: true })).collect(),
        sizes: state.tablets().map(|tablet| (tablet.id, size(tablet.id))).collect(),
    };
    let mut planner = Planner::new(PlanSettings::default());
    let mut round = |now: u64, observed: &Observed| {
        let began = Instant::now();
        let mut picture = Picture::of(state, observed);
        let seen = began.elapsed();
        let decisions = planner.step(Tick(now), &mut picture);
        drop(picture);
        (seen, began.elapsed(), decisions.len())
    };
    let (_, first, _) = round(0, &observed);
    let (seen, calm, _) = round(5_000, &observed);
    // What a tenth of the servers leads becomes busy and large.
    let some = state.servers().count() as u64 / 10;
    for tablet in state.tablets() {
        let is_busy = tablet.leader.is_some_and(|leader| leader.server.0 <= some);
        let busy = Size { bytes: 400_000_000, requests: 4_000 };
        observed.sizes.insert(tablet.id, if is_busy { busy } else { Size::default() });
    }
    let mut most = (Duration::ZERO, 0);
    for now in (10_000..200_000).step_by(5_000) {
        let (_, took, decisions) = round(now, &observed);
        most = (most.0.max(took), most.1 + decisions);
    }
    [
        ms("a picture for the plan", seen),
        ms("the first round of a plan, picture included", first),
        ms("a round with nothing to do", calm),
        ms("the slowest round while a tenth of all servers is too busy", most.0),
        Figure { what: "decisions of those rounds", value: most.1 as f64, unit: "" },
    ]
}

impl Master {
    fn new() -> Self {
        let mut master = Self {
            state: State::default(),
            control: Control::default(),
            now: Tick(1_000),
            fences: Vec::new(),
        };
        master.input(Input::BecameLeader { cluster_id: ClusterId(1), masters: BTreeMap::new() });
        master
    }

    /// Hands an input over and carries effects out until none is left.
    fn input(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.control.step(self.now, &self.state, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Propose(command) => self.propose(command),
                Effect::SendFences { server, fences } => self.fences.push((server, fences)),
                Effect::SendAssignments { .. }
                | Effect::SendTransfer { .. }
                | Effect::SendSeal { .. }
                | Effect::EndSession { .. } => {}
            }
        }
    }

    fn propose(&mut self, command: Command) {
        let index = self.state.applied() + 1;
        let (_, changes) = apply(&mut self.state, index, command);
        self.input(Input::Applied(changes));
    }

    fn register(&mut self, number: u64) {
        self.propose(Command::RegisterServer(RegisterServer {
            cluster_id: None,
            server_id: None,
            disk_generation: DiskGeneration(number),
            boot_id: number,
            starts: 1,
            address: format!("server-{number}.example:7410"),
            zone: format!("zone-{}", number % 3),
            time_ms: 0,
        }));
        self.open_session(ServerId(number));
    }

    fn open_session(&mut self, server: ServerId) {
        let incarnation = self.state.server(server).map_or(Incarnation(1), |server| server.incarnation);
        self.input(Input::SessionOpened { server, incarnation });
    }

    fn create_tables(&mut self, servers: u64, tablets: u64) {
        // Every boundary may go, which is the most that the plan can have to look at.
        let auto_merge = AutoMerge::All;
        let spec = TableSpec { replicas: 3, min_in_sync: 2, auto_merge, ..TableSpec::default() };
        let per_table = TABLETS_PER_TABLE.min(tablets);
        for table in 0..tablets / per_table {
            let splits: Vec<Bytes> = (1..per_table).map(|at| format!("user{at:08}").into()).collect();
            let ranges = cut_ranges(&splits).expect("the keys rise");
            let place = |at: u64| ServerId((table * 7 + at) % servers + 1);
            let tablets = (0..)
                .zip(ranges)
                .map(|(at, range)| NewTablet {
                    range,
                    servers: vec![place(at), place(at + 1), place(at + 2)],
                })
                .collect();
            let name = format!("table{table}");
            self.propose(Command::CreateTable { name, spec: spec.clone(), tablets, time_ms: 0 });
        }
    }

    /// Answers every fence, as servers would, until nobody is asked any more.
    fn elect(&mut self) {
        while !self.fences.is_empty() {
            for (server, fences) in std::mem::take(&mut self.fences) {
                let disk_generation =
                    self.state.server(server).map_or(DiskGeneration(0), |s| s.disk_generation);
                let answer = |fence: Fence| FenceAnswer {
                    tablet: fence.tablet,
                    replica: fence.replica,
                    epoch: fence.epoch,
                    end: Pos::new(Epoch(0), Seq(0)),
                    ts_max: Hlc::MIN,
                    disk_generation,
                };
                let answers = fences.into_iter().map(answer).collect();
                self.input(Input::FenceAnswered { server, answers });
            }
            self.wait();
        }
    }

    /// Lets time pass, so that pauses of elections end.
    fn wait(&mut self) {
        self.now = self.now.plus_ms(200);
        self.input(Input::Tick { wall: Hlc::MIN });
    }

    fn measure_inputs(&mut self) -> [Figure; 4] {
        const TIMES: u32 = 100;
        let servers: Vec<ServerId> = self.state.servers().map(|server| server.id).collect();
        let began = Instant::now();
        for server in servers.iter().cycle().take(TIMES as usize) {
            self.input(Input::Silent { server: *server, leaders: BTreeSet::new() });
        }
        let heartbeat = began.elapsed() / TIMES;
        let began = Instant::now();
        for _ in 0..TIMES {
            self.wait();
        }
        let tick = began.elapsed() / TIMES;
        let began = Instant::now();
        let closed = servers[0];
        self.input(Input::SessionClosed { server: closed });
        self.open_session(closed);
        let reconnected = began.elapsed();
        let began = Instant::now();
        self.restart(closed);
        self.elect();
        let restarted = began.elapsed();
        [
            us("one heartbeat that tells of nobody silent", heartbeat),
            us("one tick with nothing to do", tick),
            ms("a server connects again", reconnected),
            ms("a server restarts: its tablets are led again", restarted),
        ]
    }

    fn restart(&mut self, server: ServerId) {
        let known = self.state.server(server).expect("it is registered").clone();
        self.propose(Command::RegisterServer(RegisterServer {
            cluster_id: self.state.cluster_id(),
            server_id: Some(server),
            disk_generation: known.disk_generation,
            boot_id: known.boot_id + 1_000_000,
            starts: known.starts + 1,
            address: known.address,
            zone: known.zone,
            time_ms: 1,
        }));
        self.open_session(server);
    }
}

/// Memory of this process.
fn resident_bytes() -> Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split_whitespace().nth(1).unwrap_or("0").parse()?;
    Ok(pages * 4_096)
}
