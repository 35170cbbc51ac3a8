//! Commands and flags. They are stable: scripts and tests depend on them.

mod backup;
mod content;
mod export;
mod room;

pub use backup::{
    Backup, BackupsAt, CreateBackup, DescribeBackup, PruneBackups, RestoreBackup, Schedule, SetSchedule,
    VerifyBackups,
};
pub use content::Content;
pub use export::Export;
pub use room::{ListRooms, PublishRoom, Room, RoomName, SubscribeRooms};

use crate::output::Format;
use crate::parse;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ebla_client::AckLevel;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// What `--version` and `/version` say.
pub const VERSION: &str = match ebla_failpoints::IS_ENABLED {
    true => concat!(env!("CARGO_PKG_VERSION"), " (chaos build with failpoints, not for real data)"),
    false => env!("CARGO_PKG_VERSION"),
};

/// A tablet cluster database.
#[derive(Parser, Debug)]
#[command(name = "ebla", version = VERSION, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Masters or tablet servers, in any mix, separated by commas; one that answers is enough
    #[arg(
        long,
        global = true,
        env = "EBLA_ENDPOINTS",
        default_value = "127.0.0.1:7400",
        value_delimiter = ',',
        value_name = "HOST:PORT,..."
    )]
    pub endpoints: Vec<String>,
    /// How to print what was asked for
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
    /// Print bytes that are not UTF-8 as hexadecimal digits, and read keys and values that
    /// consist of pairs of hexadecimal digits as bytes
    #[arg(long, global = true)]
    pub hex: bool,
    /// How to write logs to stderr; EBLA_LOG sets what is logged
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a whole cluster in one process
    Dev(Dev),
    /// Run a master
    Master(Master),
    /// Run a tablet server
    Tabletserver(Tabletserver),
    /// Show the cluster at a glance
    Status(Wait),
    /// Create, list, describe and drop tables
    #[command(subcommand)]
    Table(Table),
    /// List and describe tablets, split them, hand leadership over
    #[command(subcommand)]
    Tablet(Tablet),
    /// List tablet servers, drain and empty them
    #[command(subcommand)]
    Server(Server),
    /// List, show, wait for and cancel jobs
    #[command(subcommand)]
    Job(Job),
    /// Show, pause and explain what the cluster does by itself
    #[command(subcommand)]
    Balancer(Balancer),
    /// Read a row
    Get(Get),
    /// Write a row
    Set(Set),
    /// Delete a row
    Delete(Delete),
    /// Delete every row from a key on up to another, which stays
    DeleteRange(DeleteRange),
    /// Add to a counter
    Add(Add),
    /// Read rows in key order
    Range(Range),
    /// Show changes as they are committed
    Watch(Watch),
    /// Write the rows of a file
    Load(Load),
    /// Print all rows of a table as they were at one timestamp, for `load`
    Export(Export),
    /// Ask how a write ended whose outcome was unknown
    Outcome(Outcome),
    /// List and show what failovers took away
    #[command(subcommand)]
    Lost(Lost),
    /// The busiest tablets and keys, live
    Top(Top),
    /// Subscribe to rooms, publish to them, see who is there
    #[command(subcommand)]
    Room(Room),
    /// Make backups, look at them, bring tables back
    #[command(subcommand)]
    Backup(Backup),
}

impl Command {
    /// Whether it runs servers in this process.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Dev(_) | Self::Master(_) | Self::Tabletserver(_))
    }
}

/// How long to wait.
#[derive(Args, Clone, Copy, Debug)]
pub struct Wait {
    /// How long to wait for an answer, such as 2s or 500ms
    #[arg(long, default_value = "10s", value_parser = parse::duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// How a write is acknowledged.
#[derive(Args, Clone, Copy, Debug)]
pub struct Ack {
    /// Copies that must have the write: leader, copies=N or in-sync; the table's own by default
    #[arg(long, value_parser = parse::ack, value_name = "LEVEL")]
    pub ack: Option<AckLevel>,
}

#[derive(Args, Debug)]
pub struct Dev {
    /// Where everything is kept
    #[arg(long, default_value = "./ebla-data", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Number of masters, 1 or 3; as the data directory has it, or 1
    #[arg(long, value_parser = parse::masters, value_name = "1|3")]
    pub masters: Option<u64>,
    /// Number of tablet servers; as the data directory has it, or 3
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=64), value_name = "N")]
    pub servers: Option<u64>,
    /// Address of the first master
    #[arg(long, default_value = "127.0.0.1:7400", value_parser = parse::address, value_name = "HOST:PORT")]
    pub listen: String,
}

