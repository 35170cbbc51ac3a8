//! Writes over several tablets: a batch cut by tablet, and a delete range clipped to each.
//!
//! Atomicity ends at the tablet. Each part is atomic by itself and has an outcome of its
//! own; some parts may stand while others do not.

use crate::client::{Client, Place};
use crate::error::Error;
use crate::limits::PARTS_IN_FLIGHT;
use crate::outcome::Outcome;
use crate::retry::Deadline;
use crate::write::{Batch, WriteOptions, route_key};
use bytes::Bytes;
use ebla_kernel::op::{Action, BadRequest, Op, check_batch};
use ebla_kernel::range::KeyRange;
use ebla_proto::convert::non_empty;
use ebla_proto::error::Reason;
use futures::stream::{self, StreamExt as _};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// How the part of a batch that lies in one tablet ended.
#[derive(Clone, Debug)]
pub struct Part {
    /// The tablet, as known when the batch was cut.
    pub tablet_id: u64,
    /// Places in the batch of the operations of this part, rising.
    pub ops: Vec<usize>,
    /// How it ended; an error is definite as to this part.
    pub result: Result<Outcome, Error>,
}

/// Whether the tablet of a part was split after the batch was cut; nothing of it was written.
fn was_split_meanwhile(part: &Part) -> bool {
    matches!(&part.result, Err(error) if error.reason() == Reason::BatchSpansTablets)
}

impl Client {
    /// Cuts a batch by tablet, writes the parts at the same time and reports on each, in
    /// order of tablet. **Only each part is atomic, the batch is not.**
    ///
    /// # Errors
    /// As [`Client::write`] when nothing was sent because the batch breaks a limit or no
    /// route is known.
    pub async fn write_split(
        &self,
        table: &str,
        batch: Batch,
        options: WriteOptions,
    ) -> Result<Vec<Part>, Error> {
        check_batch(&batch.ops)?;
        let deadline = Deadline::after(self.timeout);
        let mut left: Vec<usize> = (0..batch.ops.len()).collect();
        let mut done = BTreeMap::new();
        while !left.is_empty() {
            let cut = self.cut(table, &batch.ops, std::mem::take(&mut left), deadline).await?;
            let writes = cut.into_iter().map(|(start, (tablet_id, places))| {
                let ops = places.iter().map(|at| batch.ops[*at].clone()).collect();
                async move {
                    let result = self.write(table, Batch { ops }, options).await;
                    (start, Part { tablet_id, ops: places, result })
                }
            });
            let mut writes = stream::iter(writes).buffered(PARTS_IN_FLIGHT);
            while let Some((start, part)) = writes.next().await {
                if was_split_meanwhile(&part) && !deadline.has_passed() {
                    left.extend(part.ops);
                } else {
                    // After a merge two parts may begin at the same tablet.
                    done.insert((start, part.ops.first().copied()), part);
                }
            }
            if !left.is_empty() {
                // With the old map the same parts would be refused again, until the deadline.
                let _ = self.shared.refresh(table, Instant::now(), deadline).await;
            }
        }
        Ok(done.into_values().collect())
    }

    /// Cuts what stands at `places` of a batch by tablet: by the start of each, its id and its places.
    async fn cut(
        &self,
        table: &str,
        ops: &[Op],
        places: Vec<usize>,
        deadline: Deadline,
    ) -> Result<BTreeMap<Bytes, (u64, Vec<usize>)>, Error> {
        let mut parts = BTreeMap::new();
        for at in places {
            let key = route_key(&ops[at..=at]);
            let route = self.find_route(table, Place::At(&key), deadline).await?;
            let (_, places) = parts.entry(route.start).or_insert((route.tablet_id, Vec::new()));
            places.push(at);
        }
        Ok(parts)
    }

    /// Deletes every row in `[from, to)`, tablet by tablet, and reports on each; an empty
    /// `to` means no upper bound. **Only the part in each tablet is atomic.**
    ///
    /// # Errors
    /// `BAD_REQUEST` for an inverted range, `TABLE_NOT_FOUND`, or that no route is known.
    pub async fn delete_range(
        &self,
        table: &str,
        from: impl Into<Bytes>,
        to: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Vec<Part>, Error> {
        let range =
            KeyRange::new(from.into(), non_empty(to.into())).map_err(|_| BadRequest::InvertedRange)?;
        let mut clips = self.clips(table, &range).await?;
        let mut parts = Vec::new();
        while !clips.is_empty() {
            let deletes = std::mem::take(&mut clips).into_iter();
            let deletes = deletes.map(|(tablet_id, clip)| self.delete_clip(table, tablet_id, clip, options));
            let mut deleted = stream::iter(deletes).buffered(PARTS_IN_FLIGHT);
            while let Some((part, rest)) = deleted.next().await {
                parts.push(part);
                if let Some(rest) = rest {
                    clips.extend(self.clips(table, &rest).await?);
                }
            }
        }
        Ok(parts)
    }

    /// Deletes what lay in one tablet, and says what of it does no longer: a tablet that was split
    /// meanwhile answers for its first part only.
    async fn delete_clip(
        &self,
        table: &str,
        tablet_id: u64,
        clip: KeyRange,
        options: WriteOptions,
    ) -> (Part, Option<KeyRange>) {
        let action = Action::DeleteRange { from: clip.start().clone(), to: clip.end().cloned() };
        let result = self.write(table, Batch::new().op(None, action), options).await;
        let is_whole = match &result {
            Ok(Outcome::Committed(committed)) => committed.tablet_id == tablet_id,
            // Nothing is claimed of what did not succeed.
            Ok(Outcome::Reverted | Outcome::Unknown(_)) | Err(_) => true,
        };
        let rest = if is_whole { None } else { self.beyond_first_tablet(table, &clip).await };
        (Part { tablet_id, ops: vec![0], result }, rest)
    }

    /// What of `clip` lies behind the tablet in which it begins, by a map that is fetched now.
    async fn beyond_first_tablet(&self, table: &str, clip: &KeyRange) -> Option<KeyRange> {
        let deadline = Deadline::after(self.timeout);
        // Without a new map the old one says that there is nothing: then everything is deleted again.
        let fetched = self.shared.refresh(table, Instant::now(), deadline).await;
        let route = self.find_route(table, Place::At(clip.start()), deadline).await;
        match (fetched, route) {
            (Ok(()), Ok(route)) => {
                let behind = KeyRange::new(non_empty(route.end)?, None).ok()?;
                clip.intersect(&behind)
            }
            (Err(_), _) | (_, Err(_)) => Some(clip.clone()),
        }
    }

    /// The parts of `range` by tablet.
    async fn clips(&self, table: &str, range: &KeyRange) -> Result<Vec<(u64, KeyRange)>, Error> {
        let deadline = Deadline::after(self.timeout);
        let mut clips = Vec::new();
        let mut start = range.start().clone();
        loop {
            let route = self.find_route(table, Place::At(&start), deadline).await?;
            let tablet = KeyRange::new(route.start, non_empty(route.end.clone()))
                .map_err(|_| BadRequest::InvertedRange)?;
            let rest = KeyRange::new(start, range.end().cloned()).map_err(|_| BadRequest::InvertedRange)?;
            clips.extend(rest.intersect(&tablet).map(|clip| (route.tablet_id, clip)));
            if route.end.is_empty() || range.is_below(&route.end) {
                return Ok(clips);
            }
            start = route.end;
        }
    }
}
