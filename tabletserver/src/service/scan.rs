//! Scans: one timestamp, one snapshot per tablet, page by page.
//!
//! A scan goes on into the next tablet as long as this server serves it. Where it does not,
//! the last page says so and carries a resume token that is good at the server that does.

use crate::heat::Counts;
use crate::limits;
use crate::node::{Node, body_to_wire, store_error};
use crate::read::SCAN_PAGE;
use crate::routes::TableInfo;
use crate::store::gc::ReadPin;
use crate::store::scan::{Order, Page, PageLimits, Projection, Row, ScanSpec, Scanner};
use crate::tablets::TabletHandle;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::Body;
use ebla_kernel::range::KeyRange;
use ebla_proto::convert;
use ebla_proto::error::{ApiError, Reason};
use ebla_proto::v1;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::Status;

type Pages = mpsc::Sender<Result<v1::ScanResponse, Status>>;

/// First byte of a resume token.
const RESUME_FORMAT: u8 = 1;

/// Where a scan goes on.
#[derive(Clone, PartialEq, Eq, Debug, BorshSerialize, BorshDeserialize)]
struct Resume {
    format: u8,
    /// The scan's timestamp.
    at: Hlc,
    /// First key of a forward scan, exclusive upper end of a reverse one.
    key: Bytes,
    /// Rows given so far, for the limit.
    given: u64,
}

/// What is left of a scan.
struct Scan {
    node: Arc<Node>,
    table: Arc<TableInfo>,
    range: KeyRange,
    at: Hlc,
    order: Order,
    projection: Projection,
    /// Rows that may still be given; none without limit.
    left: Option<u64>,
    given: u64,
    _pin: ReadPin,
}

/// Starts a scan; its pages come out of the channel.
///
/// # Errors
/// As the API says of `Scan`, for everything that can be known before reading.
pub async fn scan(
    node: Arc<Node>,
    request: v1::ScanRequest,
) -> Result<mpsc::Receiver<Result<v1::ScanResponse, Status>>, ApiError> {
    node.meters.scan();
    let scan = prepare(node, &request)?;
    let (pages, out) = mpsc::channel(limits::SCAN_PAGES_WAITING);
    if let Some(scan) = scan {
        let tablet = scan.locate(&scan.range)?;
        scan.node.reach(&tablet, scan.at).await?;
        tokio::spawn(run(scan, tablet, pages));
    }
    Ok(out)
}

/// Checks the request; none when there is nothing left to read.
fn prepare(node: Arc<Node>, request: &v1::ScanRequest) -> Result<Option<Scan>, ApiError> {
    let order = if request.reverse { Order::Reverse } else { Order::Forward };
    let asked = convert::scan_range(&request.from, &request.to, &request.prefix)?;
    let table = node.table(&request.table)?;
    let resume = resume(&request.resume)?;
    let at = match (&resume, request.at_ts) {
        (Some(resume), _) => resume.at,
        (None, 0) => {
            node.clock.issue().map_err(|error| ApiError::new(Reason::Internal, error.to_string()))?
        }
        (None, at) => Hlc(at),
    };
    let given = resume.as_ref().map_or(0, |resume| resume.given);
    let range = match &resume {
        None => asked,
        Some(resume) => asked.and_then(|range| cut(&range, order, &resume.key)),
    };
    let left = (request.limit > 0).then(|| request.limit.saturating_sub(given));
    let pin = node.pin(&table, at)?;
    let Some(range) = range.filter(|_| left != Some(0)) else { return Ok(None) };
    let projection = match (request.count_only, request.keys_only) {
        (true, _) => Projection::Count,
        (false, true) => Projection::Keys,
        (false, false) => Projection::Rows,
    };
    Ok(Some(Scan { node, table, range, at, order, projection, left, given, _pin: pin }))
}

