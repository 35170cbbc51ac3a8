//! Golden traces of the metadata core: `tests/scripts/meta/*`.
//!
//! A script is a list of `> command` lines, each followed by what it must print. What the
//! control core proposes waits until `> commit` applies it, so that a script can put
//! something else first. `UPDATE=1` writes what is printed now into the scripts.

mod meta_scripts {
    pub mod backups;
}

use ebla_kernel::entry::LogEnd;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, ConfigVersion, DiskGeneration, Epoch, Generation, Incarnation, JobId, Pos, ReplicaId, Seq,
    ServerId, TableId, TabletId, Tick,
};
use ebla_kernel::meta::{
    Appointment, AutoMerge, Changes, ClusterId, Command, Comparison, Control, Duty, Effect, FenceAnswer,
    GaveUp, InSyncChange, Input, Job, JobEnd, JobKind, MergeStep, NewBeginning, NewTablet, Origin, Policy,
    RegisterServer, ReplicaChange, Reply, Settings, SplitCommit, State, Succession, TableChange, TableKind,
    TableSpec, Tablet, TransferJob, Wish, apply, cut_ranges, decode_snapshot, encode_snapshot, state_hash,
};
use meta_scripts::backups;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

#[test]
fn scripts_print_what_they_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/meta");
    let update = std::env::var_os("UPDATE").is_some();
    let mut scripts = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let expected = std::fs::read_to_string(&path).unwrap();
        let printed = World::default().run(&expected);
        if update {
            std::fs::write(&path, printed).unwrap();
        } else {
            assert_eq!(printed, expected, "{} differs: run with UPDATE=1 and look", path.display());
        }
        scripts += 1;
    }
    assert!(scripts > 0, "no scripts found in {}", dir.display());
}

#[cfg(feature = "mutations")]
#[test]
fn what_comes_of_lost_tables_in_memory_is_seen() {
    use ebla_kernel::mutation::{Mutation, seed_bug};
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/meta/memory");
    let expected = std::fs::read_to_string(path).unwrap();
    for mutation in Mutation::OF_LOSS {
        seed_bug(Some(mutation));
        let printed = World::default().run(&expected);
        seed_bug(None);
        assert_ne!(printed, expected, "{mutation:?} changes nothing");
    }
}

#[test]
fn a_state_that_differs_at_the_same_index_is_told() {
    let init = |id| Command::InitCluster { cluster_id: ClusterId(id), masters: BTreeMap::new() };
    let (mut ours, mut theirs) = (State::default(), State::default());
    let _ = apply(&mut ours, 1, init(1));
    let _ = apply(&mut theirs, 1, init(2));
    let compare = |state: &State| Command::CompareState { applied: 1, hash: state_hash(state) };
    let same = compare(&ours);
    let different = compare(&theirs);
    assert_eq!(apply(&mut ours.clone(), 2, same.clone()).0, Reply::Compared(Comparison::Same));
    assert_eq!(apply(&mut ours.clone(), 2, different).0, Reply::Compared(Comparison::Diverged));
    let _ = apply(&mut ours, 2, init(1));
    assert_eq!(apply(&mut ours, 3, same).0, Reply::Compared(Comparison::Overtaken));
}

#[test]
fn a_copy_in_memory_is_lost_with_its_process_and_one_on_disk_is_not() {
    let register = |boot_id| {
        Command::RegisterServer(RegisterServer {
            cluster_id: None,
            server_id: None,
            disk_generation: DiskGeneration(9),
            boot_id,
            starts: boot_id,
            address: "h:1".to_owned(),
            zone: String::new(),
            time_ms: 0,
        })
    };
    let create = |name: &str, kind| {
        let tablet = NewTablet { range: cut_ranges(&[]).unwrap().remove(0), servers: vec![ServerId(1)] };
        let spec = TableSpec { kind, ..TableSpec::default() };
        Command::CreateTable { name: name.to_owned(), spec, tablets: vec![tablet], time_ms: 0 }
    };
    let mut state = State::default();
    let init = Command::InitCluster { cluster_id: ClusterId(1), masters: BTreeMap::new() };
    let commands = [
        init,
        register(1),
        create("disk", TableKind::Durable),
        create("memory", TableKind::Memory),
        register(2),
    ];
    for (index, command) in (1..).zip(commands) {
        let (reply, _) = apply(&mut state, index, command);
        assert!(!matches!(reply, Reply::Rejected(_)), "{reply:?}");
    }
    let lost: Vec<bool> = state.tablets().map(|tablet| tablet.replicas[0].lost).collect();
    assert_eq!(lost, [false, true]);
    assert!(state.tablets().all(|tablet| state.holds_data(&tablet.replicas[0]) != tablet.replicas[0].lost));
}

