//! `/v1/connect/ca/*` and `/v1/agent/connect/ca/*`: roots, settings, leaves.
//!
//! Owns: Consul's shapes of them, and whose rights they need.
//! Never: signs or decides; the leader's CA does. A private key leaves only by `/v1/agent/connect/ca/leaf/`.
//! Source: Consul HTTP API, "Certificate authority - Connect", "Agent - Connect"; CONSUL.md A.8, G.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use weft_catalog::acl::{Access, Resource};
use weft_catalog::view::ViewTopic;
use weft_identity::ca::root_facts;
use weft_proto::clock::rfc3339;
use weft_proto::ids::UnixMillis;
use weft_proto::json::{Json, Object};
use weft_proto::v1;
use weft_proto::v1::ca_reply::Result as CaResult;
use weft_proto::v1::ca_request::Op;

use super::blocking::{Found, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use crate::leaves::LeafError;

/// PEM of certificates, one after the other (RFC 8555 §9.1).
const PEM_CHAIN: &str = "application/pem-certificate-chain";

pub(super) async fn roots(call: Call) -> Result<Reply, Failure> {
    let pem = call.query.get("pem").is_some_and(|text| text != "false");
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.mesh_ca();
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let row = answer.rows.map(|row| &**row);
        Found::now(index, if pem { pem_roots(row) } else { json_roots(row) })
    })
    .await
}

/// The same from this agent's view, so that it is there without servers.
pub(super) async fn agent_roots(mut call: Call) -> Result<Reply, Failure> {
    call.view = call.api.local_view(ViewTopic::MeshCa).await?;
    roots(call).await
}

fn pem_roots(row: Option<&v1::MeshCa>) -> Reply {
    let roots = row.map(|row| row.roots.as_slice()).unwrap_or_default();
    let text: String = roots.iter().map(|root| root.certificate.as_str()).collect();
    Reply::bytes(PEM_CHAIN, Bytes::from(text))
}

fn json_roots(row: Option<&v1::MeshCa>) -> Reply {
    let none = v1::MeshCa::default();
    let row = row.unwrap_or(&none);
    let active = row.roots.iter().find(|root| root.active);
    Reply::written(|json| {
        json.object(|json| {
            json.key("ActiveRootID")
                .string(active.map_or("", |root| root.id.as_str()));
            json.key("TrustDomain").string(&row.trust_domain);
            json.key("Roots")
                .list(&row.roots, |json, root| json_root(json, row, root));
        });
    })
}

fn json_root(json: &mut Json, row: &v1::MeshCa, root: &v1::MeshRoot) {
    let Some(facts) = root_facts(&root.certificate) else {
        // It was read when it was stored; of a newer version's nothing can be said.
        return json.null();
    };
    let external = row
        .trust_domain
        .strip_suffix(".consul")
        .unwrap_or(&row.trust_domain);
    json.object(|json| {
        json.key("ID").string(&root.id);
        json.key("Name").string("Consul CA Primary Cert");
        json.key("SerialNumber").number(facts.serial);
        json.key("SigningKeyID").string(&facts.key_id);
        json.key("ExternalTrustDomain").string(external);
        json.key("NotBefore").string(&seconds(facts.not_before));
        json.key("NotAfter").string(&seconds(facts.not_after));
        json.key("RootCert").string(&root.certificate);
        json.key("IntermediateCerts");
        if root.bridges.is_empty() {
            json.null();
        } else {
            json.list(&root.bridges, |json, bridge| json.string(bridge));
        }
        json.key("Active").boolean(root.active);
        if root.rotated_out_at_millis != 0 {
            json.key("RotatedOutAt")
                .string(&rfc3339(UnixMillis(root.rotated_out_at_millis)));
        }
        json.key("PrivateKeyType").string("ec");
        json.key("PrivateKeyBits").number(256);
        json.key("CreateIndex").number(root.create_index);
        json.key("ModifyIndex").number(root.modify_index);
    });
}

fn seconds(at: i64) -> String {
    rfc3339(UnixMillis(
        u64::try_from(at).unwrap_or_default().saturating_mul(1_000),
    ))
}

pub(super) async fn configuration(call: Call) -> Result<Reply, Failure> {
    read(&call, ReadForm::PLAIN, |pass| {
        let Some(row) = pass.reader.mesh_ca().rows else {
            return Found::now(
                1,
                Failure::internal("ca.starting", "the CA is not set up yet").into_reply(),
            );
        };
        let index = row.config_modify_index;
        if !pass.wants(index) {
            return Found::later(index);
        }
        let reply = Reply::written(|json| {
            json.object(|json| {
                json.key("Provider").string(&row.provider);
                json.key("Config").raw(&row.config_json);
                json.key("State").null();
                json.key("ForceWithoutCrossSigning")
                    .boolean(row.force_without_cross_signing);
                json.key("CreateIndex").number(row.config_create_index);
                json.key("ModifyIndex").number(row.config_modify_index);
            });
        });
        Found::now(index, reply)
    })
    .await
}

pub(super) async fn configure(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let object = Object::root(&body)?;
    let config = member(&body, "Config").cloned().unwrap_or(Value::Null);
    let op = Op::Configure(v1::CaConfigure {
        provider: object.text("Provider")?,
        config_json: if config.is_null() {
            String::new()
        } else {
            config.to_string()
        },
        force_without_cross_signing: flag(&body, "ForceWithoutCrossSigning")?,
    });
    ask(&call, op).await?;
    Ok(Reply::empty())
}

