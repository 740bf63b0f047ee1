//! `/v1/agent/connect/proxies`: how the proxies of this node stand.
//!
//! Owns: the form of the answer. Never: starts or changes one.

use weft_proto::clock::rfc3339;
use weft_proto::ids::UnixMillis;
use weft_proto::json::Json;

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use crate::mesh::{ProxyStatus, UpstreamStatus};

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let status = call.api.deps.mesh.status();
    Ok(Reply::written(|json| json.list(&*status, proxy)))
}

fn proxy(json: &mut Json, row: &ProxyStatus) {
    json.object(|json| {
        json.key("ID").string(&row.id);
        json.key("Service").string(&row.service);
        json.key("Listen").string(&row.listen);
        json.key("Index").number(row.index);
        json.key("IntentionsKnown")
            .boolean(row.intentions_index.is_some());
        json.key("IntentionsIndex")
            .number(row.intentions_index.unwrap_or_default());
        json.key("LeafSerial").string(&row.leaf_serial);
        let expires = u64::try_from(row.leaf_not_after).unwrap_or_default();
        let expires = match expires {
            0 => String::new(),
            seconds => rfc3339(UnixMillis(seconds.saturating_mul(1_000))),
        };
        json.key("LeafExpires").string(&expires);
        json.key("Upstreams").list(&row.upstreams, upstream);
        json.key("Problems")
            .list(&row.problems, |json, (reason, detail)| {
                json.object(|json| {
                    json.key("Reason").string(reason);
                    json.key("Detail").string(detail);
                });
            });
    });
}

fn upstream(json: &mut Json, row: &UpstreamStatus) {
    json.object(|json| {
        json.key("Name").string(&row.name);
        json.key("Bind").string(&row.bind);
        json.key("Endpoints")
            .list(&row.endpoints, |json, endpoint| json.string(endpoint));
    });
}
