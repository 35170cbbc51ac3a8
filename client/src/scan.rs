//! Scans: rows of a range in key order, over as many tablets as it covers, at one timestamp.
//!
//! ```text
//! [reader of tablet 1] --pages--\
//! [reader of tablet 2] --pages---> coordinator --pages--> ScanStream
//! ```
//!
//! - The first page tells the timestamp at which all the rest is read.
//! - A reader begins again after a lost stream exactly where its last page ended: by the
//!   page's resume token at the same tablet, behind the last row elsewhere.
//! - Readers run ahead of the caller by a few pages and a few tablets; a caller that stops
//!   reading stops them.
//! - Every reader ends with a page marked `last` or with an error, never in silence.

use crate::channel::Lane;
use crate::client::{Client, Place, Tries, leader_of};
use crate::error::Error;
use crate::limits::{COUNT_TABLETS_OPEN, SCAN_PAGES_AHEAD, SCAN_TABLETS_OPEN};
use crate::retry::Deadline;
use crate::route::TabletRoute;
use crate::row::Row;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::key::successor;
use ebla_kernel::op::BadRequest;
use ebla_kernel::range::KeyRange;
use ebla_proto::convert::non_empty;
use ebla_proto::error::Reason;
use ebla_proto::v1;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Which rows to read, and how.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Scan {
    /// First key; empty for no lower bound.
    pub from: Bytes,
    /// First key above the range; empty for no upper bound.
    pub to: Bytes,
    /// Only keys with this prefix; narrows `from` and `to`.
    pub prefix: Bytes,
    /// Most rows in all.
    pub limit: Option<u64>,
    /// From the last key to the first.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Read as of this timestamp; now when none.
    pub at: Option<Hlc>,
}

impl Scan {
    /// Every row of a table.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The rows whose key begins with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// The rows in `[from, to)`; an empty `to` means no upper bound.
    #[must_use]
    pub fn range(from: impl Into<Bytes>, to: impl Into<Bytes>) -> Self {
        Self { from: from.into(), to: to.into(), ..Self::default() }
    }

    /// The keys that it covers; none when prefix and range have no key in common.
    fn bounds(&self) -> Result<Option<KeyRange>, Error> {
        let range = KeyRange::new(self.from.clone(), non_empty(self.to.clone()))
            .map_err(|_| BadRequest::InvertedRange)?;
        if self.limit == Some(0) {
            return Ok(None);
        }
        Ok(range.intersect(&KeyRange::prefix(self.prefix.clone())))
    }
}

/// How many rows a range has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanCount {
    /// Rows counted.
    pub count: u64,
    /// When they were counted; zero when there was nothing to read.
    pub ts: Hlc,
}

impl Client {
    /// Streams the rows of a range. The deadline bounds a wait without progress, not the
    /// whole scan.
    ///
    /// # Errors
    /// `BAD_REQUEST` for an inverted range; everything else comes through the stream.
    pub fn scan(&self, table: &str, scan: Scan) -> Result<ScanStream, Error> {
        let pages = self.pages(table, scan, Wanted::Rows)?;
        Ok(ScanStream { pages, rows: Vec::new().into_iter(), ts: None, ended: false })
    }

    /// Counts the rows of a range without sending them.
    ///
    /// # Errors
    /// As [`Self::scan`], and what the scan meets.
    pub async fn count(&self, table: &str, scan: Scan) -> Result<ScanCount, Error> {
        let limit = scan.limit.unwrap_or(u64::MAX);
        let mut pages = self.pages(table, scan, Wanted::Count)?;
        let mut counted = ScanCount { count: 0, ts: Hlc::MIN };
        loop {
            let page = pages.next().await?;
            counted.count = counted.count.saturating_add(page.count).min(limit);
            counted.ts = counted.ts.max(page.ts);
            if page.last || counted.count >= limit {
                return Ok(counted);
            }
        }
    }

    fn pages(&self, table: &str, scan: Scan, wanted: Wanted) -> Result<Pages, Error> {
        let rest = scan.bounds()?;
        let (out, pages) = mpsc::channel(SCAN_PAGES_AHEAD);
        let left = scan.limit;
        let job = Job { client: self.clone(), table: table.to_owned(), scan, wanted };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = coordinate(&job, rest, left, &out).await {
                // A caller that is gone needs no error.
                let _ = out.send(Err(error)).await;
            }
        });
        Ok(Pages { pages, _tasks: tasks })
    }
}

