//! Arguments to values. Messages say what to give instead.

use ebla_client::{AckLevel, Hlc, SessionToken, Since};
use ebla_kernel::limits::REPLICAS_MAX;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A timestamp, or none for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AtOrNow(pub Option<Hlc>);

/// Reads `now` or what [`at`] reads.
pub fn at_or_now(text: &str) -> Result<AtOrNow, String> {
    match text {
        "now" => Ok(AtOrNow(None)),
        text => at(text).map(|ts| AtOrNow(Some(ts))),
    }
}

/// Reads a name, which is not empty: a script whose variable is not set means something else.
pub fn name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("it is empty: give a name, or leave the flag out".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Reads bytes per second: `50MiB/s`, `50MiB`.
pub fn rate(text: &str) -> Result<u64, String> {
    match bytes(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("a rate of nothing comes to no end: give bytes per second, such as 50MiB/s".to_owned()),
        rate => Ok(rate),
    }
}

/// A duration above zero, in whole milliseconds at least.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}: give a number with a unit, such as 10s, 500ms or 1h"))?;
    if duration < Duration::from_millis(1) {
        return Err("shorter than a millisecond: give at least 1ms".to_owned());
    }
    if duration > DURATION_MAX {
        return Err("longer than a hundred years: give less".to_owned());
    }
    Ok(duration)
}

/// A duration that may be nothing.
pub fn age(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(age) if age.is_zero() => Ok(age),
        Ok(_) | Err(_) => duration(text),
    }
}

/// Some of the rows.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Share {
    /// Above 0, at most 100.
    pub percent: f64,
}

/// A share such as `10%`.
pub fn share(text: &str) -> Result<Share, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    match number {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Share { percent }),
        Ok(_) | Err(_) => Err("give a share of the rows above 0% and up to 100%, such as 10%".to_owned()),
    }
}

/// How often something happens by itself; none: never.
#[derive(Clone, Copy, Debug)]
pub struct Interval(pub Option<Duration>);

/// An interval, or `off`.
pub fn interval(text: &str) -> Result<Interval, String> {
    if text == "off" {
        return Ok(Interval(None));
    }
    duration(text).map(|every| Interval(Some(every))).map_err(|error| format!("{error}, or `off`"))
}

/// How long servers watch their requests: what they take.
pub fn window(text: &str) -> Result<Duration, String> {
    let is_taken =
        |window: &Duration| (Duration::from_millis(100)..=Duration::from_secs(60)).contains(window);
    duration(text).ok().filter(is_taken).ok_or_else(|| "give 100ms to 60s, such as 500ms or 5s".to_owned())
}

/// Longest duration that is taken: sums with the present time stay within every clock.
const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// A number of bytes above zero, with a unit of 1024 or of 1000: `50MiB`, `2MB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "no number of bytes: give one above zero, such as 50MiB, 2MB or 1048576".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    let number = number.parse::<u64>().ok().filter(|number| *number > 0);
    number.and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// An acknowledgement level; `in_sync` and `copies(N)`, as the gRPC contract and papers spell
/// them, are taken too.
pub fn ack(text: &str) -> Result<AckLevel, String> {
    let in_brackets = || text.strip_prefix("copies(")?.strip_suffix(')');
    let copies = text.strip_prefix("copies=").or_else(in_brackets);
    match (text, copies.map(str::parse::<u8>)) {
        ("leader", _) => Ok(AckLevel::Leader),
        ("in-sync" | "in_sync", _) => Ok(AckLevel::InSync),
        (_, Some(Ok(copies @ 1..))) => Ok(AckLevel::Copies(copies)),
        _ => Err("give leader, copies=N with N from 1 to 255, or in-sync".to_owned()),
    }
}

/// A number of copies.
pub fn copies(text: &str) -> Result<u8, String> {
    match text.parse::<u8>() {
        Ok(copies) if (1..=REPLICAS_MAX).contains(&copies) => Ok(copies),
        Ok(_) | Err(_) => Err(format!("give a number of copies from 1 to {REPLICAS_MAX}")),
    }
}

