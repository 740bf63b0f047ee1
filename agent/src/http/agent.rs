//! `/v1/agent/*` about the agent itself.
//!
//! Owns: self, version, members, join and leave, reload, node maintenance.
//! Never: does any of it; the seams do.
//! Source: Consul HTTP API, "Agent"; CONSUL.md A.1.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_catalog::acl::Resource;
use weft_catalog::filter::{Kind, Selectable, Value};
use weft_proto::duration;
use weft_proto::json::Json;

use super::call::Call;
use super::config::AgentInfo;
use super::coordinate::write_coordinate;
use super::error::Failure;
use super::reply::Reply;
use super::rows::Selection;
use crate::backend::{Insight, Member};

/// What a node without measurements says of its place in the network.
const NO_COORDINATE: &str =
    r#"{"Adjustment":0,"Error":1.5,"Height":0.00001,"Vec":[0,0,0,0,0,0,0,0]}"#;

pub(super) async fn about(call: Call) -> Result<Reply, Failure> {
    let deps = &call.api.deps;
    let info = &deps.info;
    let mut stats = deps.operator.stats();
    let counts = deps.local.counts();
    let agent = stats.entry("agent".to_owned()).or_default();
    agent.insert("checks".to_owned(), counts.checks.to_string());
    agent.insert("services".to_owned(), counts.services.to_string());
    stats
        .entry("consul".to_owned())
        .or_default()
        .insert("server".to_owned(), info.server.to_string());
    let member = deps.membership.local();
    Ok(Reply::written(|json| {
        json.object(|json| {
            write_config(json.key("Config"), info);
            if info.debug_config.is_null() {
                json.key("DebugConfig").object(|_| {});
            } else {
                json.key("DebugConfig").value(&info.debug_config);
            }
            match deps.membership.coordinate() {
                Some(coordinate) => write_coordinate(json.key("Coord"), &coordinate),
                None => json.key("Coord").raw(NO_COORDINATE),
            }
            write_member(json.key("Member"), &member);
            write_stats(json.key("Stats"), &stats);
            json.key("Meta").string_map(&info.meta);
            json.key("xDS").object(|json| {
                json.key("SupportedProxies").object(|_| {});
                json.key("Ports").object(|json| {
                    json.key("Plaintext").raw(&info.grpc_port.to_string());
                    json.key("TLS").raw(&info.grpc_tls_port.to_string());
                });
            });
        });
    }))
}

fn write_config(json: &mut Json, info: &AgentInfo) {
    json.object(|json| {
        json.key("Datacenter").string(&info.datacenter);
        json.key("PrimaryDatacenter")
            .string(&info.primary_datacenter);
        json.key("NodeName").string(&info.node_name);
        json.key("NodeID").string(&info.node_id);
        json.key("Server").boolean(info.server);
        json.key("Revision").string(&info.revision);
        json.key("Version").string(&info.version);
        json.key("BuildDate").string(&info.build_date);
    });
}

fn write_stats(json: &mut Json, stats: &BTreeMap<String, BTreeMap<String, String>>) {
    json.object(|json| {
        for (section, values) in stats {
            json.dynamic_key(section).string_map(values);
        }
    });
}

/// The protocol numbers are those of the gossip generation that Consul 1.x speaks.
fn write_member(json: &mut Json, member: &Member) {
    json.object(|json| write_fields(json, member));
}

fn write_fields(json: &mut Json, member: &Member) {
    json.key("Name").string(&member.name);
    json.key("Addr").string(&member.address.ip().to_string());
    json.key("Port").number(member.address.port().into());
    json.key("Tags").string_map(&member.tags);
    json.key("Status").number(member.status as u64);
    for (name, version) in [
        ("ProtocolMin", 1),
        ("ProtocolMax", 5),
        ("ProtocolCur", 2),
        ("DelegateMin", 2),
        ("DelegateMax", 5),
        ("DelegateCur", 4),
    ] {
        json.key(name).number(version);
    }
}

fn write_insight(json: &mut Json, insight: &Insight) {
    let text = |of: Duration| duration::format(Duration::from_millis(of.as_millis() as u64));
    json.object(|json| {
        json.key("Since").string(&text(insight.since));
        json.key("Incarnation").number(insight.incarnation);
        json.key("Refutations").number(insight.refutations.into());
        json.key("Suspected").boolean(insight.suspected);
        json.key("AccusedBy")
            .list(&insight.accusers, |json, (name, ago)| {
                json.object(|json| {
                    json.key("Node").string(name);
                    json.key("Ago").string(&text(*ago));
                });
            });
        if let Some(fails_in) = insight.fails_in {
            json.key("FailsIn").string(&text(fails_in));
        }
        if let Some((ago, took)) = insight.probed {
            json.key("ProbedAgo").string(&text(ago));
            json.key("Answered").boolean(took.is_some());
            if let Some(took) = took {
                json.key("RTT").string(&duration::format(took));
            }
        }
        if let Some(ahead) = insight.clock_ahead_millis {
            let sign = if ahead < 0 { "-" } else { "" };
            let size = duration::format(Duration::from_millis(ahead.unsigned_abs()));
            json.key("ClockAhead").string(&format!("{sign}{size}"));
        }
        json.key("Rivals").list(&insight.rivals, |json, at| {
            json.string(&at.to_string());
        });
    });
}