/// What a scan is to bring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Rows,
    Count,
}

/// What does not change during a scan.
#[derive(Clone, Debug)]
struct Job {
    client: Client,
    table: String,
    scan: Scan,
    wanted: Wanted,
}

/// Some rows of one tablet.
#[derive(Default, Debug)]
struct Page {
    rows: Vec<Row>,
    count: u64,
    ts: Hlc,
    /// Nothing follows.
    last: bool,
}

type PageSender = mpsc::Sender<Result<Page, Error>>;

/// Pages as they come; ends what makes them when dropped.
#[derive(Debug)]
struct Pages {
    pages: mpsc::Receiver<Result<Page, Error>>,
    _tasks: JoinSet<()>,
}

impl Pages {
    async fn next(&mut self) -> Result<Page, Error> {
        self.pages.recv().await.unwrap_or_else(|| Err(cut_short()))
    }
}

fn cut_short() -> Error {
    Error::new(Reason::Internal, "the scan ended before its last page: report this as a bug")
}

/// Rows in key order. A stream of `Result<Row, Error>`; after an error it ends.
#[derive(Debug)]
pub struct ScanStream {
    pages: Pages,
    rows: std::vec::IntoIter<Row>,
    ts: Option<Hlc>,
    ended: bool,
}

impl ScanStream {
    /// The timestamp at which the rows are read, once the first page is here.
    #[must_use]
    pub fn ts(&self) -> Option<Hlc> {
        self.ts
    }
}

impl futures::Stream for ScanStream {
    type Item = Result<Row, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(row) = self.rows.next() {
                return Poll::Ready(Some(Ok(row)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.pages.pages.poll_recv(context)) {
                Some(Ok(page)) => {
                    self.ended = page.last;
                    if page.ts != Hlc::MIN {
                        self.ts.get_or_insert(page.ts);
                    }
                    self.rows = page.rows.into_iter();
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(cut_short())));
                }
            }
        }
    }
}

/// Opens readers in key order, a few ahead, and passes their pages on in that order.
async fn coordinate(
    job: &Job,
    mut rest: Option<KeyRange>,
    mut left: Option<u64>,
    out: &PageSender,
) -> Result<(), Error> {
    let mut at = job.scan.at;
    let mut readers = JoinSet::new();
    let mut open: VecDeque<mpsc::Receiver<Result<Page, Error>>> = VecDeque::new();
    loop {
        while open.len() < job.readers_max(at, left) {
            let Some(range) = rest.take() else { break };
            let (clip, after) = job.cut(range).await?;
            rest = after;
            let (pages, reader) = mpsc::channel(SCAN_PAGES_AHEAD);
            open.push_back(reader);
            readers.spawn(Reader::new(job.clone(), clip, at, left).run(pages));
        }
        let Some(reader) = open.front_mut() else {
            let _ = out.send(Ok(Page { last: true, ..Page::default() })).await;
            return Ok(());
        };
        let mut page = reader.recv().await.unwrap_or_else(|| Err(cut_short()))?;
        if page.last {
            open.pop_front();
        }
        if page.ts != Hlc::MIN {
            at.get_or_insert(page.ts);
        }
        left = left.map(|left| left.saturating_sub(page.count));
        page.last = left == Some(0);
        let last = page.last;
        if out.send(Ok(page)).await.is_err() || last {
            return Ok(());
        }
    }
}

impl Job {
    /// How many tablets may be read at once. One until the timestamp is known, and one when
    /// a limit may end the scan in this very tablet.
    fn readers_max(&self, at: Option<Hlc>, left: Option<u64>) -> usize {
        match (at, left, self.wanted) {
            (None, _, _) | (_, Some(_), _) => 1,
            (Some(_), None, Wanted::Rows) => SCAN_TABLETS_OPEN,
            (Some(_), None, Wanted::Count) => COUNT_TABLETS_OPEN,
        }
    }

    /// The part of `range` that lies in its first tablet, in scan order, and what follows.
    async fn cut(&self, range: KeyRange) -> Result<(KeyRange, Option<KeyRange>), Error> {
        let route = self.route(&range, Deadline::after(self.client.timeout)).await?;
        Ok(cut_at_tablet(&range, &route, self.scan.reverse))
    }