#[derive(Args, Debug)]
pub struct Master {
    /// Which of the peers this is
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// All masters of the cluster, this one included
    #[arg(long, required = true, value_delimiter = ',', value_parser = parse::peer, value_name = "1=HOST:PORT,...")]
    pub peers: Vec<(u64, String)>,
    /// Where its log is kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// How long a tablet server may be away before its copies are replaced on others; `off`:
    /// for ever
    #[arg(long, default_value = "10m", value_parser = parse::interval, value_name = "TIME")]
    pub replace_after: parse::Interval,
    /// Time between two looks at what to split and move; an imbalance must last for 12 of them.
    /// `off`: the cluster does nothing by itself while this master leads
    #[arg(long, default_value = "5s", value_parser = parse::interval, value_name = "TIME")]
    pub balance_interval: parse::Interval,
    /// Changes of the metadata after which a snapshot is written and the log is cut
    #[arg(long, default_value_t = ebla_master::SNAPSHOT_ENTRIES_DEFAULT, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_entries: u64,
    /// Serve /health, /ready, /metrics and /version here
    #[arg(long, value_parser = parse::address, value_name = "HOST:PORT")]
    pub http: Option<String>,
}

#[derive(Args, Debug)]
pub struct Tabletserver {
    /// Masters of the cluster
    #[arg(long, required = true, value_delimiter = ',', value_parser = parse::address, value_name = "HOST:PORT,...")]
    pub masters: Vec<String>,
    /// Address to serve at, under which clients and other servers reach it
    #[arg(long, value_parser = parse::address, value_name = "HOST:PORT")]
    pub listen: String,
    /// Where rows are kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Part of the site that fails together, such as a rack
    #[arg(long, default_value = "default")]
    pub zone: String,
    /// Longest time that rows stay out of data files; `off`: until a clean stop, and a restart
    /// replays all of the log. The log keeps every acknowledged row either way
    #[arg(long, default_value = "60s", value_parser = parse::interval, value_name = "TIME")]
    pub flush_interval: parse::Interval,
    /// Bytes of log above which old entries go although a copy that is away, or a retry, may
    /// still want them; such a copy is built anew
    #[arg(long, default_value = "8GiB", value_parser = parse::bytes, value_name = "BYTES")]
    pub log_max: u64,
    /// Bytes per second, such as 50MiB, at which copies are sent to servers that lack them
    #[arg(long, default_value = "50MiB", value_parser = parse::bytes, value_name = "BYTES")]
    pub bootstrap_rate: u64,
    /// Most rooms that one stream of a subscriber may be in
    #[arg(long, default_value_t = ebla_tabletserver::limits::SUBSCRIPTIONS_PER_STREAM_DEFAULT, value_name = "N")]
    pub subscriptions_per_stream: usize,
    /// Most subscriptions of rooms at this server
    #[arg(long, default_value_t = ebla_tabletserver::limits::SUBSCRIPTIONS_PER_SERVER_DEFAULT, value_name = "N")]
    pub subscriptions_max: usize,
    /// Serve /health, /ready, /metrics and /version here
    #[arg(long, value_parser = parse::address, value_name = "HOST:PORT")]
    pub http: Option<String>,
}

#[derive(Subcommand, Debug)]
pub enum Table {
    /// Create a table and wait until it serves
    Create(CreateTable),
    /// List all tables
    List(ListTables),
    /// Describe one table
    Describe(TableName),
    /// Change when a table is split and merged
    Set(SetTable),
    /// Drop a table with all its rows
    Drop(DropTable),
}