#[derive(Default)]
struct World {
    state: State,
    control: Control,
    now: Tick,
    proposed: Vec<Command>,
    out: String,
}

/// `name=value` arguments of a command.
struct Args<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Args<'a> {
    fn parse(words: &[&'a str]) -> Self {
        Self(words.iter().map(|word| word.split_once('=').unwrap_or((word, ""))).collect())
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).map_or(0, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    }

    fn list(&self, name: &str) -> Vec<&'a str> {
        self.text(name).map(|text| text.split(',').collect()).unwrap_or_default()
    }
}

impl World {
    fn run(mut self, script: &str) -> String {
        for line in script.lines() {
            if let Some(command) = line.strip_prefix("> ") {
                writeln!(self.out, "{line}").unwrap();
                self.command(command);
            } else if line.is_empty() || line.starts_with('#') {
                writeln!(self.out, "{line}").unwrap();
            }
        }
        self.out
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let args = Args::parse(&words[1..]);
        match words[0] {
            "init" => self.apply(init(&args)),
            "register" => self.apply(register(&args)),
            "create" => self.apply(create(&args)),
            "drop" => {
                let table = self.state.table_named(args.text("table").unwrap()).unwrap().id;
                self.apply(Command::DropTable { table, time_ms: 0 });
            }
            "set" => self.apply(set_table(&args, &self.state)),
            "balancer" => writeln!(self.out, "  paused: {}", self.state.balancer_paused()).unwrap(),
            "pause" => self.apply(Command::PauseBalancer { paused: true }),
            "resume" => self.apply(Command::PauseBalancer { paused: false }),
            "empty" => {
                let servers = args.text("servers").unwrap().split(',');
                let servers = servers.map(|id| ServerId(id.parse().unwrap())).collect();
                let (tablet, epoch) = (TabletId(args.number("t")), Epoch(args.number("epoch")));
                let tablets = vec![NewBeginning { tablet, epoch, servers }];
                self.apply(Command::Empty { tablets, time_ms: self.now.0 });
            }
            "recover" => {
                let tablets = vec![(TabletId(args.number("t")), Epoch(args.number("epoch")))];
                self.apply(Command::Recover { tablets });
            }
            "appoint" => self.apply(appoint(&args)),
            "lead" => {
                let masters = BTreeMap::from([(1, 11)]);
                self.step(Input::BecameLeader { cluster_id: ClusterId(7), masters });
            }
            "repairs" => {
                let after = args.text("after").map(|_| args.number("after"));
                self.control = Control::new(Settings { replaces_copies: true, replace_after_ms: after });
            }
            "behind" => {
                let copy =
                    (TabletId(args.number("t")), Epoch(args.number("epoch")), ReplicaId(args.number("r")));
                self.step(Input::Behind { server: ServerId(args.number("s")), copies: vec![copy] });
            }
            "diverged" => {
                let copy = (TabletId(args.number("t")), ReplicaId(args.number("r")));
                self.step(Input::Diverged { server: ServerId(args.number("s")), copies: vec![copy] });
            }
            "add" => {
                let tablet = TabletId(args.number("t"));
                let instead_of = args.text("for").map(|_| ReplicaId(args.number("for")));
                let change = ReplicaChange::Add { tablet, server: ServerId(args.number("s")), instead_of };
                self.apply(Command::ChangeReplicas { changes: vec![change], time_ms: self.now.0 });
            }
            "move" => {
                let wish = Wish::Move {
                    tablet: TabletId(args.number("t")),
                    from: ServerId(args.number("from")),
                    to: ServerId(args.number("to")),
                };
                self.apply(Command::StartJob { wish, origin: Origin::Operator, time_ms: self.now.0 });
            }
            "duty" => {
                let duty = match args.text("is") {
                    Some("serves") => Duty::Serves,
                    Some("drained") => Duty::Drained,
                    Some("leaves") => Duty::Leaves,
                    other => panic!("is={other:?}"),
                };
                self.apply(Command::SetDuty { server: ServerId(args.number("s")), duty });
            }
            "forget" => self.apply(Command::ForgetServer { server: ServerId(args.number("s")) }),
            "remove" => {
                let (tablet, replica) = (TabletId(args.number("t")), ReplicaId(args.number("r")));
                let changes = vec![ReplicaChange::Remove { tablet, replica }];
                self.apply(Command::ChangeReplicas { changes, time_ms: self.now.0 });
            }
            "unlead" => self.step(Input::LostLeadership),
            "open" => self.step(Input::SessionOpened {
                server: ServerId(args.number("s")),
                incarnation: Incarnation(args.number("i")),
            }),
            "close" => self.step(Input::SessionClosed { server: ServerId(args.number("s")) }),
            "answer" => self.step(answer(&args)),
            "alter" => self.apply(alter(&args)),
            "split" => self.apply(split(&args, self.now)),
            "merge" => self.apply(merge(&args, self.now)),
            "seal-merge" | "unseal-merge" => {
                let step = if words[0] == "seal-merge" { MergeStep::Seal } else { MergeStep::Unseal };
                let (job, attempt) = (JobId(args.number("j")), Attempt(args.number("a")));
                self.apply(Command::ChangeMerge { job, attempt, step });
            }
            "commit-split" => self.commit_split(&args),
            "cancel" => {
                let (job, end, time_ms) = (JobId(args.number("j")), JobEnd::Cancelled, self.now.0);
                self.apply(Command::EndJob { job, attempt: None, end, time_ms });
            }
            "jobs" => self.show_jobs(),
            "retired" => {
                let successors = self.state.successors(TabletId(args.number("t"))).unwrap_or_default();
                let successors: Vec<TabletId> = successors.into_iter().collect();
                writeln!(self.out, "  {successors:?}").unwrap();
            }
            "silent" => self.step(Input::Silent {
                server: ServerId(args.number("s")),
                leaders: args.list("of").into_iter().map(run).collect(),
            }),
            "gaveup" => {
                let gave_up = GaveUp {
                    tablet: TabletId(args.number("t")),
                    epoch: Epoch(args.number("epoch")),
                    successor: args.text("to").map(|_| ReplicaId(args.number("to"))),
                };
                self.step(Input::GaveUp { server: ServerId(args.number("s")), epochs: vec![gave_up] });
            }
            "transfer" => self.transfer(TabletId(args.number("t")), ServerId(args.number("s"))),
            "transferred" => {
                let (tablet, from, to) = (args.number("t"), args.number("from"), args.number("to"));
                let (tablet, to_server) = (TabletId(tablet), ServerId(to));
                let transfer = TransferJob { tablet, from_server: Some(ServerId(from)), to_server };
                let (started_ms, ended_ms) = (self.now.0, self.now.0 + 5);
                self.apply(Command::RecordTransfer { transfer, started_ms, ended_ms });
            }
            "tick" => {
                self.now = self.now.plus_ms(args.number("ms"));
                self.step(Input::Tick { wall: Hlc::new(self.now.0, 0) });
            }
            "commit" => {
                for command in std::mem::take(&mut self.proposed) {
                    self.apply(command);
                }
            }
            "lose" => self.proposed.clear(),
            "show" => self.show(),
            name if backups::NAMES.contains(&name) => {
                let table = args.text("servers").map(|_| create(&args));
                self.apply(backups::command(name, &args, &self.state, self.now.0, table));
            }
            "safe" => writeln!(self.out, "  {:?}", self.state.safe_ts(self.now.0)).unwrap(),
            "tables" => self.show_tables(),
            "fail" => {
                let (job, end) = (JobId(args.number("j")), JobEnd::Failed { error: "it burns".to_owned() });
                self.apply(Command::EndJob { job, attempt: None, end, time_ms: self.now.0 });
            }
            "attempts" => {
                let attempts: Vec<String> = self.state.backup_attempts().map(job_text).collect();
                attempts.iter().for_each(|text| writeln!(self.out, "  {text}").unwrap());
            }
            "schedules" => {
                let schedules: Vec<String> =
                    self.state.schedules().map(|it| format!("{} {:?}", it.url, it.past)).collect();
                schedules.iter().for_each(|text| writeln!(self.out, "  {text}").unwrap());
            }
            other => panic!("unknown command {other}"),
        }
    }

