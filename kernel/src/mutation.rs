//! Seeded bugs: each leaves out one rule, so that the simulator can be shown to find it.
//!
//! Only built with the feature `mutations`, never in a release. The code asks through
//! [`mutated!`](crate::mutated), which is the constant `false` without the feature.

use std::cell::Cell;

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// A replica takes part in epochs below its promise.
    LowerEpochAccepted,
    /// An appointment counts whatever process it names.
    AnyIncarnationLeads,
    /// Q counts entries of older epochs.
    QCountsOlderEpochs,
    /// A fence is answered while appends are queued.
    FenceAnsweredUndrained,
    /// A promise that is on its way to the registry binds nobody.
    PromiseInFlightIgnored,
    /// A leader counts its own copy before it is durable.
    OwnCopyCountedEarly,
    /// Tokens in the log are forgotten at a restart.
    TokensNotRebuilt,
    /// A token counts only when its entry is durable.
    QueuedTokensIgnored,
    /// Purging a log leaves no trace of the tokens in it.
    TokenFloorForgotten,
    /// Rows are put into the store before their entry is durable.
    ApplyBeforeDurable,
    /// A refusal is told while what it saw may still be lost.
    RefusalBeforeDurable,
    /// What a request read is believed however old it is.
    StaleEvidenceAccepted,
    /// A restarted clock begins anywhere.
    ClockBoundIgnored,
    /// `flushed` is recorded when the flush begins.
    FlushedBeforeFlush,
    /// A reader fills the cache although the row changed meanwhile.
    CacheFillUnchecked,
    /// An election is content with one answer less.
    ElectionQuotaShort,
    /// An election cuts the in-sync set to those who answered.
    ElectionEditsInSync,
    /// The longest log leads, whatever its last epoch.
    LongestLogWins,
    /// A copy whose data is lost does not count for the quota.
    LostLeavesQuota,
    /// A copy counts whatever process or data it has now.
    AnyGenerationCounts,
    /// A copy whose data is lost answers and leads.
    LostCopyAnswers,
    /// A strict table's in-sync set shrinks below D.
    StrictShrinksBelowD,
    /// A former leader that is not connected is taken for gone.
    GoneIsGuessed,
}

impl Mutation {
    /// Every seeded bug.
    pub const ALL: [Self; 23] = [
        Self::LowerEpochAccepted,
        Self::AnyIncarnationLeads,
        Self::QCountsOlderEpochs,
        Self::FenceAnsweredUndrained,
        Self::PromiseInFlightIgnored,
        Self::OwnCopyCountedEarly,
        Self::TokensNotRebuilt,
        Self::QueuedTokensIgnored,
        Self::TokenFloorForgotten,
        Self::ApplyBeforeDurable,
        Self::RefusalBeforeDurable,
        Self::StaleEvidenceAccepted,
        Self::ClockBoundIgnored,
        Self::FlushedBeforeFlush,
        Self::CacheFillUnchecked,
        Self::ElectionQuotaShort,
        Self::ElectionEditsInSync,
        Self::LongestLogWins,
        Self::LostLeavesQuota,
        Self::AnyGenerationCounts,
        Self::LostCopyAnswers,
        Self::StrictShrinksBelowD,
        Self::GoneIsGuessed,
    ];

    /// The rule that it breaks.
    #[must_use]
    pub fn rule(self) -> &'static str {
        match self {
            Self::LowerEpochAccepted => "m5",
            Self::AnyIncarnationLeads => "m7, m36",
            Self::QCountsOlderEpochs => "m13",
            Self::FenceAnsweredUndrained | Self::PromiseInFlightIgnored => "m32",
            Self::OwnCopyCountedEarly => "m33",
            Self::TokensNotRebuilt | Self::QueuedTokensIgnored | Self::TokenFloorForgotten => "m37",
            Self::ApplyBeforeDurable => "m38",
            Self::RefusalBeforeDurable => "refusals are durable",
            Self::StaleEvidenceAccepted => "evidence check",
            Self::ClockBoundIgnored => "clock bound",
            Self::FlushedBeforeFlush => "flushed after flush",
            Self::CacheFillUnchecked => "cache fill",
            Self::ElectionQuotaShort => "m1",
            Self::ElectionEditsInSync => "m4",
            Self::LongestLogWins => "m6",
            Self::LostLeavesQuota => "m14",
            Self::AnyGenerationCounts => "m15",
            Self::LostCopyAnswers => "m16",
            Self::StrictShrinksBelowD => "strict in-sync set keeps D",
            Self::GoneIsGuessed => "m18, a leader is gone when it says so or its process is over",
        }
    }
}

thread_local! {
    static SEEDED: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Seeds a bug on this thread, or takes it out again.
pub fn seed_bug(mutation: Option<Mutation>) {
    SEEDED.set(mutation);
}

/// Whether this bug is seeded on this thread.
#[must_use]
pub fn is_seeded(mutation: Mutation) -> bool {
    SEEDED.get() == Some(mutation)
}
