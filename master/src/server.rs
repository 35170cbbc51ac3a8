//! The gRPC server of a master: its services, health and reflection on one port.

use crate::controller::Events;
use crate::error::Error;
use crate::limits::{
    ADMIN_MESSAGE_BYTES_MAX, CONTROL_MESSAGE_BYTES_MAX, MASTER_MESSAGE_BYTES_MAX, UP_SILENCE,
};
use crate::service::admin::Admin;
use crate::service::control::ServerControl;
use crate::service::meta_raft::MetaRaft;
use crate::service::route::Route;
use crate::service::{Shared, stopped};
use ebla_proto::DESCRIPTORS;
use ebla_proto::v1::admin_service_server::AdminServiceServer;
use ebla_proto::v1::meta_raft_service_server::MetaRaftServiceServer;
use ebla_proto::v1::route_service_server::RouteServiceServer;
use ebla_proto::v1::server_control_service_server::ServerControlServiceServer;
use std::sync::atomic::AtomicU64;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// Serves until the master stops.
pub(crate) async fn serve(
    shared: Shared,
    events: Events,
    directory_id: u64,
    joined: bool,
    listener: TcpListener,
) -> Result<(), Error> {
    let stop = stopped(shared.stopping.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    let admin = AdminServiceServer::new(Admin { shared: shared.clone(), events: events.clone() })
        .max_decoding_message_size(ADMIN_MESSAGE_BYTES_MAX);
    let route = RouteServiceServer::new(Route { shared: shared.clone() });
    let control = ServerControl { shared: shared.clone(), events, sessions: AtomicU64::new(1) };
    let control =
        ServerControlServiceServer::new(control).max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
    let meta_raft = MetaRaftServiceServer::new(MetaRaft { shared, directory_id, joined })
        .max_decoding_message_size(MASTER_MESSAGE_BYTES_MAX);
    health.set_serving::<AdminServiceServer<Admin>>().await;
    health.set_serving::<RouteServiceServer<Route>>().await;
    health.set_serving::<ServerControlServiceServer<ServerControl>>().await;
    health.set_serving::<MetaRaftServiceServer<MetaRaft>>().await;
    Server::builder()
        .http2_keepalive_interval(Some(UP_SILENCE))
        .http2_keepalive_timeout(Some(UP_SILENCE))
        .add_service(health_service)
        .add_service(reflection()?)
        .add_service(reflection_alpha()?)
        .add_service(admin)
        .add_service(route)
        .add_service(control)
        .add_service(meta_raft)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await
        .map_err(Error::Serve)
}

fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    Error,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(descriptors)
}

fn reflection_alpha() -> Result<
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection,
    >,
    Error,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()
        .map_err(descriptors)
}

fn descriptors(error: tonic_reflection::server::Error) -> Error {
    Error::Corrupt(format!("the service descriptors of this program are damaged: {error}; install it again"))
}
