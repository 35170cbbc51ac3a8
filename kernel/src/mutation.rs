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
    /// A member on its way out of the in-sync set counts for copies and Q.
    RemovedMemberCounts,
    /// Acknowledgements from outside of the in-sync set count.
    OutsiderCounts,
    /// A member on its way into the in-sync set does not count for "all".
    AddedMemberIgnored,
    /// The in-sync set shrinks whatever the rest has.
    ShrinkUnchecked,
    /// The in-sync set grows whatever the newcomer has.
    ExpandUnchecked,
    /// "Reverted" is said when the revert is appended.
    RevertedSaidEarly,
    /// A leader that comes back reverts what it wrote in an older epoch.
    OlderEpochReverted,
    /// What a follower acknowledged in an earlier run still counts.
    ProgressSurvivesRun,
    /// A lease looks at the in-sync set that was last learned only.
    LeaseOwnViewOnly,
    /// A fence is answered although a promise is in force.
    FenceNotHeld,
    /// A promise counts without an acknowledgement of the epoch.
    UnattachedPromiseCounts,
    /// A promise does not tell which higher epochs are known.
    ExceptionsForgotten,
    /// A restarted server answers fences at once.
    NoBootWait,
    /// The leader counts on a promise for longer than the follower.
    FollowerLapsesFirst,
    /// A proposal of unknown fate is dropped when it is not answered.
    ProposalForgotten,
    /// A revert takes back what a published Q has reached.
    RevertBelowQ,
    /// A Q is published between a write and its revert.
    QBetweenOpAndRevert,
    /// Entries of a higher epoch are taken before the promise is durable.
    PromiseInMemoryOnly,
    /// An acknowledgement counts whatever the leader's log holds there.
    AckByLength,
    /// A revert leaves the token of its write as it was.
    RevertedTokensForgotten,
    /// A follower applies what is durable, safe or not.
    FollowerAppliesEarly,
    /// A write above `leader` is visible as soon as it is durable.
    PendingShown,
    /// A write at `leader` is acknowledged without looking at the lease.
    LeaseUncheckedAtAck,
    /// A follower cuts its log at its own watermark.
    CutByWatermark,
    /// A follower cuts what it knows to be safe.
    SafeEntriesCut,
    /// Rows of entries that are cut stay.
    TruncationUndoForgotten,
    /// An election is content with one answer less.
    ElectionQuotaShort,
    /// An election cuts the in-sync set to those who answered.
    ElectionEditsInSync,
    /// The longest log leads, whatever its last epoch.
    LongestLogWins,
    /// A copy whose data is lost does not count for the quota.
    LostLeavesQuota,
    /// A memory table that lost every copy comes back under its old lineage.
    EmptyUnderOldLineage,
    /// A copy counts whatever process or data it has now.
    AnyGenerationCounts,
    /// A start of a data directory counts as the newest, whichever it is.
    StartsUnchecked,
    /// A copy whose data is lost answers and leads.
    LostCopyAnswers,
    /// A strict table's in-sync set shrinks below D.
    StrictShrinksBelowD,
    /// A former leader that is not connected is taken for gone.
    GoneIsGuessed,
    /// A new copy takes part in every epoch.
    NewCopyPromisesNothing,
    /// A copy applies writes and never what takes them back.
    RevertIgnored,
    /// A flush that began before a cut counts for what was cut.
    FlushedOverCut,
    /// A log is cut without noting that first.
    CutIntentSkipped,
    /// A log is cut before the undo of its rows is flushed.
    CutBeforeFlush,
    /// What a revert that is cut took back stays away.
    CutRevertForgotten,
    /// A log is cut without naming what is dropped.
    LossLedgerSkipped,
    /// A session believes any log that is long enough.
    SessionEpochIgnored,
    /// A copy reads from what is not safe.
    FollowerReadsUnsafe,
    /// A lease is looked at before the work only.
    LeaseCheckedBefore,
    /// A clock does not rise above the timestamps of copied entries.
    LogRaisesNoClock,
    /// A write that waited comes before what was read meanwhile.
    ReadFloorForgotten,
    /// Rows are applied up to whatever part of a Q is durable.
    SafeSplitByDisk,
    /// Logs are purged whatever other copies lack, and whether it is safe.
    PurgeUnchecked,
    /// A condition is decided by a write that may still be taken back.
    ConditionsRestOnPending,
    /// What a delete range read is believed however old it is.
    StaleRangeAccepted,
    /// A split is aborted after it was committed.
    AbortAfterCommit,
    /// A commit counts whatever attempt it names.
    CommitOfAnyAttempt,
    /// A commit counts whatever epoch its proposer led.
    CommitOfAnyEpoch,
    /// A commit counts though the leader is not ready.
    CommitWithoutLeader,
    /// A commit counts with fewer than D ready copies.
    CommitTooFew,
    /// A ready copy counts whatever became of its data.
    CommitOfAnyDisk,
    /// A sealed tablet takes writes.
    WritesAfterSeal,
    /// Children are staged before the seal is at or below Q.
    SealAppliedEarly,
    /// A copy counts as ready for whatever attempt it was.
    ReadyOfAnyAttempt,
    /// A leader that waits for the commit for too long takes the seal back.
    UnsealedByItself,
    /// The lease of a sealed tablet does not look at the copies that were named ready.
    ReadySetIgnored,
    /// A child answers fences whatever was promised to the leader of its parent.
    ChildFenceNotHeld,
    /// Children do not know the tokens of their parent.
    ParentTokensForgotten,
    /// A merge is committed whatever became of its second tablet.
    MergeGuardsOneParent,
    /// A merge takes the copies that are ready for its first tablet.
    MergeReadyOfOneParent,
    /// A merge takes the copies that are ready for both tablets, whatever each leader named.
    MergeReadyIntersects,
    /// What a merged tablet begins with is older than what one of its parents said.
    MergedTimeGoesBack,
    /// Children serve before the commit is known.
    StagedChildServes,
    /// A copy retires a tablet in one step and makes its children in another.
    SwitchInTwoSteps,
    /// A copy that goes through its log again stages the children of whatever seal it meets.
    EarlierSealStaged,
    /// A restart leaves the rows of a sealed tablet to whoever leads it.
    StagedNotReplayed,
    /// A restart does not read the logs of retired tablets.
    RetiredNotReplayed,
    /// The log of a retired tablet goes before its rows are flushed.
    RetiredDroppedEarly,
    /// A copy acknowledges before its record says that it is whole.
    BuiltBeforeRecord,
    /// A copy is built up to what other in-sync copies lack.
    BaseAboveOthers,
    /// A copy is built over whatever is there.
    BootstrapWithoutClear,
    /// Rows are ingested before what was cleared for them is flushed.
    IngestBeforeFlush,
    /// A copy that goes is forgotten before its cleared rows are flushed.
    ForgottenBeforeFlush,
    /// Clearing a copy takes rows beyond its range.
    ClearTouchesNeighbour,
    /// Clearing a room's bit takes it whatever stamp it has.
    ClearUnconditional,
    /// The bit of a run that is over counts.
    OldRunsBitCounts,
    /// Bits are not said again when another leads the row.
    DoubtIgnored,
    /// A subscriber is told that it is in before the bit is set.
    SubscribedBeforeSet,
    /// A watch shows what is not at or below a Q.
    FeedAboveQ,
    /// A watch shows what was taken back.
    FeedShowsReverted,
    /// A watch goes on from whatever entry stands at its position.
    ResumeUnchecked,
    /// A watch goes on in the log of a child whatever of the parent's it has not seen.
    ChildFeedSkips,
    /// The time of a backup is chosen before garbage collection is held back.
    TimeBeforeSafePoint,
    /// A backup believes that nothing follows because a leader's own log ends there.
    DeposedLeaderCloses,
    /// What a server refuses to export, because the tablet was split, is left out.
    SplitRangeSkipped,
    /// What was deleted since the last backup is not in the next one.
    DeletesNotExported,
    /// The tables of a restore open whatever their copies have.
    HalfRestoreOpens,
}

