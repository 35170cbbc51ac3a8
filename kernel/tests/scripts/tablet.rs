//! The command language of the tablet scripts.
//!
//! Copies are numbered from 1; `@2` before a command is for the second, the first is meant
//! without it. Copy n is replica n on server n.
//!
//! ```text
//! start                         three copies in sync with D = 2, the first leads, promises until 900
//! fence 2 [gone=1]              metadata asks for the promise of epoch 2
//! promised 2                    the promise of epoch 2 is durable
//! appoint 2 [incarnation=1] [in-sync=1,2] [members=1,2,3] [d=1] [floor=1] [version=1]
//! in-sync 2 1,2,3 [version=2]   metadata tells the in-sync set of epoch 2
//! refused 2 [version=1]         metadata refuses the change of that version
//! write q1 set k=v, add n=1, delete k, delete-range a..m, if-absent set k=v
//!          [token=7] [issued=MS] [level=leader|in-sync|copies=2] [within=MS] [evidence=NAME|none]
//! read NAME                     a request task reads all rows now and keeps them as NAME
//! persist [SEQ] | apply [SEQ]   the log is durable, the rows are stored, up to SEQ or all
//! settle                        what the core asked to be applied is applied
//! cut                           the cut that the core asked for is done
//! fail SEQ                      the append from SEQ on is refused
//! flush                         a batch is over
//! deliver [1>2] | lose [1>2]    messages arrive, or never do
//! promise 2 until MS            the server of copy 2 has promised until then
//! bound 2 until MS              this server has promised the server of copy 2 until then
//! connected 2 | silent 2 | superseded 3 | transfer 2 to 3
//! barrier q2 | outcome q3 token=7 [issued=MS] | close MS
//! seal 1 aN at=m [within=MS]    metadata wants epoch 1 sealed for attempt N, cut at these keys
//! seal 1 aN with=t9 [within=MS] wants it sealed together with t9, its neighbour above
//! staged [none] | split-refused 1 aN | aborted aN | retire
//! become 8 2                    this copy switches to its child t8 in epoch 2
//! become 8 4 with=3:40          the same for a merge: the log of t9 ends sealed at e3:40
//! forget MS | step-down | tick MS | show
//! restart [incarnation=2]       a new process: what was not durable is gone
//! ```

use super::show::{show_effect, show_mail};
use super::words::{Words, number};
use bytes::Bytes;
use ebla_kernel::entry::{Entry, LogEnd, Payload, SealRecord, SealedChild};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::{
    Attempt, ConfigVersion, DiskGeneration, Epoch, Generation, Incarnation, Pos, ReplicaId, RequestId, Seq,
    ServerId, ServerRun, TabletId, Tick,
};
use ebla_kernel::lease::Promises;
use ebla_kernel::op::{AckLevel, Action, Body, Cause, Change, Condition, Op, Token, Version};
use ebla_kernel::range::KeyRange;
use ebla_kernel::sequence::{Evidence, RangeEvidence};
use ebla_kernel::tablet::token::{TokenRecord, TokenTable};
use ebla_kernel::tablet::truncate::Cut;
use ebla_kernel::tablet::{
    ApplyWhen, Appointment, Effect, Input, Membership, PeerInput, PeerMessage, PeerRun, Recovered, Seals,
    Tablet, WriteRequest,
};
use std::collections::{BTreeMap, BTreeSet};

const WALL_MS: u64 = 1_000_000;

/// Copies of a tablet and what is on the way between them.
pub struct Session {
    copies: BTreeMap<u64, Copy>,
    now: Tick,
    last_ts: Hlc,
    mail: Vec<(u64, u64, PeerInput)>,
}

/// A copy and what a shell would keep for it.
struct Copy {
    id: u64,
    tablet: Tablet,
    incarnation: Incarnation,
    promised: Epoch,
    log: Vec<(Entry, ApplyWhen)>,
    durable: usize,
    versions: BTreeMap<(Bytes, Hlc), Version>,
    settling: Option<Seq>,
    cutting: Option<LogEnd>,
    reads: BTreeMap<String, (Seq, BTreeMap<Bytes, Version>)>,
    counted: BTreeMap<u64, Tick>,
    given: BTreeMap<u64, Tick>,
    now: Tick,
}

