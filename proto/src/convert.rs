//! Wire to kernel and back: the one place where input from outside is checked. Behind it,
//! kernel types are trusted.

use crate::error::{ApiError, Reason};
use crate::v1;
use bytes::Bytes;
use ebla_kernel::hlc::Hlc;
use ebla_kernel::limits::KEY_BYTES_MAX;
use ebla_kernel::op::{self, AckLevel, Action, BadRequest, Cause, Committed, Condition, Op, OpResult, Token};
use ebla_kernel::range::KeyRange;
use std::time::{Duration, UNIX_EPOCH};

impl From<BadRequest> for ApiError {
    fn from(error: BadRequest) -> Self {
        Self::new(Reason::BadRequest, error.to_string())
    }
}

/// The last millisecond that RFC 3339 can write, of the year 9999.
const TIME_MS_MAX: u64 = 253_402_300_799_999;

/// Milliseconds since 1970 as people write them: RFC 3339, to the millisecond.
#[must_use]
pub fn time_text(ms: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(ms.min(TIME_MS_MAX));
    humantime::format_rfc3339_millis(time).to_string()
}

/// A client's token, or none when the request has none.
///
/// # Errors
/// `BAD_REQUEST` for a client id that is not 16 bytes.
pub fn token(wire: Option<&v1::Token>) -> Result<Option<Token>, ApiError> {
    let Some(wire) = wire else { return Ok(None) };
    let client: [u8; 16] = wire.client_id[..].try_into().map_err(|_| {
        let bytes = wire.client_id.len();
        ApiError::new(Reason::BadRequest, format!("a token's client_id has 16 bytes, not {bytes}"))
    })?;
    Ok(Some(Token { issued_ms: wire.issued_ms, client: u128::from_be_bytes(client), seq: wire.seq }))
}

/// A token for the wire.
#[must_use]
pub fn token_to_wire(token: Token) -> v1::Token {
    v1::Token {
        client_id: Bytes::copy_from_slice(&token.client.to_be_bytes()),
        seq: token.seq,
        issued_ms: token.issued_ms,
    }
}

/// The operations of a batch, checked against every limit.
///
/// # Errors
/// `BAD_REQUEST` naming the limit or the missing part.
pub fn ops(wire: Vec<v1::WriteOp>) -> Result<Vec<Op>, ApiError> {
    let ops = wire.into_iter().map(one_op).collect::<Result<Vec<_>, _>>()?;
    op::check_batch(&ops)?;
    Ok(ops)
}

fn one_op(wire: v1::WriteOp) -> Result<Op, ApiError> {
    use v1::write_op::{Condition as WireCondition, Op as WireOp};
    let action = match wire.op {
        Some(WireOp::Set(set)) => {
            Action::Set { key: set.key, value: set.value, ttl_ms: (set.ttl_ms > 0).then_some(set.ttl_ms) }
        }
        Some(WireOp::Delete(delete)) => Action::Delete { key: delete.key, cause: Cause::Deleted },
        Some(WireOp::Add(add)) => Action::Add { key: add.key, delta: add.delta },
        Some(WireOp::DeleteRange(range)) => Action::DeleteRange { from: range.from, to: non_empty(range.to) },
        None => {
            let hint = "an operation is empty: set one of set, delete, add, delete_range";
            return Err(ApiError::new(Reason::BadRequest, hint));
        }
    };
    let condition = match wire.condition {
        Some(WireCondition::Absent(true)) => Some(Condition::Absent),
        Some(WireCondition::Absent(false)) | None => None,
        Some(WireCondition::IfTs(ts)) => Some(Condition::TsIs(Hlc(ts))),
        Some(WireCondition::IfValue(value)) => Some(Condition::ValueIs(value)),
    };
    Ok(Op { condition, action })
}

/// An operation for the wire.
#[must_use]
pub fn op_to_wire(op: Op) -> v1::WriteOp {
    use v1::write_op::{Condition as WireCondition, Op as WireOp};
    let action = match op.action {
        Action::Set { key, value, ttl_ms } => {
            Some(WireOp::Set(v1::SetOp { key, value, ttl_ms: ttl_ms.unwrap_or(0) }))
        }
        Action::Delete { key, .. } => Some(WireOp::Delete(v1::DeleteOp { key })),
        Action::Add { key, delta } => Some(WireOp::Add(v1::AddOp { key, delta })),
        Action::DeleteRange { from, to } => {
            Some(WireOp::DeleteRange(v1::DeleteRangeOp { from, to: to.unwrap_or_default() }))
        }
        // Made by servers for themselves: it goes nowhere, and an empty operation is refused.
        Action::Room { .. } => None,
    };
    let condition = op.condition.map(|condition| match condition {
        Condition::Absent => WireCondition::Absent(true),
        // No client makes the latter.
        Condition::TsIs(ts) | Condition::NewestIs(ts) => WireCondition::IfTs(ts.0),
        Condition::ValueIs(value) => WireCondition::IfValue(value),
    });
    v1::WriteOp { op: action, condition }
}