impl Mutation {
    /// Rules of which the lack does no harm that a search could find, and why.
    pub const REDUNDANT: [(Self, &'static str); 6] = [
        (Self::ProgressSurvivesRun, "what another run had is still there, unless its data is lost (m16)"),
        (Self::SafeEntriesCut, "no leader asks for it as long as every other rule holds"),
        (
            Self::NewCopyPromisesNothing,
            "a built copy's log begins in the present epoch, and that is a promise (m34)",
        ),
        (Self::CommitOfAnyDisk, "a child's copy has the data of the parent's: lost data stays lost (m16)"),
        (Self::BootstrapWithoutClear, "whatever was there went with the copy before, cleared and flushed"),
        (Self::IngestBeforeFlush, "whatever was there went with the copy before, cleared and flushed"),
    ];

    /// The seeded bugs that the simulator is to find, or not to find.
    pub const ALL: [Self; 103] = [
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
        Self::RemovedMemberCounts,
        Self::OutsiderCounts,
        Self::AddedMemberIgnored,
        Self::ShrinkUnchecked,
        Self::ExpandUnchecked,
        Self::RevertedSaidEarly,
        Self::OlderEpochReverted,
        Self::ProgressSurvivesRun,
        Self::LeaseOwnViewOnly,
        Self::FenceNotHeld,
        Self::UnattachedPromiseCounts,
        Self::ExceptionsForgotten,
        Self::NoBootWait,
        Self::FollowerLapsesFirst,
        Self::ProposalForgotten,
        Self::RevertBelowQ,
        Self::QBetweenOpAndRevert,
        Self::PromiseInMemoryOnly,
        Self::AckByLength,
        Self::RevertedTokensForgotten,
        Self::FollowerAppliesEarly,
        Self::PendingShown,
        Self::LeaseUncheckedAtAck,
        Self::CutByWatermark,
        Self::SafeEntriesCut,
        Self::TruncationUndoForgotten,
        Self::ElectionQuotaShort,
        Self::ElectionEditsInSync,
        Self::LongestLogWins,
        Self::LostLeavesQuota,
        Self::AnyGenerationCounts,
        Self::StartsUnchecked,
        Self::LostCopyAnswers,
        Self::StrictShrinksBelowD,
        Self::GoneIsGuessed,
        Self::NewCopyPromisesNothing,
        Self::RevertIgnored,
        Self::FlushedOverCut,
        Self::CutIntentSkipped,
        Self::CutBeforeFlush,
        Self::CutRevertForgotten,
        Self::LossLedgerSkipped,
        Self::SessionEpochIgnored,
        Self::FollowerReadsUnsafe,
        Self::LeaseCheckedBefore,
        Self::LogRaisesNoClock,
        Self::ReadFloorForgotten,
        Self::SafeSplitByDisk,
        Self::PurgeUnchecked,
        Self::ConditionsRestOnPending,
        Self::StaleRangeAccepted,
        Self::AbortAfterCommit,
        Self::CommitOfAnyAttempt,
        Self::CommitOfAnyEpoch,
        Self::CommitWithoutLeader,
        Self::CommitTooFew,
        Self::CommitOfAnyDisk,
        Self::WritesAfterSeal,
        Self::SealAppliedEarly,
        Self::ReadyOfAnyAttempt,
        Self::UnsealedByItself,
        Self::ChildFenceNotHeld,
        Self::ParentTokensForgotten,
        Self::MergeReadyOfOneParent,
        Self::MergedTimeGoesBack,
        Self::StagedChildServes,
        Self::EarlierSealStaged,
        Self::SwitchInTwoSteps,
        Self::StagedNotReplayed,
        Self::RetiredNotReplayed,
        Self::RetiredDroppedEarly,
        Self::BuiltBeforeRecord,
        Self::BaseAboveOthers,
        Self::BootstrapWithoutClear,
        Self::IngestBeforeFlush,
        Self::ForgottenBeforeFlush,
        Self::ClearTouchesNeighbour,
        Self::FeedAboveQ,
        Self::FeedShowsReverted,
        Self::ChildFeedSkips,
        Self::TimeBeforeSafePoint,
        Self::DeposedLeaderCloses,
        Self::SplitRangeSkipped,
        Self::DeletesNotExported,
        Self::OldRunsBitCounts,
        Self::DoubtIgnored,
        Self::SubscribedBeforeSet,
        Self::HalfRestoreOpens,
    ];

    /// Why an honest search finds nothing when this rule is left out, if so: another rule holds
    /// the line behind it. Such a rule stays as an assertion or a guard (decision 0010).
    #[must_use]
    pub fn redundant(self) -> Option<&'static str> {
        Self::REDUNDANT.iter().find(|(mutation, _)| *mutation == self).map(|(_, reason)| *reason)
    }

