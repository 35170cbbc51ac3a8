//! A place in the history of a tablet, for reading one's own writes on any copy.

use ebla_proto::v1;
use std::fmt;
use std::str::FromStr;

/// Where a write stands; a read that is given it sees the write, on whatever copy. Its text is
/// `LINEAGE.EPOCH.SEQ.TS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionToken {
    /// Ancestry of the tablet.
    pub lineage: u64,
    /// Term of the leader that took the write.
    pub epoch: u64,
    /// Its place in the tablet's log.
    pub seq: u64,
    /// Its timestamp.
    pub ts: u64,
}

impl SessionToken {
    pub(crate) fn from_wire(wire: v1::SessionToken) -> Self {
        Self { lineage: wire.lineage, epoch: wire.epoch, seq: wire.seq, ts: wire.ts }
    }

    pub(crate) fn to_wire(self) -> v1::SessionToken {
        v1::SessionToken { lineage: self.lineage, epoch: self.epoch, seq: self.seq, ts: self.ts }
    }
}

impl fmt::Display for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.lineage, self.epoch, self.seq, self.ts)
    }
}

/// A text that is no session token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MalformedSession;

impl fmt::Display for MalformedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no session token: give LINEAGE.EPOCH.SEQ.TS, as a write prints it in `session` with -o json",
        )
    }
}

impl std::error::Error for MalformedSession {}

impl FromStr for SessionToken {
    type Err = MalformedSession;

    fn from_str(text: &str) -> Result<Self, MalformedSession> {
        let mut parts = text.split('.');
        let mut next = || {
            let part = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
            part.and_then(|part| part.parse::<u64>().ok()).ok_or(MalformedSession)
        };
        let token = Self { lineage: next()?, epoch: next()?, seq: next()?, ts: next()? };
        if parts.next().is_some() { Err(MalformedSession) } else { Ok(token) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text() {
        let token = SessionToken { lineage: 1, epoch: 2, seq: 3, ts: u64::MAX };
        assert_eq!(token.to_string(), "1.2.3.18446744073709551615");
        assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn garbage_is_refused() {
        for bad in
            ["", "1", "1.2.3", "1.2.3.4.5", "1.2.3.x", "+1.2.3.4", "1..3.4", "1.2.3.99999999999999999999"]
        {
            assert_eq!(bad.parse::<SessionToken>(), Err(MalformedSession), "{bad}");
        }
    }
}