#[derive(Args, Debug)]
pub struct ListTables {
    /// Also those that the cluster keeps for itself
    #[arg(long)]
    pub system: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct CreateTable {
    /// Name of the table
    pub name: String,
    /// Copies of each tablet, 1 to 7; 3 by default, or as many as there are servers up
    #[arg(long, value_parser = parse::copies, value_name = "R")]
    pub replicas: Option<u8>,
    /// Copies that a write above the level `leader` must reach; 2 by default with three copies
    /// or more, else 1
    #[arg(long, value_parser = parse::copies, value_name = "D")]
    pub min_in_sync: Option<u8>,
    /// What to do when too few in-sync copies are left: stay unavailable, or go on and perhaps
    /// lose writes; `strict` by default, of a table in memory `degraded`
    #[arg(long, value_enum, value_name = "POLICY")]
    pub policy: Option<Policy>,
    /// Where the rows are kept
    #[arg(long, value_enum, default_value_t = Kind::Durable, value_name = "KIND")]
    pub kind: Kind,
    /// Bytes that a table in memory may take on one server, such as 1GiB; no limit by default
    #[arg(long, value_parser = parse::bytes, value_name = "BYTES")]
    pub max_memory: Option<u64>,
    /// What a table in memory does at its limit; `none` by default
    #[arg(long, value_enum, value_name = "EVICTION")]
    pub eviction: Option<Eviction>,
    #[command(flatten)]
    pub ack: Ack,
    /// How long old versions are kept, such as 1h
    #[arg(long, value_parser = parse::duration, value_name = "DURATION")]
    pub retention: Option<Duration>,
    /// Size, such as 512MiB, above which a tablet is split; 512MiB by default
    #[arg(long, value_parser = parse::bytes, value_name = "BYTES")]
    pub split_size: Option<u64>,
    /// Requests per second above which a tablet is split; 5000 by default, 0 for never
    #[arg(long, value_name = "OPS")]
    pub split_load: Option<u64>,
    /// Key at which to cut the table into tablets from the start; give it as often as needed
    #[arg(long, allow_hyphen_values = true, value_name = "KEY")]
    pub split_at: Vec<OsString>,
    /// Make every committed change of key K a message in the room TABLE/K
    #[arg(long)]
    pub publish_changes: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
#[group(id = "what_to_set", required = true, multiple = true, args = ["split_size", "split_load", "auto_merge", "publish_changes", "max_memory", "eviction"])]
pub struct SetTable {
    /// Name of the table
    pub name: String,
    /// Size, such as 512MiB, above which a tablet is split
    #[arg(long, value_parser = parse::bytes, value_name = "BYTES")]
    pub split_size: Option<u64>,
    /// Requests per second above which a tablet is split; 0 for never
    #[arg(long, value_name = "OPS")]
    pub split_load: Option<u64>,
    /// Which small idle neighbours the cluster merges by itself
    #[arg(long, value_enum, value_name = "WHICH")]
    pub auto_merge: Option<AutoMerge>,
    /// Whether every committed change of key K is a message in the room TABLE/K
    #[arg(long, value_enum, value_name = "on|off")]
    pub publish_changes: Option<Switch>,
    /// Bytes, such as 1GiB, that its versions may take on one server; of tables in memory
    #[arg(long, value_parser = parse::bytes, value_name = "BYTES")]
    pub max_memory: Option<u64>,
    /// What makes room when it is full; of tables in memory
    #[arg(long, value_enum, value_name = "HOW")]
    pub eviction: Option<Eviction>,
    #[command(flatten)]
    pub wait: Wait,
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    /// It is so.
    On,
    /// It is not.
    Off,
}

/// Which idle neighbours are merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AutoMerge {
    /// Those that the cluster had split by itself.
    Own,
    /// Any, boundaries that people made included.
    All,
    /// None.
    Off,
}

/// What a table does when too few in-sync copies are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Policy {
    /// Stay unavailable rather than lose an acknowledged write.
    Strict,
    /// Elect with fewer answers after ten seconds, of a table in memory after three.
    Degraded,
}

/// How a table keeps its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    /// On disk.
    Durable,
    /// In the memory of its copies only: it comes back empty when all of them are lost.
    Memory,
}

/// What a full table in memory does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Eviction {
    /// Refuse what would add to it.
    None,
    /// Remove rows that nobody has asked for the longest.
    Lru,
    /// Remove rows that were asked for least often.
    Lfu,
}

#[derive(Args, Debug)]
pub struct TableName {
    /// Name of the table
    pub name: String,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct DropTable {
    /// Name of the table
    pub name: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Subcommand, Debug)]
pub enum Tablet {
    /// List the tablets of one table or of all
    List(ListTablets),
    /// Describe one tablet
    Describe(TabletId),
    /// Let the copy on another server lead, and wait until it does
    TransferLeader(TransferLeader),
    /// Make several tablets of one, and wait until they serve; no row moves
    Split(SplitTablet),
    /// Make one tablet of two neighbours, and wait until it serves
    Merge(MergeTablets),
    /// Take a copy from one server to another, and wait until it is there
    Move(MoveTablet),
}

