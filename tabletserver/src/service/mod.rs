//! The gRPC face of a tablet server.

mod heat;
mod kv;
mod lost;
mod pipe;
mod room;
mod room_peer;
mod route;
mod scan;
mod split;
mod watch;

pub use heat::Heat as HeatReport;
pub use kv::Kv;
pub use lost::Lost;
pub use room::Room;
pub use room_peer::RoomPeer;
pub use route::Route;
pub use split::Split;
pub use watch::Watch;
