//! The loss ledgers of all tablet servers: what failovers took from deposed leaders' logs.

use crate::channel::Lane;
use crate::client::Client;
use crate::error::Error;
use crate::limits::{LEDGER_TIMEOUT, MESSAGE_BYTES_MAX, PARTS_IN_FLIGHT};
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::lost_service_client::LostServiceClient;
use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::transport::Channel;

/// What the ledgers hold, as far as their servers could be asked.
#[derive(Clone, Default, Debug)]
pub struct LostRecords {
    /// By server, oldest first.
    pub records: Vec<v1::LostRecord>,
    /// Servers that did not answer, and why.
    pub unreachable: Vec<(v1::Server, Error)>,
}

impl Client {
    /// The records of `table`, or of all tables when the name is empty, from every server.
    ///
    /// # Errors
    /// `TABLE_NOT_FOUND`; `UNAVAILABLE` when no master answers. A server that does not answer
    /// is named in the result.
    pub async fn list_lost(&self, table: &str) -> Result<LostRecords, Error> {
        let admin = self.admin();
        if !table.is_empty() {
            admin.describe_table(table).await?;
        }
        let servers = admin.list_servers().await?.into_iter().filter_map(|summary| summary.server);
        let ask = |server: v1::Server| async move {
            let listed = self.list_lost_of(&server, table).await;
            (server, listed)
        };
        let mut answers = stream::iter(servers.map(ask)).buffered(PARTS_IN_FLIGHT);
        let mut all = LostRecords::default();
        while let Some((server, listed)) = answers.next().await {
            match listed {
                Ok(records) => all.records.extend(records),
                Err(error) => all.unreachable.push((server, error)),
            }
        }
        Ok(all)
    }

    async fn list_lost_of(&self, server: &v1::Server, table: &str) -> Result<Vec<v1::LostRecord>, Error> {
        let mut ledger = self.ledger(&server.address)?;
        let request = v1::ListLostRequest { table: table.to_owned() };
        let limit = LEDGER_TIMEOUT.min(self.timeout);
        match tokio::time::timeout(limit, ledger.list_lost(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner().records),
            Ok(Err(status)) => {
                let error = Error::from_status(&status);
                // It has no copy of the table and so has never heard of it.
                if error.reason() == Reason::TableNotFound { Ok(Vec::new()) } else { Err(error) }
            }
            Err(_) => Err(Error::new(Reason::TimedOut, format!("no answer within {limit:?}"))),
        }
    }

    /// The entries of one record in log order.
    ///
    /// # Errors
    /// `RECORD_NOT_FOUND`, `UNAVAILABLE` and what the server reports, also later in the stream.
    pub async fn show_lost(
        &self,
        server: &v1::Server,
        id: u64,
    ) -> Result<BoxStream<'static, Result<v1::LostEntry, Error>>, Error> {
        let mut ledger = self.ledger(&server.address)?;
        let asked = tokio::time::timeout(self.timeout, ledger.show_lost(v1::ShowLostRequest { id })).await;
        let pages = match asked {
            Ok(Ok(pages)) => pages.into_inner(),
            Ok(Err(status)) => return Err(Error::from_status(&status)),
            Err(_) => return Err(Error::timed_out("the server", self.timeout, None)),
        };
        let entries = pages.flat_map(|page| {
            let entries: Vec<Result<v1::LostEntry, Error>> = match page {
                Ok(page) => page.entries.into_iter().map(Ok).collect(),
                Err(status) => vec![Err(Error::from_status(&status))],
            };
            stream::iter(entries)
        });
        Ok(entries.boxed())
    }

    fn ledger(&self, address: &str) -> Result<LostServiceClient<Channel>, Error> {
        let ledger = LostServiceClient::new(self.shared.channels.get(address, Lane::Calls)?);
        Ok(ledger.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}