    /// The tablet in which a scan of `range` begins.
    async fn route(&self, range: &KeyRange, deadline: Deadline) -> Result<TabletRoute, Error> {
        let end = range.end().cloned().unwrap_or_default();
        let place = if self.scan.reverse { Place::Below(&end) } else { Place::At(range.start()) };
        self.client.find_route(&self.table, place, deadline).await
    }
}

/// Cuts `range` at the borders of the tablet in which its scan begins.
fn cut_at_tablet(range: &KeyRange, route: &TabletRoute, reverse: bool) -> (KeyRange, Option<KeyRange>) {
    let tablet = KeyRange::new(route.start.clone(), non_empty(route.end.clone())).unwrap_or_default();
    let clip = range.intersect(&tablet).unwrap_or_else(|| range.clone());
    let after = if reverse {
        KeyRange::new(range.start().clone(), Some(clip.start().clone())).ok()
    } else {
        clip.end().and_then(|end| KeyRange::new(end.clone(), range.end().cloned()).ok())
    };
    (clip, after)
}

/// How one stream of a reader ended.
enum End {
    /// The clip has no more rows.
    Done,
    /// The server ended the stream in good order; go on by the resume token.
    Paused,
    /// The caller is gone or has enough.
    Enough,
}

/// Reads a range that lay in one tablet when it was cut; copes if it no longer does.
struct Reader {
    job: Job,
    /// What is still to read; none when every row has been passed on.
    rest: Option<KeyRange>,
    at: Option<Hlc>,
    left: Option<u64>,
    /// Where the tablet goes on, with the request that its token belongs to.
    resume: Option<(u64, v1::ScanRequest)>,
    /// Rows counted in tablets that are done; told at the end of all.
    counted: u64,
    /// Rows counted in the present tablet, where beginning again begins at zero.
    counted_here: u64,
}

impl Reader {
    fn new(job: Job, rest: KeyRange, at: Option<Hlc>, left: Option<u64>) -> Self {
        Self { job, rest: Some(rest), at, left, resume: None, counted: 0, counted_here: 0 }
    }

    async fn run(mut self, out: PageSender) {
        if let Err(error) = self.read(&out).await {
            let _ = out.send(Err(error)).await;
        }
    }

    async fn read(&mut self, out: &PageSender) -> Result<(), Error> {
        let timeout = self.job.client.timeout;
        let mut tries = Tries::new(Deadline::after(timeout));
        while let Some(rest) = self.rest.clone() {
            let mut progress = false;
            let error = match self.read_once(rest, &mut tries, out, &mut progress).await {
                Ok(true) => {
                    tries = Tries::new(Deadline::after(timeout));
                    continue;
                }
                Ok(false) => return Ok(()),
                Err(error) if !error.is_worth_a_retry() => return Err(error),
                Err(error) => error,
            };
            if progress {
                tries = Tries::new(Deadline::after(timeout));
            }
            if !tries.again(&self.job.client.shared, &self.job.table, &error).await {
                return Err(Error::timed_out("the scan", timeout, Some(&error)));
            }
        }
        let end =
            Page { count: self.counted, last: true, ts: self.at.unwrap_or_default(), ..Page::default() };
        // A caller that is gone needs no end.
        let _ = out.send(Ok(end)).await;
        Ok(())
    }

    /// Reads the part of `rest` that lies in one tablet. False when nobody wants more.
    async fn read_once(
        &mut self,
        rest: KeyRange,
        tries: &mut Tries,
        out: &PageSender,
        progress: &mut bool,
    ) -> Result<bool, Error> {
        tries.began = tokio::time::Instant::now();
        let route = self.job.route(&rest, tries.deadline).await?;
        let (clip, after) = cut_at_tablet(&rest, &route, self.job.scan.reverse);
        let address = leader_of(&route)?;
        loop {
            let request = self.request(&clip, route.tablet_id);
            match self.stream(&address, route.tablet_id, request, tries, out, progress).await? {
                End::Paused => tries.deadline = Deadline::after(self.job.client.timeout),
                End::Enough => return Ok(false),
                End::Done => break,
            }
        }
        self.resume = None;
        self.rest = after;
        self.counted += std::mem::take(&mut self.counted_here);
        Ok(true)
    }

