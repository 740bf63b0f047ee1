//! The settings of the built-in CA, in Consul's form.
//!
//! Owns: reading `Config` of `PUT /v1/connect/ca/configuration`, its bounds, and the form in which it is kept and shown.
//! Never: keeps a private key: one that is given goes into the box with the root.
//! Source: Consul HTTP API, "Certificate authority - Connect"; CONSUL.md G.

use std::time::Duration;

use serde_json::{Map, Value};
use weft_proto::duration;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Shortest life of a leaf unless `UnsafeShortTTL` is set.
const LEAF_TTL_MIN: Duration = HOUR;
/// Shortest life of a leaf at all.
const LEAF_TTL_UNSAFE_MIN: Duration = Duration::from_secs(2);
/// Longest life of a leaf.
const LEAF_TTL_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Signatures a second.
const CSR_MAX_PER_SECOND: f64 = 50.0;
/// Settings the built-in CA has; the last two are accepted and have no effect in Consul either.
const KNOWN: [&str; 11] = [
    "LeafCertTTL",
    "IntermediateCertTTL",
    "RootCertTTL",
    "CSRMaxPerSecond",
    "CSRMaxConcurrent",
    "UnsafeShortTTL",
    "PrivateKeyType",
    "PrivateKeyBits",
    "PrivateKey",
    "RootCert",
    "RotationPeriod",
];

/// Why settings were refused. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct ConfigProblem {
    /// Stable id.
    pub(crate) reason: &'static str,
    text: String,
}

fn problem(reason: &'static str, text: impl Into<String>) -> ConfigProblem {
    ConfigProblem {
        reason,
        text: text.into(),
    }
}

/// The settings, read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CaConfig {
    pub(crate) leaf_ttl: Duration,
    pub(crate) root_ttl: Duration,
    pub(crate) csr_max_per_second: f64,
    /// 0: no such limit.
    pub(crate) csr_max_concurrent: u32,
    /// A root that an operator gave: certificate and key, PEM.
    pub(crate) given: Option<(String, weft_identity::Secret<String>)>,
    /// Without the key.
    pub(crate) shown: String,
}

impl CaConfig {
    /// Of nothing: Consul's defaults.
    pub(crate) fn defaults() -> Self {
        Self::parse(&Value::Object(Map::new())).expect("every setting has a default in bounds")
    }

    /// Of a stored row.
    pub(crate) fn stored(json: &str) -> Self {
        let value = serde_json::from_str(json).unwrap_or_default();
        // It was checked before it was stored; a newer version's may have settings that mean nothing here.
        Self::parse(&value).unwrap_or_else(|_| Self::defaults())
    }

    /// Of what an operator wrote: names in any case, with or without underscores.
    pub(crate) fn parse(value: &Value) -> Result<Self, ConfigProblem> {
        let given = fields(value)?;
        let span = |name: &str, default: &str| span(&given, name, default);
        let (leaf_ttl, leaf_text) = span("LeafCertTTL", "72h")?;
        let (middle_ttl, middle_text) = span("IntermediateCertTTL", "8760h")?;
        let (root_ttl, root_text) = span("RootCertTTL", "87600h")?;
        let is_unsafe = flag(&given, "UnsafeShortTTL")?;
        check_ttls(leaf_ttl, middle_ttl, root_ttl, is_unsafe)?;
        check_key_kind(&given)?;
        let csr_max_per_second = number(&given, "CSRMaxPerSecond")?.unwrap_or(CSR_MAX_PER_SECOND);
        let csr_max_concurrent = number(&given, "CSRMaxConcurrent")?.unwrap_or_default();
        if csr_max_per_second < 0.0 || !(0.0..=65_535.0).contains(&csr_max_concurrent) {
            return Err(problem(
                "ca.config.limit",
                "CSRMaxPerSecond and CSRMaxConcurrent must be 0 (no limit) or more",
            ));
        }
        let mut shown = given.clone();
        for (name, text) in [
            ("LeafCertTTL", leaf_text),
            ("IntermediateCertTTL", middle_text),
            ("RootCertTTL", root_text),
        ] {
            shown.insert(name.to_owned(), Value::String(text));
        }
        let text = |name: &str| match given.get(name) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        let root = match (text("RootCert"), text("PrivateKey")) {
            (Some(certificate), Some(key)) => Some((certificate, key.into())),
            (None, None) => None,
            // The certificate is shown with the settings, and comes back without the key.
            (Some(_), None) => None,
            (None, Some(_)) => {
                return Err(problem(
                    "ca.config.pair",
                    "PrivateKey needs RootCert beside it",
                ));
            }
        };
        shown.remove("PrivateKey");
        if root.is_none() {
            shown.remove("RootCert");
        }
        Ok(Self {
            leaf_ttl,
            root_ttl,
            csr_max_per_second,
            csr_max_concurrent: csr_max_concurrent as u32,
            given: root,
            shown: Value::Object(shown).to_string(),
        })
    }
}