    /// A leader asks that its tablet be retired.
    fn commit_split(&mut self, args: &Args) {
        let proposer = run(args.text("by").unwrap());
        let commits = self.control.take_commit(&self.state, proposer, commit(args));
        if commits.is_empty() {
            writeln!(self.out, "  waits for the other half").unwrap();
            return;
        }
        self.apply(Command::CommitSplit { proposer, commits, time_ms: self.now.0 });
    }

    fn transfer(&mut self, tablet: TabletId, server: ServerId) {
        match self.control.transfer_target(&self.state, tablet, server) {
            Ok(replica) => self.step(Input::Transfer { tablet, replica }),
            Err(refusal) => writeln!(self.out, "  refused: {refusal}").unwrap(),
        }
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.control.step(self.now, &self.state, input, &mut effects);
        for effect in effects {
            self.print_effect(&effect);
            if let Effect::Propose(command) = effect {
                self.proposed.push(command);
            }
        }
    }

    fn print_effect(&mut self, effect: &Effect) {
        let text = match effect {
            Effect::Propose(command) => format!("propose {}", command_text(command)),
            Effect::SendFences { server, fences } => {
                let fences = fences.iter().map(|f| {
                    let gone = if f.gone > Epoch(0) { format!(" gone {}", f.gone) } else { String::new() };
                    format!("{}/{}@{}{gone}", f.tablet, f.replica, f.epoch)
                });
                format!("fence {server}: {}", fences.collect::<Vec<_>>().join(" "))
            }
            Effect::SendAssignments { server, full, tablets, removed } => {
                let kind = if *full { "all" } else { "change" };
                format!("assign {server} {kind}: {tablets:?} removed {removed:?}")
            }
            Effect::SendTransfer { server, tablet, epoch, replica } => {
                format!("transfer {server}: {tablet}@{epoch} to {replica}")
            }
            Effect::SendSeal { server, order } => {
                let (tablet, epoch, attempt) = (order.tablet, order.epoch, order.attempt);
                format!(
                    "seal {server}: {tablet}@{epoch} {attempt} into {}",
                    succession_text(&order.succession)
                )
            }
            Effect::EndSession { server } => format!("end session of {server}"),
        };
        writeln!(self.out, "  {text}").unwrap();
    }

