//! Splits and jobs, as operators ask for them.

use crate::admin::{Admin, AdminClient, Kind, incomplete};
use crate::channel::Lane;
use crate::error::Error;
use crate::limits::{JOB_POLL, SPLIT_TIMEOUT, SUGGEST_SPLIT_TIMEOUT};
use crate::retry::{Backoff, Deadline};
use bytes::Bytes;
use ebla_proto::error::Reason;
use ebla_proto::v1;
use ebla_proto::v1::split_service_client::SplitServiceClient;
use std::time::Duration;
use tokio::time::Instant;

impl Admin {
    /// Makes several tablets of one, cut at `keys`; returns when all of them serve.
    ///
    /// # Errors
    /// `BAD_REQUEST` for a key that is not strictly inside, `TABLET_NOT_FOUND`,
    /// `TABLET_RETIRED`, `JOB_CONFLICT`, `JOB_FAILED`, `TIMED_OUT` and what a master reports.
    pub async fn split_tablet(
        &self,
        tablet_id: u64,
        keys: Vec<Bytes>,
    ) -> Result<v1::SplitTabletResponse, Error> {
        let mut lost = false;
        let request = v1::SplitTabletRequest { tablet_id, split_keys: keys };
        let split = self
            .call(Kind::Order(SPLIT_TIMEOUT), &mut lost, |mut admin: AdminClient| {
                let request = request.clone();
                async move { admin.split_tablet(request).await }
            })
            .await;
        match split {
            // The first try may have been the one that did it: the job tells.
            Err(error) if lost && is_answered(&error) => {
                let is_it = |job: &v1::Job| job.tablet_id == tablet_id && job.kind() == v1::JobKind::Split;
                match self.job_begun(is_it).await? {
                    Some(job) => self.children(job).await,
                    None => Err(error),
                }
            }
            split => split,
        }
    }

    /// Keys that cut a tablet into `parts` parts of about the same size, by the word of the
    /// server that leads it.
    ///
    /// # Errors
    /// `TABLET_NOT_FOUND`, `TABLET_RETIRED`, `UNAVAILABLE` and what the server reports.
    pub async fn suggest_split(&self, tablet_id: u64, parts: u32) -> Result<Vec<Bytes>, Error> {
        let request = v1::SuggestSplitRequest { tablet_id, parts, by_load: false };
        Ok(self.find_split(request).await?.split_keys)
    }

    /// Keys that cut a tablet into at most `parts` parts of about the same load, or why there
    /// are none. Only busy tablets are sampled.
    ///
    /// # Errors
    /// As of [`Self::suggest_split`].
    pub async fn suggest_split_by_load(
        &self,
        tablet_id: u64,
        parts: u32,
    ) -> Result<v1::SuggestSplitResponse, Error> {
        self.find_split(v1::SuggestSplitRequest { tablet_id, parts, by_load: true }).await
    }

    /// Asks whoever leads the tablet, and again where its leader has just gone.
    async fn find_split(&self, request: v1::SuggestSplitRequest) -> Result<v1::SuggestSplitResponse, Error> {
        let deadline = Deadline::after(self.client.timeout);
        let mut backoff = Backoff::new();
        loop {
            match self.find_split_once(request).await {
                Err(error) if error.is_worth_a_retry() => {
                    if !backoff.pause(deadline, &error).await {
                        let what = "the search for split points";
                        return Err(Error::timed_out(what, deadline.timeout, Some(&error)));
                    }
                }
                answer => return answer,
            }
        }
    }