/// The members by their own names.
fn fields(value: &Value) -> Result<Map<String, Value>, ConfigProblem> {
    let empty = Map::new();
    let members = match value {
        Value::Object(members) => members,
        Value::Null => &empty,
        _ => return Err(problem("ca.config.form", "Config must be an object")),
    };
    let fold = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let mut fields = Map::new();
    for (name, value) in members {
        let known = KNOWN.iter().find(|known| fold(known) == fold(name));
        let known = known.ok_or_else(|| {
            problem(
                "ca.config.unknown",
                format!(
                    "invalid config key {name:?}: the built-in CA has {}",
                    KNOWN.join(", ")
                ),
            )
        })?;
        if !value.is_null() {
            fields.insert((*known).to_owned(), value.clone());
        }
    }
    Ok(fields)
}

fn span(
    given: &Map<String, Value>,
    name: &str,
    default: &str,
) -> Result<(Duration, String), ConfigProblem> {
    let text = match given.get(name) {
        None => default.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(nanos)) => {
            let nanos = nanos
                .as_u64()
                .ok_or_else(|| problem("ca.config.ttl", format!("{name} is not a duration")))?;
            duration::format(Duration::from_nanos(nanos))
        }
        Some(_) => {
            return Err(problem(
                "ca.config.ttl",
                format!("{name} is not a duration"),
            ));
        }
    };
    let span =
        duration::parse(&text).map_err(|why| problem("ca.config.ttl", format!("{name}: {why}")))?;
    Ok((span, text))
}

fn flag(given: &Map<String, Value>, name: &str) -> Result<bool, ConfigProblem> {
    match given.get(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(problem(
            "ca.config.form",
            format!("{name} must be true or false"),
        )),
    }
}

fn number(given: &Map<String, Value>, name: &str) -> Result<Option<f64>, ConfigProblem> {
    match given.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(_) => Err(problem(
            "ca.config.form",
            format!("{name} must be a number"),
        )),
    }
}

fn check_ttls(
    leaf: Duration,
    middle: Duration,
    root: Duration,
    is_unsafe: bool,
) -> Result<(), ConfigProblem> {
    let least = if is_unsafe {
        LEAF_TTL_UNSAFE_MIN
    } else {
        LEAF_TTL_MIN
    };
    if leaf < least {
        return Err(problem(
            "ca.config.leaf_ttl",
            format!(
                "leaf cert TTL must be greater or equal than {}; UnsafeShortTTL = true allows {} and more, for tests",
                duration::format(least),
                duration::format(LEAF_TTL_UNSAFE_MIN)
            ),
        ));
    }
    if leaf > LEAF_TTL_MAX {
        return Err(problem(
            "ca.config.leaf_ttl",
            format!(
                "leaf cert TTL must be less than {}",
                duration::format(LEAF_TTL_MAX)
            ),
        ));
    }
    if middle < leaf * 3 {
        return Err(problem(
            "ca.config.intermediate_ttl",
            format!(
                "Intermediate Cert TTL must be greater or equal than 3 * LeafCertTTL (>={})",
                duration::format(leaf * 3)
            ),
        ));
    }
    let bounds = (leaf * 6)..=weft_identity::ca::ROOT_LIFE_MAX;
    if !bounds.contains(&root) || (!is_unsafe && root < DAY) {
        return Err(problem(
            "ca.config.root_ttl",
            format!(
                "RootCertTTL must be between six times LeafCertTTL ({}) and 100 years",
                duration::format(leaf * 6)
            ),
        ));
    }
    Ok(())
}

