//! `/v1/agent/views`: what this agent keeps of the catalog to answer from.
//!
//! Owns: the form of the answer. Never: begins a view, or keeps one from ending.

use weft_proto::duration;
use weft_proto::json::Json;

use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use crate::views::{Listed, Unknown};

/// A server keeps none: it answers from its own state.
pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let views = call.api.deps.views.as_ref();
    let listed = views.map(|views| views.list()).unwrap_or_default();
    Ok(Reply::written(|json| json.list(&listed, write_view)))
}

fn write_view(json: &mut Json, view: &Listed) {
    let topic = view.topic.wire();
    json.object(|json| {
        json.key("Kind").string(view.topic.kind());
        json.key("Of").string(&topic.of);
        json.key("Name").string(&topic.name);
        json.key("State").string(view.standing.name());
        let age = view.age.map(duration::format).unwrap_or_default();
        json.key("Age").string(&age);
        json.key("Index").number(view.index);
        json.key("Bytes").number(view.bytes as u64);
        json.key("Unused").string(&duration::format(view.unused));
        let refused = view.refused.as_ref().map(Unknown::to_string);
        json.key("Refused").string(&refused.unwrap_or_default());
    });
}
