//! The client of Ebla: rows by key and by range, over tables that are cut into tablets.
//!
//! ```no_run
//! # async fn f() -> Result<(), ebla_client::Error> {
//! let client = ebla_client::Client::builder().endpoints(["127.0.0.1:7400"]).connect().await?;
//! client.set("towns", "ebla", "3500 BC").await?.committed()?;
//! let cell = client.get("towns", "ebla").await?;
//! # Ok(()) }
//! ```
//!
//! - Endpoints may be masters, tablet servers or both; one that answers is enough.
//! - Every call has a deadline and is tried again until then if that is safe. Every write
//!   carries a token, so that trying it again never runs it twice.
//! - A write ends as committed, reverted or unknown; never as an error that pretends that
//!   nothing happened.
//! - **A batch is atomic inside one tablet only.** [`Client::write`] refuses nothing, but a
//!   server refuses a batch whose rows lie in several tablets; [`Client::write_split`] cuts
//!   such a batch and reports per part.

mod admin;
mod backup;
mod balancer;
mod channel;
mod client;
mod error;
mod heat;
pub mod job;
pub mod limits;
mod lost;
mod merge;
mod moves;
mod outcome;
mod pipe;
mod publisher;
mod read;
mod retry;
mod room;
mod route;
mod route_source;
mod row;
mod scan;
mod session;
mod split;
mod watch;
mod watch_piece;
mod write;

pub use admin::Admin;
pub use client::{Builder, Client};
pub use ebla_kernel::hlc::Hlc;
pub use ebla_kernel::op::{AckLevel, Token};
pub use ebla_proto::error::Reason;
pub use ebla_proto::v1;
pub use error::Error;
pub use heat::Heat;
pub use lost::LostRecords;
pub use outcome::{Committed, MalformedTicket, Outcome, Ticket};
pub use publisher::{RoomPublisher, Sending};
pub use read::Consistency;
pub use room::{Published, RoomEvent, RoomMessage, RoomSubscriber, Who};
pub use route::TabletRoute;
pub use row::{Cell, Row, Value};
pub use scan::{Scan, ScanCount, ScanStream};
pub use session::{MalformedSession, SessionToken};
pub use split::Part;
pub use watch::{MalformedWatchToken, Since, Watch, WatchChange, WatchEvent, WatchStream, WatchToken};
pub use write::{Batch, WriteOptions};