    fn apply(&mut self, command: Command) {
        let command = Command::decode(&command.encode()).unwrap();
        let index = self.state.applied() + 1;
        let (reply, changes) = apply(&mut self.state, index, command);
        self.print_reply(&reply);
        self.check_snapshot();
        if changes != Changes::default() {
            self.step(Input::Applied(changes));
        }
    }

    fn print_reply(&mut self, reply: &Reply) {
        let text = match reply {
            Reply::Initialized(id) => format!("cluster {}", id.0),
            Reply::Registered(registered) => {
                let server = &registered.server;
                format!("{} {} {}", server.id, server.incarnation, server.ordinal)
            }
            Reply::Created(table, tablets) => format!("{} {tablets:?}", table.id),
            Reply::Changed(table) => {
                let TableSpec { split_bytes, split_load, auto_merge, .. } = table.spec;
                format!("{} splits above {split_bytes} B, {split_load}/s, merges {auto_merge:?}", table.id)
            }
            Reply::Dropped(table) => format!("dropped {}", table.id),
            Reply::Elections(results) | Reply::InSync(results) | Reply::Replicas(results) => {
                let results = results.iter().map(|result| match result {
                    Ok(tablet) => tablet_text(tablet),
                    Err(rejection) => format!("rejected: {rejection}"),
                });
                results.collect::<Vec<_>>().join("\n  ")
            }
            Reply::Job(job) => job_text(job),
            Reply::Server(server) => format!("{} {:?}", server.id, server.duty),
            Reply::BalancerPaused(paused) => format!("balancer paused: {paused}"),
            Reply::Done => "done".to_owned(),
            Reply::Compared(comparison) => format!("compared: {comparison:?}"),
            Reply::Rejected(rejection) => format!("rejected: {rejection}"),
        };
        writeln!(self.out, "  {text}").unwrap();
    }

    /// After every command: a snapshot gives the same state, indexes included.
    fn check_snapshot(&self) {
        let copy = decode_snapshot(&encode_snapshot(&self.state)).unwrap();
        assert_eq!(copy, self.state);
        assert_eq!(state_hash(&copy), state_hash(&self.state));
    }

    fn show_tables(&mut self) {
        for table in self.state.tables() {
            let restoring = table.restoring.map_or(String::new(), |job| format!(" restored by {job}"));
            writeln!(self.out, "  {} {}{restoring}", table.id, table.name).unwrap();
        }
    }