/// The promises of a copy's server.
struct Promised<'a>(&'a BTreeMap<u64, Tick>, &'a BTreeMap<u64, Tick>, Tick);

impl Promises for Promised<'_> {
    fn counted_until(&self, run: ServerRun) -> Tick {
        self.0.get(&run.server.0).copied().unwrap_or_default()
    }

    fn promiser_now(&self) -> Tick {
        self.2
    }

    fn given_until(&self, run: ServerRun) -> Tick {
        self.1.get(&run.server.0).copied().unwrap_or_default()
    }

    fn boot_until(&self) -> Tick {
        Tick(0)
    }
}

fn ids(text: &str) -> BTreeSet<ReplicaId> {
    text.split(',').map(|id| ReplicaId(id.parse().expect("a replica"))).collect()
}

impl Session {
    pub fn new() -> Self {
        let copies = BTreeMap::from([(1, Copy::new(1))]);
        Self { copies, now: Tick(0), last_ts: Hlc::new(WALL_MS, 0), mail: Vec::new() }
    }

    /// Runs one command and shows the effects, one a line.
    pub fn run(&mut self, command: &str) -> Vec<String> {
        let (id, command) = match command.strip_prefix('@') {
            Some(rest) => {
                let (id, command) = rest.split_once(' ').expect("a command behind the copy");
                (id.parse().expect("a copy"), command)
            }
            None => (1, command),
        };
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        match verb {
            "deliver" => return self.deliver(rest),
            "lose" => {
                let lost = self.take_mail(rest);
                return lost.iter().map(|(from, to, input)| show_mail(*from, *to, input)).collect();
            }
            "start" => return self.start(),
            "built" => return self.built(id, rest),
            "settle" if self.copies[&id].settling.is_none() => return vec!["nothing to apply".into()],
            "tick" => self.now = Tick(rest.parse().expect("milliseconds")),
            _ => {}
        }
        let (now, wall_ms) = (self.now, WALL_MS + self.now.0);
        self.last_ts = self.last_ts.next().max(Hlc::new(wall_ms, 0));
        let ts = self.last_ts;
        let copy = self.copies.entry(id).or_insert_with(|| Copy::new(id));
        copy.now = now;
        let input = match verb {
            "show" => return vec![copy.show()],
            "rows" => return copy.show_rows(),
            "behind" => return vec![format!("{:?}", copy.tablet.behind().collect::<Vec<_>>())],
            "read" => return copy.read(rest),
            "restart" => return copy.restart(rest),
            "promise" | "bound" => return copy.promise(verb, rest),
            "write" => copy.write(rest, ts),
            "appoint" => copy.appoint(rest, ts),
            "outcome" => copy.outcome(rest, ts),
            "persist" | "apply" | "fail" => copy.progress(verb, rest),
            "settle" => copy.settle(),
            "cut" => copy.cut(),
            "seal" => copy.seal(rest),
            "staged" => copy.staged(rest),
            "become" => return copy.become_child(rest),
            _ => copy.plain(verb, rest, ts),
        };
        self.step(id, input)
    }

    /// Three copies in sync, the first leads, everybody has promised until 900.
    fn start(&mut self) -> Vec<String> {
        let commands = "appoint 1 in-sync=1,2,3 d=2; promised 1; persist; apply; deliver; @2 promised 1; \
            @3 promised 1; deliver; flush; deliver; @2 persist; @3 persist; @2 flush; @3 flush; deliver; \
            promise 2 until 900; promise 3 until 900; flush; deliver; @2 settle; @3 settle; @2 flush; \
            @3 flush; deliver";
        commands.split("; ").for_each(|command| drop(self.run(command)));
        vec![self.copies[&1].show()]
    }

    /// A copy that was built from the rows of copy 1: its log begins behind `upto`, and it
    /// promises the epoch in which it was created (m23).
    fn built(&mut self, id: u64, rest: &str) -> Vec<String> {
        let words = Words::of(rest, &["upto", "epoch"]);
        let upto = usize::try_from(words.number("upto", 0)).expect("small");
        let (source, promised) = (&self.copies[&1], Epoch(words.number("epoch", 1)));
        let log = source.log[..upto].to_vec();
        let entries: Vec<Entry> = log.iter().map(|(entry, _)| entry.clone()).collect();
        let tablet = open(id, Incarnation(1), promised, &entries, Seq(upto as u64), Attempt(0));
        let versions = source.versions.clone();
        let copy = Copy { tablet, promised, log, durable: upto, versions, ..Copy::new(id) };
        let shown = copy.show();
        self.copies.insert(id, copy);
        vec![shown]
    }