#[derive(Args, Debug)]
pub struct MergeTablets {
    /// Id of a tablet
    pub id: u64,
    /// Id of a neighbour of it, above or below
    pub other: u64,
    /// Return when the job has begun
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct MoveTablet {
    /// Id of the tablet
    pub id: u64,
    /// Server that has a copy: its id, such as 3 or s3, or its HOST:PORT
    #[arg(long, value_parser = parse::server, value_name = "SERVER")]
    pub from: parse::ServerName,
    /// Server that is to have it instead
    #[arg(long, value_parser = parse::server, value_name = "SERVER")]
    pub to: parse::ServerName,
    /// Return when the job has begun
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
#[group(id = "where_to_split", required = true, multiple = false, args = ["at", "parts"])]
pub struct SplitTablet {
    /// Id of the tablet
    pub id: u64,
    /// Key that begins a new tablet, strictly inside; give it as often as needed
    #[arg(long, allow_hyphen_values = true, value_name = "KEY")]
    pub at: Vec<OsString>,
    /// Into how many tablets of about the same size, 2 to 64; the server finds the keys
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=64), value_name = "N")]
    pub parts: Option<u32>,
    /// Parts of about the same load, not size; of tablets with at least half of the requests at
    /// which their table wants them split
    #[arg(long, requires = "parts", conflicts_with = "at")]
    pub by_load: bool,
    /// Only say where it would be split
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Subcommand, Debug)]
pub enum Balancer {
    /// Whether it runs, and what it decided lately
    Status(BalancerStatus),
    /// Let the cluster split, merge and move nothing by itself; copies that are lost are replaced
    Pause(Wait),
    /// Let the cluster split and move by itself again
    Resume(Wait),
    /// Why a tablet is where it is, and what was done with it
    Why(TabletId),
}

#[derive(Args, Clone, Copy, Debug)]
pub struct BalancerStatus {
    /// Also say what it would begin now, although it is paused perhaps; nothing is begun
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Subcommand, Debug)]
pub enum Job {
    /// List the jobs under way and the last ones that ended
    List(ListJobs),
    /// Show one job
    Show(JobId),
    /// Wait until a job has ended; fails unless it is done
    Wait(JobId),
    /// End a job that has not reached its commit point; nothing of it stays
    Cancel(JobId),
}

