//! The mixture in which each seeded bug shows itself: a world in which what it breaks happens
//! often. Everything else stays as the seed drew it.

use super::archivist::BackupFaults;
use super::crowd::RoomFaults;
use super::fault::{Profile, SECOND_US, WipeBudget};
use super::rng::Rng;
use ebla_kernel::meta::Policy;
use ebla_kernel::mutation::Mutation;

impl Profile {
    /// Makes the world suit a seeded bug.
    pub fn suit(&mut self, mutation: Mutation, (backups, rooms): (Rng, Rng)) {
        match mutation {
            Mutation::ClockBoundIgnored => {
                self.copies(1, 1);
                self.crashes();
                self.wall_jump_us = Some((50_000, 400_000));
                self.wall_jump_ms_max = 600;
            }
            Mutation::LeaseOwnViewOnly => {
                self.copies(2, 2);
                self.spec.policy = Policy::Degraded;
                self.cuts();
                self.network.cut_us = Some((100_000, 1_500_000));
                self.chaos_us = 20 * SECOND_US;
            }
            Mutation::RemovedMemberCounts | Mutation::ShrinkUnchecked => {
                self.copies(3, 2);
                self.cuts();
                self.waits();
            }
            Mutation::AddedMemberIgnored | Mutation::ExpandUnchecked => {
                self.copies(3, 2);
                self.spec.policy = Policy::Degraded;
                self.cuts();
                self.waits();
            }
            Mutation::NoBootWait => {
                self.copies(2, 2);
                self.crashes();
                self.storms();
            }
            Mutation::FollowerLapsesFirst => {
                self.copies(2, 2);
                self.cuts();
                self.disk.hang_pm = 0;
                self.disk.sync_us = (100, 1_000);
                self.network.delay_us = (50, 500);
            }
            Mutation::PromiseInMemoryOnly => {
                self.copies(3, 2);
                self.crashes();
                self.storms();
                self.disk.sync_us = (1_000, 60_000);
            }
            Mutation::RevertedTokensForgotten | Mutation::PendingShown | Mutation::RevertedSaidEarly => {
                self.copies(3, 2);
                self.cuts();
                self.waits();
                self.patience_us = (20_000, 200_000);
                self.deadline_ms = (20, 400);
            }
            Mutation::LeaseUncheckedAtAck => {
                self.copies(2, 2);
                self.cuts();
                self.wait_pm = 0;
                self.disk.hang_pm = 60;
                self.disk.hang_us = (500_000, 2 * SECOND_US);
                self.deadline_ms = (1_000, 4_000);
            }
            Mutation::LongestLogWins => {
                self.copies(3, 2);
                self.storms();
                self.crashes();
                self.wait_pm = 300;
            }
            Mutation::LostLeavesQuota | Mutation::AnyGenerationCounts | Mutation::ProgressSurvivesRun => {
                self.copies(3, 2);
                self.crashes();
                self.cuts();
                self.waits();
                self.wipe = Some(((100_000, SECOND_US), WipeBudget::Within));
            }
            Mutation::StartsUnchecked => {
                self.copies(3, 2);
                self.server_crash_us = Some((200_000, 1_500_000));
                self.down_us = (1_000, 50_000);
                self.network.delay_us = (5_000, 200_000);
            }
            Mutation::CutBeforeFlush => {
                self.copies(3, 2);
                self.cuts();
                self.storms();
                self.server_crash_us = Some((200_000, 1_500_000));
                self.down_us = (1_000, 150_000);
                self.wait_pm = 200;
                self.think_us = (0, 5_000);
                self.disk.flush_every_us = (200_000, 2 * SECOND_US);
            }
            Mutation::CutRevertForgotten => {
                self.copies(3, 2);
                self.cuts();
                self.waits();
                self.depose_us = Some((50_000, 3 * SECOND_US));
                self.server_crash_us = None;
                self.deadline_ms = (20, 200);
                self.network.delay_us = (5_000, 120_000);
                self.think_us = (0, 5_000);
                self.chaos_us = 20 * SECOND_US;
            }
            Mutation::FlushedOverCut => {
                self.copies(3, 2);
                self.crashes();
                self.storms();
                self.cuts();
                self.wait_pm = 400;
                self.deadline_ms = (20, 200);
                self.disk.flush_every_us = (5_000, 60_000);
            }
            Mutation::SessionEpochIgnored | Mutation::FollowerReadsUnsafe => {
                self.copies(3, 2);
                self.cuts();
                self.storms();
                self.wait_pm = 100;
                self.follower_read_pm = 600;
            }
            Mutation::LeaseCheckedBefore => {
                self.copies(3, 2);
                self.sleep_us = Some((50_000, 400_000));
                self.asleep_us = (1_200_000, 3 * SECOND_US);
                self.think_us = (0, 2_000);
                self.clients = 8;
                self.keys = 12;
                self.follower_read_pm = 0;
                self.chaos_us = 20 * SECOND_US;
            }
            Mutation::SafeSplitByDisk => {
                self.copies(3, 2);
                self.waits();
                self.cuts();
                self.deadline_ms = (20, 200);
                self.disk.sync_us = (1_000, 60_000);
                self.frame_entries_max = 1;
                self.follower_read_pm = 800;
                self.think_us = (0, 3_000);
                self.keys = 2;
                self.chaos_us = 20 * SECOND_US;
            }
            Mutation::ReadFloorForgotten => {
                self.copies(3, 2);
                self.waits();
                self.cuts();
                self.deadline_ms = (20, 400);
                self.disk.sync_us = (500, 40_000);
                self.keys = 2;
            }
            Mutation::PurgeUnchecked => {
                self.copies(3, 2);
                self.cuts();
                self.log_entries_max = 5;
                self.disk.flush_every_us = (5_000, 60_000);
            }
            Mutation::ConditionsRestOnPending => {
                self.copies(3, 2);
                self.cuts();
                self.waits();
                self.deadline_ms = (20, 400);
                self.keys = 2;
            }
            Mutation::StaleRangeAccepted => {
                self.slow_task_pm = 300;
                self.keys = 3;
            }
            Mutation::NewCopyPromisesNothing => {
                self.reshapes();
                self.storms();
                self.move_us = Some((50_000, 400_000));
            }
            Mutation::AbortAfterCommit
            | Mutation::CommitOfAnyAttempt
            | Mutation::ReadyOfAnyAttempt
            | Mutation::UnsealedByItself => {
                self.reshapes();
                self.storms();
                self.cuts();
                self.cancel_us = Some((5_000, 60_000));
            }
            Mutation::CommitOfAnyDisk => {
                self.reshapes();
                self.crashes();
                self.wipe = Some(((50_000, 400_000), WipeBudget::Within));
            }
            Mutation::CommitOfAnyEpoch
            | Mutation::CommitWithoutLeader
            | Mutation::CommitTooFew
            | Mutation::WritesAfterSeal
            | Mutation::SealAppliedEarly
            | Mutation::ReadySetIgnored
            | Mutation::ChildFenceNotHeld => {
                self.reshapes();
                self.storms();
                self.cuts();
            }
            Mutation::MergedTimeGoesBack => self.merges(),
            Mutation::MergeReadyOfOneParent => {
                self.merges();
                self.cuts();
                self.network.cut_us = Some((20_000, 200_000));
                self.waits();
            }
            Mutation::ParentTokensForgotten => {
                self.reshapes();
                self.patience_us = (20_000, 200_000);
            }
            Mutation::StagedChildServes => self.reshapes(),
            Mutation::ChildFeedSkips => {
                self.reshapes();
                self.watch_every = 500;
            }
            Mutation::FeedShowsReverted => {
                self.copies(3, 2);
                self.cuts();
                self.waits();
                self.deadline_ms = (20, 400);
            }
            Mutation::FeedAboveQ => {
                self.copies(3, 2);
                self.cuts();
                self.storms();
                self.crashes();
                self.wait_pm = 200;
            }
            Mutation::EarlierSealStaged => {
                self.reshapes();
                self.crashes();
                self.cuts();
                self.cancel_us = Some((50_000, 400_000));
                self.disk.flush_every_us = (4 * SECOND_US, 20 * SECOND_US);
            }
            Mutation::SwitchInTwoSteps
            | Mutation::StagedNotReplayed
            | Mutation::RetiredNotReplayed
            | Mutation::RetiredDroppedEarly => {
                self.reshapes();
                self.crashes();
                self.disk.flush_every_us = (200_000, 2 * SECOND_US);
            }
            Mutation::BuiltBeforeRecord
            | Mutation::BaseAboveOthers
            | Mutation::BootstrapWithoutClear
            | Mutation::IngestBeforeFlush
            | Mutation::ForgottenBeforeFlush
            | Mutation::ClearTouchesNeighbour => {
                self.reshapes();
                self.crashes();
                self.servers = 4;
                self.move_us = Some((50_000, 400_000));
                self.wipe = Some(((200_000, SECOND_US), WipeBudget::Within));
                self.disk.flush_every_us = (200_000, 2 * SECOND_US);
            }
            Mutation::TimeBeforeSafePoint => {
                self.copies(3, 2);
                self.meta_crash_us = Some((100_000, SECOND_US));
                self.down_us = (100_000, 2 * SECOND_US);
                self.has_backups(backups);
            }
            Mutation::DeposedLeaderCloses => {
                self.copies(3, 2);
                self.cuts();
                self.storms();
                self.has_backups(backups);
            }
            Mutation::SplitRangeSkipped => {
                self.reshapes();
                self.depose_us = None;
                self.split_us = Some((100_000, 600_000));
                self.chaos_us = 5 * SECOND_US;
                self.has_backups(backups);
            }
            Mutation::DeletesNotExported | Mutation::HalfRestoreOpens => {
                self.copies(3, 2);
                self.has_backups(backups);
            }
            Mutation::ClearUnconditional | Mutation::OldRunsBitCounts | Mutation::SubscribedBeforeSet => {
                self.copies(3, 2);
                self.server_crash_us = Some((200_000, SECOND_US));
                self.network.late_pm = 100;
                self.chaos_us = 20 * SECOND_US;
                self.rooms = Some(RoomFaults::draw(rooms));
            }
            Mutation::DoubtIgnored => {
                self.loses_all();
                self.rooms = Some(RoomFaults::draw(rooms));
            }
            Mutation::EmptyUnderOldLineage => self.loses_all(),
            _ => {}
        }
    }