    fn step(&mut self, id: u64, input: Input) -> Vec<String> {
        let copy = self.copies.get_mut(&id).expect("it was there before");
        copy.now = self.now;
        let effects = copy.step(input);
        let mut shown = Vec::new();
        for effect in &effects {
            shown.push(show_effect(effect));
            let mail = self.copies.get_mut(&id).expect("it was there before").mail(effect);
            self.mail.extend(mail.into_iter().map(|(to, input)| (id, to, input)));
            if let Effect::Stream(stream) = effect {
                let input = Input::Sent { to: stream.to, upto: stream.upto };
                shown.extend(self.step(id, input));
            }
            if let Effect::Locate { seq } = effect {
                let end = self.copies[&id].end_at(*seq);
                shown.extend(self.step(id, Input::Located { end }));
            }
        }
        shown
    }

    fn take_mail(&mut self, link: &str) -> Vec<(u64, u64, PeerInput)> {
        let link = link.split_once('>').map(|(from, to)| (from.parse().ok(), to.parse().ok()));
        let is_meant = |mail: &mut (u64, u64, PeerInput)| {
            link.is_none_or(|(from, to)| Some(mail.0) == from && Some(mail.1) == to)
        };
        self.mail.extract_if(.., is_meant).collect()
    }

    fn deliver(&mut self, link: &str) -> Vec<String> {
        let mut shown = Vec::new();
        for (from, to, input) in self.take_mail(link) {
            shown.push(show_mail(from, to, &input));
            let now = self.now;
            self.copies.entry(to).or_insert_with(|| Copy::new(to)).now = now;
            shown.extend(self.step(to, Input::Peer(input)).into_iter().map(|line| format!("  {line}")));
        }
        shown
    }
}

impl Copy {
    fn new(id: u64) -> Self {
        Self {
            id,
            tablet: open(id, Incarnation(1), Epoch(0), &[], Seq(0), Attempt(0)),
            incarnation: Incarnation(1),
            promised: Epoch(0),
            log: Vec::new(),
            durable: 0,
            versions: BTreeMap::new(),
            settling: None,
            cutting: None,
            reads: BTreeMap::new(),
            counted: BTreeMap::new(),
            given: BTreeMap::new(),
            now: Tick(0),
        }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        if let Input::PromisePersisted { epoch } = &input {
            self.promised = self.promised.max(*epoch);
        }
        let mut effects = Vec::new();
        let promises = Promised(&self.counted, &self.given, self.now);
        self.tablet.step(self.now, &promises, input, &mut effects);
        for effect in &effects {
            match effect {
                Effect::Append { entry, when } => self.log.push((entry.clone(), *when)),
                Effect::AppendCopies { entries } => {
                    self.log.extend(entries.iter().map(|entry| (entry.clone(), ApplyWhen::Safe)));
                }
                Effect::Apply { upto } => self.settling = Some(*upto),
                Effect::Truncate { keep } => self.cutting = Some(*keep),
                _ => {}
            }
        }
        effects
    }

    /// The message that an effect sends, if it does.
    fn mail(&self, effect: &Effect) -> Option<(u64, PeerInput)> {
        let run = PeerRun {
            server: ServerRun { server: ServerId(self.id), incarnation: self.incarnation },
            generation: Generation::Disk(DiskGeneration(self.id)),
        };
        let from = ReplicaId(self.id);
        match effect {
            Effect::Send { to, epoch, message } => {
                Some((to.0, PeerInput { from, run, epoch: *epoch, message: message.clone() }))
            }
            Effect::Stream(stream) => {
                let is_asked = |entry: &&Entry| entry.seq() >= stream.from && entry.seq() <= stream.upto;
                let entries = self.log.iter().map(|(entry, _)| entry).filter(is_asked).cloned().collect();
                let message = PeerMessage::Append { prev: stream.prev, entries, q: stream.q };
                Some((stream.to.0, PeerInput { from, run, epoch: stream.epoch, message }))
            }
            _ => None,
        }
    }