pub(super) async fn version(call: Call) -> Result<Reply, Failure> {
    let info = &call.api.deps.info;
    Ok(Reply::written(|json| {
        json.object(|json| {
            json.key("SHA").string(&info.revision);
            json.key("BuildDate").string(&info.build_date);
            json.key("HumanVersion").string(&info.version);
            json.key("FIPS").string("");
        });
    }))
}

pub(super) async fn members(call: Call) -> Result<Reply, Failure> {
    let selection = Selection::parse::<MemberRow<'_>>(&call)?;
    if !matches!(call.query.get("segment"), None | Some("" | "_all")) {
        let text = "Network segments are not supported in this version of Consul";
        return Err(Failure::bad_request("scope.enterprise", text));
    }
    // There is no pool across datacenters, so nobody is in it.
    let members = if wide(&call) {
        Vec::new()
    } else {
        call.api.deps.membership.members()
    };
    let shown = members.iter().filter(|member| {
        selection.keeps(&MemberRow(member))
            && call.guard.shows(Resource::Node, member.name.as_bytes())
    });
    if !call.query.has("why") {
        return Ok(Reply::written(|json| json.list(shown, write_member)));
    }
    let insights = call.api.deps.membership.why().await;
    let shown = shown.map(|member| {
        let of = insights.iter().find(|insight| insight.name == member.name);
        (member, of)
    });
    Ok(Reply::written(|json| {
        json.list(shown, |json, (member, insight)| {
            json.object(|json| {
                write_fields(json, member);
                if let Some(insight) = insight {
                    json.key("Why");
                    write_insight(json, insight);
                }
            });
        });
    }))
}

/// A member as `filter` sees it.
struct MemberRow<'a>(&'a Member);

impl Selectable for MemberRow<'_> {
    fn kind(selector: &[&str]) -> Option<Kind> {
        match selector {
            ["Name" | "Addr"] | ["Tags", _] => Some(Kind::Text),
            ["Port" | "Status"] => Some(Kind::Number),
            ["Tags"] => Some(Kind::Map),
            _ => None,
        }
    }

    fn any(&self, selector: &[&str], test: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
        match selector {
            ["Name"] => test(Value::Text(&self.0.name)),
            ["Addr"] => test(Value::Text(&self.0.address.ip().to_string())),
            ["Port"] => test(Value::Number(self.0.address.port().into())),
            ["Status"] => test(Value::Number(self.0.status as i64)),
            ["Tags"] => test(Value::Map(&self.0.tags)),
            ["Tags", name] => test(
                self.0
                    .tags
                    .get(*name)
                    .map_or(Value::Missing, |tag| Value::Text(tag)),
            ),
            _ => false,
        }
    }
}

fn wide(call: &Call) -> bool {
    call.query
        .get("wan")
        .is_some_and(|value| !value.is_empty() && value != "0")
}

pub(super) async fn join(call: Call) -> Result<Reply, Failure> {
    let address = call.required_tail("Missing address")?;
    if wide(&call) {
        let text = "cannot join: this agent has no pool across datacenters";
        return Err(Failure::internal("agent.wan", text));
    }
    let joined = call.api.deps.membership.join(vec![address]).await;
    joined.map_err(|text| Failure::internal("agent.join", text))?;
    Ok(Reply::empty())
}

pub(super) async fn leave(call: Call) -> Result<Reply, Failure> {
    call.api
        .deps
        .control
        .leave()
        .await
        .map_err(|text| Failure::internal("agent.leave", text))?;
    Ok(Reply::empty())
}

pub(super) async fn force_leave(call: Call) -> Result<Reply, Failure> {
    let node = call.required_tail("Missing node name")?;
    let prune = call.query.has("prune");
    let left = call.api.deps.membership.force_leave(&node, prune).await;
    left.map_err(|text| Failure::internal("agent.force_leave", text))?;
    Ok(Reply::empty())
}

pub(super) async fn reload(call: Call) -> Result<Reply, Failure> {
    call.api
        .deps
        .control
        .reload()
        .await
        .map_err(|text| Failure::internal("agent.reload", text))?;
    Ok(Reply::empty())
}

pub(super) async fn maintenance(call: Call) -> Result<Reply, Failure> {
    let local = &call.api.deps.local;
    if call.enable()? {
        local
            .enable_node_maintenance(call.query.get("reason").unwrap_or_default())
            .await?;
    } else {
        local.disable_node_maintenance().await?;
    }
    Ok(Reply::empty())
}
