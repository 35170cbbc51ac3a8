//! I9: the tablets of a table cover every key exactly once.

use super::{Invariant, Observation};
use crate::oracle::Oracle;

/// Nothing to remember.
#[derive(Debug)]
pub struct RangeMap;

impl Invariant for RangeMap {
    fn name(&self) -> &'static str {
        "I9 the range map is total"
    }

    fn observe(&mut self, _: &Oracle, observation: &Observation<'_>) -> Result<(), String> {
        let Observation::Metadata(state) = observation else { return Ok(()) };
        for table in state.tables() {
            let ranges: Vec<_> = state.tablets_of(table.id).map(|tablet| &tablet.range).collect();
            let whole = ranges.first().is_some_and(|range| range.start().is_empty())
                && ranges.last().is_some_and(|range| range.end().is_none())
                && ranges.windows(2).all(|pair| pair[0].is_followed_by(pair[1]));
            if !whole {
                return Err(format!("{} has a gap or an overlap: {ranges:?}", table.name));
            }
        }
        Ok(())
    }
}
