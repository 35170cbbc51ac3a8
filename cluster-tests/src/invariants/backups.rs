//! I14: what a backup at T and those that it adds to bring back is what the log that survives says
//! at T, version by version, except what had rightly been collected; and whatever was acknowledged
//! before the backup was asked for is in it.

use super::{End, Invariant};
use crate::oracle::{Archived, Outcome, Trust, Truth, collected};
use crate::sim::disk::Rows;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::Version;
use std::collections::BTreeMap;

/// Nothing to remember.
#[derive(Debug)]
pub struct Backups;

impl Invariant for Backups {
    fn name(&self) -> &'static str {
        "I14 a restore is what was there at its time"
    }

    fn finish(&self, end: &End<'_>) -> Result<(), String> {
        let backups = &end.history.backups;
        for (number, backup) in backups.iter().enumerate() {
            has_acknowledged(end, backup)?;
            let chain = end.history.chain(number);
            let restored = restore(&chain).map_err(|error| format!("backup {number}: {error}"))?;
            if let Some(brought_back) = backup.restored.as_ref().filter(|rows| **rows != restored) {
                return Err(format!(
                    "backup {number} was brought back as {brought_back:?}, not {restored:?}"
                ));
            }
            for truth in end.truths.iter().filter(|truth| truth.fate.trust == Trust::Copies) {
                compare(&chain, &restored, truth).map_err(|error| {
                    let parents = chain.len() - 1;
                    format!("backup {number} at {}, which adds to {parents} others: {error}", backup.ts)
                })?;
            }
        }
        Ok(())
    }
}

/// Writes that were acknowledged before it was asked for are below its time, as long as clocks
/// do not differ by more than they may.
fn has_acknowledged(end: &End<'_>, backup: &Archived) -> Result<(), String> {
    if !backup.clocks_agree {
        return Ok(());
    }
    let earlier = end.history.operations.iter().filter_map(|operation| match &operation.ended {
        Some((ended_us, Outcome::Committed(committed))) if *ended_us <= backup.asked_us => Some(committed),
        Some(_) | None => None,
    });
    match earlier.max_by_key(|committed| committed.ts).filter(|committed| committed.ts > backup.ts) {
        Some(late) => Err(format!("{late:?} was acknowledged before a backup at {}", backup.ts)),
        None => Ok(()),
    }
}

/// All versions of a chain.
fn restore(chain: &[&Archived]) -> Result<Rows, String> {
    let mut rows = Rows::new();
    let mut since = Hlc::MIN;
    for backup in chain {
        for part in &backup.parts {
            for (key, versions) in &part.rows {
                let is_in = |ts: &Hlc| *ts > since && *ts <= backup.ts;
                if part.since != since || !part.range.contains(key) || !versions.keys().all(is_in) {
                    return Err(format!("{key:?} has no place in {part:?}"));
                }
                rows.entry(key.clone()).or_default().extend(versions.clone());
            }
        }
        since = backup.ts;
    }
    Ok(rows)
}

fn compare(chain: &[&Archived], restored: &Rows, truth: &Truth<'_>) -> Result<(), String> {
    let (Some(full), Some(last)) = (chain.first(), chain.last()) else { return Ok(()) };
    let range = &truth.fate.range;
    let keys = truth.rows.keys().chain(restored.keys()).filter(|key| range.contains(key));
    for key in keys {
        let part = full.parts.iter().find(|part| part.range.contains(key));
        let floor = part.map_or(Hlc::MIN, |part| part.floor);
        let expected = truth.rows.get(key).map(|versions| at(versions, floor, last.ts)).unwrap_or_default();
        let found = restored.get(key).cloned().unwrap_or_default();
        if found != expected {
            return Err(differs(key, &found, &expected));
        }
    }
    Ok(())
}

/// The versions of a row that a backup at `ts` has, if its first part was read at this floor.
fn at(versions: &BTreeMap<Hlc, Version>, floor: Hlc, ts: Hlc) -> BTreeMap<Hlc, Version> {
    let mut kept = collected(versions, floor);
    kept.retain(|version, _| *version <= ts);
    kept
}

fn differs(key: &Bytes, found: &BTreeMap<Hlc, Version>, expected: &BTreeMap<Hlc, Version>) -> String {
    let missing = expected.iter().find(|(ts, version)| found.get(ts) != Some(version));
    let extra = found.iter().find(|(ts, version)| expected.get(ts) != Some(version));
    format!("of {key:?} it lacks {missing:?} and has {extra:?}")
}