/// An acknowledgement level; none when the request leaves it to the table.
///
/// # Errors
/// `BAD_REQUEST` for an unknown kind or a number of copies out of range.
pub fn ack(wire: Option<&v1::AckLevel>) -> Result<Option<AckLevel>, ApiError> {
    let Some(wire) = wire else { return Ok(None) };
    match v1::AckKind::try_from(wire.kind) {
        Ok(v1::AckKind::Unspecified) => Ok(None),
        Ok(v1::AckKind::Leader) => Ok(Some(AckLevel::Leader)),
        Ok(v1::AckKind::InSync) => Ok(Some(AckLevel::InSync)),
        Ok(v1::AckKind::Copies) => match u8::try_from(wire.copies) {
            Ok(copies @ 1..) => Ok(Some(AckLevel::Copies(copies))),
            _ => {
                let hint = format!("ack copies={} is out of range: give 1 to 255", wire.copies);
                Err(ApiError::new(Reason::BadRequest, hint))
            }
        },
        Err(_) => Err(ApiError::new(Reason::BadRequest, format!("unknown ack kind {}", wire.kind))),
    }
}

/// An acknowledgement level for the wire.
#[must_use]
pub fn ack_to_wire(level: AckLevel) -> v1::AckLevel {
    let (kind, copies) = match level {
        AckLevel::Leader => (v1::AckKind::Leader, 0),
        AckLevel::Copies(copies) => (v1::AckKind::Copies, u32::from(copies)),
        AckLevel::InSync => (v1::AckKind::InSync, 0),
    };
    v1::AckLevel { kind: kind as i32, copies }
}

/// The answer to a committed write. Who knows the tablet's lineage fills in the session.
#[must_use]
pub fn committed_to_wire(committed: Committed, token: Option<Token>) -> v1::WriteResponse {
    v1::WriteResponse {
        outcome: v1::WriteOutcome::Committed as i32,
        ts: committed.ts.0,
        epoch: committed.pos.epoch.0,
        seq: committed.pos.seq.0,
        level: Some(ack_to_wire(committed.level)),
        results: results_to_wire(&committed.results),
        token: token.map(token_to_wire),
        session: None,
        tablet_id: 0,
    }
}

/// Results of a batch for the wire.
#[must_use]
pub fn results_to_wire(results: &[OpResult]) -> Vec<v1::WriteResult> {
    let counter = |result: &OpResult| match result {
        OpResult::Done => None,
        OpResult::Counter(value) => Some(*value),
    };
    results.iter().map(|result| v1::WriteResult { counter: counter(result) }).collect()
}

/// A range out of two keys, of which an empty one means unbounded.
///
/// # Errors
/// `BAD_REQUEST` when it is inverted.
pub fn range(start: Bytes, end: Bytes) -> Result<KeyRange, ApiError> {
    KeyRange::new(start, non_empty(end)).map_err(|_| BadRequest::InvertedRange.into())
}

/// The keys in `[from, to)` that begin with `prefix`, of which empty ones mean unbounded; none
/// when prefix and range have no key in common.
///
/// # Errors
/// `BAD_REQUEST` when the range is inverted or a key is too long.
pub fn scan_range(from: &Bytes, to: &Bytes, prefix: &Bytes) -> Result<Option<KeyRange>, ApiError> {
    for key in [from, to, prefix] {
        if key.len() > KEY_BYTES_MAX {
            return Err(BadRequest::KeyTooLong { bytes: key.len() }.into());
        }
    }
    let bounds = range(from.clone(), to.clone())?;
    Ok(bounds.intersect(&KeyRange::prefix(prefix.clone())))
}

/// The range of a tablet as metadata states it.
///
/// # Errors
/// `BAD_REQUEST` when it is inverted.
pub fn tablet_range(tablet: &v1::Tablet) -> Result<KeyRange, ApiError> {
    range(tablet.start.clone(), tablet.end.clone())
}

/// Empty bytes mean "none" on the wire wherever a key may be missing.
#[must_use]
pub fn non_empty(bytes: Bytes) -> Option<Bytes> {
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_written() {
        assert_eq!(time_text(1_795_353_330_445), "2026-11-22T13:15:30.445Z");
        assert_eq!(time_text(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn operations_survive_the_wire() {
        let op = Op {
            condition: Some(Condition::ValueIs(Bytes::from_static(b"old"))),
            action: Action::Set {
                key: Bytes::from_static(b"k"),
                value: Bytes::from_static(b"v"),
                ttl_ms: Some(5),
            },
        };
        assert_eq!(ops(vec![op_to_wire(op.clone())]), Ok(vec![op]));
    }

    #[test]
    fn an_empty_operation_is_refused_with_a_hint() {
        let error = ops(vec![v1::WriteOp::default()]).unwrap_err();
        assert_eq!(error.reason, Reason::BadRequest);
        assert!(error.message.contains("set one of"));
    }

    #[test]
    fn copies_are_checked() {
        let level = v1::AckLevel { kind: v1::AckKind::Copies as i32, copies: 300 };
        assert!(ack(Some(&level)).is_err());
        let level = v1::AckLevel { kind: v1::AckKind::Copies as i32, copies: 2 };
        assert_eq!(ack(Some(&level)), Ok(Some(AckLevel::Copies(2))));
    }
}
