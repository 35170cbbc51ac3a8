//! Which files of a chain of backups hold the versions of a range, and what of them counts.

use ebla_backup::{BackupError, FileEntry, Manifest, Part, TABLE_ID_BYTES, TableEntry, layers};
use ebla_kernel::hlc::Hlc;
use ebla_kernel::ids::TableId;
use ebla_kernel::key;
use ebla_kernel::range::KeyRange;
use ebla_kernel::range_tombstones::RangeTombstone;

/// Everything that makes up a range at the newest backup's timestamp.
#[derive(Debug)]
pub(super) struct Selection {
    /// That timestamp.
    pub(super) ts: Hlc,
    /// By the first key that counts of each.
    pub(super) sources: Vec<Source>,
    /// Cut to the range.
    pub(super) tombstones: Vec<RangeTombstone>,
}

/// A file, and what of it counts.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) backup: String,
    pub(super) key_id: String,
    pub(super) file: FileEntry,
    /// First key of the file that counts, as it stands in files.
    pub(super) from: Vec<u8>,
    /// Where those keys end; none: they do not.
    pub(super) to: Option<Vec<u8>>,
    /// Whether every key of the file counts.
    pub(super) is_whole: bool,
}

/// Selects what `chain`, oldest first, holds of `range` of a table.
///
/// # Errors
/// `Damaged` when the chain does not hold the whole of it.
pub(super) fn select(chain: &[Manifest], table: u32, range: &KeyRange) -> Result<Selection, BackupError> {
    let Some(newest) = chain.last() else { return Err(BackupError::NoBackup("the chain is empty".into())) };
    let mut selection = Selection { ts: Hlc(newest.ts), sources: Vec::new(), tombstones: Vec::new() };
    for (manifest, entry) in whole_layers(chain, table)? {
        let mut missing = vec![range.clone()];
        for part in &entry.parts {
            let of_part = part.range().map_err(|_| inverted(manifest))?;
            let Some(counts) = of_part.intersect(range) else { continue };
            missing = missing.iter().flat_map(|left| left.without(&counts)).collect();
            selection.add(manifest, part, &counts)?;
        }
        if let Some(missing) = missing.first() {
            return Err(damaged(manifest, format!("no part holds {missing} of table {:?}", entry.name)));
        }
    }
    selection.sources.sort_by(|a, b| a.from.cmp(&b.from));
    Ok(selection)
}

/// The entries of a table, the one that holds all of it first.
fn whole_layers(chain: &[Manifest], table: u32) -> Result<Vec<(&Manifest, &TableEntry)>, BackupError> {
    let found = layers(chain, table);
    let newest = chain.last().map_or("", |manifest| &manifest.id);
    match found.first() {
        None => Err(BackupError::NoBackup(format!(
            "backup {newest} has no table of id {table}: look at `ebla backup describe`"
        ))),
        Some((_, oldest)) if oldest.since_ts == 0 => Ok(found),
        Some((manifest, _)) => {
            Err(damaged(manifest, format!("it adds to an earlier table {table}, which is missing")))
        }
    }
}

impl Selection {
    /// Adds what a part holds of `counts`, which lies within it.
    fn add(&mut self, manifest: &Manifest, part: &Part, counts: &KeyRange) -> Result<(), BackupError> {
        for file in &part.files {
            let end = key::successor(&file.max_key);
            let of_file =
                KeyRange::new(file.min_key.clone().into(), Some(end)).map_err(|_| inverted(manifest))?;
            let Some(read) = of_file.intersect(counts) else { continue };
            let (from, to) = key::row_bounds(TableId(0), &read);
            let without_table = |bound: Vec<u8>| bound.get(TABLE_ID_BYTES..).map(<[u8]>::to_vec);
            self.sources.push(Source {
                backup: manifest.id.clone(),
                key_id: manifest.encryption.as_ref().map(|used| used.key_id.clone()).unwrap_or_default(),
                file: file.clone(),
                from: without_table(from).unwrap_or_default(),
                to: read.end().and_then(|_| without_table(to)),
                is_whole: read == of_file,
            });
        }
        for tombstone in &part.tombstones {
            let deleted = tombstone.range().map_err(|_| inverted(manifest))?;
            let within =
                deleted.intersect(counts).map(|range| RangeTombstone { range, ts: Hlc(tombstone.ts) });
            self.tombstones.extend(within);
        }
        Ok(())
    }
}

fn inverted(manifest: &Manifest) -> BackupError {
    damaged(manifest, "a range in its manifest ends before it begins".to_owned())
}

fn damaged(manifest: &Manifest, what: String) -> BackupError {
    BackupError::Damaged(format!(
        "backup {} is damaged: {what}; `ebla backup verify` tells which are whole",
        manifest.id
    ))
}