#[derive(Args, Debug)]
pub struct ListJobs {
    /// Only those under way
    #[arg(long)]
    pub running: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct JobId {
    /// Id of the job
    pub id: u64,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct TransferLeader {
    /// Id of the tablet
    pub id: u64,
    /// Server whose in-sync copy is to lead: its id, such as 3 or s3, or its HOST:PORT
    #[arg(long, value_parser = parse::server, value_name = "SERVER")]
    pub to: parse::ServerName,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Subcommand, Debug)]
pub enum Lost {
    /// List the records of all servers, and the servers whose records are awaited
    List(ListLost),
    /// Show the rows of one record
    Show(ShowLost),
}

#[derive(Args, Debug)]
pub struct Top {
    /// How long to watch before each picture: 100ms to 60s
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse::window)]
    pub interval: std::time::Duration,
    /// Most tablets and most keys to show
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub limit: u32,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct ListLost {
    /// Only of this table
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct ShowLost {
    /// Server that holds the record: its id, such as 3 or s3, or its HOST:PORT
    #[arg(value_parser = parse::server)]
    pub server: parse::ServerName,
    /// Id of the record on that server
    pub id: u64,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct ListTablets {
    /// Name of a table
    pub table: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct TabletId {
    /// Id of the tablet
    pub id: u64,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Subcommand, Debug)]
pub enum Server {
    /// List all tablet servers
    List(Wait),
    /// Let other servers lead what a server leads, and wait until they do; it keeps its copies
    Drain(ServerAct),
    /// Take all copies off a server, and wait until it holds none
    Decommission(ServerAct),
    /// Let a server that was drained or was to leave lead and hold copies again
    Activate(ServerAct),
    /// Forget a server that is gone and holds nothing
    Forget(ServerAct),
}

#[derive(Args, Debug)]
pub struct ServerAct {
    /// Which: its id, such as 3 or s3, or its HOST:PORT
    #[arg(value_parser = parse::server)]
    pub server: parse::ServerName,
    #[command(flatten)]
    pub wait: Wait,
}

/// A row.
#[derive(Args, Debug)]
pub struct RowAt {
    /// Name of the table
    pub table: String,
    /// Key of the row
    pub key: OsString,
}

#[derive(Args, Debug)]
pub struct Get {
    #[command(flatten)]
    pub row: RowAt,
    /// Read as of a timestamp: a version's ts, an RFC 3339 time, or a duration ago such as -5m
    #[arg(long, allow_hyphen_values = true, value_parser = parse::at, value_name = "TS")]
    pub at: Option<ebla_client::Hlc>,
    /// Read any copy that is at most so old, such as 5s
    #[arg(long, conflicts_with = "at", value_parser = parse::duration, value_name = "DURATION")]
    pub bounded: Option<Duration>,
    /// Read any copy that has the write whose `session` was printed with -o json
    #[arg(long, conflicts_with_all = ["at", "bounded"], value_parser = parse::session, value_name = "TOKEN")]
    pub session: Option<ebla_client::SessionToken>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("condition").multiple(false))]
pub struct Set {
    #[command(flatten)]
    pub row: RowAt,
    #[command(flatten)]
    pub content: Content,
    /// Only if there is no such row
    #[arg(long, group = "condition")]
    pub if_absent: bool,
    /// Only if the row's newest version has this timestamp
    #[arg(long, group = "condition", value_parser = parse::version_ts, value_name = "TS")]
    pub if_ts: Option<u64>,
    /// Only if the row has this value
    #[arg(long, group = "condition", allow_hyphen_values = true, value_name = "V")]
    pub if_value: Option<OsString>,
    /// Let the row end after this time, such as 10s
    #[arg(long, value_parser = parse::duration, value_name = "DURATION")]
    pub ttl: Option<Duration>,
    #[command(flatten)]
    pub ack: Ack,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct Delete {
    #[command(flatten)]
    pub row: RowAt,
    #[command(flatten)]
    pub ack: Ack,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct DeleteRange {
    /// Name of the table
    pub table: String,
    /// First key to delete; empty for the first of the table
    pub from: OsString,
    /// First key to stay; empty for none
    pub to: OsString,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub ack: Ack,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct Add {
    #[command(flatten)]
    pub row: RowAt,
    /// What to add, a signed 64-bit number
    #[arg(allow_hyphen_values = true)]
    pub delta: i64,
    #[command(flatten)]
    pub ack: Ack,
    #[command(flatten)]
    pub wait: Wait,
}

/// Which keys of a table.
#[derive(Args, Debug)]
pub struct Keys {
    /// First key
    #[arg(long, allow_hyphen_values = true, value_name = "K")]
    pub from: Option<OsString>,
    /// First key above the range
    #[arg(long, allow_hyphen_values = true, value_name = "K")]
    pub to: Option<OsString>,
    /// Only keys that begin so
    #[arg(long, allow_hyphen_values = true, value_name = "P")]
    pub prefix: Option<OsString>,
}

#[derive(Args, Debug)]
pub struct Range {
    /// Name of the table
    pub table: String,
    #[command(flatten)]
    pub keys: Keys,
    /// Most rows to read
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    pub reverse: bool,
    /// Leave the values out
    #[arg(long)]
    pub keys_only: bool,
    /// Only count the rows
    #[arg(long)]
    pub count: bool,
    /// Read as of a timestamp: a version's ts, an RFC 3339 time, or a duration ago such as -5m
    #[arg(long, allow_hyphen_values = true, value_parser = parse::at, value_name = "TS")]
    pub at: Option<ebla_client::Hlc>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct Watch {
    /// Name of the table
    pub table: String,
    /// Only this row
    #[arg(conflicts_with_all = ["from", "to", "prefix"])]
    pub key: Option<OsString>,
    #[command(flatten)]
    pub keys: Keys,
    /// Begin after the event with this token, or with what was written after this timestamp: a
    /// version's ts, an RFC 3339 time, or a duration ago such as -5m
    #[arg(long, allow_hyphen_values = true, value_parser = parse::since, value_name = "TS|TOKEN")]
    pub since: Option<ebla_client::Since>,
    /// Begin with the rows as they are
    #[arg(long, conflicts_with = "since")]
    pub snapshot: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct Load {
    /// Name of the table
    pub table: String,
    /// File to read, - for stdin
    pub file: PathBuf,
    /// How the file is written; by default as the end of its name says: .tsv, .jsonl
    #[arg(long, value_enum)]
    pub format: Option<LoadFormat>,
    /// Field of each JSON object that holds the key
    #[arg(long, default_value = "key", value_name = "F")]
    pub key_field: String,
    /// Field of each JSON object that holds the value; the whole object by default
    #[arg(long, value_name = "F")]
    pub value_field: Option<String>,
    #[command(flatten)]
    pub ack: Ack,
    #[command(flatten)]
    pub wait: Wait,
}

/// How a file of rows is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LoadFormat {
    /// Key, TAB, value on each line.
    Tsv,
    /// A JSON object on each line.
    Jsonl,
}

#[derive(Args, Debug)]
pub struct Outcome {
    /// The token that the write printed
    pub token: String,
    #[command(flatten)]
    pub wait: Wait,
}
