//! `ebla table`: create, list, describe, change, drop.

use super::{confirm, connect, note, output};
use crate::cli::{
    AutoMerge, CreateTable, DropTable, Eviction, Global, Kind, Policy, SetTable, Switch, Table,
};
use crate::exit::Failure;
use crate::output::{Output, argument_bytes};
use ebla_client::v1;
use ebla_kernel::meta::{BadTable, TableKind, TableSpec};
use ebla_proto::convert;
use serde_json::{Value as Json, json};
use std::process::ExitCode;

/// Runs one of the commands about tables.
pub async fn run(global: &Global, command: Table) -> anyhow::Result<ExitCode> {
    let mut out = output(global);
    match command {
        Table::Create(args) => create(global, args, &mut out).await?,
        Table::List(args) => {
            let admin = connect(global, args.wait).await?.admin();
            let tables =
                if args.system { admin.list_all_tables().await? } else { admin.list_tables().await? };
            let objects: Vec<_> = tables.iter().map(table_json).collect();
            let columns =
                ["name", "id", "state", "kind", "replicas", "ack", "tablets", "rows_estimate", "bytes"];
            out.list(&columns, &objects)?;
        }
        Table::Describe(args) => {
            let described = connect(global, args.wait).await?.admin().describe_table(&args.name).await?;
            warn_of_two_copies(&described);
            out.describe(&described_json(&described))?;
        }
        Table::Set(args) => set(global, args, &mut out).await?,
        Table::Drop(args) => drop_table(global, args, &mut out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(global: &Global, args: CreateTable, out: &mut Output) -> anyhow::Result<()> {
    let mut split_keys: Vec<_> = args.split_at.iter().map(|key| argument_bytes(key, global.hex)).collect();
    split_keys.sort_unstable();
    split_keys.dedup();
    check(&args)?;
    let policy = match args.policy {
        None => v1::Policy::Unspecified,
        Some(Policy::Strict) => v1::Policy::Strict,
        Some(Policy::Degraded) => v1::Policy::Degraded,
    };
    let kind = match args.kind {
        Kind::Durable => v1::TableKind::Durable,
        Kind::Memory => v1::TableKind::Memory,
    };
    let spec = v1::TableSpec {
        kind: kind as i32,
        replicas: args.replicas.map_or(0, u32::from),
        min_in_sync: args.min_in_sync.map_or(0, u32::from),
        policy: policy as i32,
        ack: args.ack.ack.map(convert::ack_to_wire),
        retention_ms: args
            .retention
            .map_or(0, |retention| u64::try_from(retention.as_millis()).unwrap_or(u64::MAX)),
        split_bytes: args.split_size.unwrap_or(0),
        split_load: args.split_load,
        auto_merge: v1::AutoMerge::Unspecified as i32,
        publish_changes: args.publish_changes,
        memory_bytes_max: args.max_memory,
        eviction: eviction_to_wire(args.eviction) as i32,
    };
    let admin = connect(global, args.wait).await?.admin();
    let request = v1::CreateTableRequest { name: args.name.clone(), spec: Some(spec), split_keys };
    let table = admin.create_table(request).await?;
    let described = admin.describe_table(&table.name).await?;
    let replicas = table.spec.unwrap_or_default().replicas;
    if args.replicas.is_none() {
        let servers = admin.list_servers().await?;
        let is_up = |summary: &v1::ServerSummary| {
            summary.server.as_ref().is_some_and(|server| server.state() == v1::ServerState::Up)
        };
        let up = servers.iter().filter(|summary| is_up(summary)).count();
        let (are, copies) = (if up == 1 { "server is" } else { "servers are" }, copies(replicas));
        note(&format!("{up} {are} up: the table gets {copies} of each tablet"));
    }
    warn_of_two_copies(&described);
    let line = format!(
        "created table {:?} (id {}): {} of each tablet, {}",
        table.name,
        table.id,
        copies(replicas),
        tolerates(described.failures_tolerated)
    );
    out.one(&described_json(&described), || line)
}

/// What no number of servers would allow needs no cluster to be refused.
fn check(args: &CreateTable) -> anyhow::Result<()> {
    let default = TableSpec::default();
    let kind = match args.kind {
        Kind::Durable => TableKind::Durable,
        Kind::Memory => TableKind::Memory,
    };
    let memory = TableSpec {
        kind,
        memory_bytes_max: args.max_memory,
        eviction: match args.eviction {
            None | Some(Eviction::None) => ebla_kernel::meta::Eviction::None,
            Some(Eviction::Lru) => ebla_kernel::meta::Eviction::LeastRecent,
            Some(Eviction::Lfu) => ebla_kernel::meta::Eviction::LeastFrequent,
        },
        ..default.clone()
    };
    memory.check().map_err(|error| Failure::usage(error.to_string()))?;
    if args.eviction.is_some() && kind == TableKind::Durable {
        return Err(Failure::usage(BadTable::LimitOfDurable.to_string()).into());
    }
    let Some(replicas) = args.replicas else { return Ok(()) };
    let spec = TableSpec {
        replicas,
        min_in_sync: args.min_in_sync.unwrap_or_else(|| TableSpec::default_min_in_sync(replicas)),
        policy: match args.policy {
            None => TableSpec::default_policy(kind),
            Some(Policy::Strict) => ebla_kernel::meta::Policy::Strict,
            Some(Policy::Degraded) => ebla_kernel::meta::Policy::Degraded,
        },
        ack: args.ack.ack.unwrap_or(default.ack),
        ..memory
    };
    Ok(spec.check().map_err(|error| Failure::usage(error.to_string()))?)
}

fn copies(replicas: u32) -> String {
    if replicas == 1 { "1 copy".to_owned() } else { format!("{replicas} copies") }
}

fn tolerates(failures: u32) -> String {
    match failures {
        0 => "tolerates no failed server".to_owned(),
        1 => "tolerates 1 failed server with failover".to_owned(),
        more => format!("tolerates {more} failed servers with failover"),
    }
}

fn warn_of_two_copies(described: &v1::DescribeTableResponse) {
    let spec = described.table.as_ref().and_then(|summary| summary.table.as_ref()?.spec);
    if spec.is_some_and(|spec| spec.replicas == 2) {
        note(
            "warning: with 2 copies no failed server is tolerated with failover: one of two cannot tell whether the other leads on; give --replicas 3",
        );
    }
}

async fn set(global: &Global, args: SetTable, out: &mut Output) -> anyhow::Result<()> {
    let auto_merge = args.auto_merge.map_or(v1::AutoMerge::Unspecified, |which| match which {
        AutoMerge::Own => v1::AutoMerge::Own,
        AutoMerge::All => v1::AutoMerge::All,
        AutoMerge::Off => v1::AutoMerge::Off,
    });
    let request = v1::ChangeTableRequest {
        name: args.name,
        split_bytes: args.split_size,
        split_load: args.split_load,
        auto_merge: auto_merge as i32,
        publish_changes: args.publish_changes.map(|switch| switch == Switch::On),
        memory_bytes_max: args.max_memory,
        eviction: eviction_to_wire(args.eviction) as i32,
    };
    let admin = connect(global, args.wait).await?.admin();
    let table = admin.change_table(request).await?;
    let described = admin.describe_table(&table.name).await?;
    let spec = table.spec.unwrap_or_default();
    let mut line = format!(
        "table {:?} is split above {} bytes and {} requests per second in a tablet, auto-merge is {}",
        table.name,
        spec.split_bytes,
        spec.split_load(),
        auto_merge_name(spec.auto_merge())
    );
    if args.publish_changes.is_some() {
        let told = if spec.publish_changes { "are" } else { "are not" };
        line.push_str(&format!(", its changes {told} published in rooms"));
    }
    if let (Some(bytes), Some(eviction)) = (spec.memory_bytes_max, eviction_name(&spec)) {
        line.push_str(&format!(
            ", it takes up to {bytes} bytes of memory on a server, eviction is {eviction}"
        ));
    }
    out.one(&described_json(&described), || line)
}

fn auto_merge_name(auto_merge: v1::AutoMerge) -> &'static str {
    match auto_merge {
        v1::AutoMerge::Own | v1::AutoMerge::Unspecified => "own",
        v1::AutoMerge::All => "all",
        v1::AutoMerge::Off => "off",
    }
}

fn eviction_to_wire(eviction: Option<Eviction>) -> v1::Eviction {
    match eviction {
        None => v1::Eviction::Unspecified,
        Some(Eviction::None) => v1::Eviction::None,
        Some(Eviction::Lru) => v1::Eviction::Lru,
        Some(Eviction::Lfu) => v1::Eviction::Lfu,
    }
}

/// What a full table does; nothing for one on disk.
fn eviction_name(spec: &v1::TableSpec) -> Option<&'static str> {
    (spec.kind() == v1::TableKind::Memory).then_some(match spec.eviction() {
        v1::Eviction::Unspecified | v1::Eviction::None => "none",
        v1::Eviction::Lru => "lru",
        v1::Eviction::Lfu => "lfu",
    })
}

async fn drop_table(global: &Global, args: DropTable, out: &mut Output) -> anyhow::Result<()> {
    confirm(args.yes, &format!("dropping table {:?} with all its rows", args.name))?;
    connect(global, args.wait).await?.admin().drop_table(&args.name).await?;
    out.one(&json!({ "name": args.name, "state": "dropped" }), || format!("dropped table {:?}", args.name))
}

fn described_json(described: &v1::DescribeTableResponse) -> Json {
    let mut object = table_json(&described.table.clone().unwrap_or_default());
    object["failures_tolerated"] = json!(described.failures_tolerated);
    object
}

fn table_json(summary: &v1::TableSummary) -> Json {
    let table = summary.table.clone().unwrap_or_default();
    let spec = table.spec.unwrap_or_default();
    let state = match summary.state() {
        _ if table.restoring_job_id > 0 => "restoring",
        v1::TableState::Serving => "serving",
        v1::TableState::Partial => "partial",
        v1::TableState::Dropping => "dropping",
        v1::TableState::Unspecified => "unknown",
    };
    let kind = match spec.kind() {
        v1::TableKind::Durable | v1::TableKind::Unspecified => "durable",
        v1::TableKind::Memory => "memory",
    };
    let policy = match spec.policy() {
        v1::Policy::Strict | v1::Policy::Unspecified => "strict",
        v1::Policy::Degraded => "degraded",
    };
    let ack =
        convert::ack(spec.ack.as_ref()).ok().flatten().map_or("leader".to_owned(), |ack| ack.to_string());
    json!({
        "name": table.name,
        "id": table.id,
        "state": state,
        "restoring_job": (table.restoring_job_id > 0).then_some(table.restoring_job_id),
        "kind": kind,
        "replicas": spec.replicas,
        "min_in_sync": spec.min_in_sync,
        "policy": policy,
        "ack": ack,
        "retention_ms": spec.retention_ms,
        "split_bytes": spec.split_bytes,
        "split_load": spec.split_load,
        "auto_merge": auto_merge_name(spec.auto_merge()),
        "publish_changes": spec.publish_changes,
        "max_memory": spec.memory_bytes_max,
        "eviction": eviction_name(&spec),
        "tablets": summary.tablets,
        "tablets_serving": summary.tablets_serving,
        "rows_estimate": summary.rows_estimate,
        "bytes": summary.bytes,
    })
}