fn check_key_kind(given: &Map<String, Value>) -> Result<(), ConfigProblem> {
    let kind = given
        .get("PrivateKeyType")
        .is_none_or(|kind| kind.as_str() == Some("ec"));
    let bits = given
        .get("PrivateKeyBits")
        .is_none_or(|bits| bits.as_u64() == Some(256));
    if kind && bits {
        return Ok(());
    }
    Err(problem(
        "ca.config.key_type",
        "PrivateKeyType must be \"ec\" and PrivateKeyBits 256: weft's CA makes ECDSA P-256 keys only",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_in_any_spelling_and_kept_without_keys() {
        let config = CaConfig::defaults();
        assert_eq!(
            (config.leaf_ttl, config.csr_max_per_second),
            (72 * HOUR, 50.0)
        );
        assert_eq!(
            config.shown,
            r#"{"IntermediateCertTTL":"8760h","LeafCertTTL":"72h","RootCertTTL":"87600h"}"#
        );
        let value = serde_json::json!({"leaf_cert_ttl":"2h","csrMaxConcurrent":2,"PrivateKey":"key","RootCert":"cert","RotationPeriod":"2160h"});
        let config = CaConfig::parse(&value).unwrap();
        assert_eq!((config.leaf_ttl, config.csr_max_concurrent), (2 * HOUR, 2));
        assert!(
            config.given.is_some()
                && !config.shown.contains("PrivateKey")
                && config.shown.contains("2160h")
        );
        let again = CaConfig::stored(&config.shown);
        assert_eq!((again.leaf_ttl, &again.given), (2 * HOUR, &None));
    }

    #[test]
    fn what_is_out_of_bounds_says_which_and_why() {
        for (json, reason) in [
            (r#"{"LeafCertTTL":"30m"}"#, "ca.config.leaf_ttl"),
            (
                r#"{"LeafCertTTL":"1s","UnsafeShortTTL":true}"#,
                "ca.config.leaf_ttl",
            ),
            (r#"{"LeafCertTTL":"9000h"}"#, "ca.config.leaf_ttl"),
            (r#"{"LeafCertTTL":"soon"}"#, "ca.config.ttl"),
            (r#"{"LeafCertTTL":true}"#, "ca.config.ttl"),
            (
                r#"{"IntermediateCertTTL":"100h"}"#,
                "ca.config.intermediate_ttl",
            ),
            (r#"{"RootCertTTL":"100h"}"#, "ca.config.root_ttl"),
            (r#"{"RootCertTTL":"900000h"}"#, "ca.config.root_ttl"),
            (r#"{"PrivateKeyType":"rsa"}"#, "ca.config.key_type"),
            (r#"{"PrivateKeyBits":4096}"#, "ca.config.key_type"),
            (r#"{"PrivateKey":"x"}"#, "ca.config.pair"),
            (r#"{"CSRMaxPerSecond":-1}"#, "ca.config.limit"),
            (r#"{"CSRMaxPerSecond":"x"}"#, "ca.config.form"),
            (r#"{"UnsafeShortTTL":"x"}"#, "ca.config.form"),
            (r#"{"Vault":1}"#, "ca.config.unknown"),
            ("[]", "ca.config.form"),
        ] {
            let value = serde_json::from_str(json).unwrap();
            assert_eq!(
                CaConfig::parse(&value).unwrap_err().reason,
                reason,
                "{json}"
            );
        }
        let short = r#"{"LeafCertTTL":"6s","IntermediateCertTTL":"1h","RootCertTTL":"1h","UnsafeShortTTL":true}"#;
        assert!(CaConfig::parse(&serde_json::from_str(short).unwrap()).is_ok());
    }
}
