//! Flags of `ebla export`.

use super::{Keys, LoadFormat, Wait};
use crate::parse;
use clap::Args;

#[derive(Args, Debug)]
pub struct Export {
    /// Name of the table
    pub table: String,
    /// The timestamp: a version's ts, an RFC 3339 time, or a duration ago such as -5m; now by
    /// default
    #[arg(long, allow_hyphen_values = true, value_parser = parse::at, value_name = "TS")]
    pub at: Option<ebla_client::Hlc>,
    /// How rows are written
    #[arg(long, value_enum, default_value_t = LoadFormat::Jsonl, value_name = "FORMAT")]
    pub format: LoadFormat,
    #[command(flatten)]
    pub keys: Keys,
    #[command(flatten)]
    pub wait: Wait,
}
