//! Breaking a cluster of real processes while clients use it, and checking everything afterwards.
//!
//! - the **crash matrix**: each failpoint of [`ebla_failpoints::ALL`], in each role that comes by
//!   it, kills, fails or delays the step; [`cases`] says which workflow leads there, [`workflow`]
//!   is those workflows, [`matrix`] runs a case and checks what is left;
//! - the **storm** ([`storm`]): a script splits, moves, hands over, drains and kills at random under
//!   full load, and no client may notice.
//!
//! The matrix needs the chaos build (`make chaos-bin`), the storm does not.

mod backup;
pub mod cases;
pub mod matrix;
pub mod rig;
pub mod storm;
pub mod workflow;