    fn end_at(&self, seq: Seq) -> LogEnd {
        let entry = self.log.iter().find(|(entry, _)| entry.seq() == seq);
        entry.map_or(LogEnd::default(), |(entry, _)| entry.end())
    }

    fn plain(&mut self, verb: &str, rest: &str, ts: Hlc) -> Input {
        let words = Words::of(rest, &["gone", "version", "members", "leaving"]);
        let value = number(words.plain.first());
        let epoch = Epoch(value.unwrap_or_default());
        let server = ServerId(value.unwrap_or_default());
        let version = ConfigVersion(words.number("version", 1));
        match verb {
            "fence" => Input::Fence { epoch, gone: Epoch(words.number("gone", 0)) },
            "promised" => Input::PromisePersisted { epoch },
            "in-sync" => {
                let in_sync = words.plain[1];
                let members = words.named.get("members").copied();
                let leaving = words.named.get("leaving").map(|id| ReplicaId(id.parse().expect("a copy")));
                let membership = Membership { leaving, ..membership(version, in_sync, members) };
                Input::InSync { epoch, membership }
            }
            "refused" => Input::ProposalRefused { epoch, version },
            "flush" => Input::Flush,
            "purged" => Input::Purged { to: ReplicaId(value.expect("a copy")) },
            "connected" => Input::Connected { server },
            "silent" => Input::Silent { server },
            "superseded" => Input::Superseded { epoch },
            "transfer" => {
                let to = ReplicaId(number(words.plain.get(2)).expect("a copy"));
                Input::Transfer { epoch, to, until: self.now.plus_ms(1_000) }
            }
            "close" => {
                let wanted = Hlc::new(WALL_MS + value.expect("milliseconds"), 0);
                Input::CloseWanted { ts: wanted, fresh: ts }
            }
            "split-refused" => {
                let attempt = Attempt(number(words.plain.get(1)).expect("an attempt"));
                Input::SplitRefused { epoch, attempt }
            }
            "aborted" => Input::SplitAborted { attempt: Attempt(value.expect("an attempt")) },
            "retire" => Input::Retire,
            "forget" => Input::ForgetTokens { issued_before_ms: value.expect("milliseconds") },
            "step-down" => Input::StepDown,
            "tick" => Input::Tick,
            "barrier" => Input::Barrier {
                request: RequestId(value.expect("a request")),
                ts,
                deadline: self.now.plus_ms(1_000),
            },
            _ => panic!("unknown command {verb}"),
        }
    }

    /// Tablets from 8 on are to take the place of this one; copy n of each is replica n.
    fn seal(&mut self, rest: &str) -> Input {
        let words = Words::of(rest, &["at", "with", "within"]);
        let ranges = match words.named.get("at") {
            Some(at) => {
                let keys: Vec<Bytes> =
                    at.split(',').map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
                let cut = KeyRange::cut_at(&keys).expect("rising keys");
                cut.iter().filter_map(|part| part.intersect(self.tablet.range())).collect()
            }
            None => vec![self.tablet.range().followed_by(neighbour(3, 0).0.range()).expect("neighbours")],
        };
        let child = |(tablet, range)| SealedChild {
            tablet: TabletId(tablet),
            range,
            replicas: (1..=3).map(|id| (ReplicaId(id), ReplicaId(id))).collect(),
        };
        let seal = SealRecord {
            attempt: Attempt(number(words.plain.get(1)).expect("an attempt")),
            children: (8..).zip(ranges).map(child).collect(),
        };
        let epoch = Epoch(number(words.plain.first()).expect("an epoch"));
        Input::Seal { epoch, seal, until: self.now.plus_ms(words.number("within", 200)) }
    }

    fn staged(&self, rest: &str) -> Input {
        let sealed = self.tablet.sealed().map(|(seal, _)| seal.attempt);
        Input::Staged { attempt: sealed.filter(|_| rest != "none") }
    }