    fn show_jobs(&mut self) {
        for job in self.state.jobs() {
            writeln!(self.out, "  {}", job_text(job)).unwrap();
        }
    }

    fn show(&mut self) {
        for tablet in self.state.tablets() {
            writeln!(self.out, "  {}", tablet_text(tablet)).unwrap();
        }
    }
}

fn tablet_text(tablet: &Tablet) -> String {
    let leader = tablet.leader.map_or("nobody".to_owned(), |leader| {
        format!("{} on {} {}", leader.replica, leader.server, leader.incarnation)
    });
    let replicas = tablet.replicas.iter().map(|replica| {
        let lost = if replica.lost { " lost" } else { "" };
        let out = if tablet.in_sync.contains(&replica.id) { "" } else { " out" };
        format!("{}@{}{lost}{out}", replica.id, replica.server)
    });
    let recovering = if tablet.recovering { " recovering" } else { "" };
    let degraded = if tablet.degraded { " degraded" } else { "" };
    let former = tablet.former.map_or(String::new(), |former| {
        format!(" after {} {} {}", former.leader.replica, former.leader.incarnation, former.epoch)
    });
    let replicas = replicas.collect::<Vec<_>>().join(" ");
    let drawn_by = match tablet.drawn_by {
        Origin::Operator => "",
        Origin::Automatic => " drawn by itself",
    };
    let moving = tablet.moving.map_or(String::new(), |moving| {
        let from = moving.from.map_or(String::new(), |from| format!(" for {from}"));
        format!(" moving {}{from}", moving.to)
    });
    let emptied = tablet.emptied.map_or(String::new(), |emptied| {
        format!(" emptied {} times, {} after {}", emptied.times, tablet.lineage, emptied.before)
    });
    format!(
        "{} {} {} {} led by {leader}{recovering}{degraded}{former} [{replicas}]{moving}{drawn_by}{emptied}",
        tablet.id, tablet.range, tablet.epoch, tablet.config_version
    )
}

fn job_text(job: &Job) -> String {
    let what = match &job.kind {
        JobKind::Split(split) => format!("of {} into {}", split.parents[0], succession_text(split)),
        JobKind::Merge(merge) => {
            let intent = merge.intent.as_ref().map(succession_text);
            let intent = intent.map_or("gathering".to_owned(), |intent| format!("sealing into {intent}"));
            let (tries, comes) = (merge.tries, merge.comes);
            format!(
                "of {} and {} as {}, {comes} comes, {}/1000 done, {tries} tries, {intent}",
                merge.left, merge.right, merge.child, job.progress
            )
        }
        JobKind::Move(copy) => {
            let from = copy.from_server.map_or(String::new(), |from| format!(" from {from}"));
            format!("of {} to {}@{}{from}", copy.tablet, copy.to, copy.to_server)
        }
        JobKind::Backup(backup) => backups::backup_text(backup),
        JobKind::Restore(restore) => backups::restore_text(restore),
        JobKind::Transfer(transfer) => format!("of {} to {}", transfer.tablet, transfer.to_server),
    };
    let error = job.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    format!("{} {} {:?} {} {what}{error}", job.id, job.attempt, job.origin, job.state.name(),)
}

fn succession_text(split: &Succession) -> String {
    let children = split.children.iter().map(|(id, range)| format!("{id} {range}"));
    let copies = split.replicas.iter().map(|(parent, children)| format!("{parent}->{children:?}"));
    let (children, copies) = (children.collect::<Vec<_>>(), copies.collect::<Vec<_>>());
    format!("{} copies {}", children.join(" + "), copies.join(" "))
}

