//! Bytes that a person gives: on the command line, or in a file when they are too many for that.

use crate::exit::Failure;
use crate::output::argument_bytes;
use bytes::Bytes;
use clap::Args;
use ebla_kernel::limits::VALUE_BYTES_MAX;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

/// A value or a message.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Content {
    /// The bytes
    #[arg(allow_hyphen_values = true, value_name = "VALUE")]
    pub value: Option<OsString>,
    /// The bytes of a file instead, as they are; - for standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

impl Content {
    /// The bytes; of a file no more than any value may have.
    ///
    /// # Errors
    /// When the file cannot be read, or is larger.
    pub fn read(&self, hex: bool) -> anyhow::Result<Bytes> {
        let Some(path) = &self.file else {
            return Ok(self.value.as_ref().map(|value| argument_bytes(value, hex)).unwrap_or_default());
        };
        let mut bytes = Vec::new();
        let most = VALUE_BYTES_MAX as u64 + 1;
        let read = if path.as_os_str() == "-" {
            io::stdin().lock().take(most).read_to_end(&mut bytes)
        } else {
            File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
        };
        let shown = path.display();
        match read {
            Ok(_) if bytes.len() <= VALUE_BYTES_MAX => Ok(bytes.into()),
            Ok(_) => Err(Failure::usage(format!(
                "{shown} has more than {VALUE_BYTES_MAX} bytes, the most of one value: cut it into several"
            ))
            .into()),
            Err(error) => {
                Err(Failure::usage(format!("cannot read {shown}: {error}: name a readable file")).into())
            }
        }
    }
}
