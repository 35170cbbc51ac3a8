//! Commands and flags of `ebla room`.

use super::{Content, Wait};
use clap::{Args, Subcommand};
use std::ffi::OsString;

#[derive(Subcommand, Debug)]
pub enum Room {
    /// Print what is published to rooms, until interrupted
    Subscribe(SubscribeRooms),
    /// Send a message to everybody in a room
    Publish(PublishRoom),
    /// Count who is in a room
    Who(RoomName),
    /// List the rooms that somebody is in
    List(ListRooms),
}

#[derive(Args, Debug)]
pub struct SubscribeRooms {
    /// Names of the rooms
    #[arg(required = true, value_name = "ROOM")]
    pub rooms: Vec<OsString>,
    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct PublishRoom {
    /// Name of the room
    pub room: OsString,
    #[command(flatten)]
    pub content: Content,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct RoomName {
    /// Name of the room
    pub room: OsString,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Args, Debug)]
pub struct ListRooms {
    /// Only rooms whose names begin so
    #[arg(long, allow_hyphen_values = true, value_name = "P")]
    pub prefix: Option<OsString>,
    #[command(flatten)]
    pub wait: Wait,
}
