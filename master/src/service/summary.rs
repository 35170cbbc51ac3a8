//! Records with what the leading master knows of their health, for people.

use super::Shared;
use ebla_kernel::ids::ServerId;
use ebla_kernel::meta::{JobKind, Origin, Server, State, Table, Tablet, is_system_name};
use ebla_proto::meta::{server_to_wire, table_to_wire, tablet_to_wire};
use ebla_proto::v1::{self, ServerState, TableState, TabletState};
use std::collections::BTreeMap;

pub(super) fn table(shared: &Shared, state: &State, table: &Table) -> v1::TableSummary {
    let tablets = state.tablets_of(table.id).count();
    let serving = shared.liveness.count_serving(state, state.tablets_of(table.id));
    let (mut rows_estimate, mut bytes) = (0, 0);
    for tablet in state.tablets_of(table.id) {
        let size = shared.liveness.size(tablet.id);
        rows_estimate += size.rows;
        bytes += size.bytes;
    }
    let health = if serving == tablets { TableState::Serving } else { TableState::Partial };
    v1::TableSummary {
        table: Some(table_to_wire(table)),
        state: health as i32,
        tablets: tablets as u64,
        tablets_serving: serving as u64,
        rows_estimate,
        bytes,
    }
}

pub(super) fn tablet(shared: &Shared, state: &State, tablet: &Tablet) -> v1::TabletSummary {
    let size = shared.liveness.size(tablet.id);
    let mut wire = tablet_to_wire(state, tablet);
    if awaited(shared, state, tablet).is_none() {
        (wire.awaited_server_id, wire.awaited_epoch) = (0, 0);
    }
    v1::TabletSummary {
        tablet: Some(wire),
        table: state.table(tablet.table).map(|table| table.name.clone()).unwrap_or_default(),
        rows_estimate: size.rows,
        bytes: size.bytes,
        state: tablet_state(state, tablet) as i32,
        job_id: state.job_of(tablet.id).map_or(0, |job| job.id.0),
        automatic_boundary: tablet.drawn_by == Origin::Automatic,
        diverged_server_ids: shared.liveness.diverged(tablet).iter().map(|server| server.0).collect(),
    }
}

fn tablet_state(state: &State, tablet: &Tablet) -> TabletState {
    let is_led = tablet.leader.is_some_and(|leader| state.is_current(&leader));
    match (is_led, state.job_of(tablet.id).map(|job| &job.kind)) {
        (false, _) => TabletState::Recovering,
        (true, Some(JobKind::Split(_))) => TabletState::Splitting,
        (true, Some(JobKind::Merge(_))) => TabletState::Merging,
        (
            true,
            Some(JobKind::Move(_) | JobKind::Backup(_) | JobKind::Restore(_) | JobKind::Transfer(_)) | None,
        ) => TabletState::Serving,
    }
}

/// The former leader's server, as long as it is away.
fn awaited(shared: &Shared, state: &State, tablet: &Tablet) -> Option<ServerId> {
    let server = state.awaited(tablet)?.leader.server;
    (!shared.liveness.health(server).connected).then_some(server)
}

pub(super) fn servers(shared: &Shared, state: &State) -> Vec<v1::ServerSummary> {
    state.servers().map(|one| server(shared, state, one)).collect()
}

pub(super) fn server(shared: &Shared, state: &State, server: &Server) -> v1::ServerSummary {
    let health = shared.liveness.health(server.id);
    let leads = |tablet: &&Tablet| {
        tablet.leader.is_some_and(|leader| leader.server == server.id && state.is_current(&leader))
    };
    let (tablets, of_system): (Vec<&Tablet>, Vec<&Tablet>) =
        state.tablets_on(server.id).partition(|tablet| is_users(state, tablet));
    v1::ServerSummary {
        server: Some(server_to_wire(server, health.state)),
        tablets: tablets.len() as u64,
        leaders: tablets.into_iter().filter(leads).count() as u64,
        system_tablets: of_system.len() as u64,
        system_leaders: of_system.into_iter().filter(leads).count() as u64,
        silent_ms: u64::try_from(health.silent.as_millis()).unwrap_or(u64::MAX),
        disk_bytes: health.disk_bytes,
        disk_bytes_free: health.disk_bytes_free,
    }
}

/// Whether a tablet belongs to a table of users, not of the system.
fn is_users(state: &State, tablet: &Tablet) -> bool {
    state.table(tablet.table).is_some_and(|table| !is_system_name(&table.name))
}