fn flag(body: &Value, name: &str) -> Result<bool, Failure> {
    match member(body, name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => {
            let text = format!("Request decode failed: {name} must be true or false");
            Err(Failure::bad_request("ca.config.form", text))
        }
    }
}

fn member<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let members = value.as_object()?;
    members
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// `PUT /v1/operator/ca/rotate`.
pub(super) async fn rotate(call: Call) -> Result<Reply, Failure> {
    let flag = |name: &str| call.query.get(name).is_some_and(|text| text != "false");
    let op = Op::Rotate(v1::CaRotate {
        force_without_cross_signing: flag("force"),
        drill: flag("drill"),
    });
    shown(ask(&call, op).await?)
}

/// `PUT /v1/operator/ca/cut-off/:service`.
pub(super) async fn cut_off(call: Call) -> Result<Reply, Failure> {
    let service = call.required_tail("Missing service name")?;
    shown(ask(&call, Op::CutOff(v1::CaCutOff { service })).await?)
}

fn shown(result: CaResult) -> Result<Reply, Failure> {
    let CaResult::Done(done) = result else {
        return Err(Failure::internal(
            "ca.reply",
            "the leader's reply is of another kind",
        ));
    };
    Ok(Reply::written(|json| {
        json.object(|json| {
            json.key("ActiveRootID").string(&done.root_id);
            json.key("Report").string(&done.report);
        });
    }))
}

async fn ask(call: &Call, op: Op) -> Result<CaResult, Failure> {
    let reply = call.api.deps.operator.ca(op).await?;
    match reply.result {
        Some(CaResult::Refusal(refusal)) => Err(refused(&refusal)),
        Some(result) => Ok(result),
        None => Err(Failure::internal(
            "ca.reply",
            "the leader's reply was empty",
        )),
    }
}

fn refused(refusal: &v1::CaRefusal) -> Failure {
    let status = match refusal.reason.as_str() {
        "ca.csr.rate" | "ca.csr.concurrent" => {
            return Failure::too_many("ca.csr.limit", refusal.message.clone())
                .because(refusal.reason.clone());
        }
        _ if refusal.invalid => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure::new(status, refusal.reason.clone(), refusal.message.clone())
}

/// `PUT /v1/internal/connect/ca/sign/:service`: the request of an agent's leaf, PKCS#10 in PEM or DER.
pub(super) async fn sign(mut call: Call) -> Result<Reply, Failure> {
    let service = call.required_tail("Missing service name")?;
    call.guard
        .require(Resource::Service, service.as_bytes(), Access::Write)?;
    let max = weft_identity::ca::CSR_BYTES_MAX as u64;
    let csr = call.body(max, "the bound on a certificate request").await?;
    let caller = call.here().to_owned();
    let leaf = ask(
        &call,
        Op::Sign(v1::CaSign {
            service,
            csr,
            caller,
        }),
    )
    .await?;
    let CaResult::Leaf(leaf) = leaf else {
        return Err(Failure::internal(
            "ca.reply",
            "the leader's reply is of another kind",
        ));
    };
    Ok(Reply::bytes(
        "application/octet-stream",
        prost::Message::encode_to_vec(&leaf).into(),
    ))
}

/// `GET /v1/agent/connect/ca/leaf/:service`.
pub(super) async fn leaf(call: Call) -> Result<Reply, Failure> {
    let service = call.required_tail("Missing service name")?;
    call.guard
        .require(Resource::Service, service.as_bytes(), Access::Write)?;
    let options = call.options()?;
    let wait = if options.wait.is_zero() {
        call.api.config.default_query_time
    } else {
        options.wait.min(call.api.config.max_query_time)
    };
    let leaves = &call.api.deps.leaves;
    let _slot = match options.index {
        0 => None,
        _ => Some(call.api.waiting.enter(&call.api.limits(), None)?),
    };
    let found = tokio::select! {
        biased;
        found = leaves.get(&service, options.index, wait) => found,
        () = call.api.stopping.cancelled() => return Err(Failure::internal("http.stopping", "this agent is stopping")),
    };
    let (leaf, was_known) = found.map_err(|why| leaf_failed(&why))?;
    let index = leaf.index;
    tracing::info!(service.name = %service, ca.serial = %leaf.serial, "leaf and key handed out");
    let reply = Reply::written(|json| {
        json.object(|json| {
            json.key("SerialNumber").string(&leaf.serial);
            json.key("CertPEM").string(&leaf.chain);
            json.key("PrivateKeyPEM").string(leaf.key_sec1.reveal());
            json.key("Service").string(&service);
            json.key("ServiceURI").string(&leaf.uri);
            json.key("ValidAfter").string(&seconds(leaf.not_before));
            json.key("ValidBefore").string(&seconds(leaf.not_after));
            json.key("CreateIndex").number(index);
            json.key("ModifyIndex").number(index);
        });
    });
    Ok(reply.indexed(index, was_known))
}

fn leaf_failed(why: &LeafError) -> Failure {
    let status = match why {
        LeafError::Refused { status, .. } => {
            StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        }
        LeafError::TooMany => StatusCode::TOO_MANY_REQUESTS,
        LeafError::Unreachable(_) | LeafError::Key => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure::new(status, why.reason().to_owned(), why.to_string())
}
