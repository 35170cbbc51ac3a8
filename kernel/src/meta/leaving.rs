//! Servers that are drained, leave, and are forgotten.
//!
//! What a server is wanted for is a record; making it so is the work of the control core
//! ([`super::repair`]). A server is drained only while another one may lead, leaves only while
//! enough others take copies for every table, and is forgotten only when it holds nothing.

use super::apply::{Changes, Reply};
use super::rejection::Rejection;
use super::spec::is_system_name;
use super::state::{Duty, State, Table};
use crate::ids::ServerId;

/// Changes what a server is wanted for.
pub(super) fn set_duty(
    state: &mut State,
    id: ServerId,
    duty: Duty,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let server = state.server(id).ok_or(Rejection::NoServer(id))?;
    state.check_duty(id, duty, |_| true)?;
    let mut server = server.clone();
    if server.duty != duty {
        server.duty = duty;
        changes.servers.insert(id);
        state.insert_server(server.clone());
    }
    Ok(Reply::Server(Box::new(server)))
}

impl State {
    /// Whether a server can do without what it is not to do any more: of the others for which
    /// `counts` holds, enough must serve.
    ///
    /// # Errors
    /// `LastToServe`, `TooFewLeft`.
    pub fn check_duty(
        &self,
        id: ServerId,
        duty: Duty,
        counts: impl Fn(ServerId) -> bool,
    ) -> Result<(), Rejection> {
        let others = self.servers().filter(|server| server.id != id && server.duty == Duty::Serves);
        let others = others.filter(|server| counts(server.id)).count();
        let needed = self.servers_needed_without(id);
        match duty {
            Duty::Leaves if others < usize::from(needed) => Err(Rejection::TooFewLeft(id, needed)),
            Duty::Drained if others == 0 => Err(Rejection::LastToServe(id)),
            Duty::Leaves | Duty::Drained | Duty::Serves => Ok(()),
        }
    }

    /// How many servers must be left without `id`, for the copies of every table that has some on
    /// it. The cluster's own tables have fewer copies in a smaller cluster.
    fn servers_needed_without(&self, id: ServerId) -> u8 {
        let tables = self.tablets_on(id).filter_map(|tablet| self.table(tablet.table));
        let copies = |table: &Table| match is_system_name(&table.name) {
            true => table.spec.min_in_sync,
            false => table.spec.replicas,
        };
        tables.map(copies).max().unwrap_or(0)
    }
}

/// Forgets a server that has left.
pub(super) fn forget_server(
    state: &mut State,
    id: ServerId,
    changes: &mut Changes,
) -> Result<Reply, Rejection> {
    let server = state.server(id).ok_or(Rejection::NoServer(id))?.clone();
    if state.tablet_count_on(id) > 0 {
        return Err(Rejection::ServerInUse(id));
    }
    state.remove_server(id);
    changes.servers.insert(id);
    Ok(Reply::Server(Box::new(server)))
}
