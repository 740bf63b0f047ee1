//! A check in the form in which a user registers it.
//!
//! Owns: what is written to `data_dir`; [`super::check_parse`] reads it back to the same.
//! Never: shows it to anybody: it holds the token.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::check_definition::{CheckDefinition, CheckKind, Pace, TargetTls};
use super::status::Status;

/// The registration form of `check`. Keys are sorted.
pub(super) fn to_value(check: &CheckDefinition) -> Value {
    let mut value = json!({
        "CheckID": check.id,
        "Name": check.name,
        "Notes": check.notes,
        "ServiceID": check.service_id,
        "Token": check.token,
        "Status": check.status.map(Status::as_str),
        "SuccessBeforePassing": check.thresholds.success_before_passing,
        "FailuresBeforeWarning": check.thresholds.failures_before_warning,
        "FailuresBeforeCritical": check.thresholds.failures_before_critical,
        "OutputMaxSize": check.output_max_size,
        "DeregisterCriticalServiceAfter": check.deregister_critical_service_after.map(time),
    });
    extend(&mut value, kind(&check.kind));
    value
}

/// What the check runs, in a word: the same over restarts, another for another target.
pub(super) fn fingerprint(check: &CheckDefinition) -> String {
    let digest = Sha256::digest(kind(&check.kind).to_string());
    hex::encode(&digest[..8])
}

fn kind(kind: &CheckKind) -> Value {
    match kind {
        CheckKind::Ttl { ttl } => json!({"TTL": time(*ttl)}),
        CheckKind::Script(check) => with(json!({"Args": check.args}), check.pace, None),
        CheckKind::Http(check) => {
            let own = json!({
                "HTTP": check.url, "Method": check.method, "Header": check.header,
                "Body": check.body, "DisableRedirects": check.disable_redirects,
            });
            with(own, check.pace, Some(&check.tls))
        }
        CheckKind::Tcp(check) => {
            let own = json!({"TCP": check.address, "TCPUseTLS": check.use_tls});
            with(own, check.pace, Some(&check.tls))
        }
        CheckKind::Udp(check) => with(json!({"UDP": check.address}), check.pace, None),
        CheckKind::Grpc(check) => {
            let own = json!({"GRPC": check.target, "GRPCUseTLS": check.use_tls});
            with(own, check.pace, Some(&check.tls))
        }
        CheckKind::H2Ping(check) => {
            let own = json!({"H2PING": check.address, "H2PingUseTLS": check.use_tls});
            with(own, check.pace, Some(&check.tls))
        }
        CheckKind::Docker(check) => {
            let own = json!({
                "DockerContainerID": check.container, "Args": check.args, "Shell": check.shell,
            });
            with(own, check.pace, None)
        }
        CheckKind::OsService(check) => with(json!({"OSService": check.unit}), check.pace, None),
        CheckKind::Alias(check) => {
            json!({"AliasNode": check.node, "AliasService": check.service_id})
        }
        CheckKind::Maintenance => json!({}),
    }
}

fn with(mut value: Value, pace: Pace, tls: Option<&TargetTls>) -> Value {
    extend(
        &mut value,
        json!({"Interval": time(pace.interval), "Timeout": time(pace.timeout)}),
    );
    if let Some(tls) = tls {
        extend(
            &mut value,
            json!({"TLSServerName": tls.server_name, "TLSSkipVerify": tls.skip_verify}),
        );
    }
    value
}

fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(all), Value::Object(more)) = (value, more) {
        all.extend(more);
    }
}

fn time(duration: Duration) -> String {
    weft_proto::duration::format(duration)
}