    fn become_child(&mut self, rest: &str) -> Vec<String> {
        let words = Words::of(rest, &["with"]);
        let tablet = TabletId(number(words.plain.first()).expect("a tablet"));
        let epoch = Epoch(number(words.plain.get(1)).expect("an epoch"));
        let (seal, end) = self.tablet.sealed().expect("a sealed tablet");
        let child = seal.children.iter().find(|child| child.tablet == tablet).expect("a child");
        let other = words.named.get("with").map(|end| {
            let (epoch, seq) = end.split_once(':').expect("a position");
            neighbour(epoch.parse().expect("an epoch"), seq.parse().expect("an index"))
        });
        let other = other.as_ref().map(|(tablet, end)| (tablet, *end));
        let parents: Vec<_> = std::iter::once((&self.tablet, end)).chain(other).collect();
        let child = Tablet::successor(&parents, child, epoch, ReplicaId(self.id));
        self.log.truncate(usize::try_from(end.pos.seq.0).expect("small"));
        (self.tablet, self.promised, self.settling, self.durable) = (child, epoch, None, self.log.len());
        vec![self.show()]
    }

    fn promise(&mut self, verb: &str, rest: &str) -> Vec<String> {
        let words = Words::of(rest, &[]);
        let server = number(words.plain.first()).expect("a copy");
        let until = Tick(number(words.plain.get(2)).expect("milliseconds"));
        let promises = if verb == "promise" { &mut self.counted } else { &mut self.given };
        promises.insert(server, until);
        Vec::new()
    }

    fn progress(&mut self, verb: &str, rest: &str) -> Input {
        let all = if verb == "apply" { self.durable } else { self.log.len() };
        let seq = rest.parse().unwrap_or(all as u64);
        let at = usize::try_from(seq).expect("small");
        match verb {
            "persist" => {
                self.durable = self.durable.max(at);
                Input::Persisted { upto: Seq(seq) }
            }
            "apply" => {
                let is_due = |(_, when): &&(Entry, ApplyWhen)| *when == ApplyWhen::Durable;
                let due = self.log[..at.min(self.log.len())].iter().filter(is_due);
                let entries: Vec<Entry> = due.map(|(entry, _)| entry.clone()).collect();
                entries.iter().for_each(|entry| self.fold(entry));
                Input::Applied { upto: Seq(seq) }
            }
            _ => {
                self.log.truncate(at - 1);
                Input::AppendFailed { from: Seq(seq) }
            }
        }
    }

    fn settle(&mut self) -> Input {
        let upto = self.settling.take().expect("the core asked for rows to be applied");
        let from = self.tablet.applied_seq();
        let window = self.log.iter().map(|(entry, _)| entry);
        let window = window.filter(|entry| entry.seq() > from && entry.seq() <= upto);
        let entries: Vec<Entry> = window.cloned().collect();
        entries.iter().for_each(|entry| self.fold(entry));
        Input::Settled { upto }
    }

    fn cut(&mut self) -> Input {
        let end = self.cutting.take().expect("the core asked for a cut");
        let keep = usize::try_from(end.pos.seq.0).expect("small");
        let tail: Vec<Entry> = self.log.drain(keep..).map(|(entry, _)| entry).collect();
        self.durable = self.durable.min(keep);
        let cut = Cut::of(&tail);
        for (ts, row) in &cut.undo {
            self.remove(*ts, row);
        }
        Input::Truncated { end, applied: cut.applied_max }
    }

    fn remove(&mut self, ts: Hlc, row: &ebla_kernel::entry::RevertedRow) {
        match row {
            ebla_kernel::entry::RevertedRow::Row { key } => self.versions.remove(&(key.clone(), ts)),
            ebla_kernel::entry::RevertedRow::Range { .. } => panic!("scripts write small ranges only"),
        };
    }

    fn fold(&mut self, entry: &Entry) {
        for target in entry.reverts() {
            target.rows.iter().for_each(|row| self.remove(target.ts, row));
        }
        for change in entry.changes() {
            match change {
                Change::Put { key, body, expires_ms } => {
                    let version = Version { ts: entry.ts, body: body.clone(), expires_ms: *expires_ms };
                    self.versions.insert((key.clone(), entry.ts), version);
                }
                Change::RangeTombstone { .. } => panic!("scripts write small ranges only"),
            }
        }
    }

    fn rows(&self) -> BTreeMap<Bytes, Version> {
        self.versions.iter().map(|((key, _), version)| (key.clone(), version.clone())).collect()
    }

    fn show_rows(&self) -> Vec<String> {
        let show = |(key, version): (&Bytes, &Version)| match &version.body {
            Body::Tombstone(_) => format!("-{}", key.escape_ascii()),
            Body::Value(value) => format!("{}={}", key.escape_ascii(), value.escape_ascii()),
            Body::Counter(value) => format!("{}={value}", key.escape_ascii()),
        };
        self.rows().iter().map(show).collect()
    }