fn resume(token: &Bytes) -> Result<Option<Resume>, ApiError> {
    if token.is_empty() {
        return Ok(None);
    }
    match borsh::from_slice::<Resume>(token) {
        Ok(resume) if resume.format == RESUME_FORMAT => Ok(Some(resume)),
        Ok(_) | Err(_) => {
            let hint = "the resume token is not one that a scan of this version gave: start the scan anew";
            Err(ApiError::new(Reason::BadRequest, hint))
        }
    }
}

/// What of `range` is left from `key` on.
fn cut(range: &KeyRange, order: Order, key: &Bytes) -> Option<KeyRange> {
    match order {
        Order::Forward => range.intersect(&KeyRange::new(key.clone(), None).ok()?),
        Order::Reverse => range.intersect(&KeyRange::new(Bytes::new(), Some(key.clone())).ok()?),
    }
}

async fn run(mut scan: Scan, mut tablet: Arc<TabletHandle>, pages: Pages) {
    loop {
        let (back, ended) = match scan.read_tablet(tablet, pages.clone()).await {
            Ok(step) => step,
            Err(error) => {
                let _ = pages.send(Err(error.into())).await;
                return;
            }
        };
        scan = back;
        let Some(rest) = ended else { return };
        scan.range = rest;
        // Whoever cannot go on here has a token to go on elsewhere.
        match scan.locate(&scan.range) {
            Ok(next) if scan.node.reach(&next, scan.at).await.is_ok() => tablet = next,
            Ok(_) | Err(_) => return,
        }
    }
}

impl Scan {
    /// The tablet in which the scan of `range` goes on, if it is served here.
    fn locate(&self, range: &KeyRange) -> Result<Arc<TabletHandle>, ApiError> {
        if self.order == Order::Forward {
            return self.node.locate(&self.table, range.start());
        }
        let directory = self.node.directory.load();
        let handle =
            directory.table(self.table.id).and_then(|t| t.find_below(range.end().map(|end| &end[..])));
        match handle {
            Some(handle) if handle.serving().is_some() => Ok(Arc::clone(handle)),
            Some(_) | None => {
                // Any key just below the end finds the tablet's leader in the map.
                let probe = range.end().map_or_else(|| Bytes::from_static(&[0xFF; 64]), just_below);
                Err(self.node.elsewhere(&self.table, &probe))
            }
        }
    }

    /// Reads what of the range lies in `tablet`; gives back what lies beyond.
    async fn read_tablet(
        mut self,
        tablet: Arc<TabletHandle>,
        pages: Pages,
    ) -> Result<(Self, Option<KeyRange>), ApiError> {
        let rest = self.beyond(&tablet);
        let read = tokio::task::spawn_blocking(move || {
            let end = self.send_pages(&tablet, rest.as_ref(), &pages);
            end.map(|goes_on| (self, rest.filter(|_| goes_on)))
        });
        read.await.map_err(|error| ApiError::new(Reason::Internal, format!("the scan failed: {error}")))?
    }

    fn beyond(&self, tablet: &TabletHandle) -> Option<KeyRange> {
        match self.order {
            Order::Forward => cut(&self.range, self.order, tablet.range.end()?),
            Order::Reverse if tablet.range.start().is_empty() => None,
            Order::Reverse => cut(&self.range, self.order, tablet.range.start()),
        }
    }

