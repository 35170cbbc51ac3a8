//! Which tablets and keys of the cluster are busy.

use crate::channel::Lane;
use crate::client::Client;
use crate::error::Error;
use crate::limits::{HEAT_SLACK, PARTS_IN_FLIGHT};
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::heat_service_client::HeatServiceClient;
use futures::future::join_all;
use std::time::Duration;

/// What the servers saw, as far as they could be asked.
#[derive(Clone, Default, Debug)]
pub struct Heat {
    /// By server.
    pub servers: Vec<v1::GetHeatResponse>,
    /// Servers that did not answer, and why.
    pub unreachable: Vec<(v1::Server, Error)>,
}

impl Client {
    /// Lets every server watch its requests for `window` and name its `limit` busiest tablets
    /// and keys. Windows are 100 ms to 60 s, limits 1 to 1,000.
    ///
    /// # Errors
    /// `UNAVAILABLE` when no master answers; `BAD_REQUEST`. A server that does not answer is
    /// named in the result.
    pub async fn heat(&self, window: Duration, limit: u32) -> Result<Heat, Error> {
        let servers = self.admin().list_servers().await?.into_iter().filter_map(|summary| summary.server);
        let servers: Vec<v1::Server> = servers.collect();
        let mut all = Heat::default();
        // All at the same time, so that the windows are one; a cluster's worth of them.
        for part in servers.chunks(PARTS_IN_FLIGHT.max(256)) {
            let answers = join_all(part.iter().map(|server| self.heat_of(server, window, limit))).await;
            for (server, answer) in part.iter().zip(answers) {
                match answer {
                    Ok(heat) => all.servers.push(heat),
                    Err(error) if error.reason() == Reason::BadRequest => return Err(error),
                    Err(error) => all.unreachable.push((server.clone(), error)),
                }
            }
        }
        Ok(all)
    }

    async fn heat_of(
        &self,
        server: &v1::Server,
        window: Duration,
        limit: u32,
    ) -> Result<v1::GetHeatResponse, Error> {
        let mut heat = HeatServiceClient::new(self.shared.channels.get(&server.address, Lane::Calls)?);
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let time = window + HEAT_SLACK;
        match tokio::time::timeout(time, heat.get_heat(v1::GetHeatRequest { window_ms, limit })).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::from_status(&status)),
            Err(_) => Err(Error::new(Reason::TimedOut, format!("no answer within {time:?}"))),
        }
    }
}
