//! Entries of a tablet's log for whoever reads along: out of memory as long as they are there,
//! else from the log.

use crate::oplog::{Logged, Oplog, OplogError};
use crate::tablets::TabletHandle;
use ebla_kernel::ids::Seq;
use std::sync::Arc;

/// Entries from `from` to `upto`, as many as fit `bytes_max` and at least one; none past the end
/// of the log.
///
/// # Errors
/// As [`Oplog::read`].
pub async fn entries(
    oplog: &Arc<Oplog>,
    tablet: &TabletHandle,
    (from, upto): (Seq, Seq),
    bytes_max: usize,
) -> Result<Vec<Arc<Logged>>, OplogError> {
    if from > upto {
        return Ok(Vec::new());
    }
    if let Some(entries) = tablet.tail.take(from, upto, bytes_max) {
        return Ok(entries);
    }
    let (oplog, id) = (Arc::clone(oplog), tablet.id);
    let read = tokio::task::spawn_blocking(move || oplog.read(id, from, bytes_max)).await;
    let read = read.map_err(|error| OplogError::Damaged { what: format!("a read did not end ({error})") })?;
    let within = read?.into_iter().filter(|entry| entry.seq() <= upto);
    Ok(within.map(|entry| Arc::new(entry.into())).collect())
}