pub(super) fn status(shared: &Shared, state: &State) -> v1::GetStatusResponse {
    let tablets = state.tablets().filter(|tablet| is_users(state, tablet)).count();
    let serving =
        shared.liveness.count_serving(state, state.tablets().filter(|tablet| is_users(state, tablet)));
    let not_serving = state.tablet_count() - shared.liveness.count_serving(state, state.tablets());
    let servers = servers(shared, state);
    v1::GetStatusResponse {
        cluster_id: state.cluster_id().map(|id| id.to_string()).unwrap_or_default(),
        masters: shared.masters(),
        tables: state.tables().filter(|table| !is_system_name(&table.name)).count() as u64,
        tablets: tablets as u64,
        tablets_serving: serving as u64,
        version: state.version(),
        warnings: warnings(shared, state, &servers, not_serving),
        backup_schedules: super::backup::all(state),
        servers,
    }
}

/// What an operator should look at.
fn warnings(
    shared: &Shared,
    state: &State,
    servers: &[v1::ServerSummary],
    not_serving: usize,
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (id, address) in shared.peers.iter().filter(|(id, _)| **id != shared.id) {
        if !shared.outbox.is_connected(*id) {
            warnings.push(format!("master {id} at {address} cannot be reached: start it again"));
        }
    }
    if servers.is_empty() {
        warnings.push("no tablet server has registered: start one with `ebla tabletserver`".to_owned());
    }
    warnings.extend(servers.iter().filter_map(server_warning));
    if not_serving > 0 {
        warnings.push(format!(
            "{not_serving} tablets do not serve: no leader, or too few copies for one; bring back the servers that `ebla server list` shows as down"
        ));
    }
    warnings.extend(copies_warnings(shared, state));
    if state.balancer_paused() {
        warnings.push("the balancer is paused: `ebla balancer resume` lets it go on".to_owned());
    }
    for schedule in state.schedules().filter(|schedule| schedule.past.failures > 0) {
        let (failures, error) = (schedule.past.failures, schedule.past.error.as_deref().unwrap_or("unknown"));
        warnings.push(format!("{failures} scheduled backups to {} failed: {error}", schedule.url));
    }
    for (table, lost) in lost_tablets(state) {
        warnings.push(format!("table {table}: {lost} tablets have lost every copy of their data"));
    }
    warnings
}

/// Tablets whose copies are not as their tables promise.
fn copies_warnings(shared: &Shared, state: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    let lacks = |tablet: &&Tablet| {
        let replicas = state.table(tablet.table).map_or(0, |table| usize::from(table.spec.replicas));
        tablet.in_sync_replicas().filter(|copy| !copy.lost).count() < replicas
    };
    let lacking = state.tablets().filter(lacks).count();
    if lacking > 0 {
        warnings
            .push(format!("{lacking} tablets lack a copy: `ebla tablet list` shows which are not in sync"));
    }
    let diverged = shared.liveness.diverged_count();
    if diverged > 0 {
        warnings.push(format!(
            "{diverged} copies hold another history than their leaders and do nothing more: `ebla tablet describe` shows where, `ebla lost list` what they alone have"
        ));
    }
    let degraded = state.tablets().filter(|tablet| tablet.degraded).count();
    if degraded > 0 {
        warnings.push(format!(
            "{degraded} tablets are led by a copy that was appointed with too few answers: writes acknowledged at copies(n) before may be lost, see `ebla lost list`"
        ));
    }
    let mut awaited_by: BTreeMap<ServerId, usize> = BTreeMap::new();
    for server in state.tablets().filter_map(|tablet| awaited(shared, state, tablet)) {
        *awaited_by.entry(server).or_default() += 1;
    }
    warnings.extend(awaited_by.iter().map(|(server, tablets)| {
        format!("server {} led {tablets} tablets and is away: what it alone had is not known until it is started again", server.0)
    }));
    warnings
}

fn server_warning(summary: &v1::ServerSummary) -> Option<String> {
    let server = summary.server.as_ref()?;
    let what = match ServerState::try_from(server.state).ok()? {
        ServerState::Up | ServerState::Unspecified => return None,
        ServerState::Suspect => "is silent",
        ServerState::Down if summary.tablets == 0 => {
            "is down and holds nothing: start it again, or let it go with `ebla server forget`"
        }
        ServerState::Down => "is down: start it again with its data directory",
        ServerState::Draining => "is stopping",
    };
    Some(format!("tablet server {} at {} {what}", server.id, server.address))
}

/// Tablets by table of which no copy lies on the disk that it was written to.
fn lost_tablets(state: &State) -> BTreeMap<String, usize> {
    let mut lost: BTreeMap<String, usize> = BTreeMap::new();
    let gone = state.tablets().filter(|tablet| !tablet.in_sync_replicas().any(|copy| state.holds_data(copy)));
    for tablet in gone {
        if let Some(table) = state.table(tablet.table) {
            *lost.entry(table.name.clone()).or_default() += 1;
        }
    }
    lost
}