    async fn find_split_once(
        &self,
        request: v1::SuggestSplitRequest,
    ) -> Result<v1::SuggestSplitResponse, Error> {
        let tablet_id = request.tablet_id;
        let tablet = self.describe_tablet(tablet_id).await?.tablet.unwrap_or_default();
        let servers = self.list_servers().await?.into_iter().filter_map(|summary| summary.server);
        let Some(server) = servers.into_iter().find(|server| server.id == tablet.leader_server_id) else {
            let hint = format!("tablet {tablet_id} has no leader now: try again");
            return Err(Error::new(Reason::Unavailable, hint));
        };
        let channel = self.client.shared.channels.get(&server.address, Lane::Calls)?;
        let mut split = SplitServiceClient::new(channel);
        match tokio::time::timeout(SUGGEST_SPLIT_TIMEOUT, split.suggest_split(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::from_status(&status)),
            Err(_) => Err(Error::timed_out("the search for split points", SUGGEST_SPLIT_TIMEOUT, None)),
        }
    }

    /// Jobs that are remembered, oldest first, or those under way.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn list_jobs(&self, running: bool) -> Result<Vec<v1::Job>, Error> {
        let call =
            |mut admin: AdminClient| async move { admin.list_jobs(v1::ListJobsRequest { running }).await };
        Ok(self.ask(call).await?.jobs)
    }

    /// One job.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `UNAVAILABLE` and what a master reports.
    pub async fn describe_job(&self, id: u64) -> Result<v1::Job, Error> {
        let call =
            |mut admin: AdminClient| async move { admin.describe_job(v1::DescribeJobRequest { id }).await };
        self.ask(call).await?.job.ok_or_else(|| incomplete("job"))
    }

    /// A job once it has ended, however that was.
    ///
    /// # Errors
    /// As [`Self::describe_job`], and `TIMED_OUT` when it still runs after `patience`.
    pub async fn wait_for_job(&self, id: u64, patience: Duration) -> Result<v1::Job, Error> {
        let until = Instant::now() + patience;
        loop {
            let job = self.describe_job(id).await?;
            if job.state() != v1::JobState::Running {
                return Ok(job);
            }
            if Instant::now() >= until {
                let hint = format!("job {id} still runs: wait longer, or see `ebla job show {id}`");
                return Err(Error::new(Reason::TimedOut, hint));
            }
            tokio::time::sleep(JOB_POLL).await;
        }
    }

    /// Ends a job that has not reached its commit point.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `JOB_ENDED`, `UNAVAILABLE` and what a master reports.
    pub async fn cancel_job(&self, id: u64) -> Result<v1::Job, Error> {
        let mut lost = false;
        let call =
            |mut admin: AdminClient| async move { admin.cancel_job(v1::CancelJobRequest { id }).await };
        match self.call(Kind::Change(self.client.timeout), &mut lost, call).await {
            Ok(response) => response.job.ok_or_else(|| incomplete("job")),
            // The first try may have been the one that did it.
            Err(error) if lost && error.reason() == Reason::JobEnded => {
                let job = self.describe_job(id).await?;
                if job.state() == v1::JobState::Cancelled { Ok(job) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// The latest job that an operator began and that is the one wanted: a try whose answer was
    /// lost may have begun it.
    pub(crate) async fn job_begun(&self, is_it: impl Fn(&v1::Job) -> bool) -> Result<Option<v1::Job>, Error> {
        let jobs = self.list_jobs(false).await?;
        Ok(jobs.into_iter().rev().find(|job| !job.automatic && is_it(job)))
    }

    /// What a split gave, when it is done.
    async fn children(&self, job: v1::Job) -> Result<v1::SplitTabletResponse, Error> {
        let job = self.wait_for_job(job.id, SPLIT_TIMEOUT).await?;
        match job.state() {
            v1::JobState::Done => {
                Ok(v1::SplitTabletResponse { job_id: job.id, child_tablet_ids: job.child_tablet_ids })
            }
            v1::JobState::Unspecified
            | v1::JobState::Running
            | v1::JobState::Failed
            | v1::JobState::Cancelled => {
                let hint = format!("job {} did not succeed: {}", job.id, job.error);
                Err(Error::new(Reason::JobFailed, hint))
            }
        }
    }
}

/// Whether a master refuses what an earlier try may have begun or done.
fn is_answered(error: &Error) -> bool {
    matches!(error.reason(), Reason::TabletRetired | Reason::JobConflict)
}