fn command_text(command: &Command) -> String {
    match command {
        Command::InitCluster { cluster_id, .. } => format!("init {}", cluster_id.0),
        Command::Recover { tablets } => format!("recover {tablets:?}"),
        Command::Empty { tablets, .. } => {
            let one = |anew: &NewBeginning| format!("{}@{} on {:?}", anew.tablet, anew.epoch, anew.servers);
            format!("empty {}", tablets.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Command::Appoint { appointments } => {
            let one = |a: &Appointment| {
                let degraded = if a.degraded { " degraded" } else { "" };
                format!("{}@{} to {} {}{degraded}", a.tablet, a.epoch, a.replica, a.incarnation)
            };
            format!("appoint {}", appointments.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Command::ChangeReplicas { changes, .. } => {
            let one = |change: &ReplicaChange| match change {
                ReplicaChange::Add { tablet, server, instead_of } => {
                    let old = instead_of.map_or(String::new(), |old| format!(" for {old}"));
                    format!("add {tablet} on {server}{old}")
                }
                ReplicaChange::Remove { tablet, replica } => format!("remove {replica} of {tablet}"),
                ReplicaChange::Shed { tablet, replica } => format!("shed {replica} of {tablet}"),
                ReplicaChange::Forsake { tablet, replica } => format!("forsake {replica} of {tablet}"),
                ReplicaChange::Settle { tablet } => format!("settle {tablet}"),
            };
            changes.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Command::EndJob { job, attempt, end, .. } => {
            format!("end {job} {}: {end:?}", attempt.map_or("any attempt".to_owned(), |a| a.to_string()))
        }
        Command::ChangeMerge { job, attempt, step } => format!("change merge {job} {attempt}: {step:?}"),
        Command::RegisterServer(_)
        | Command::StartJob { .. }
        | Command::CommitSplit { .. }
        | Command::PauseBalancer { .. }
        | Command::ChangeBackup { .. }
        | Command::ChangeRestore { .. }
        | Command::SetSchedule { .. }
        | Command::FailSchedule { .. }
        | Command::RemoveSchedule { .. }
        | Command::RecordTransfer { .. }
        | Command::RecordRefusal { .. }
        | Command::CreateTable { .. }
        | Command::ChangeTable { .. }
        | Command::DropTable { .. }
        | Command::AlterInSync { .. }
        | Command::SetDuty { .. }
        | Command::ForgetServer { .. }
        | Command::CompareState { .. } => {
            panic!("the control core never proposes this")
        }
    }
}

fn init(args: &Args) -> Command {
    let cluster_id = ClusterId(u128::from(args.number("cluster")));
    Command::InitCluster { cluster_id, masters: BTreeMap::from([(1, 11)]) }
}

fn register(args: &Args) -> Command {
    Command::RegisterServer(RegisterServer {
        cluster_id: args.text("cluster").map(|_| ClusterId(u128::from(args.number("cluster")))),
        server_id: args.text("s").map(|_| ServerId(args.number("s"))),
        disk_generation: DiskGeneration(args.number("disk")),
        boot_id: args.number("boot"),
        starts: args.number("boot"),
        address: args.text("at").unwrap_or("h:1").to_owned(),
        zone: args.text("zone").unwrap_or_default().to_owned(),
        time_ms: 0,
    })
}

/// `servers` lists the places of each tablet, separated by `/`.
fn create(args: &Args) -> Command {
    let split: Vec<bytes::Bytes> =
        args.list("split").iter().map(|key| bytes::Bytes::copy_from_slice(key.as_bytes())).collect();
    let places: Vec<&str> = args.text("servers").unwrap().split('/').collect();
    let tablets = cut_ranges(&split).unwrap().into_iter().zip(places.iter().cycle());
    let tablets: Vec<NewTablet> = tablets
        .map(|(range, servers)| NewTablet {
            range,
            servers: servers.split(',').map(|id| ServerId(id.parse().unwrap())).collect(),
        })
        .collect();
    let policy = match args.text("policy") {
        Some("degraded") => Policy::Degraded,
        Some("strict") | None => Policy::Strict,
        Some(other) => panic!("policy={other}"),
    };
    let kind = match args.text("kind") {
        Some("memory") => TableKind::Memory,
        Some("durable") | None => TableKind::Durable,
        Some(other) => panic!("kind={other}"),
    };
    let spec = TableSpec {
        kind,
        policy,
        replicas: u8::try_from(tablets[0].servers.len()).unwrap(),
        min_in_sync: u8::try_from(args.number("d").max(1)).unwrap(),
        ..TableSpec::default()
    };
    Command::CreateTable { name: args.text("table").unwrap().to_owned(), spec, tablets, time_ms: 0 }
}

/// `table=NAME size=BYTES load=OPS merge=off|own|all`, each of the last three or none.
fn set_table(args: &Args, state: &State) -> Command {
    let number = |name: &str| args.text(name).map(|_| args.number(name));
    let auto_merge = args.text("merge").map(|which| match which {
        "off" => AutoMerge::Off,
        "own" => AutoMerge::Own,
        "all" => AutoMerge::All,
        other => panic!("merge={other}"),
    });
    let change = TableChange {
        split_bytes: number("size"),
        split_load: number("load"),
        auto_merge,
        replicas: args.text("replicas").map(|_| u8::try_from(args.number("replicas")).unwrap()),
        ..TableChange::default()
    };
    let table = args.text("table").and_then(|name| state.table_named(name)).map(|table| table.id);
    Command::ChangeTable { table: table.unwrap_or(TableId(99)), change }
}

fn appoint(args: &Args) -> Command {
    let appointment = Appointment {
        tablet: TabletId(args.number("t")),
        epoch: Epoch(args.number("epoch")),
        replica: ReplicaId(args.number("r")),
        incarnation: Incarnation(args.number("i")),
        ts: Hlc(0),
        degraded: args.text("degraded").is_some(),
    };
    Command::Appoint { appointments: vec![appointment] }
}

/// `by=SERVER:RUN` asks that copy `r`, which runs as `i` on `disk`, comes in or goes out.
fn alter(args: &Args) -> Command {
    let change = InSyncChange {
        tablet: TabletId(args.number("t")),
        epoch: Epoch(args.number("epoch")),
        config_version: ConfigVersion(args.number("c")),
        replicas: args
            .text("add")
            .or(args.text("remove"))
            .into_iter()
            .flat_map(|ids| ids.split(','))
            .map(|id| ReplicaId(id.parse().unwrap()))
            .collect(),
        add: args.text("add").is_some(),
        incarnation: Incarnation(args.number("i")),
        generation: Generation::Disk(DiskGeneration(args.number("disk"))),
    };
    Command::AlterInSync { proposer: run(args.text("by").unwrap()), changes: vec![change] }
}

/// `by=operator`, the default, or `by=itself`.
fn split(args: &Args, now: Tick) -> Command {
    let at = args.list("at").iter().map(|key| bytes::Bytes::copy_from_slice(key.as_bytes())).collect();
    let origin = match args.text("by") {
        Some("itself") => Origin::Automatic,
        Some(_) | None => Origin::Operator,
    };
    let wish = Wish::Split { tablet: TabletId(args.number("t")), at };
    Command::StartJob { wish, origin, time_ms: now.0 }
}

/// `stays=TABLET comes=TABLET`, `by` as for splits.
fn merge(args: &Args, now: Tick) -> Command {
    let origin = if args.text("by") == Some("itself") { Origin::Automatic } else { Origin::Operator };
    let wish = Wish::Merge { stays: TabletId(args.number("stays")), comes: TabletId(args.number("comes")) };
    Command::StartJob { wish, origin, time_ms: now.0 }
}

/// `by=SERVER:RUN ready=REPLICA:DISK,..`: that leader asks for the commit.
fn commit(args: &Args) -> SplitCommit {
    let epoch = Epoch(args.number("epoch"));
    let ready = args.list("ready").into_iter().map(|copy| {
        let (id, disk) = copy.split_once(':').unwrap();
        let generation = Generation::Disk(DiskGeneration(disk.parse().unwrap()));
        (ReplicaId(id.parse().unwrap()), generation)
    });
    SplitCommit {
        tablet: TabletId(args.number("t")),
        attempt: Attempt(args.number("a")),
        epoch,
        seal: LogEnd { pos: Pos::new(epoch, Seq(args.number("seal"))), hash: 0, ts: Hlc(0) },
        ready: ready.collect(),
    }
}

/// `SERVER:RUN`.
fn run(text: &str) -> (ServerId, Incarnation) {
    let (server, run) = text.split_once(':').unwrap();
    (ServerId(server.parse().unwrap()), Incarnation(run.parse().unwrap()))
}

/// `end=EPOCH:SEQ`.
fn answer(args: &Args) -> Input {
    let (epoch, seq) = args.text("end").unwrap().split_once(':').unwrap();
    let answer = FenceAnswer {
        tablet: TabletId(args.number("t")),
        replica: ReplicaId(args.number("r")),
        epoch: Epoch(args.number("epoch")),
        end: Pos::new(Epoch(epoch.parse().unwrap()), Seq(seq.parse().unwrap())),
        ts_max: Hlc(0),
        disk_generation: DiskGeneration(args.number("disk")),
    };
    Input::FenceAnswered { server: ServerId(args.number("s")), answers: vec![answer] }
}