    /// Sends the pages of one tablet; tells whether the scan goes on after it.
    fn send_pages(
        &mut self,
        tablet: &TabletHandle,
        rest: Option<&KeyRange>,
        pages: &Pages,
    ) -> Result<bool, ApiError> {
        let Some(range) = self.range.intersect(&tablet.range) else { return Ok(rest.is_some()) };
        let spec = ScanSpec {
            table: self.table.id,
            range,
            at: self.at,
            order: self.order,
            projection: self.projection,
        };
        let tombstones = tablet.tombstones.load();
        let mut scanner = Scanner::open(&*self.node.reader.store, &tombstones, &spec).map_err(store_error)?;
        loop {
            let page = scanner.next_page(&self.page_limits()).map_err(store_error)?;
            let bytes =
                page.rows.iter().map(|row| row.key.len() + row.body.as_ref().map_or(0, Body::bytes)).sum();
            let first = page.rows.first().map_or(spec.range.start(), |row| &row.key);
            self.node.heat.note_page(tablet, first, Counts::read(bytes));
            // What was read counts only if it was all still there and the tablet still serves.
            self.node.check_floor(&self.table, self.at)?;
            self.node.check_serving(&self.table, tablet, spec.range.start())?;
            self.given += page.count;
            self.left = self.left.map(|left| left.saturating_sub(page.count));
            let is_full = self.left == Some(0);
            let tablet_done = page.next.is_none() || is_full;
            let next = page.next.clone().or_else(|| rest.map(|rest| self.resume_key(rest)));
            let resume = next.filter(|_| !is_full).map(|key| self.resume_token(key));
            let response = self.response(page, resume, tablet_done);
            if !send_in_time(pages, response) {
                return Ok(false);
            }
            if tablet_done {
                return Ok(!is_full);
            }
        }
    }

    fn page_limits(&self) -> PageLimits {
        let left = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let rows_max = match self.projection {
            Projection::Count => left,
            Projection::Rows | Projection::Keys => SCAN_PAGE.rows_max.min(left),
        };
        PageLimits { rows_max, ..SCAN_PAGE }
    }

    fn resume_key(&self, rest: &KeyRange) -> Bytes {
        match self.order {
            Order::Forward => rest.start().clone(),
            Order::Reverse => rest.end().cloned().unwrap_or_default(),
        }
    }

    fn resume_token(&self, key: Bytes) -> Bytes {
        let resume = Resume { format: RESUME_FORMAT, at: self.at, key, given: self.given };
        borsh::to_vec(&resume).expect("writing to a vector does not fail").into()
    }

    fn response(&self, page: Page, resume: Option<Bytes>, tablet_done: bool) -> v1::ScanResponse {
        v1::ScanResponse {
            rows: page.rows.into_iter().map(row_to_wire).collect(),
            resume: resume.unwrap_or_default(),
            count: page.count,
            ts: self.at.0,
            tablet_done,
        }
    }
}

/// Sends a page; false when the client is gone or has not read for too long. It then goes on
/// with the token of its last page.
fn send_in_time(pages: &Pages, response: v1::ScanResponse) -> bool {
    let sending = pages.send(Ok(response));
    let sent = Handle::current().block_on(tokio::time::timeout(limits::SCAN_CLIENT_PATIENCE, sending));
    matches!(sent, Ok(Ok(())))
}

fn row_to_wire(row: Row) -> v1::Row {
    let expires_ms = row.expires_ms.filter(|_| row.body.is_some()).unwrap_or(0);
    let (value, counter) = row.body.map(body_to_wire).unwrap_or_default();
    v1::Row { key: row.key, value, ts: row.ts.0, counter, expires_ms }
}

/// Some key below `end`, near enough to lie in the tablet that ends there.
fn just_below(end: &Bytes) -> Bytes {
    let mut below = end.to_vec();
    match below.last_mut() {
        Some(0) | None => drop(below.pop()),
        Some(last) => {
            *last -= 1;
            below.extend([0xFF; 8]);
        }
    }
    below.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_resume_tokens_are_refused() {
        assert_eq!(resume(&Bytes::new()), Ok(None));
        let error = resume(&Bytes::from_static(b"garbage")).unwrap_err();
        assert_eq!(error.reason, Reason::BadRequest);
    }

    #[test]
    fn a_reverse_scan_is_cut_from_above() {
        let all = KeyRange::all();
        let rest = cut(&all, Order::Reverse, &Bytes::from_static(b"m")).unwrap();
        assert!(rest.contains(b"lzz") && !rest.contains(b"m"));
        assert!(cut(&rest, Order::Forward, &Bytes::from_static(b"z")).is_none());
    }
}
