//! Keys whose part in Consul join tokens and metrics receivers have here.
//!
//! Owns: what `auto_config` and `auto_encrypt` mean for joining by token, and what is said where they mean nothing.

use super::values::Values;
use crate::config::problem::Code;
use crate::config::raw::{RawAutoConfig, RawAutoEncrypt, RawTelemetry};
use crate::config::runtime::TelemetryConfig;

const MAKE_TOKEN: &str = "make a join token for this node with: weft join-token create";

impl Values<'_> {
    /// `auto_config`: its token is a join token, its servers are those to join.
    pub(super) fn auto_config(
        &mut self,
        raw: RawAutoConfig,
        server: bool,
        (token, token_file): &mut (Option<String>, Option<String>),
        retry_join: &mut Vec<String>,
    ) {
        if raw
            .authorization
            .is_some_and(|one| one.enabled == Some(true))
        {
            let message = "auto_config.authorization: servers take join tokens here, no JWTs";
            let hint = "`weft init` lets servers give certificates for tokens; `weft join-token create` makes one";
            self.problem(
                Code::Advice,
                "auto_config.authorization",
                message,
                Some(hint),
            );
        }
        if raw.enabled != Some(true) {
            return;
        }
        if server {
            let message = "auto_config.enabled is for agents without the server role";
            self.problem(Code::Conflict, "auto_config.enabled", message, None);
            return;
        }
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (intro, intro_file) = (given(raw.intro_token), given(raw.intro_token_file));
        if intro.as_ref().is_some_and(|token| token.starts_with("eyJ")) {
            let message =
                "auto_config.intro_token is a JWT; servers of this version take join tokens only";
            self.problem(
                Code::NotYet,
                "auto_config.intro_token",
                message,
                Some(MAKE_TOKEN),
            );
            return;
        }
        if intro.is_none() && intro_file.is_none() && token.is_none() && token_file.is_none() {
            let message = "auto_config.enabled needs intro_token or intro_token_file";
            self.problem(
                Code::Conflict,
                "auto_config.enabled",
                message,
                Some(MAKE_TOKEN),
            );
            return;
        }
        if (intro.is_some() || intro_file.is_some()) && (token.is_some() || token_file.is_some()) {
            let message = "auto_config has a token, and so has join_token or join_token_file";
            self.problem(Code::Conflict, "auto_config", message, Some("keep one"));
            return;
        }
        if intro.is_some() || intro_file.is_some() {
            (*token, *token_file) = (intro, intro_file);
        }
        // The port is that of the servers' RPC; who joins by gossip uses its own.
        let host = |address: String| match address.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') && port.parse::<u16>().is_ok() => {
                host.to_owned()
            }
            _ => address,
        };
        let servers = raw.server_addresses.unwrap_or_default();
        retry_join.extend(servers.into_iter().map(host));
    }

    /// `auto_encrypt`: nothing by itself; what is lacking for the certificates it promises is said.
    pub(super) fn auto_encrypt(
        &mut self,
        raw: RawAutoEncrypt,
        server: bool,
        gives_certificates: bool,
        has_certificate: bool,
    ) {
        if raw.tls == Some(true) && server {
            let message = "auto_encrypt.tls is for agents without the server role";
            self.problem(Code::Conflict, "auto_encrypt.tls", message, None);
        }
        if raw.tls == Some(true) && !server && !has_certificate {
            let message = "auto_encrypt.tls: servers give no certificate without a join token; this agent uses the one it has been given, if any";
            self.problem(Code::Advice, "auto_encrypt.tls", message, Some(MAKE_TOKEN));
        }
        if raw.allow_tls == Some(true) && !server {
            let message = "auto_encrypt.allow_tls is for servers";
            self.problem(Code::Conflict, "auto_encrypt.allow_tls", message, None);
        }
        if raw.allow_tls == Some(true) && server && !gives_certificates {
            let message = "auto_encrypt.allow_tls: this server can give no certificates: join_tokens has no cert_file and key_file";
            self.problem(
                Code::Advice,
                "auto_encrypt.allow_tls",
                message,
                Some("`weft init` makes the two"),
            );
        }
    }

    pub(super) fn telemetry(&mut self, raw: RawTelemetry) -> TelemetryConfig {
        let mut filter = Vec::new();
        for rule in raw.prefix_filter.unwrap_or_default() {
            match rule.split_at_checked(1) {
                Some((sign @ ("+" | "-"), name)) if !name.is_empty() => {
                    filter.push((name.to_owned(), sign == "+"));
                }
                _ => {
                    let message =
                        format!("telemetry.prefix_filter {rule:?} must begin with \"+\" or \"-\"");
                    self.problem(Code::BadValue, "telemetry.prefix_filter", message, None);
                }
            }
        }
        let hidden = raw.disable_hostname == Some(true);
        let prefix = raw.metrics_prefix.filter(|prefix| !prefix.is_empty());
        TelemetryConfig {
            statsd: self.receiver("telemetry.statsd_address", raw.statsd_address, false),
            statsite: self.receiver("telemetry.statsite_address", raw.statsite_address, false),
            dogstatsd: self.receiver("telemetry.dogstatsd_addr", raw.dogstatsd_addr, true),
            dogstatsd_tags: raw.dogstatsd_tags.unwrap_or_default(),
            host: (!hidden).then(|| self.machine.host_name.clone()),
            prefix: prefix.unwrap_or_else(|| "consul".into()),
            filter,
            filter_default: raw.filter_default.unwrap_or(true),
        }
    }

    fn receiver(&mut self, key: &str, given: Option<String>, unix: bool) -> Option<String> {
        let address = given.filter(|address| !address.is_empty())?;
        let is_unix = unix && address.starts_with("unix:///");
        let port = address
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>());
        if !is_unix && !matches!(port, Some(Ok(1..))) {
            let message = format!("{key} {address:?} is not an address such as 127.0.0.1:8125");
            self.problem(Code::BadValue, key, message, None);
        }
        Some(address)
    }
}
