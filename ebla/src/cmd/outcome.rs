//! `ebla outcome`: how a write ended.

use super::{connect, output, written};
use crate::cli::{Global, Outcome};
use crate::exit::Failure;
use ebla_client::Ticket;
use std::process::ExitCode;

/// Asks with the token that a write printed and reports as the write would have.
pub async fn run(global: &Global, args: Outcome) -> anyhow::Result<ExitCode> {
    let ticket: Ticket = args
        .token
        .parse()
        .map_err(|error: ebla_client::MalformedTicket| Failure::usage(error.to_string()))?;
    let client = connect(global, args.wait).await?;
    let outcome = client.outcome(&ticket).await?;
    written::report(&mut output(global), &outcome)
}
