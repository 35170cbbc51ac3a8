//! Connections: one per address and lane, opened on first use, kept, and opened again by the
//! transport after a loss. Knows nothing of tables or routes.

use crate::error::Error;
use crate::limits::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT,
    ROOM_STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES,
};
use ebla_proto::error::Reason;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tonic::transport::{Channel, Endpoint};

/// What a connection carries: a scan's rows must not stand in the way of small calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Lane {
    /// Small calls, frames and pushes.
    Calls,
    /// Streams of rows.
    Scans,
    /// Everything about rooms.
    Rooms,
    /// Streams of changes, which a slow consumer may leave unread.
    Watches,
}

/// The connections of one client. Bounded by the addresses of the cluster.
#[derive(Default, Debug)]
pub(crate) struct Channels {
    open: Mutex<HashMap<(String, Lane), Channel>>,
}

impl Channels {
    /// The connection to `address`; made lazily, so this never waits.
    pub(crate) fn get(&self, address: &str, lane: Lane) -> Result<Channel, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.get(&(address.to_owned(), lane)) {
            return Ok(channel.clone());
        }
        let endpoint = endpoint(address)?;
        let endpoint = match lane {
            Lane::Calls | Lane::Scans | Lane::Watches => endpoint,
            Lane::Rooms => endpoint.initial_stream_window_size(ROOM_STREAM_WINDOW_BYTES),
        };
        let channel = endpoint.connect_lazy();
        open.insert((address.to_owned(), lane), channel.clone());
        Ok(channel)
    }

    /// Keeps a connection that was made eagerly.
    pub(crate) fn keep(&self, address: &str, channel: Channel) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert((address.to_owned(), Lane::Calls), channel);
    }
}

/// Opens a connection to `address` now.
pub(crate) async fn connect(address: &str) -> Result<Channel, Error> {
    let endpoint = endpoint(address)?;
    match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(Error::new(Reason::Unavailable, innermost(&error))),
        Err(_) => Err(Error::new(Reason::Unavailable, "no answer")),
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let refuse = || {
        let hint = format!("the address {address:?} is not HOST:PORT: give for example 127.0.0.1:7400");
        Error::new(Reason::BadRequest, hint)
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(refuse)?;
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(refuse());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| refuse())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The deepest cause, such as "Connection refused", which the outer layers hide.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for bad in ["", "localhost", ":7400", "localhost:", "localhost:99999", "http://a:1", "a b:1"] {
            assert_eq!(endpoint(bad).unwrap_err().reason(), Reason::BadRequest, "{bad}");
        }
        for good in ["127.0.0.1:7400", "localhost:1", "[::1]:7400"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
    }
}
