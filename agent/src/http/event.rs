//! `/v1/event/*`.
//!
//! Owns: firing user events, and listing those this agent heard, also once there is a newer one.
//! Never: carries or filters them; [`crate::events`] and the pool do.
//! Source: Consul HTTP API, "Event"; CONSUL.md A.7.

use http::header::HeaderValue;
use rand::RngExt as _;
use regex::Regex;
use weft_catalog::acl::Resource;
use weft_proto::json::Json;
use weft_proto::v1;

use super::blocking::INDEX;
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;
use crate::events::{Audience, Event, encode, pattern};

/// The version of the format that Consul's agents understand.
const FORMAT: u64 = 1;

pub(super) async fn fire(mut call: Call) -> Result<Reply, Failure> {
    let name = call.required_tail("Missing name")?;
    let text = |key: &str| call.query.get(key).unwrap_or_default().to_owned();
    let mut said = v1::UserEvent {
        name,
        node_filter: text("node"),
        service_filter: text("service"),
        tag_filter: text("tag"),
        ..Default::default()
    };
    Audience::of(&said)?;
    let max = call.api.limits().max_body_bytes;
    said.payload = call.body(max, "limits.http_max_request_body_size").await?;
    let random: [u8; 16] = call.api.rng.lock().random();
    let event = Event {
        id: uuid::Builder::from_random_bytes(random).into_uuid(),
        // Known only once it was heard; Consul answers 0 as well.
        time: 0,
        said,
    };
    let pool = &call.api.deps.membership;
    pool.fire(event.id.into_bytes(), encode(&event.said))
        .await?;
    Ok(Reply::written(|json| write(json, &event)))
}

pub(super) async fn list(call: Call) -> Result<Reply, Failure> {
    let options = call.options()?;
    let wanted = Wanted::parse(&call)?;
    let api = &call.api;
    let mut changed = api.deps.events.changed();
    if options.index == 0 {
        return Ok(wanted.look(&call).1);
    }
    let _slot = api.waiting.enter(&api.limits(), None)?;
    let deadline = tokio::time::sleep(api.wait_time(options.wait));
    tokio::pin!(deadline);
    loop {
        changed.mark_unchanged();
        let (index, reply) = wanted.look(&call);
        // Indexes follow no order, so another one is a newer one.
        if index != options.index {
            return Ok(reply);
        }
        tokio::select! {
            biased;
            news = changed.changed() => if news.is_err() { return Ok(reply) },
            () = &mut deadline => return Ok(reply),
            () = api.stopping.cancelled() => return Ok(reply),
        }
    }
}

/// Which events to list: of this name, and fired at those whom the patterns match.
struct Wanted {
    name: String,
    node: Option<Regex>,
    service: Option<Regex>,
    tag: Option<Regex>,
}

impl Wanted {
    fn parse(call: &Call) -> Result<Self, Failure> {
        let text = |key| call.query.get(key).unwrap_or_default();
        Ok(Self {
            name: text("name").to_owned(),
            node: pattern("node", text("node"))?,
            service: pattern("service", text("service"))?,
            tag: pattern("tag", text("tag"))?,
        })
    }

    fn takes(&self, event: &v1::UserEvent) -> bool {
        let fits = |pattern: &Option<Regex>, filter: &str| {
            pattern
                .as_ref()
                .is_none_or(|pattern| pattern.is_match(filter))
        };
        (self.name.is_empty() || self.name == event.name)
            && fits(&self.node, &event.node_filter)
            && fits(&self.service, &event.service_filter)
            && fits(&self.tag, &event.tag_filter)
    }

    /// The list as it stands, with its index.
    fn look(&self, call: &Call) -> (u64, Reply) {
        let mut events = call.api.deps.events.list();
        events.retain(|event| {
            self.takes(&event.said)
                && call
                    .guard
                    .shows(Resource::Event, event.said.name.as_bytes())
        });
        let index = events.last().map_or(1, Event::index);
        let reply = Reply::written(|json| json.list(&events, write));
        (index, reply.with(INDEX, HeaderValue::from(index)))
    }
}

fn write(json: &mut Json, event: &Event) {
    let Event { id, time, said } = event;
    json.object(|json| {
        json.key("ID").string(&id.to_string());
        json.key("Name").string(&said.name);
        if said.payload.is_empty() {
            json.key("Payload").null();
        } else {
            json.key("Payload").base64(&said.payload);
        }
        json.key("NodeFilter").string(&said.node_filter);
        json.key("ServiceFilter").string(&said.service_filter);
        json.key("TagFilter").string(&said.tag_filter);
        json.key("Version").number(FORMAT);
        json.key("LTime").number(*time);
    });
}