    fn request(&mut self, clip: &KeyRange, tablet_id: u64) -> v1::ScanRequest {
        if let Some((_, request)) = self.resume.as_ref().filter(|(tablet, _)| *tablet == tablet_id) {
            return request.clone();
        }
        self.counted_here = 0;
        v1::ScanRequest {
            table: self.job.table.clone(),
            from: clip.start().clone(),
            to: clip.end().cloned().unwrap_or_default(),
            prefix: Bytes::new(),
            limit: self.left.unwrap_or(0),
            reverse: self.job.scan.reverse,
            keys_only: self.job.scan.keys_only,
            at_ts: self.at.map_or(0, |at| at.0),
            resume: Bytes::new(),
            count_only: self.job.wanted == Wanted::Count,
        }
    }

    async fn stream(
        &mut self,
        address: &str,
        tablet_id: u64,
        request: v1::ScanRequest,
        tries: &mut Tries,
        out: &PageSender,
        progress: &mut bool,
    ) -> Result<End, Error> {
        let timeout = self.job.client.timeout;
        let mut client = self.job.client.kv(address, Lane::Scans)?;
        let mut paused = false;
        let opening = tokio::time::timeout_at(tries.deadline.at, client.scan(request.clone()));
        let mut pages = in_time(opening.await, timeout)?.into_inner();
        loop {
            let message = tokio::time::timeout_at(tries.deadline.at, pages.message()).await;
            let Some(page) = in_time(message, timeout)? else {
                // Nothing more behind a token means that the range is done.
                let is_resumed = !request.resume.is_empty();
                let error = Error::new(Reason::Unavailable, "the server ended the scan before its last page");
                return match (paused, is_resumed) {
                    (true, _) => Ok(End::Paused),
                    (false, true) => Ok(End::Done),
                    (false, false) => Err(error),
                };
            };
            (*progress, paused) = (true, true);
            let resume = page.resume.clone();
            if !self.take(page, out).await? {
                return Ok(End::Enough);
            }
            tries.deadline = Deadline::after(timeout);
            // A tablet that is done is not all when it was split since the range was cut: the token
            // goes on in the next one, on this stream or elsewhere.
            if resume.is_empty() {
                return Ok(End::Done);
            }
            let at_ts = self.at.map_or(request.at_ts, |at| at.0);
            self.resume = Some((tablet_id, v1::ScanRequest { resume, at_ts, ..request.clone() }));
        }
    }

    /// Passes a page on and remembers how far it reached. False when nobody wants more.
    async fn take(&mut self, page: v1::ScanResponse, out: &PageSender) -> Result<bool, Error> {
        if page.ts != 0 {
            self.at.get_or_insert(Hlc(page.ts));
        }
        let ts = self.at.unwrap_or_default();
        if self.job.wanted == Wanted::Count {
            self.counted_here += page.count;
        }
        let keys_only = self.job.scan.keys_only;
        let mut rows =
            page.rows.into_iter().map(|row| Row::from_wire(row, keys_only)).collect::<Result<Vec<_>, _>>()?;
        if let Some(left) = self.left {
            rows.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let Some(last) = rows.last() else {
            // Even an empty page tells the timestamp, for which the next tablet waits.
            return Ok(out.send(Ok(Page { ts, ..Page::default() })).await.is_ok());
        };
        self.rest = self.rest.as_ref().and_then(|rest| beyond(rest, &last.key, self.job.scan.reverse));
        let count = rows.len() as u64;
        self.left = self.left.map(|left| left.saturating_sub(count));
        Ok(out.send(Ok(Page { rows, count, ts, last: false })).await.is_ok() && self.left != Some(0))
    }
}

/// What is left of `range` once `key` has been read.
fn beyond(range: &KeyRange, key: &Bytes, reverse: bool) -> Option<KeyRange> {
    let rest = if reverse {
        KeyRange::new(range.start().clone(), Some(key.clone()))
    } else {
        KeyRange::new(successor(key), range.end().cloned())
    };
    rest.ok()
}

fn in_time<T>(
    result: Result<Result<T, tonic::Status>, tokio::time::error::Elapsed>,
    timeout: std::time::Duration,
) -> Result<T, Error> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(status)) => Err(Error::from_status(&status)),
        Err(_) => Err(Error::timed_out("the scan", timeout, None)),
    }
}
