//! Which published watermarks this log has reached.
//!
//! A published Q never lies between a write and its revert (m31), but any other position may.
//! So rows are applied up to exactly such a Q, never up to whatever part of it is durable here:
//! otherwise a write would be seen whose revert is a few entries behind.

use crate::ids::Seq;
use std::collections::VecDeque;

/// Most watermarks that are remembered while the log is not durable up to them. When there
/// are more, the latest takes the place of the last: rows come a little later.
const SAFE_POINTS_MAX: usize = 256;

/// Published watermarks, rising, that may still lie above the durable log.
#[derive(Clone, Debug, Default)]
pub(super) struct SafePoints {
    points: VecDeque<Seq>,
}

impl SafePoints {
    /// Notes a published Q up to which the log is the leader's.
    pub(super) fn note(&mut self, q: Seq) {
        if self.points.back().is_some_and(|last| *last >= q) {
            return;
        }
        if self.points.len() == SAFE_POINTS_MAX {
            self.points.pop_back();
        }
        self.points.push_back(q);
    }

    /// The highest watermark at or below `durable`; lower ones are forgotten.
    pub(super) fn reached(&mut self, durable: Seq) -> Option<Seq> {
        let upto = self.points.partition_point(|point| *point <= durable);
        self.points.drain(..upto.saturating_sub(1));
        self.points.front().copied().filter(|_| upto > 0)
    }

    /// Forgets what a cut of the log took away.
    pub(super) fn cut(&mut self, end: Seq) {
        self.points.retain(|point| *point <= end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_from_watermark_to_watermark() {
        let mut points = SafePoints::default();
        assert_eq!(points.reached(Seq(9)), None);
        for q in [3, 5, 5, 9] {
            points.note(Seq(q));
        }
        assert_eq!(points.reached(Seq(2)), None);
        assert_eq!(points.reached(Seq(8)), Some(Seq(5)));
        assert_eq!(points.reached(Seq(8)), Some(Seq(5)));
        assert_eq!(points.reached(Seq(9)), Some(Seq(9)));
        points.cut(Seq(6));
        assert_eq!(points.reached(Seq(20)), None);
    }

    #[test]
    fn too_many_are_thinned_out() {
        let mut points = SafePoints::default();
        (1..=1_000).for_each(|q| points.note(Seq(q)));
        assert_eq!(points.reached(Seq(255)), Some(Seq(255)));
        assert_eq!(points.reached(Seq(999)), Some(Seq(255)));
        assert_eq!(points.reached(Seq(1_000)), Some(Seq(1_000)));
    }
}
