//! What the cluster does by itself, as operators see it.

use crate::admin::{Admin, AdminClient, Kind};
use crate::error::Error;
use ebla_proto::v1;

impl Admin {
    /// How it stands, what it decided lately, and on request what it would begin now.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn balancer(&self, dry_run: bool) -> Result<v1::GetBalancerResponse, Error> {
        let call = |mut admin: AdminClient| async move {
            admin.get_balancer(v1::GetBalancerRequest { dry_run }).await
        };
        self.ask(call).await
    }

    /// Pauses it, or lets it go on. Gives whether it is paused.
    ///
    /// # Errors
    /// `UNAVAILABLE` and what a master reports.
    pub async fn pause_balancer(&self, paused: bool) -> Result<bool, Error> {
        let mut lost = false;
        let call = |mut admin: AdminClient| async move {
            admin.pause_balancer(v1::PauseBalancerRequest { paused }).await
        };
        Ok(self.call(Kind::Change(self.client.timeout), &mut lost, call).await?.paused)
    }

    /// Why a tablet is where it is.
    ///
    /// # Errors
    /// `TABLET_NOT_FOUND`, `TABLET_RETIRED`, `UNAVAILABLE` and what a master reports.
    pub async fn explain_tablet(&self, tablet_id: u64) -> Result<v1::ExplainTabletResponse, Error> {
        let call = |mut admin: AdminClient| async move {
            admin.explain_tablet(v1::ExplainTabletRequest { tablet_id }).await
        };
        self.ask(call).await
    }
}