    /// Those that show themselves only where there are rooms; a smaller world of its own finds them
    /// all (`kernel/tests/room_world.rs`).
    pub const OF_ROOMS: [Self; 4] =
        [Self::ClearUnconditional, Self::OldRunsBitCounts, Self::DoubtIgnored, Self::SubscribedBeforeSet];

    /// Those that show themselves only where a table in memory loses every copy; its golden script
    /// finds them.
    pub const OF_LOSS: [Self; 1] = [Self::EmptyUnderOldLineage];

    /// Those that show themselves only where tablets are split or merged; the golden scripts hold
    /// the rules of those that chance does not bring about.
    pub const OF_SPLITS: [Self; 17] = [
        Self::AbortAfterCommit,
        Self::CommitOfAnyAttempt,
        Self::CommitOfAnyEpoch,
        Self::CommitWithoutLeader,
        Self::CommitTooFew,
        Self::CommitOfAnyDisk,
        Self::WritesAfterSeal,
        Self::SealAppliedEarly,
        Self::ReadyOfAnyAttempt,
        Self::UnsealedByItself,
        Self::ReadySetIgnored,
        Self::ChildFenceNotHeld,
        Self::ParentTokensForgotten,
        Self::MergeGuardsOneParent,
        Self::MergeReadyOfOneParent,
        Self::MergeReadyIntersects,
        Self::MergedTimeGoesBack,
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
            Self::RemovedMemberCounts => "m2",
            Self::OutsiderCounts => "m3",
            Self::AddedMemberIgnored => "m8",
            Self::ShrinkUnchecked => "m9",
            Self::ExpandUnchecked => "m10",
            Self::RevertedSaidEarly => "m11",
            Self::OlderEpochReverted => "m12",
            Self::ProgressSurvivesRun => "m15",
            Self::LeaseOwnViewOnly => "m17",
            Self::FenceNotHeld => "m18",
            Self::UnattachedPromiseCounts => "m19",
            Self::ExceptionsForgotten => "m20",
            Self::NoBootWait => "m21",
            Self::FollowerLapsesFirst => "m22",
            Self::ProposalForgotten => "m24",
            Self::RevertBelowQ => "m31",
            Self::QBetweenOpAndRevert => "m31",
            Self::PromiseInMemoryOnly => "m34",
            Self::AckByLength => "m35",
            Self::RevertedTokensForgotten => "m37",
            Self::FollowerAppliesEarly => "followers apply up to Q",
            Self::PendingShown => "pending is hidden",
            Self::LeaseUncheckedAtAck => "lease at the ack",
            Self::CutByWatermark => "epoch lists (KIP-101)",
            Self::SafeEntriesCut => "nothing safe is cut",
            Self::TruncationUndoForgotten => "undo before the cut",
            Self::ElectionQuotaShort => "m1",
            Self::ElectionEditsInSync => "m4",
            Self::LongestLogWins => "m6",
            Self::LostLeavesQuota => "m14",
            Self::EmptyUnderOldLineage => "empty in a new lineage",
            Self::AnyGenerationCounts => "m15",
            Self::StartsUnchecked => "starts are in order",
            Self::LostCopyAnswers => "m16",
            Self::StrictShrinksBelowD => "strict in-sync set keeps D",
            Self::GoneIsGuessed => "m18, gone is not guessed",
            Self::NewCopyPromisesNothing => "m23",
            Self::RevertIgnored => "reverts are applied",
            Self::FlushedOverCut => "flushed after a cut",
            Self::CutIntentSkipped => "intent before the undo",
            Self::CutBeforeFlush => "flush before the cut",
            Self::CutRevertForgotten => "undo of a revert",
            Self::LossLedgerSkipped => "loss ledger",
            Self::SessionEpochIgnored => "sessions know their epoch",
            Self::FollowerReadsUnsafe => "follower reads are safe",
            Self::LeaseCheckedBefore => "lease after the work",
            Self::LogRaisesNoClock => "clock above the log",
            Self::ReadFloorForgotten => "reads close the past",
            Self::SafeSplitByDisk => "rows stop at a Q",
            Self::PurgeUnchecked => "purged when nobody lacks it",
            Self::ConditionsRestOnPending => "conditions wait for pending",
            Self::StaleRangeAccepted => "ranges see every write",
            Self::AbortAfterCommit => "m29",
            Self::CommitOfAnyAttempt => "m27",
            Self::CommitOfAnyEpoch => "m27",
            Self::CommitWithoutLeader => "m27",
            Self::CommitTooFew => "m27",
            Self::CommitOfAnyDisk => "m27",
            Self::WritesAfterSeal => "m25",
            Self::SealAppliedEarly | Self::EarlierSealStaged => "m26",
            Self::ReadyOfAnyAttempt => "m28",
            Self::UnsealedByItself => "m29",
            Self::ReadySetIgnored => "m17",
            Self::ChildFenceNotHeld => "m18",
            Self::ParentTokensForgotten => "tokens go to the children",
            Self::MergeGuardsOneParent => "m27",
            Self::MergeReadyOfOneParent => "m28",
            Self::MergeReadyIntersects => "m17",
            Self::MergedTimeGoesBack => "timestamps rise over a merge",
            Self::StagedChildServes => "staged children do not serve",
            Self::SwitchInTwoSteps => "m30",
            Self::StagedNotReplayed => "2.1 retired logs",
            Self::RetiredNotReplayed => "2.1 retired logs",
            Self::RetiredDroppedEarly => "2.1 retired logs",
            Self::BuiltBeforeRecord => "2.1 bootstrap",
            Self::BaseAboveOthers => "2.1 bootstrap",
            Self::BootstrapWithoutClear => "2.1 bootstrap",
            Self::IngestBeforeFlush => "2.1 bootstrap",
            Self::ForgottenBeforeFlush => "2.1 move-out",
            Self::ClearTouchesNeighbour => "2.1 move-out",
            Self::ClearUnconditional
            | Self::OldRunsBitCounts
            | Self::DoubtIgnored
            | Self::SubscribedBeforeSet => "1.17 rooms",
            Self::FeedAboveQ => "a watch shows only what is at or below Q",
            Self::FeedShowsReverted => "a watch never shows what was taken back",
            Self::ResumeUnchecked => "a watch goes on only in its own history",
            Self::ChildFeedSkips => "a watch sees what the parent's log had",
            Self::TimeBeforeSafePoint => "1.16 the safe point comes first",
            Self::DeposedLeaderCloses => "1.16 closed by an entry at or below Q",
            Self::SplitRangeSkipped => "1.16 every key once",
            Self::DeletesNotExported => "1.16 deletes are versions",
            Self::HalfRestoreOpens => "1.16 a restore is whole",
        }
    }
    /// What it stands for: rules of the protocol, sections of the protocol on the order of
    /// durable steps (2.1), sequencing (2.2), delete ranges (2.3), versions and scans (2.4),
    /// tokens (2.5) and the row cache (2.6), and bugs that other systems had.
    #[must_use]
    pub fn stands_for(self) -> &'static [&'static str] {
        match self {
            Self::LowerEpochAccepted => &["m5"],
            Self::AnyIncarnationLeads => &["m7", "m36", "rDSN-496"],
            Self::QCountsOlderEpochs => &["m13"],
            Self::FenceAnsweredUndrained => &["m32"],
            Self::PromiseInFlightIgnored => &["m32"],
            Self::OwnCopyCountedEarly => &["m33", "tikv-994"],
            Self::TokensNotRebuilt => &["m37", "2.5", "SERVER-55305"],
            Self::QueuedTokensIgnored => &["m37"],
            Self::TokenFloorForgotten => &["m37", "2.5"],
            Self::ApplyBeforeDurable => &["m38"],
            Self::RefusalBeforeDurable => &["2.2"],
            Self::StaleEvidenceAccepted => &["2.2"],
            Self::ClockBoundIgnored => &["SERVER-48453"],
            Self::FlushedBeforeFlush => &["2.1 flush"],
            Self::CacheFillUnchecked => &["2.6"],
            Self::RemovedMemberCounts => &["m2", "redisraft-17"],
            Self::OutsiderCounts => &["m3", "elasticsearch-20031"],
            Self::AddedMemberIgnored => &["m8"],
            Self::ShrinkUnchecked => &["m9"],
            Self::ExpandUnchecked => &["m10"],
            Self::RevertedSaidEarly => &["m11"],
            Self::OlderEpochReverted => &["m12"],
            Self::ProgressSurvivesRun => &["m15", "SERVER-16570"],
            Self::LeaseOwnViewOnly => &["m17"],
            Self::FenceNotHeld => &["m18"],
            Self::UnattachedPromiseCounts => &["m19"],
            Self::ExceptionsForgotten => &["m20"],
            Self::NoBootWait => &["m21"],
            Self::FollowerLapsesFirst => &["m22"],
            Self::ProposalForgotten => &["m24"],
            Self::RevertBelowQ => &["m31"],
            Self::QBetweenOpAndRevert => &["m31"],
            Self::PromiseInMemoryOnly => &["m34"],
            Self::AckByLength => &["m35"],
            Self::RevertedTokensForgotten => &["m37"],
            Self::PendingShown => &["patroni-1412"],
            Self::LeaseUncheckedAtAck => &["yugabyte-db-16"],
            Self::CutByWatermark => &["KIP-101"],
            Self::TruncationUndoForgotten => &["2.1 truncate"],
            Self::ElectionQuotaShort => &["m1"],
            Self::ElectionEditsInSync => &["m4"],
            Self::LongestLogWins => &["m6"],
            Self::LostLeavesQuota => &["m14"],
            Self::EmptyUnderOldLineage => &["2.7"],
            Self::AnyGenerationCounts => &["m15", "KIP-903"],
            Self::StartsUnchecked => &["I1"],
            Self::LostCopyAnswers => &["m16"],
            Self::GoneIsGuessed => &["m18"],
            Self::NewCopyPromisesNothing => &["m23"],
            Self::FlushedOverCut => &["2.1 flush"],
            Self::CutIntentSkipped => &["2.1 truncate", "SERVER-38925"],
            Self::CutBeforeFlush => &["2.1 truncate"],
            Self::CutRevertForgotten => &["2.1 truncate"],
            Self::LossLedgerSkipped => &["2.1 truncate"],
            Self::SessionEpochIgnored => &["KIP-320"],
            Self::FollowerReadsUnsafe => &["tikv-16069"],
            Self::LeaseCheckedBefore => &["tikv-10011"],
            Self::ReadFloorForgotten => &["2.4"],
            Self::SafeSplitByDisk => &["2.4"],
            Self::PurgeUnchecked => &["2.1 purge", "pegasus-2284"],
            Self::ConditionsRestOnPending => &["2.2"],
            Self::StaleRangeAccepted => &["2.3"],
            Self::FollowerAppliesEarly
            | Self::SafeEntriesCut
            | Self::StrictShrinksBelowD
            | Self::RevertIgnored
            | Self::LogRaisesNoClock
            | Self::ParentTokensForgotten => &[],
            Self::AbortAfterCommit | Self::UnsealedByItself => &["m29"],
            Self::CommitOfAnyAttempt
            | Self::CommitOfAnyEpoch
            | Self::CommitWithoutLeader
            | Self::CommitTooFew
            | Self::CommitOfAnyDisk => &["m27"],
            Self::WritesAfterSeal => &["m25"],
            Self::SealAppliedEarly | Self::EarlierSealStaged => &["m26"],
            Self::ReadyOfAnyAttempt => &["m28"],
            Self::ReadySetIgnored => &["m17"],
            Self::ChildFenceNotHeld => &["m18"],
            Self::MergeGuardsOneParent => &["m27"],
            Self::MergeReadyOfOneParent => &["m28"],
            Self::MergeReadyIntersects => &["m17"],
            Self::MergedTimeGoesBack => &["cockroach-50265"],
            Self::StagedChildServes => &["I9"],
            Self::SwitchInTwoSteps => &["m30"],
            Self::StagedNotReplayed => &["2.1 retired"],
            Self::RetiredNotReplayed => &["2.1 retired"],
            Self::RetiredDroppedEarly => &["2.1 retired"],
            Self::BuiltBeforeRecord => &["2.1 bootstrap"],
            Self::BaseAboveOthers => &["2.1 bootstrap"],
            Self::BootstrapWithoutClear => &["2.1 bootstrap"],
            Self::IngestBeforeFlush => &["2.1 bootstrap"],
            Self::ForgottenBeforeFlush => &["2.1 move-out"],
            Self::ClearTouchesNeighbour => &["2.1 move-out", "cockroach-31752"],
            Self::ClearUnconditional
            | Self::OldRunsBitCounts
            | Self::DoubtIgnored
            | Self::SubscribedBeforeSet => &["1.17"],
            Self::FeedAboveQ | Self::FeedShowsReverted => &["I7"],
            Self::ResumeUnchecked => &["KIP-320"],
            Self::ChildFeedSkips => &["pegasus-2284"],
            Self::TimeBeforeSafePoint => &["tikv-12903"],
            Self::DeposedLeaderCloses => &["tikv-14099"],
            Self::SplitRangeSkipped => &["I14"],
            Self::DeletesNotExported => &["cockroach-28358"],
            Self::HalfRestoreOpens => &["I14"],
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_rule_has_a_seeded_bug() {
        let rules = (1..=38).map(|n| format!("m{n}"));
        let order = ["bootstrap", "flush", "move-out", "purge", "retired", "truncate"];
        let order = order.map(|step| format!("2.1 {step}"));
        let sections = ["2.2", "2.3", "2.4", "2.5", "2.6"].map(str::to_string);
        let seeded: BTreeSet<&str> =
            Mutation::ALL.into_iter().flat_map(Mutation::stands_for).copied().collect();
        let wanted: Vec<String> = rules.chain(order).chain(sections).collect();
        let missing: Vec<&String> = wanted.iter().filter(|id| !seeded.contains(id.as_str())).collect();
        assert!(missing.is_empty(), "rules without a seeded bug: {missing:?}");
        let elsewhere = seeded.len() - wanted.len();
        assert!(elsewhere >= 10, "only {elsewhere} bugs of other systems");
    }

    #[test]
    fn every_seeded_bug_is_listed_once() {
        let names: BTreeSet<String> = Mutation::ALL.iter().map(|mutation| format!("{mutation:?}")).collect();
        assert_eq!(names.len(), Mutation::ALL.len());
    }
}
