//! What other servers may ask of this one.
//!
//! Owns: the tonic service; each call is answered from the leader or says who that is.
//! Never: forwards a second time.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tonic::{Request, Response, Status};
use weft_proto::v1;
use weft_raft::Role;

use crate::handle::{Inner, Server, WriteFailure};

/// How long an answer about the state waits until it is applied so far.
const DIGEST_PATIENCE: Duration = Duration::from_secs(2);

/// The service of the server port.
pub(crate) struct Service {
    pub(crate) inner: Arc<Inner>,
}

impl Service {
    fn server(&self) -> Server {
        Server {
            inner: self.inner.clone(),
        }
    }

    fn is_leader(&self) -> bool {
        self.inner.raft.status().role == Role::Leader
    }
}

#[tonic::async_trait]
impl v1::server_server::Server for Service {
    async fn write(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let request = request.into_inner();
        let stamped = v1::Stamped::decode(request.command)
            .map_err(|cause| Status::invalid_argument(cause.to_string()))?;
        let command = stamped.command.ok_or_else(|| {
            Status::invalid_argument(
                "the command is of a kind this server does not know; upgrade it",
            )
        })?;
        // Only the leader's own duties may propose these; a peer that sends one is confused or hostile.
        if internal_only(&command) {
            return Err(Status::permission_denied(
                "this command is proposed by the leader itself only",
            ));
        }
        // The caller answers its client when it has applied the write itself.
        self.inner.raft.hurry();
        let result = match self.server().propose(command).await {
            Ok(outcome) => v1::write_reply::Result::Outcome(outcome.encode_to_vec().into()),
            Err(failure) => v1::write_reply::Result::Failure(describe(&failure)),
        };
        Ok(Response::new(v1::WriteReply {
            result: Some(result),
        }))
    }

    async fn read_index(
        &self,
        _request: Request<v1::ReadIndexRequest>,
    ) -> Result<Response<v1::ReadIndexReply>, Status> {
        self.inner.raft.hurry();
        let reply = match self.inner.raft.read_index().await {
            Ok(log_index) => v1::ReadIndexReply {
                leader: true,
                log_index,
                error: String::new(),
            },
            Err(cause) => v1::ReadIndexReply {
                leader: false,
                log_index: 0,
                error: cause.to_string(),
            },
        };
        Ok(Response::new(reply))
    }

    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let request = request.into_inner();
        let theirs = request.datacenter;
        let config = &self.inner.config;
        if theirs != config.datacenter {
            return Err(Status::failed_precondition(format!(
                "this server is of datacenter {:?}, the caller of {theirs:?}",
                config.datacenter
            )));
        }
        Ok(Response::new(self.inner.hello(&request.raft_id)))
    }

    async fn digest(
        &self,
        request: Request<v1::DigestRequest>,
    ) -> Result<Response<v1::DigestReply>, Status> {
        let at_index = request.into_inner().at_index;
        let log_index = at_index.saturating_sub(self.inner.published.load().base());
        // One that is late says so by not knowing.
        let applied = self
            .inner
            .raft
            .wait_applied(log_index, DIGEST_PATIENCE)
            .await;
        let hash = applied.ok().and_then(|()| self.inner.hashes.at(at_index));
        Ok(Response::new(v1::DigestReply {
            known: hash.is_some(),
            hash: hash.unwrap_or_default(),
            hash_form: weft_catalog::HASH_FORM,
        }))
    }

    async fn ca(&self, request: Request<v1::CaRequest>) -> Result<Response<v1::CaReply>, Status> {
        let op = request.into_inner().op.ok_or_else(|| {
            Status::invalid_argument(
                "the CA is asked for something that this server does not know; upgrade it",
            )
        })?;
        Ok(Response::new(self.server().ca_here(op).await))
    }

    async fn operate(
        &self,
        request: Request<v1::OperateRequest>,
    ) -> Result<Response<v1::OperateReply>, Status> {
        if !self.is_leader() {
            return Ok(Response::new(v1::OperateReply {
                not_leader: true,
                ..v1::OperateReply::default()
            }));
        }
        let Some(op) = request.into_inner().op else {
            return Err(Status::invalid_argument(
                "the operation is of a kind this server does not know; upgrade it",
            ));
        };
        let reply = match self.server().operate_here(op).await {
            Ok(peers) => v1::OperateReply {
                peers,
                ..v1::OperateReply::default()
            },
            Err(cause) => v1::OperateReply {
                error: cause.to_string(),
                ..v1::OperateReply::default()
            },
        };
        Ok(Response::new(reply))
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        if !self.is_leader() {
            let leader_address = self.server().leader_address().unwrap_or_default();
            return Ok(Response::new(v1::JoinReply {
                not_leader: true,
                leader_address,
                ..v1::JoinReply::default()
            }));
        }
        let cluster_id = self.inner.published.load().cluster_id().to_owned();
        let error = match self.server().admit(request.into_inner()).await {
            Ok(()) => String::new(),
            Err(cause) => cause.to_string(),
        };
        Ok(Response::new(v1::JoinReply {
            error,
            cluster_id,
            ..v1::JoinReply::default()
        }))
    }

    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveReply>, Status> {
        let reply = match self.inner.reserve(&request.into_inner()) {
            Ok(()) => v1::ReserveReply {
                granted: true,
                reason: String::new(),
            },
            Err(reason) => v1::ReserveReply {
                granted: false,
                reason,
            },
        };
        Ok(Response::new(reply))
    }
}

fn internal_only(command: &v1::stamped::Command) -> bool {
    use v1::stamped::Command;
    matches!(
        command,
        Command::SessionExpire(_)
            | Command::TombstoneReap(_)
            | Command::ClusterVersion(_)
            | Command::LeaderStart(_)
            | Command::StateHash(_)
            | Command::ServerKey(_)
            | Command::MeshCa(_)
    )
}

pub(crate) fn describe(failure: &WriteFailure) -> v1::WriteFailure {
    use v1::WriteFailureKind as Kind;
    let kind = match failure {
        WriteFailure::NoLeader | WriteFailure::Stopped(_) => Kind::NoLeader,
        WriteFailure::Unknown(_) => Kind::Unknown,
        WriteFailure::DiskFull(_) => Kind::DiskFull,
        WriteFailure::Overloaded(_) => Kind::Overloaded,
        WriteFailure::TooLarge(_) => Kind::TooLarge,
    };
    v1::WriteFailure {
        kind: kind.into(),
        message: failure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::failed;

    #[test]
    fn a_failure_means_the_same_on_the_other_side() {
        let words = || "words".to_owned();
        for failure in [
            WriteFailure::NoLeader,
            WriteFailure::Unknown(words()),
            WriteFailure::DiskFull(words()),
            WriteFailure::Overloaded(words()),
            WriteFailure::TooLarge(words()),
        ] {
            assert_eq!(failed(describe(&failure)), failure);
        }
        let stopped = WriteFailure::Stopped(words());
        assert_eq!(
            failed(describe(&stopped)),
            WriteFailure::NoLeader,
            "another may lead"
        );
    }
}
