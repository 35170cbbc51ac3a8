//! How a write ended, and the ticket with which to ask for it later.

use crate::error::Error;
use crate::session::SessionToken;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::op::{AckLevel, Token};
use ebla_proto::error::Reason;
use std::fmt;
use std::str::FromStr;

/// How a write that may have been sequenced ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It stands.
    Committed(Committed),
    /// It is gone for ever and was never shown to anybody.
    Reverted,
    /// Nobody could say in time. It may stand or not: ask [`crate::Client::outcome`].
    Unknown(Ticket),
}

/// Where a committed write stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its timestamp.
    pub ts: Hlc,
    /// Term of the leader that took it.
    pub epoch: u64,
    /// Its place in the tablet's log.
    pub seq: u64,
    /// The level that was reached; none when the outcome was asked for afterwards.
    pub level: Option<AckLevel>,
    /// One per operation: the new value of a counter, none for anything else.
    pub counters: Vec<Option<i64>>,
    /// The tablet that answered; 0 when the outcome was asked for afterwards.
    pub tablet_id: u64,
    /// For reading the write on any copy; none when the outcome was asked for afterwards.
    pub session: Option<SessionToken>,
}

impl Outcome {
    /// Where the write stands, or an error that says that it does not or may not.
    ///
    /// # Errors
    /// `REVERTED`, which is definite, or `TIMED_OUT`, which is not.
    pub fn committed(self) -> Result<Committed, Error> {
        match self {
            Self::Committed(committed) => Ok(committed),
            Self::Reverted => {
                Err(Error::new(Reason::Reverted, "the write was undone before anybody saw it: write again"))
            }
            Self::Unknown(ticket) => {
                let hint =
                    format!("the outcome of the write is not known yet: ask with `ebla outcome {ticket}`");
                Err(Error::new(Reason::TimedOut, hint).indefinite())
            }
        }
    }
}

/// Names a write and where it went, as one opaque text `TOKEN.TABLE.KEY` whose last two
/// parts are hexadecimal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// Names the write.
    pub token: Token,
    /// Its table.
    pub table: String,
    /// One key of it; empty only for a delete range that began at the first key.
    pub key: Bytes,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.token)?;
        self.table.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(".")?;
        self.key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MalformedTicket;

impl fmt::Display for MalformedTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is no token of a write: give the whole text that the write printed as its token")
    }
}

impl std::error::Error for MalformedTicket {}

impl FromStr for Ticket {
    type Err = MalformedTicket;

    fn from_str(text: &str) -> Result<Self, MalformedTicket> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(MalformedTicket);
        let (token, table, key) = (next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(MalformedTicket);
        }
        let table = String::from_utf8(from_hex(table)?).map_err(|_| MalformedTicket)?;
        if table.is_empty() {
            return Err(MalformedTicket);
        }
        Ok(Self { token: parse_token(token)?, table, key: from_hex(key)?.into() })
    }
}

fn parse_token(text: &str) -> Result<Token, MalformedTicket> {
    let mut parts = text.split('-');
    let mut next = |digits: usize| match parts.next() {
        Some(part)
            if (1..=digits).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Ok(part)
        }
        _ => Err(MalformedTicket),
    };
    let client = u128::from_str_radix(next(32)?, 16).map_err(|_| MalformedTicket)?;
    let seq = u64::from_str_radix(next(16)?, 16).map_err(|_| MalformedTicket)?;
    let issued_ms = u64::from_str_radix(next(16)?, 16).map_err(|_| MalformedTicket)?;
    if parts.next().is_some() { Err(MalformedTicket) } else { Ok(Token { issued_ms, client, seq }) }
}

fn from_hex(text: &str) -> Result<Vec<u8>, MalformedTicket> {
    let digit = |byte: u8| {
        char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(MalformedTicket)
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(MalformedTicket);
    }
    pairs.iter().map(|[high, low]| Ok(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_survives_its_text() {
        let token = Token { issued_ms: 1_700_000_000_000, client: 7, seq: u64::MAX };
        for key in [&b""[..], b"k", b"\xff\0"] {
            let ticket = Ticket { token, table: "tafel ä".into(), key: Bytes::copy_from_slice(key) };
            assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [
            "",
            "x",
            "1-2-3",
            "1-2-3..6b",
            "1-2.74.6b",
            "1-2-3.74.6",
            "1-2-3.74.zz",
            "1-2-3.74.6b.",
            "+1-2-3.74.6b",
            "1-2-3-4.74.6b",
        ] {
            assert_eq!(bad.parse::<Ticket>(), Err(MalformedTicket), "{bad}");
        }
    }
}