/// How people name a tablet server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerName {
    /// By its id.
    Id(u64),
    /// By its HOST:PORT.
    Address(String),
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A tablet server: `3`, `s3` or HOST:PORT.
pub fn server(text: &str) -> Result<ServerName, String> {
    if let Ok(id) = text.strip_prefix('s').unwrap_or(text).parse::<u64>() {
        return Ok(ServerName::Id(id));
    }
    address(text).map(ServerName::Address).map_err(|_| {
        "no server: give its id, such as 3 or s3, or its HOST:PORT; `ebla server list` shows them".to_owned()
    })
}

/// A session token.
pub fn session(text: &str) -> Result<SessionToken, String> {
    text.parse().map_err(|error: ebla_client::MalformedSession| error.to_string())
}

/// A timestamp to read at: a version's ts, an RFC 3339 time, or `-` and a duration.
pub fn at(text: &str) -> Result<Hlc, String> {
    at_from(text, SystemTime::now())
}

/// Where a watch begins: the token of an event, or a timestamp.
pub fn since(text: &str) -> Result<Since, String> {
    if text.starts_with('w') {
        return text
            .parse()
            .map(Since::Token)
            .map_err(|error: ebla_client::MalformedWatchToken| error.to_string());
    }
    at(text).map(Since::Ts).map_err(|error| format!("{error}, or the token of an event"))
}

fn at_from(text: &str, now: SystemTime) -> Result<Hlc, String> {
    if let Some(ago) = text.strip_prefix('-') {
        let ago = humantime::parse_duration(ago)
            .map_err(|error| format!("{error}: give a duration ago such as -5m or -1h"))?;
        return end_of_millisecond(now.checked_sub(ago));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return version_ts(text).map(Hlc);
    }
    end_of_millisecond(rfc3339(text)).map_err(|_| {
        "no timestamp: give a version's ts, a time such as 2026-11-21T10:00:00Z, or a duration ago such as -5m".to_owned()
    })
}

/// The timestamp of a version.
pub fn version_ts(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(0) | Err(_) => {
            Err("no timestamp of a version: give the decimal ts that a read or write printed".to_owned())
        }
        Ok(ts) => Ok(ts),
    }
}

/// The last timestamp of the millisecond of `time`, so that a read sees all that was written in it.
fn end_of_millisecond(time: Option<SystemTime>) -> Result<Hlc, String> {
    let too_early = || "before 1970: give a later time".to_owned();
    let since_1970 = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).ok_or_else(too_early)?;
    let ms = u64::try_from(since_1970.as_millis()).map_err(|_| too_early())?;
    Ok(Hlc::new(ms, u16::MAX))
}

/// A time of RFC 3339, with `Z` or an offset.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let (time, offset_minutes) = match text.len().checked_sub(6).and_then(|at| text.split_at_checked(at)) {
        Some((time, offset)) if offset.starts_with(['+', '-']) && time.contains(['T', 't', ' ']) => {
            (format!("{time}Z"), offset_minutes(offset)?)
        }
        _ => (text.to_owned(), 0),
    };
    let time = humantime::parse_rfc3339(&time.replace(['t', ' '], "T").replace('z', "Z")).ok()?;
    let offset = Duration::from_secs(offset_minutes.unsigned_abs() * 60);
    if offset_minutes >= 0 { time.checked_sub(offset) } else { time.checked_add(offset) }
}

/// Minutes of `+HH:MM` or `-HH:MM`.
fn offset_minutes(offset: &str) -> Option<i64> {
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes) = (hours.parse::<u8>().ok()?, minutes.parse::<u8>().ok()?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let all = i64::from(hours) * 60 + i64::from(minutes);
    Some(if offset.starts_with('-') { -all } else { all })
}

/// A number of masters.
pub fn masters(text: &str) -> Result<u64, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("a cluster has 1 or 3 masters".to_owned()),
    }
}

