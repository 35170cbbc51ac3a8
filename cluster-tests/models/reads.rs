//! One leader that restarts, a clock that jumps, a conditional write that waits for a pending
//! one, and reads at a timestamp in between: whatever was read at a timestamp stays so.
//!
//! Where the program departs from the models that its rules come from: a write that waited
//! keeps the timestamp of its arrival, raised above the log and above every timestamp that was
//! read at meanwhile (the *read floor*); and a restarted clock begins above its durable bound.

use crate::explore::Model;

const TIMES: u8 = 6;

/// A rule that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Without {
    Nothing,
    /// Whoever read is remembered by nobody.
    ReadFloor,
    /// A restarted clock begins anywhere.
    ClockBound,
    /// A waiting write keeps its timestamp even below the end of the log.
    RisingLog,
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    wall: u8,
    /// The last timestamp that the process gave.
    clock: u8,
    /// No timestamp above was given by any process.
    bound: u8,
    /// Timestamp of the last entry.
    end: u8,
    /// A write waits for another, with the timestamp of its arrival.
    parked: Option<u8>,
    floor: u8,
    /// The highest timestamp that was read at.
    read: u8,
    /// A write came below that, or below the end of the log.
    broken: bool,
    left: u8,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Reads {
    pub without: Without,
}

impl Model for Reads {
    type State = State;

    fn start(&self) -> State {
        State {
            wall: 1,
            clock: 0,
            bound: 0,
            end: 0,
            parked: None,
            floor: 0,
            read: 0,
            broken: false,
            left: 10,
        }
    }

    fn steps(&self, state: &State, steps: &mut Vec<(String, State)>) {
        if state.left == 0 {
            return;
        }
        let state = State { left: state.left - 1, ..*state };
        for wall in (0..TIMES).filter(|wall| *wall != state.wall) {
            steps.push((format!("the wall clock shows {wall}"), State { wall, ..state }));
        }
        let ts = state.wall.max(state.clock + 1);
        if ts <= state.bound {
            let issued = State { clock: ts, ..state };
            let read = State { read: ts.max(state.read), floor: ts.max(state.floor), ..issued };
            steps.push((format!("somebody reads at {ts}"), read));
            steps.push((format!("a write of {ts}"), self.write(&issued, ts)));
            if state.parked.is_none() {
                steps.push((format!("a write of {ts} waits"), State { parked: Some(ts), ..issued }));
            }
        } else if ts <= 2 * TIMES {
            steps.push(("a higher bound is durable".into(), State { bound: ts + 1, ..state }));
        }
        if let Some(ts) = state.parked {
            let run = State { parked: None, ..self.write(&state, ts) };
            steps.push((format!("the write of {ts} runs"), run));
        }
        let clock = if self.without == Without::ClockBound { 0 } else { state.bound };
        let restarted = State { clock: clock.max(state.end), parked: None, floor: 0, ..state };
        steps.push(("it restarts".into(), restarted));
    }

    fn judge(&self, state: &State) -> Result<(), String> {
        match state.broken {
            true => Err(format!("a write came at or below {}, which was read or written", state.read)),
            false => Ok(()),
        }
    }
}

impl Reads {
    fn write(&self, state: &State, ts: u8) -> State {
        let floor = if self.without == Without::ReadFloor { 0 } else { state.floor + 1 };
        let above = if self.without == Without::RisingLog { 0 } else { state.end + 1 };
        let ts = ts.max(above).max(floor);
        let broken = ts <= state.read || ts <= state.end;
        State { end: ts.max(state.end), broken: state.broken || broken, ..*state }
    }
}