    fn appoint(&mut self, rest: &str, ts: Hlc) -> Input {
        let words = Words::of(rest, &["incarnation", "in-sync", "members", "d", "floor", "version"]);
        let own = self.id.to_string();
        let in_sync = words.named.get("in-sync").copied().unwrap_or(&own);
        let members = words.named.get("members").copied();
        let version = ConfigVersion(words.number("version", 1));
        let min_in_sync = u8::try_from(words.number("d", 1)).expect("small");
        Input::Appoint(Appointment {
            epoch: Epoch(number(words.plain.first()).expect("an epoch")),
            replica: ReplicaId(self.id),
            incarnation: Incarnation(words.number("incarnation", 1)),
            membership: membership(version, in_sync, members),
            min_in_sync,
            shrink_floor: u8::try_from(words.number("floor", min_in_sync.into())).expect("small"),
            ts,
        })
    }

    fn write(&mut self, rest: &str, ts: Hlc) -> Input {
        let names = ["token", "issued", "level", "within", "evidence"];
        let words = Words::of(rest, &names);
        let request = RequestId(number(words.plain.first()).expect("a request"));
        let ops: Vec<Op> = words.plain[1..].join(" ").split(',').map(|op| parse_op(op.trim())).collect();
        let evidence = self.evidence(&ops, words.named.get("evidence").copied());
        Input::Write(WriteRequest {
            request,
            ops,
            level: match words.named.get("level").copied() {
                None | Some("leader") => AckLevel::Leader,
                Some("in-sync") => AckLevel::InSync,
                Some(copies) => AckLevel::Copies(copies.trim_start_matches("copies=").parse().expect("n")),
            },
            token: words.named.contains_key("token").then(|| token(&words)),
            evidence,
            ts,
            wall_ms: WALL_MS + self.now.0,
            deadline: self.now.plus_ms(words.number("within", 1_000)),
        })
    }

    fn outcome(&mut self, rest: &str, ts: Hlc) -> Input {
        let words = Words::of(rest, &["token", "issued"]);
        Input::GetOutcome {
            request: RequestId(number(words.plain.first()).expect("a request")),
            token: token(&words),
            wall_ms: WALL_MS + self.now.0,
            ts,
            deadline: self.now.plus_ms(1_000),
        }
    }

    fn read(&mut self, name: &str) -> Vec<String> {
        self.reads.insert(name.into(), (self.tablet.applied_seq(), self.rows()));
        vec![format!("read as of {}", self.tablet.applied_seq())]
    }

    fn evidence(&self, ops: &[Op], name: Option<&str>) -> Evidence {
        let (as_of, rows) = match name {
            Some("none") => return Evidence::default(),
            Some(name) => self.reads[name].clone(),
            None => (self.tablet.applied_seq(), self.rows()),
        };
        let mut evidence = Evidence { as_of, ..Evidence::default() };
        for op in ops {
            if let Action::DeleteRange { from, to } = &op.action {
                let range = KeyRange::new(from.clone(), to.clone()).expect("a range");
                let keys = rows.keys().filter(|key| range.contains(key)).cloned().collect();
                evidence.ranges.push(RangeEvidence { keys });
            } else if let Some(key) = op.action.key() {
                evidence.rows.insert(key.clone(), rows.get(key).cloned());
            }
        }
        evidence
    }

    fn restart(&mut self, rest: &str) -> Vec<String> {
        let words = Words::of(rest, &["incarnation", "applied", "staged"]);
        self.incarnation = Incarnation(words.number("incarnation", 2));
        let applied = Seq(words.number("applied", self.tablet.applied_seq().0));
        let staged = Attempt(words.number("staged", 0));
        self.log.truncate(self.durable);
        let log: Vec<Entry> = self.log.iter().map(|(entry, _)| entry.clone()).collect();
        self.tablet = open(self.id, self.incarnation, self.promised, &log, applied, staged);
        (self.settling, self.cutting) = (None, None);
        vec![self.show()]
    }

