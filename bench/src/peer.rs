//! The systems that are compared, and how each is spoken to.
//!
//! Owns: requests in each system's own API. Never: starts anything (see `cluster`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::http;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Weft,
    Consul,
    Etcd,
}

/// How a read may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Default,
    Stale,
    Consistent,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Default, Self::Stale, Self::Consistent];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Stale => "stale",
            Self::Consistent => "consistent",
        }
    }
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Consul => "consul",
            Self::Etcd => "etcd",
        }
    }

    /// Consul's API: weft and Consul.
    pub(crate) fn has_catalog(self) -> bool {
        self != Self::Etcd
    }

    pub(crate) fn client_port(self) -> u16 {
        if self == Self::Etcd { 2379 } else { 8500 }
    }

    /// A request that writes the value.
    pub(crate) fn put(self, out: &mut Vec<u8>, key: &str, value: &str) {
        match self {
            Self::Etcd => {
                let body = format!(
                    r#"{{"key":"{}","value":"{}"}}"#,
                    STANDARD.encode(key),
                    STANDARD.encode(value)
                );
                http::request(out, "POST", "/v3/kv/put", body.as_bytes());
            }
            Self::Weft | Self::Consul => {
                http::request(out, "PUT", &format!("/v1/kv/{key}"), value.as_bytes())
            }
        }
    }

    /// A request that reads the key. etcd has two modes: its default is the consistent one.
    pub(crate) fn get(self, out: &mut Vec<u8>, key: &str, mode: Mode) {
        match self {
            Self::Etcd => {
                let body = format!(
                    r#"{{"key":"{}","serializable":{}}}"#,
                    STANDARD.encode(key),
                    mode == Mode::Stale
                );
                http::request(out, "POST", "/v3/kv/range", body.as_bytes());
            }
            Self::Weft | Self::Consul => {
                let flag = match mode {
                    Mode::Default => "",
                    Mode::Stale => "?stale",
                    Mode::Consistent => "?consistent",
                };
                http::request(out, "GET", &format!("/v1/kv/{key}{flag}"), b"");
            }
        }
    }

    /// Whether an answer to [`Kind::get`] carries the value (etcd answers 200 for a missing key).
    pub(crate) fn carries(self, status: u16, body: &[u8], value: &str) -> bool {
        let encoded = STANDARD.encode(value);
        status == 200 && body.windows(encoded.len()).any(|w| w == encoded.as_bytes())
    }
}