/// HOST:PORT.
pub fn address(text: &str) -> Result<String, String> {
    let hint = || "give HOST:PORT, such as 127.0.0.1:7400".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(hint)?;
    if host.is_empty() || port.parse::<u16>().is_err() || host.contains(['/', ' ']) {
        return Err(hint());
    }
    Ok(text.to_owned())
}

/// ID=HOST:PORT.
pub fn peer(text: &str) -> Result<(u64, String), String> {
    let hint = || "give ID=HOST:PORT, such as 1=127.0.0.1:7400".to_owned();
    let (id, peer) = text.split_once('=').ok_or_else(hint)?;
    match id.parse::<u64>() {
        Ok(id @ 1..) => Ok((id, address(peer)?)),
        _ => Err(hint()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_second(text: &str) -> Option<u64> {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        at_from(text, now).ok().map(|at| at.ms() / 1_000)
    }

    #[test]
    fn bytes_have_units_of_1024() {
        assert_eq!(bytes("50MiB"), Ok(50 << 20));
        assert_eq!(bytes("7"), Ok(7));
        assert_eq!((bytes("2MB"), bytes("1KB")), (Ok(2_000_000), Ok(1_000)));
        for wrong in ["", "0", "MiB", "1M", "1mb", "-1", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_percent() {
        for (text, percent) in [("10%", 10.0), ("0.5%", 0.5), ("100%", 100.0), ("7", 7.0)] {
            assert_eq!(share(text), Ok(Share { percent }));
        }
        for wrong in ["", "%", "0%", "101%", "-1%", "x", "NaN%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert_eq!((age("0s"), age("1h")), (Ok(Duration::ZERO), Ok(Duration::from_secs(3600))));
    }

    #[test]
    fn servers_have_ids_and_addresses() {
        assert_eq!((server("3"), server("s3")), (Ok(ServerName::Id(3)), Ok(ServerName::Id(3))));
        assert_eq!(server("h:7401"), Ok(ServerName::Address("h:7401".to_owned())));
        for bad in ["", "s", "x3", "-3", "h", "h:x"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn timestamps_come_in_three_shapes() {
        assert_eq!(at("123456789"), Ok(Hlc(123_456_789)));
        assert_eq!(at_second("-5m"), Some(1_000_000 - 300));
        assert_eq!(at_second("1970-01-01T00:00:10Z"), Some(10));
        assert_eq!(at_second("1970-01-01T02:00:10+02:00"), Some(10));
        assert_eq!(at_second("1970-01-01T00:00:10-01:30"), Some(10 + 5_400));
        assert_eq!(at_second("1970-01-01T00:00:10.5Z"), Some(10));
    }

    #[test]
    fn bad_timestamps_are_refused_with_a_hint() {
        for bad in [
            "",
            "0",
            "-",
            "5m",
            "-5",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "2026-01-01",
            "99999999999999999999",
            "-99999999y",
            "é-01:00",
        ] {
            assert!(at(bad).is_err(), "{bad}");
        }
        assert!(at("soon").unwrap_err().contains("-5m"));
    }

    #[test]
    fn a_watch_begins_at_a_time_or_a_token() {
        assert_eq!(since("17"), Ok(Since::Ts(Hlc(17))));
        assert!(since("w00").unwrap_err().contains("token"));
        assert!(since("soon").unwrap_err().contains("token"));
    }

    #[test]
    fn a_time_to_live_needs_a_unit_and_more_than_nothing() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        for bad in ["", "10", "0s", "1us", "-1s", "1000y", "x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels_addresses_and_peers() {
        for copies in ["copies=2", "copies(2)"] {
            assert_eq!(ack(copies), Ok(AckLevel::Copies(2)));
        }
        assert_eq!((ack("in-sync"), ack("in_sync")), (Ok(AckLevel::InSync), Ok(AckLevel::InSync)));
        for bad in ["", "copies=0", "copies=256", "all"] {
            assert!(ack(bad).is_err(), "{bad}");
        }
        assert_eq!(peer("2=h:1"), Ok((2, "h:1".to_owned())));
        for bad in ["h:1", "0=h:1", "x=h:1", "1=h", "1=h:99999"] {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }
}
