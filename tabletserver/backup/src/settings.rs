//! The promises of a table in the words of the CLI, and back.

use ebla_kernel::meta::{AutoMerge, Eviction, Policy, TableKind, TableSpec};
use ebla_kernel::op::AckLevel;
use serde::{Deserialize, Serialize};

/// The promises of a table; words as in the CLI.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableSettings {
    /// `durable` or `memory`.
    pub kind: String,
    /// Replication factor R.
    pub replicas: u8,
    /// Durability factor D.
    pub min_in_sync: u8,
    /// `strict` or `degraded`.
    pub policy: String,
    /// `leader`, `copies=N`, `in-sync`.
    pub ack: String,
    /// How long old versions are kept, in milliseconds.
    pub retention_ms: u64,
    /// Size in bytes at which a tablet is split.
    pub split_bytes: u64,
    /// Requests per second above which a tablet is split; 0 for never.
    pub split_load: u64,
    /// `off`, `own` or `all`.
    pub auto_merge: String,
    /// Bytes that a memory table may take on one server.
    pub memory_bytes_max: Option<u64>,
    /// `none`, `lru` or `lfu`.
    pub eviction: String,
    /// Whether changes are messages in rooms.
    pub publish_changes: bool,
}

/// A word in the settings of a table that this release does not know.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the manifest says {field} {word:?}, which this release does not know: restore it with the release that made it, or a newer one"
)]
pub struct UnknownWord {
    /// Where it stands.
    pub field: &'static str,
    /// The word.
    pub word: String,
}

const KINDS: [(&str, TableKind); 2] = [("durable", TableKind::Durable), ("memory", TableKind::Memory)];
const POLICIES: [(&str, Policy); 2] = [("strict", Policy::Strict), ("degraded", Policy::Degraded)];
const AUTO_MERGES: [AutoMerge; 3] = [AutoMerge::Off, AutoMerge::Own, AutoMerge::All];
const EVICTIONS: [Eviction; 3] = [Eviction::None, Eviction::LeastRecent, Eviction::LeastFrequent];

impl TableSettings {
    /// The settings of a table as the cluster knows them.
    #[must_use]
    pub fn of(spec: &TableSpec) -> Self {
        Self {
            kind: word_of(&KINDS, spec.kind),
            replicas: spec.replicas,
            min_in_sync: spec.min_in_sync,
            policy: word_of(&POLICIES, spec.policy),
            ack: spec.ack.to_string(),
            retention_ms: spec.retention_ms,
            split_bytes: spec.split_bytes,
            split_load: spec.split_load,
            auto_merge: spec.auto_merge.name().to_owned(),
            memory_bytes_max: spec.memory_bytes_max,
            eviction: spec.eviction.name().to_owned(),
            publish_changes: spec.publish_changes,
        }
    }

    /// The settings as the cluster knows them.
    ///
    /// # Errors
    /// A word that this release does not know.
    pub fn spec(&self) -> Result<TableSpec, UnknownWord> {
        Ok(TableSpec {
            kind: of_word("kind", &self.kind, KINDS)?,
            replicas: self.replicas,
            min_in_sync: self.min_in_sync,
            policy: of_word("policy", &self.policy, POLICIES)?,
            ack: ack(&self.ack)?,
            retention_ms: self.retention_ms,
            split_bytes: self.split_bytes,
            split_load: self.split_load,
            auto_merge: of_word("auto_merge", &self.auto_merge, AUTO_MERGES.map(|at| (at.name(), at)))?,
            memory_bytes_max: self.memory_bytes_max,
            eviction: of_word("eviction", &self.eviction, EVICTIONS.map(|at| (at.name(), at)))?,
            publish_changes: self.publish_changes,
        })
    }
}

fn word_of<T: PartialEq>(words: &[(&str, T)], wanted: T) -> String {
    let found = words.iter().find(|(_, value)| *value == wanted);
    found.expect("the list names every value").0.to_owned()
}

fn of_word<T: Copy, const N: usize>(
    field: &'static str,
    word: &str,
    words: [(&str, T); N],
) -> Result<T, UnknownWord> {
    let found = words.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value).ok_or_else(|| UnknownWord { field, word: word.to_owned() })
}

fn ack(word: &str) -> Result<AckLevel, UnknownWord> {
    let copies = word.strip_prefix("copies=").and_then(|copies| copies.parse::<u8>().ok());
    match (word, copies) {
        ("leader", _) => Ok(AckLevel::Leader),
        ("in-sync", _) => Ok(AckLevel::InSync),
        (_, Some(copies @ 1..)) => Ok(AckLevel::Copies(copies)),
        (_, Some(0) | None) => Err(UnknownWord { field: "ack", word: word.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_as_they_were() {
        for kind in [TableKind::Durable, TableKind::Memory] {
            for policy in [Policy::Strict, Policy::Degraded] {
                for ack in [AckLevel::Leader, AckLevel::InSync, AckLevel::Copies(3)] {
                    for (auto_merge, eviction) in AUTO_MERGES.into_iter().zip(EVICTIONS) {
                        let spec = TableSpec {
                            kind,
                            policy,
                            ack,
                            auto_merge,
                            eviction,
                            memory_bytes_max: Some(7),
                            publish_changes: true,
                            ..TableSpec::default()
                        };
                        assert_eq!(TableSettings::of(&spec).spec(), Ok(spec));
                    }
                }
            }
        }
    }

    #[test]
    fn an_unknown_word_is_named() {
        for field in ["kind", "policy", "ack", "auto_merge", "eviction"] {
            let mut settings = serde_json::to_value(TableSettings::of(&TableSpec::default())).unwrap();
            settings[field] = "copies=0".into();
            let settings: TableSettings = serde_json::from_value(settings).unwrap();
            assert_eq!(settings.spec(), Err(UnknownWord { field, word: "copies=0".to_owned() }));
        }
    }
}
