//! `/v1/coordinate/*`.
//!
//! Owns: the coordinates' reads, and the reports of nodes that run no agent.
//! Never: learns a coordinate; the pool does.
//! Source: Consul HTTP API, "Coordinates"; CONSUL.md A.10.

use http::StatusCode;
use serde_json::Value;
use weft_catalog::acl::{Access, Resource};
use weft_proto::coordinate::{Coordinate, DIMENSIONS};
use weft_proto::json::{Json, Object};
use weft_proto::v1;

use super::blocking::{Found, ReadForm, read};
use super::call::Call;
use super::error::Failure;
use super::reply::Reply;

/// What Consul calls the pool of servers across datacenters.
const AREA: &str = "wan";

pub(super) async fn nodes(call: Call) -> Result<Reply, Failure> {
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.coordinates();
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let mut json = Json::with_capacity(answer.rows.len() * 256 + 2);
        let shown = answer
            .rows
            .iter()
            .filter(|row| call.guard.shows(Resource::Node, row.node.as_bytes()));
        json.list(shown, |json, row| write_row(json, row));
        Found::now(index, Reply::json(json.into_bytes()))
    })
    .await
}

pub(super) async fn node(call: Call) -> Result<Reply, Failure> {
    let name = call.tail()?;
    read(&call, ReadForm::PLAIN, |pass| {
        let answer = pass.reader.coordinate(&name);
        let index = answer.index.get();
        if !pass.wants(index) {
            return Found::later(index);
        }
        let row = answer
            .rows
            .filter(|row| call.guard.shows(Resource::Node, row.node.as_bytes()));
        let reply = match row {
            Some(row) => Reply::written(|json| json.array(|json| write_row(json, row))),
            None => Reply::empty().status(StatusCode::NOT_FOUND),
        };
        Found::now(index, reply)
    })
    .await
}

/// There is one datacenter: its servers, where they lie in it.
pub(super) async fn datacenters(call: Call) -> Result<Reply, Failure> {
    let deps = &call.api.deps;
    let state = deps.backend.state();
    let members = deps.membership.members();
    let servers = members.iter().filter(|member| {
        member.tags.get("role").is_some_and(|role| role == "consul")
            && call.guard.shows(Resource::Node, member.name.as_bytes())
    });
    Ok(Reply::written(|json| {
        json.array(|json| {
            json.object(|json| {
                json.key("Datacenter").string(&deps.info.datacenter);
                json.key("AreaID").string(AREA);
                json.key("Coordinates").list(servers, |json, member| {
                    let known = state
                        .coordinate(&member.name)
                        .and_then(|row| Coordinate::of_record(row));
                    write(json, &member.name, &known.unwrap_or_default());
                });
            });
        });
    }))
}

pub(super) async fn update(mut call: Call) -> Result<Reply, Failure> {
    let body = call.json().await?;
    let object = Object::root(&body)?;
    let datacenter = object.text("Datacenter")?;
    if !datacenter.is_empty() && !datacenter.eq_ignore_ascii_case(&call.api.deps.info.datacenter) {
        return Err(Failure::internal("dc.unknown", "No path to datacenter"));
    }
    let node = object.text("Node")?;
    if node.is_empty() {
        let text = "Must provide node";
        return Err(Failure::bad_request("coordinate.node", text));
    }
    if !object.text("Segment")?.is_empty() {
        let text = "Invalid segment: network segments are a Consul Enterprise feature";
        return Err(Failure::bad_request("scope.enterprise", text));
    }
    call.guard
        .require(Resource::Node, node.as_bytes(), Access::Write)?;
    let coordinate = parse(&object)?;
    let backend = &call.api.deps.backend;
    backend.report_coordinate(coordinate.record(&node))?;
    Ok(Reply::empty())
}

fn parse(object: &Object<'_>) -> Result<Coordinate, Failure> {
    let wrong = || {
        let text = format!(
            "incompatible coordinate: Coord needs a Vec of {DIMENSIONS} numbers, Error, Adjustment and Height"
        );
        Failure::bad_request("coordinate.incompatible", text)
    };
    let coord = object.object("Coord")?.ok_or_else(wrong)?;
    let number = |name: &str| coord.get(name).map_or(Some(0.0), Value::as_f64);
    let vector: Option<Vec<f64>> = coord.items("Vec")?.iter().map(Value::as_f64).collect();
    let vector = vector.and_then(|vector| vector.try_into().ok());
    let coordinate = Coordinate {
        vector: vector.ok_or_else(wrong)?,
        error: number("Error").ok_or_else(wrong)?,
        adjustment: number("Adjustment").ok_or_else(wrong)?,
        height: number("Height").ok_or_else(wrong)?,
    };
    if coordinate.is_sound() {
        Ok(coordinate)
    } else {
        Err(wrong())
    }
}

fn write_row(json: &mut Json, row: &v1::Coordinate) {
    // Written only by a newer version, if at all; it says nothing about the place.
    let coordinate = Coordinate::of_record(row).unwrap_or_default();
    write(json, &row.node, &coordinate);
}

fn write(json: &mut Json, node: &str, coordinate: &Coordinate) {
    json.object(|json| {
        json.key("Node").string(node);
        json.key("Segment").string("");
        write_coordinate(json.key("Coord"), coordinate);
    });
}

/// The numbers of a coordinate.
pub(super) fn write_coordinate(json: &mut Json, coordinate: &Coordinate) {
    json.object(|json| {
        json.key("Vec")
            .list(coordinate.vector, |json, number| json.raw(&text(number)));
        json.key("Error").raw(&text(coordinate.error));
        json.key("Adjustment").raw(&text(coordinate.adjustment));
        json.key("Height").raw(&text(coordinate.height));
    });
}

/// A finite number as Go's JSON has it: with an exponent only where it is far from one.
fn text(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        format!("{number:e}")
    } else {
        number.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_go_does() {
        for (number, expected) in [
            (0.0, "0"),
            (1.5, "1.5"),
            (0.00001, "0.00001"),
            (-0.25, "-0.25"),
            (1e-7, "1e-7"),
            (1e21, "1e21"),
        ] {
            assert_eq!(text(number), expected);
            let read: f64 = serde_json::from_str(&text(number)).unwrap();
            assert_eq!(read, number);
        }
    }
}
