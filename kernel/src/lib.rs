//! Every decision of Ebla, as pure state machines.
//!
//! Nothing here knows a clock, a file, a socket, a thread or a random number: time is a
//! [`ids::Tick`] argument, ids are inputs, effects are values that a shell carries out. The
//! code that decides in production is thus the code that the simulator runs.
//!
//! Every core is called the same way: `step(now, input, &mut effects)`. Inputs and effects
//! are closed enums of plain data; a completed effect comes back as an input, and a core
//! never assumes that an effect has happened.

pub mod ancestry;
pub mod backup;
pub mod entry;
pub mod hlc;
pub mod ids;
pub mod key;
pub mod lease;
pub mod limits;
pub mod meta;
#[cfg(feature = "mutations")]
pub mod mutation;
pub mod op;
pub mod plan;
pub mod range;
pub mod range_tombstones;
pub mod room;
pub mod sequence;
pub mod tablet;
pub mod text;
pub mod watch;

/// Whether a bug of `mutation::Mutation` is seeded; the constant `false` in every build
/// without the feature `mutations`.
#[macro_export]
macro_rules! mutated {
    ($rule:ident) => {{
        #[cfg(feature = "mutations")]
        {
            $crate::mutation::is_seeded($crate::mutation::Mutation::$rule)
        }
        #[cfg(not(feature = "mutations"))]
        {
            false
        }
    }};
}