    fn show(&self) -> String {
        let tablet = &self.tablet;
        let serving = tablet.serving().map_or("nothing".into(), |epoch| epoch.to_string());
        let q = tablet.q().map_or("none".into(), |pos| pos.to_string());
        let (safe, standing) = (tablet.safe(), tablet.standing());
        let stands = if standing > safe { format!(" but {standing} stands") } else { String::new() };
        format!(
            "promised {}, durable {}, applied {}, safe {safe}{stands}, serves {serving}, Q {q}, epochs {:?}, tokens {}",
            tablet.promised(),
            tablet.durable_end().pos,
            tablet.applied_seq(),
            tablet.epochs(),
            tablet.token_count(),
        )
    }
}

/// The copy of t9 beside this one, which knows of one token, and its seal.
fn neighbour(epoch: u64, seq: u64) -> (Tablet, LogEnd) {
    let ts = Hlc::new(2 * WALL_MS, 0);
    let end = LogEnd { pos: Pos::new(Epoch(epoch), Seq(seq)), hash: 9, ts };
    let mut tokens = TokenTable::default();
    let fence = TokenRecord::Fenced { pos: Pos::new(Epoch(1), Seq(1)) };
    tokens.note(Token { issued_ms: WALL_MS, client: 1, seq: 77 }, fence);
    let tablet = Tablet::new(Recovered {
        id: TabletId(9),
        replica: ReplicaId(1),
        incarnation: Incarnation(1),
        range: KeyRange::new(Bytes::from_static(b"z"), None).expect("a range"),
        promised: Epoch(epoch),
        epochs: vec![(Epoch(epoch), Seq(1))],
        end,
        applied: end.pos.seq,
        tokens,
        base: LogEnd::default(),
        seals: Seals::default(),
        staged: Attempt(1),
    });
    (tablet, end)
}

fn token(words: &Words<'_>) -> Token {
    Token { issued_ms: words.number("issued", WALL_MS), client: 1, seq: words.number("token", 0) }
}

fn membership(version: ConfigVersion, in_sync: &str, members: Option<&str>) -> Membership {
    let members = ids(members.unwrap_or(in_sync));
    let members = members.into_iter().map(|replica| (replica, ServerId(replica.0))).collect();
    Membership { version, in_sync: ids(in_sync), members, leaving: None }
}

fn open(
    id: u64,
    incarnation: Incarnation,
    promised: Epoch,
    log: &[Entry],
    applied: Seq,
    staged: Attempt,
) -> Tablet {
    let epoch_start = |entry: &Entry| match entry.payload {
        Payload::EpochStart { .. } => Some((entry.pos.epoch, entry.seq())),
        Payload::Write(_)
        | Payload::TokenFence { .. }
        | Payload::Revert { .. }
        | Payload::Close
        | Payload::Seal(_)
        | Payload::Unseal { .. } => None,
    };
    let (mut tokens, mut seals) = (TokenTable::default(), Seals::default());
    for entry in log {
        tokens.note_entry(entry);
        seals.note(entry);
    }
    Tablet::new(Recovered {
        id: TabletId(7),
        replica: ReplicaId(id),
        incarnation,
        range: KeyRange::new(Bytes::from_static(b"a"), Some(Bytes::from_static(b"z"))).expect("a range"),
        promised,
        epochs: log.iter().filter_map(epoch_start).collect(),
        end: log.last().map(Entry::end).unwrap_or_default(),
        applied,
        tokens,
        base: LogEnd::default(),
        seals,
        staged,
    })
}

fn parse_op(text: &str) -> Op {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let (condition, text) = match text.strip_prefix("if-absent ") {
        Some(rest) => (Some(Condition::Absent), rest),
        None => (None, text),
    };
    let (verb, rest) = text.split_once(' ').expect("an operation");
    let action = match verb {
        "delete" => Action::Delete { key: bytes(rest), cause: Cause::Deleted },
        "delete-range" => {
            let (from, to) = rest.split_once("..").expect("a range");
            Action::DeleteRange { from: bytes(from), to: (!to.is_empty()).then(|| bytes(to)) }
        }
        "set" | "add" => {
            let (key, value) = rest.split_once('=').expect("a row");
            match verb {
                "set" => Action::Set { key: bytes(key), value: bytes(value), ttl_ms: None },
                _ => Action::Add { key: bytes(key), delta: value.parse().expect("a delta") },
            }
        }
        _ => panic!("unknown operation {verb}"),
    };
    Op { condition, action }
}
