//! The checks that stand for maintenance.
//!
//! Owns: their ids, names and sentences (CONSUL.md B.7).
//! Never: decides who may set them.

use super::status::Status;
use super::table::{NODE_MAINTENANCE, SERVICE_MAINTENANCE};
use super::{CheckDefinition, CheckKind, Thresholds};

/// The check of the node when `service_id` is empty, else of that service.
pub(super) fn check(service_id: &str, reason: &str) -> CheckDefinition {
    let (name, what) = if service_id.is_empty() {
        ("Node Maintenance Mode", "node")
    } else {
        ("Service Maintenance Mode", "service")
    };
    let notes = if reason.is_empty() {
        format!(
            "Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message."
        )
    } else {
        reason.to_owned()
    };
    CheckDefinition {
        id: id(service_id),
        name: name.to_owned(),
        notes,
        service_id: service_id.to_owned(),
        token: String::new(),
        status: Some(Status::Critical),
        kind: CheckKind::Maintenance,
        thresholds: Thresholds::default(),
        output_max_size: None,
        deregister_critical_service_after: None,
    }
}

/// Id of the check that [`check`] makes.
pub(super) fn id(service_id: &str) -> String {
    if service_id.is_empty() {
        NODE_MAINTENANCE.to_owned()
    } else {
        format!("{SERVICE_MAINTENANCE}{service_id}")
    }
}
