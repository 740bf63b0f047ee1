//! What the catalog has of one node, for the agent that compares or mirrors it.
//!
//! Owns: when it is answered. Never: decides what follows from it.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;
use weft_catalog::{Topics, Trace};
use weft_proto::v1;

use crate::handle::{ReadFailure, Server};

/// The longest wait for a change.
const WAIT_MAX: Duration = Duration::from_mins(10);

pub(super) async fn of_node(
    server: &Server,
    request: v1::NodeRowsRequest,
) -> Result<v1::NodeRowsReply, Status> {
    server.barrier().await.map_err(|failure| match failure {
        ReadFailure::NoLeader => Status::unavailable("No cluster leader"),
        ReadFailure::Timeout(why) | ReadFailure::Stopped(why) => Status::unavailable(why),
    })?;
    let wait = Duration::from_millis(request.wait_millis).min(WAIT_MAX);
    let over = tokio::time::sleep(wait);
    tokio::pin!(over);
    let mut stopped = server.inner.stop.subscribe();
    loop {
        let (topics, _) = look(server, &request.node);
        let watch = server.hub().watch(&topics);
        // Read again: whatever changed before the watch was made is in this.
        let (again, reply) = look(server, &request.node);
        // After a restore indexes may differ either way; a change is a change.
        if request.after_index == 0 || reply.index != request.after_index {
            return Ok(reply);
        }
        if again != topics {
            continue;
        }
        tokio::select! {
            biased;
            () = watch => {}
            () = &mut over => return Ok(reply),
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(reply),
        }
    }
}

fn look(server: &Server, name: &str) -> (Topics, v1::NodeRowsReply) {
    let state = server.state();
    let trace = Trace::on();
    let reader = state.read(&trace);
    let node = reader.node(name);
    let services = reader.node_services(name);
    let checks = reader.checks_of_node(name);
    let index = node.index.max(services.index).max(checks.index).get();
    let reply = v1::NodeRowsReply {
        index: index.max(1),
        node: node.rows.map(|node| v1::Node::clone(node)),
        services: cloned(&services.rows),
        checks: cloned(&checks.rows),
        coordinate: state.coordinate(name).map(|row| v1::Coordinate::clone(row)),
        nodes: state.counts().nodes as u64,
    };
    (trace.into_topics(), reply)
}

fn cloned<T: Clone>(rows: &[&Arc<T>]) -> Vec<T> {
    rows.iter().map(|row| T::clone(row)).collect()
}
