//! What is counted of requests: how many, how long, how they failed.
//!
//! Handles are looked up once; counting is an atomic addition. No key stands in a label.

use ebla_proto::error::Reason;
use metrics::{Counter, Histogram};
use std::time::Duration;

/// The request metrics of a server.
pub struct Meters {
    gets: Counter,
    writes: Counter,
    scans: Counter,
    leases_lost: Counter,
    memory_refused: Counter,
    write_seconds: Histogram,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            gets: metrics::counter!("ebla_kv_requests_total", "call" => "get"),
            writes: metrics::counter!("ebla_kv_requests_total", "call" => "write"),
            scans: metrics::counter!("ebla_kv_requests_total", "call" => "scan"),
            memory_refused: metrics::counter!("ebla_memory_refused_writes_total"),
            leases_lost: metrics::counter!("ebla_lease_refused_total"),
            write_seconds: metrics::histogram!("ebla_kv_write_seconds"),
        }
    }
}

impl Meters {
    /// Counts a get.
    pub fn get(&self) {
        self.gets.increment(1);
    }

    /// Counts a write that was taken.
    pub fn write(&self) {
        self.writes.increment(1);
    }

    /// Counts an answer that was not given because the lease had ended.
    pub fn lease_lost(&self) {
        self.leases_lost.increment(1);
    }

    /// Counts a write for which a table in memory had no room.
    pub fn memory_refused(&self) {
        self.memory_refused.increment(1);
    }

    /// Counts a scan of one stream.
    pub fn scan(&self) {
        self.scans.increment(1);
    }

    /// Notes how long a unary or conditional write took from request to answer.
    pub fn write_took(&self, time: Duration) {
        self.write_seconds.record(time.as_secs_f64());
    }

    /// Counts a refused request by its reason.
    pub fn refused(&self, reason: Reason) {
        metrics::counter!("ebla_kv_refused_total", "reason" => reason.as_str()).increment(1);
    }
}
