//! What a proxy's registration says, in types.
//!
//! Owns: [`ProxyRegistration`], read from Consul's `Proxy` object as it is stored.
//! Never: checks more than its shape; whoever registers does (`agent/src/local`).
//! Source: Consul docs, "Proxy service registration", "Upstream configuration".

use serde_json::{Map, Value};
use weft_proto::v1;

use super::CONNECT_PROXY;

/// Where applications are reached that say nothing of it.
const LOOPBACK: &str = "127.0.0.1";

/// A proxy, as registered.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyRegistration {
    /// The service it stands for.
    pub destination_name: String,
    /// The instance it stands for; empty: none in particular.
    pub destination_id: String,
    /// Where the application listens; port 0: it is not known.
    pub local: LocalSocket,
    /// Whom the application calls.
    pub upstreams: Vec<Upstream>,
    /// Opaque settings.
    pub config: Map<String, Value>,
    /// `transparent`, `direct` or empty.
    pub mode: String,
}

/// A socket of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalSocket {
    /// TCP.
    Tcp {
        /// An IP address, as written.
        address: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix {
        /// Its path.
        path: String,
        /// Permission bits, for who listens.
        mode: Option<u32>,
    },
}

/// A service that is called.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// The service.
    pub name: String,
    /// `service`, `prepared_query` or empty.
    pub destination_type: String,
    /// Empty: this one.
    pub datacenter: String,
    /// Where the application finds it.
    pub local_bind: LocalSocket,
    /// Opaque settings.
    pub config: Map<String, Value>,
}

/// A registration that says nothing a proxy could work by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// It is of another kind.
    #[error("kind {0:?} is no proxy of a service")]
    Kind(String),
    /// The stored object is none.
    #[error("its Proxy cannot be read: {0}")]
    Json(String),
    /// The service is not named.
    #[error("Proxy.DestinationServiceName is empty")]
    Destination,
    /// A number that can be no port.
    #[error("{0} is {1}, which is no port")]
    Port(&'static str, u64),
    /// No octal number.
    #[error("LocalBindSocketMode {0:?} is no octal number")]
    Mode(String),
}

impl ProxyRegistration {
    /// What `service` says.
    ///
    /// Errors: [`RegistrationError`]; nothing of it can be used then.
    pub fn of(service: &v1::Service) -> Result<Self, RegistrationError> {
        if service.kind != CONNECT_PROXY {
            return Err(RegistrationError::Kind(service.kind.clone()));
        }
        let proxy: Value = serde_json::from_str(&service.proxy_json)
            .map_err(|why| RegistrationError::Json(why.to_string()))?;
        let destination_name = text(&proxy, "DestinationServiceName");
        if destination_name.is_empty() {
            return Err(RegistrationError::Destination);
        }
        let path = text(&proxy, "LocalServiceSocketPath");
        let local = if path.is_empty() {
            LocalSocket::Tcp {
                address: or_loopback(text(&proxy, "LocalServiceAddress")),
                port: port(&proxy, "LocalServicePort")?,
            }
        } else {
            LocalSocket::Unix { path, mode: None }
        };
        let upstreams = proxy.get("Upstreams").and_then(Value::as_array);
        let upstreams = upstreams.into_iter().flatten().map(Upstream::of);
        Ok(Self {
            destination_name,
            destination_id: text(&proxy, "DestinationServiceID"),
            local,
            upstreams: upstreams.collect::<Result<_, _>>()?,
            config: map(&proxy, "Config"),
            mode: text(&proxy, "Mode"),
        })
    }
}

impl Upstream {
    fn of(value: &Value) -> Result<Self, RegistrationError> {
        let path = text(value, "LocalBindSocketPath");
        let local_bind = if path.is_empty() {
            LocalSocket::Tcp {
                address: or_loopback(text(value, "LocalBindAddress")),
                port: port(value, "LocalBindPort")?,
            }
        } else {
            let mode = text(value, "LocalBindSocketMode");
            let bits = u32::from_str_radix(&mode, 8);
            let mode = match bits {
                _ if mode.is_empty() => None,
                Ok(bits) if bits <= 0o7777 => Some(bits),
                _ => return Err(RegistrationError::Mode(mode)),
            };
            LocalSocket::Unix { path, mode }
        };
        Ok(Self {
            name: text(value, "DestinationName"),
            destination_type: text(value, "DestinationType"),
            datacenter: text(value, "Datacenter"),
            local_bind,
            config: map(value, "Config"),
        })
    }
}

fn text(value: &Value, name: &str) -> String {
    let found = value.get(name).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

fn map(value: &Value, name: &str) -> Map<String, Value> {
    let found = value.get(name).and_then(Value::as_object);
    found.cloned().unwrap_or_default()
}

fn or_loopback(address: String) -> String {
    match address.is_empty() {
        true => LOOPBACK.to_owned(),
        false => address,
    }
}

/// 0 when it is not there.
fn port(value: &Value, name: &'static str) -> Result<u16, RegistrationError> {
    let number = value.get(name).and_then(Value::as_u64).unwrap_or_default();
    u16::try_from(number).map_err(|_| RegistrationError::Port(name, number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(proxy: &Value) -> v1::Service {
        v1::Service {
            kind: CONNECT_PROXY.to_owned(),
            proxy_json: proxy.to_string(),
            ..v1::Service::default()
        }
    }

    #[test]
    fn what_is_left_out_has_consuls_defaults() {
        let proxy = json!({"DestinationServiceName": "web", "LocalServicePort": 80,
            "Upstreams": [{"DestinationName": "db", "LocalBindPort": 5432, "Config": {"connect_timeout_ms": 7}}]});
        let read = ProxyRegistration::of(&service(&proxy)).unwrap();
        let tcp = |port| LocalSocket::Tcp {
            address: LOOPBACK.to_owned(),
            port,
        };
        assert_eq!(
            (&read.local, &read.upstreams[0].local_bind),
            (&tcp(80), &tcp(5432))
        );
        assert_eq!(read.upstreams[0].config["connect_timeout_ms"], 7);
    }

    #[test]
    fn sockets_of_the_file_system_are_read() {
        let proxy = json!({"DestinationServiceName": "web", "LocalServiceSocketPath": "/run/web",
            "Upstreams": [{"DestinationName": "db", "LocalBindSocketPath": "/run/db", "LocalBindSocketMode": "0660"}]});
        let read = ProxyRegistration::of(&service(&proxy)).unwrap();
        let unix = |path: &str, mode| LocalSocket::Unix {
            path: path.to_owned(),
            mode,
        };
        assert_eq!(read.local, unix("/run/web", None));
        assert_eq!(read.upstreams[0].local_bind, unix("/run/db", Some(0o660)));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let refused = |proxy: Value| ProxyRegistration::of(&service(&proxy)).unwrap_err();
        assert_eq!(refused(json!({})), RegistrationError::Destination);
        let high = json!({"DestinationServiceName": "web", "LocalServicePort": 70_000});
        assert_eq!(
            refused(high),
            RegistrationError::Port("LocalServicePort", 70_000)
        );
        let mode = json!({"DestinationServiceName": "web", "Upstreams": [
            {"DestinationName": "db", "LocalBindSocketPath": "/run/db", "LocalBindSocketMode": "rw"}]});
        assert_eq!(refused(mode), RegistrationError::Mode("rw".to_owned()));
        let plain = v1::Service::default();
        assert_eq!(
            ProxyRegistration::of(&plain),
            Err(RegistrationError::Kind(String::new()))
        );
    }
}