    /// Tables in memory lose every copy, and not every server.
    fn loses_all(&mut self) {
        self.copies(2, 1);
        self.servers = 4;
        self.bereave();
    }

    /// Backups are made all the time, and mostly garbage is held for the next.
    fn has_backups(&mut self, rng: Rng) {
        let drawn = BackupFaults::draw(rng);
        self.backups =
            Some(BackupFaults { every_us: (10_000, 100_000), retention_ms: 20, held_pm: 900, ..drawn });
    }

    fn copies(&mut self, replicas: u8, min_in_sync: u8) {
        self.servers = usize::from(replicas);
        self.tablets = 1;
        self.spec.replicas = replicas;
        self.spec.min_in_sync = min_in_sync;
        self.spec.policy = Policy::Strict;
        self.wipe = None;
        self.log_entries_max = 100_000;
        self.think_us = (0, 20_000);
        (self.split_us, self.merge_us, self.move_us, self.cancel_us) = (None, None, None, None);
        self.repairs = false;
    }

    /// Tablets are split all the time, and copies that are lost are built anew.
    fn reshapes(&mut self) {
        self.copies(3, 2);
        self.repairs = true;
        self.keys = 12;
        self.split_us = Some((30_000, 300_000));
        self.retired_us = SECOND_US;
    }

    /// Neighbours are merged all the time, of tablets that are split as often.
    fn merges(&mut self) {
        self.reshapes();
        self.split_us = Some((200_000, 800_000));
        self.merge_us = Some((100_000, 400_000));
        self.chaos_us = 10 * SECOND_US;
    }

    /// Links are cut and joined all the time.
    fn cuts(&mut self) {
        self.network.cut_us = Some((50_000, 700_000));
        self.network.drop_pm = self.network.drop_pm.min(5);
    }

    /// Servers come and go.
    fn crashes(&mut self) {
        self.server_crash_us = Some((60_000, 700_000));
        self.down_us = (1_000, 150_000);
    }

    /// Epochs are raised all the time.
    fn storms(&mut self) {
        self.depose_us = Some((30_000, 500_000));
    }

    /// Most writes wait for copies.
    fn waits(&mut self) {
        self.wait_pm = 900;
    }
}
