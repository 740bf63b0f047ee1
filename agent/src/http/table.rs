//! Every route of the API.
//!
//! Owns: [`TABLE`]: path, method, what it authorizes, its parameters, and where it is documented.
//! Never: does anything; each line names a handler.

use http::Method;
use weft_catalog::acl::{Access, Resource};

use super::route::{Handler, Need, Route};
use super::{
    agent, agent_check, agent_service, autopilot, catalog, config_entry, connect_ca, coordinate,
    event, health, host, intention, internal_ui, join_token, keyring, kv, monitor, openapi,
    operator, prepared_query, proxies, session, snapshot, status, telemetry, txn, views,
};

/// A handler as the table holds it.
macro_rules! to {
    ($($handler:tt)+) => {{
        const HANDLER: Handler = |call| Box::pin($($handler)+(call));
        HANDLER
    }};
}

const fn route(
    method: &'static Method,
    path: &'static str,
    need: Need,
    parameters: &'static [&'static str],
    handler: Handler,
    summary: &'static str,
    source: &'static str,
) -> Route {
    Route {
        method,
        path,
        need,
        parameters,
        summary,
        source,
        handler,
    }
}

const GET: &Method = &Method::GET;
const PUT: &Method = &Method::PUT;
const POST: &Method = &Method::POST;
const DELETE: &Method = &Method::DELETE;

/// Consul's own UI asks for these; no page describes them.
const INTERNAL: &str = "api-docs";
const NONE: &[&str] = &[];
const CONSISTENCY: &[&str] = &["stale", "consistent", "max_stale"];
const READ: &[&str] = &[
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
];
const DISCOVERY: &[&str] = &[
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
    "near",
    "node-meta",
    "filter",
    "peer",
];
const CACHED: &[&str] = &[
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
    "cached",
    "near",
    "node-meta",
    "filter",
    "peer",
];
const INSTANCES: &[&str] = &[
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
    "cached",
    "near",
    "node-meta",
    "filter",
    "peer",
    "tag",
    "passing",
    "merge-central-config",
];

const NODE_SERVICES: &[&str] = &[
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
    "near",
    "node-meta",
    "filter",
    "peer",
    "merge-central-config",
];
const FILTERED: &[&str] = &[
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
    "filter",
];

const ROOTS: &[&str] = &[
    "index",
    "wait",
    "stale",
    "consistent",
    "leader",
    "max_stale",
    "pem",
];
const INTENTION_EXACT: &[&str] = &[
    "source",
    "destination",
    "index",
    "wait",
    "stale",
    "consistent",
];
const INTENTION_MATCH: &[&str] = &["by", "name", "index", "wait", "stale", "consistent"];
const INTENTION_CHECK: &[&str] = &[
    "source",
    "destination",
    "source-type",
    "index",
    "wait",
    "stale",
    "consistent",
];
const INTENTIONS_SEEN: Need = Need::Rows(&[(Resource::Intention, Access::Read)]);
const INTENTION_WRITE: Need = Need::Named(&[(Resource::Intention, Access::Write)]);

const NODES_SEEN: Need = Need::Rows(&[(Resource::Node, Access::Read)]);
const SERVICES_SEEN: Need = Need::Rows(&[(Resource::Service, Access::Read)]);
const INSTANCES_SEEN: Need = Need::Rows(&[
    (Resource::Service, Access::Read),
    (Resource::Node, Access::Read),
]);
const SESSIONS_SEEN: Need = Need::Rows(&[(Resource::Session, Access::Read)]);
const QUERY_WRITE: Need = Need::Named(&[(Resource::Query, Access::Write)]);
const QUERIES_SEEN: Need = Need::Rows(&[
    (Resource::Query, Access::Read),
    (Resource::Acl, Access::Write),
    (Resource::Service, Access::Read),
    (Resource::Node, Access::Read),
]);
const SESSION_WRITE: Need = Need::Named(&[(Resource::Session, Access::Write)]);
const CATALOG_WRITE: Need = Need::Named(&[
    (Resource::Node, Access::Write),
    (Resource::Service, Access::Write),
]);
const SERVICE_WRITE: Need = Need::Named(&[(Resource::Service, Access::Write)]);
const SERVICE_READ: Need = Need::Named(&[(Resource::Service, Access::Read)]);
const AGENT_READ: Need = Need::Fixed(Resource::Agent, Access::Read);
const AGENT_WRITE: Need = Need::Fixed(Resource::Agent, Access::Write);
const OPERATOR_READ: Need = Need::Fixed(Resource::Operator, Access::Read);
const OPERATOR_WRITE: Need = Need::Fixed(Resource::Operator, Access::Write);
const KEYRING_READ: Need = Need::Fixed(Resource::Keyring, Access::Read);
const KEYRING_WRITE: Need = Need::Fixed(Resource::Keyring, Access::Write);
const STATUS: Need =
    Need::Public("who leads is no secret, and clients ask before they have a token");
const CONFIG_SEEN: Need = Need::Rows(&[
    (Resource::Service, Access::Read),
    (Resource::Intention, Access::Read),
    (Resource::Mesh, Access::Read),
]);
const CONFIG_WRITE: Need = Need::Named(&[
    (Resource::Service, Access::Write),
    (Resource::Intention, Access::Write),
    (Resource::Mesh, Access::Write),
]);
const TXN: Need = Need::Named(&[
    (Resource::Key, Access::Read),
    (Resource::Key, Access::Write),
    (Resource::KeyPrefix, Access::Read),
    (Resource::KeyPrefix, Access::Write),
    (Resource::Node, Access::Read),
    (Resource::Node, Access::Write),
    (Resource::Service, Access::Read),
    (Resource::Service, Access::Write),
    (Resource::Session, Access::Write),
]);

/// Every route.
#[rustfmt::skip]
pub(super) static TABLE: &[Route] = &[
    // Keys
    route(GET, "/v1/kv/", Need::Rows(&[(Resource::Key, Access::Read)]),
        &["index", "wait", "stale", "consistent", "leader", "max_stale", "recurse", "keys", "separator", "seperator", "raw"],
        to!(kv::get), "Reads a key, the keys under a prefix, or their names.", "api-docs/kv#read-key"),
    route(PUT, "/v1/kv/", Need::Tail(Resource::Key, Access::Write), &["flags", "cas", "acquire", "release"],
        to!(kv::put), "Writes a key, if need be only when it has not changed, or with a lock.", "api-docs/kv#create-update-key"),
    route(DELETE, "/v1/kv/", Need::Named(&[(Resource::Key, Access::Write), (Resource::KeyPrefix, Access::Write)]), &["recurse", "cas"],
        to!(kv::delete), "Deletes a key or every key under a prefix.", "api-docs/kv#delete-key"),
    // Sessions
    route(PUT, "/v1/session/create", SESSION_WRITE, NONE, to!(session::create),
        "Makes a session, which can hold locks.", "api-docs/session#create-session"),
    route(PUT, "/v1/session/destroy/", SESSION_WRITE, NONE, to!(session::destroy),
        "Ends a session.", "api-docs/session#delete-session"),
    route(PUT, "/v1/session/renew/", SESSION_WRITE, NONE, to!(session::renew),
        "Starts a session's TTL anew.", "api-docs/session#renew-session"),
    route(GET, "/v1/session/info/", SESSIONS_SEEN, READ, to!(session::info),
        "Shows one session.", "api-docs/session#read-session"),
    route(GET, "/v1/session/node/", SESSIONS_SEEN, READ, to!(session::of_node),
        "Lists a node's sessions.", "api-docs/session#list-sessions-for-node"),
    route(GET, "/v1/session/list", SESSIONS_SEEN, READ, to!(session::list),
        "Lists all sessions.", "api-docs/session#list-sessions"),
    // Transactions
    route(PUT, "/v1/txn", TXN, CONSISTENCY, to!(txn::put),
        "Runs up to 128 operations, all or none.", "api-docs/txn#create-transaction"),
    // Status
    route(GET, "/v1/status/leader", STATUS, NONE, to!(status::leader),
        "Names the leader's address.", "api-docs/status#get-raft-leader"),
    route(GET, "/v1/status/peers", STATUS, NONE, to!(status::peers),
        "Lists the addresses of the Raft peers.", "api-docs/status#list-raft-peers"),
    // The agent
    route(GET, "/v1/agent/self", AGENT_READ, NONE, to!(agent::about),
        "Shows this agent's facts and statistics.", "api-docs/agent#read-configuration"),
    route(GET, "/v1/agent/version", Need::Public("load balancers and scripts ask for it without a token"), NONE, to!(agent::version),
        "Shows this agent's version.", "api-docs/agent"),
    route(GET, "/v1/agent/members", NODES_SEEN, &["wan", "segment", "filter", "why"], to!(agent::members),
        "Lists the gossip members this agent knows.", "api-docs/agent#list-members"),
    route(GET, "/v1/agent/host", OPERATOR_READ, NONE, to!(host::show),
        "Shows the machine's memory, processors, system and disk.", "api-docs/agent#retrieve-host-information"),
    route(GET, "/v1/agent/views", OPERATOR_READ, NONE, to!(views::list),
        "Lists what this agent keeps of the catalog to answer from: state, age, index and bytes of each view.", "weft"),
    route(PUT, "/v1/agent/join/", AGENT_WRITE, &["wan"], to!(agent::join),
        "Joins the cluster of another agent.", "api-docs/agent#join-agent"),
    route(PUT, "/v1/agent/leave", AGENT_WRITE, NONE, to!(agent::leave),
        "Leaves the cluster and ends this agent.", "api-docs/agent#graceful-leave-and-shutdown"),
    route(PUT, "/v1/agent/force-leave/", OPERATOR_WRITE, &["prune", "wan"], to!(agent::force_leave),
        "Declares a failed node as left.", "api-docs/agent#force-leave-and-shutdown"),
    route(PUT, "/v1/agent/reload", AGENT_WRITE, NONE, to!(agent::reload),
        "Reads the configuration again.", "api-docs/agent#reload-agent"),
    route(PUT, "/v1/agent/maintenance", Need::Fixed(Resource::Node, Access::Write), &["enable", "reason"], to!(agent::maintenance),
        "Takes this node out of discovery, or puts it back.", "api-docs/agent#enable-maintenance-mode"),
    route(GET, "/v1/agent/monitor", AGENT_READ, &["loglevel", "logjson"], to!(monitor::stream),
        "Streams the log as it is written.", "api-docs/agent#stream-logs"),
    route(GET, "/v1/agent/metrics", AGENT_READ, &["format"], to!(telemetry::metrics),
        "Shows this agent's metrics as JSON or for Prometheus.", "api-docs/agent#view-metrics"),
    // Services of this agent
    route(GET, "/v1/agent/services", SERVICES_SEEN, &["filter"], to!(agent_service::list),
        "Lists the services registered at this agent.", "api-docs/agent/service#list-services"),
    route(GET, "/v1/agent/service/", SERVICE_READ, &["hash", "wait"], to!(agent_service::get),
        "Shows one service registered at this agent, if need be once it has changed.", "api-docs/agent/service#get-service-configuration"),
    route(PUT, "/v1/agent/service/register", SERVICE_WRITE, &["replace-existing-checks"], to!(agent_service::register),
        "Registers a service at this agent.", "api-docs/agent/service#register-service"),
    route(PUT, "/v1/agent/service/deregister/", SERVICE_WRITE, NONE, to!(agent_service::deregister),
        "Removes a service from this agent.", "api-docs/agent/service#deregister-service"),
    route(PUT, "/v1/agent/service/maintenance/", SERVICE_WRITE, &["enable", "reason"], to!(agent_service::maintenance),
        "Takes a service out of discovery, or puts it back.", "api-docs/agent/service#enable-maintenance-mode"),
    route(GET, "/v1/agent/health/service/name/", SERVICE_READ, &["format"], to!(agent_service::health_by_name),
        "Shows the health of a service's instances here, also as the status code.", "api-docs/agent/service#get-local-service-health"),
    route(GET, "/v1/agent/health/service/id/", SERVICE_READ, &["format"], to!(agent_service::health_by_id),
        "Shows the health of one instance here, also as the status code.", "api-docs/agent/service#get-local-service-health-by-id"),
    // Checks of this agent
    route(GET, "/v1/agent/checks", INSTANCES_SEEN, &["filter"], to!(agent_check::list),
        "Lists the checks registered at this agent.", "api-docs/agent/check#list-checks"),
    route(PUT, "/v1/agent/check/register", CATALOG_WRITE, NONE, to!(agent_check::register),
        "Registers a check at this agent.", "api-docs/agent/check#register-check"),
    route(PUT, "/v1/agent/check/deregister/", CATALOG_WRITE, NONE, to!(agent_check::deregister),
        "Removes a check from this agent.", "api-docs/agent/check#deregister-check"),
    route(PUT, "/v1/agent/check/pass/", CATALOG_WRITE, &["note"], to!(agent_check::pass),
        "Reports a TTL check as passing.", "api-docs/agent/check#ttl-check-pass"),
    route(PUT, "/v1/agent/check/warn/", CATALOG_WRITE, &["note"], to!(agent_check::warn),
        "Reports a TTL check as warning.", "api-docs/agent/check#ttl-check-warn"),
    route(PUT, "/v1/agent/check/fail/", CATALOG_WRITE, &["note"], to!(agent_check::fail),
        "Reports a TTL check as critical.", "api-docs/agent/check#ttl-check-fail"),
    route(PUT, "/v1/agent/check/update/", CATALOG_WRITE, NONE, to!(agent_check::update),
        "Reports a TTL check with status and output.", "api-docs/agent/check#ttl-check-update"),
    // The catalog
    route(PUT, "/v1/catalog/register", CATALOG_WRITE, NONE, to!(catalog::register),
        "Writes a node, a service and checks into the catalog.", "api-docs/catalog#register-entity"),
    route(PUT, "/v1/catalog/deregister", CATALOG_WRITE, NONE, to!(catalog::deregister),
        "Removes a node, a service or a check from the catalog.", "api-docs/catalog#deregister-entity"),
    route(GET, "/v1/catalog/datacenters", STATUS, &["cached"], to!(catalog::datacenters),
        "Lists the datacenters known.", "api-docs/catalog#list-datacenters"),
    route(GET, "/v1/catalog/nodes", NODES_SEEN, DISCOVERY, to!(catalog::nodes),
        "Lists the nodes.", "api-docs/catalog#list-nodes"),
    route(GET, "/v1/catalog/services", SERVICES_SEEN, CACHED, to!(catalog::services),
        "Lists the names of services with their tags.", "api-docs/catalog#list-services"),
    route(GET, "/v1/catalog/service/", INSTANCES_SEEN, INSTANCES, to!(catalog::service),
        "Lists a service's instances.", "api-docs/catalog#list-nodes-for-service"),
    route(GET, "/v1/catalog/connect/", INSTANCES_SEEN, INSTANCES, to!(catalog::connect),
        "Lists the instances through which the mesh reaches a service.", "api-docs/catalog#list-nodes-for-mesh-capable-service"),
    route(GET, "/v1/catalog/gateway-services/", SERVICES_SEEN, READ, to!(catalog::gateway_services),
        "Lists the services that a gateway's config entry links to it.", "api-docs/catalog#list-services-for-gateway"),
    route(GET, "/v1/catalog/node/", INSTANCES_SEEN, DISCOVERY, to!(catalog::node),
        "Shows a node and its services by id.", "api-docs/catalog#retrieve-map-of-services-for-a-node"),
    route(GET, "/v1/catalog/node-services/", INSTANCES_SEEN, NODE_SERVICES, to!(catalog::node_services),
        "Shows a node and its services as a list.", "api-docs/catalog#list-services-for-node"),
    // Health
    route(GET, "/v1/health/node/", INSTANCES_SEEN, DISCOVERY, to!(health::node),
        "Lists a node's checks.", "api-docs/health#list-checks-for-node"),
    route(GET, "/v1/health/checks/", INSTANCES_SEEN, CACHED, to!(health::checks_of_service),
        "Lists a service's checks.", "api-docs/health#list-checks-for-service"),
    route(GET, "/v1/health/service/", INSTANCES_SEEN, INSTANCES, to!(health::service),
        "Lists a service's instances with their checks.", "api-docs/health#list-service-instances-for-service"),
    route(GET, "/v1/health/connect/", INSTANCES_SEEN, INSTANCES, to!(health::connect),
        "Lists the instances through which the mesh reaches a service, with their checks.", "api-docs/health#list-service-instances-for-connect-enabled-service"),
    route(GET, "/v1/health/ingress/", INSTANCES_SEEN, INSTANCES, to!(health::ingress),
        "Lists the instances of the ingress gateways that let requests in for a service.", "api-docs/health#list-service-instances-for-ingress-gateways-associated-with-a-service"),
    route(GET, "/v1/health/state/", INSTANCES_SEEN, DISCOVERY, to!(health::state),
        "Lists the checks in a state.", "api-docs/health#list-checks-in-state"),
    // Config entries
    route(PUT, "/v1/config", CONFIG_WRITE, &["cas"], to!(config_entry::put),
        "Writes a config entry, if need be only when it has not changed.", "api-docs/config#apply-configuration"),
    route(GET, "/v1/config/", CONFIG_SEEN, FILTERED, to!(config_entry::get),
        "Shows a config entry, or lists those of a kind.", "api-docs/config#get-configuration"),
    route(DELETE, "/v1/config/", CONFIG_WRITE, &["cas"], to!(config_entry::delete),
        "Deletes a config entry, if need be only when it has not changed.", "api-docs/config#delete-configuration"),
    // The mesh
    route(GET, "/v1/connect/ca/roots", Need::Public("roots are for whoever verifies"), ROOTS, to!(connect_ca::roots),
        "Shows the roots of the mesh that are trusted.", "api-docs/connect/ca#list-ca-root-certificates"),
    route(GET, "/v1/connect/ca/configuration", OPERATOR_READ, READ, to!(connect_ca::configuration),
        "Shows the settings of the mesh's CA.", "api-docs/connect/ca#get-ca-configuration"),
    route(PUT, "/v1/connect/ca/configuration", OPERATOR_WRITE, NONE, to!(connect_ca::configure),
        "Changes the settings of the mesh's CA; another root or life of roots rotates.", "api-docs/connect/ca#update-ca-configuration"),
    route(PUT, "/v1/operator/ca/rotate", OPERATOR_WRITE, &["force", "drill"], to!(connect_ca::rotate),
        "Gives the mesh a new root; with `drill` only proves that it could.", "weft"),
    route(PUT, "/v1/operator/ca/cut-off/", OPERATOR_WRITE, NONE, to!(connect_ca::cut_off),
        "Has leaves of a service that were made before now refused.", "weft"),
    route(PUT, "/v1/internal/connect/ca/sign/", Need::Named(&[(Resource::Service, Access::Write)]), NONE, to!(connect_ca::sign),
        "Signs the leaf of an agent's service.", "weft"),
    route(GET, "/v1/agent/connect/ca/roots", Need::Public("roots are for whoever verifies"), ROOTS, to!(connect_ca::agent_roots),
        "Shows the roots of the mesh as this agent knows them.", "api-docs/agent/connect#certificate-authority-ca-roots"),
    route(GET, "/v1/agent/connect/ca/leaf/", Need::Named(&[(Resource::Service, Access::Write)]), &["index", "wait", "cached"], to!(connect_ca::leaf),
        "Shows certificate and key of a service.", "api-docs/agent/connect#service-leaf-certificate"),
    route(GET, "/v1/agent/connect/proxies", OPERATOR_READ, NONE, to!(proxies::list),
        "Lists the proxies that run on this node: where they listen, what they work by, whom they call, what is amiss.", "weft"),
    route(POST, "/v1/agent/connect/authorize", Need::Named(&[(Resource::Service, Access::Write)]), &["cached"], to!(intention::authorize),
        "Decides whether a client may connect to a service.", "api-docs/agent/connect#authorize"),
    route(GET, "/v1/connect/intentions", INTENTIONS_SEEN, FILTERED, to!(intention::list),
        "Lists the intentions.", "api-docs/connect/intentions#list-intentions"),
    route(POST, "/v1/connect/intentions", INTENTION_WRITE, NONE, to!(intention::create),
        "Makes an intention with an id.", "api-docs/connect/intentions#create-intention-with-id"),
    route(GET, "/v1/connect/intentions/exact", INTENTIONS_SEEN, INTENTION_EXACT, to!(intention::get_exact),
        "Shows the intention between two services.", "api-docs/connect/intentions#read-specific-intention-by-name"),
    route(PUT, "/v1/connect/intentions/exact", INTENTION_WRITE, &["source", "destination"], to!(intention::put_exact),
        "Makes or replaces the intention between two services.", "api-docs/connect/intentions#upsert-intention-by-name"),
    route(DELETE, "/v1/connect/intentions/exact", INTENTION_WRITE, &["source", "destination"], to!(intention::delete_exact),
        "Deletes the intention between two services.", "api-docs/connect/intentions#delete-intention-by-name"),
    route(GET, "/v1/connect/intentions/match", INTENTIONS_SEEN, INTENTION_MATCH, to!(intention::matching),
        "Lists the intentions that speak of a service, the highest precedence first.", "api-docs/connect/intentions#list-matching-intentions"),
    route(GET, "/v1/connect/intentions/check", INTENTIONS_SEEN, INTENTION_CHECK, to!(intention::check),
        "Decides whether a service may connect to another.", "api-docs/connect/intentions#check-intention-result"),
    route(GET, "/v1/connect/intentions/", INTENTIONS_SEEN, READ, to!(intention::get),
        "Shows an intention by id.", "api-docs/connect/intentions#read-specific-intention-by-id"),
    route(PUT, "/v1/connect/intentions/", INTENTION_WRITE, NONE, to!(intention::update),
        "Replaces an intention by id.", "api-docs/connect/intentions#update-intention-by-id"),
    route(DELETE, "/v1/connect/intentions/", INTENTION_WRITE, NONE, to!(intention::delete),
        "Deletes an intention by id.", "api-docs/connect/intentions#delete-intention-by-id"),
    // Prepared queries
    route(GET, "/v1/query", QUERIES_SEEN, CONSISTENCY, to!(prepared_query::list),
        "Lists the prepared queries.", "api-docs/query#list-prepared-queries"),
    route(POST, "/v1/query", QUERY_WRITE, NONE, to!(prepared_query::create),
        "Makes a prepared query.", "api-docs/query#create-prepared-query"),
    route(GET, "/v1/query/", QUERIES_SEEN, &["stale", "consistent", "max_stale", "near", "limit", "connect"], to!(prepared_query::get),
        "Shows a prepared query by id; with `/execute` behind id or name its instances, with `/explain` what it is for that name.", "api-docs/query#execute-prepared-query"),
    route(PUT, "/v1/query/", QUERY_WRITE, NONE, to!(prepared_query::update),
        "Replaces a prepared query.", "api-docs/query#update-prepared-query"),
    route(DELETE, "/v1/query/", QUERY_WRITE, NONE, to!(prepared_query::delete),
        "Deletes a prepared query.", "api-docs/query#delete-prepared-query"),
    // Network coordinates
    route(GET, "/v1/coordinate/nodes", NODES_SEEN, READ, to!(coordinate::nodes),
        "Lists where the nodes lie in the network.", "api-docs/coordinate#read-lan-coordinates-for-all-nodes"),
    route(GET, "/v1/coordinate/node/", NODES_SEEN, READ, to!(coordinate::node),
        "Shows where a node lies in the network.", "api-docs/coordinate#read-lan-coordinates-for-a-node"),
    route(GET, "/v1/coordinate/datacenters", NODES_SEEN, NONE, to!(coordinate::datacenters),
        "Lists where the servers of each datacenter lie in the network.", "api-docs/coordinate#read-wan-coordinates"),
    route(PUT, "/v1/coordinate/update", Need::Named(&[(Resource::Node, Access::Write)]), NONE, to!(coordinate::update),
        "Reports where a node without an agent lies in the network.", "api-docs/coordinate#update-lan-coordinates-for-a-node"),
    // User events
    route(PUT, "/v1/event/fire/", Need::Tail(Resource::Event, Access::Write), &["node", "service", "tag"], to!(event::fire),
        "Sends a user event to the agents, or to those that the patterns match.", "api-docs/event#fire-event"),
    route(GET, "/v1/event/list", Need::Rows(&[(Resource::Event, Access::Read)]), &["index", "wait", "name", "node", "service", "tag"], to!(event::list),
        "Lists the last user events this agent heard, if need be once there is another.", "api-docs/event#list-events"),
    // The operator
    route(GET, "/v1/operator/raft/configuration", OPERATOR_READ, &["stale"], to!(operator::raft_configuration),
        "Shows the Raft peers and their roles.", "api-docs/operator/raft#read-configuration"),
    route(DELETE, "/v1/operator/raft/peer", OPERATOR_WRITE, &["id", "address"], to!(operator::remove_peer),
        "Removes a Raft peer.", "api-docs/operator/raft#delete-raft-peer"),
    route(POST, "/v1/operator/raft/transfer-leader", OPERATOR_WRITE, &["id"], to!(operator::transfer_leader),
        "Hands leadership to another server.", "api-docs/operator/raft#transfer-raft-leadership"),
    route(PUT, "/v1/operator/join-token", OPERATOR_WRITE, NONE, to!(join_token::create),
        "Makes a token by which one node gets its certificate.", "weft"),
    route(GET, "/v1/operator/join-tokens", OPERATOR_READ, READ, to!(join_token::list),
        "Lists join tokens that are open, and those of the last day.", "weft"),
    route(DELETE, "/v1/operator/join-token/", OPERATOR_WRITE, NONE, to!(join_token::revoke),
        "Makes a join token useless.", "weft"),
    route(GET, "/v1/operator/keyring", KEYRING_READ, &["relay-factor", "local-only"], to!(keyring::list),
        "Lists the gossip keys of all members.", "api-docs/operator/keyring#list-gossip-encryption-keys"),
    route(POST, "/v1/operator/keyring", KEYRING_WRITE, &["relay-factor", "local-only"], to!(keyring::install),
        "Installs a gossip key at all members.", "api-docs/operator/keyring#add-new-gossip-encryption-key"),
    route(PUT, "/v1/operator/keyring", KEYRING_WRITE, &["relay-factor", "local-only"], to!(keyring::make_primary),
        "Seals gossip with an installed key from now on.", "api-docs/operator/keyring#change-primary-gossip-encryption-key"),
    route(DELETE, "/v1/operator/keyring", KEYRING_WRITE, &["relay-factor", "local-only"], to!(keyring::remove),
        "Removes a gossip key from all members.", "api-docs/operator/keyring#delete-gossip-encryption-key"),
    route(GET, "/v1/operator/autopilot/configuration", OPERATOR_READ, CONSISTENCY, to!(operator::autopilot),
        "Shows autopilot's settings.", "api-docs/operator/autopilot#read-configuration"),
    route(PUT, "/v1/operator/autopilot/configuration", OPERATOR_WRITE, &["cas"], to!(operator::set_autopilot),
        "Changes autopilot's settings.", "api-docs/operator/autopilot#update-configuration"),
    route(GET, "/v1/operator/autopilot/health", OPERATOR_READ, NONE, to!(autopilot::health),
        "Says how well the servers are; status 429 when one is not.", "api-docs/operator/autopilot#read-health"),
    route(GET, "/v1/operator/autopilot/state", OPERATOR_READ, NONE, to!(autopilot::state),
        "Says how well the servers are, by id.", "api-docs/operator/autopilot#read-the-autopilot-state"),
    route(GET, "/v1/operator/usage", OPERATOR_READ, READ, to!(autopilot::usage),
        "Counts services, instances and nodes.", "api-docs/operator/usage"),
    // The API itself
    route(GET, "/v1/openapi.json", Need::Public("it describes this program, not what it holds"), NONE, to!(openapi::document),
        "Describes this API for machines.", "api-docs"),
    // What dashboards draw
    route(GET, "/v1/internal/ui/nodes", INSTANCES_SEEN, FILTERED, to!(internal_ui::nodes),
        "Every node with its services and checks.", INTERNAL),
    route(GET, "/v1/internal/ui/node/", INSTANCES_SEEN, READ, to!(internal_ui::node),
        "One node with its services and checks.", INTERNAL),
    route(GET, "/v1/internal/ui/services", INSTANCES_SEEN, FILTERED, to!(internal_ui::services),
        "Every service with its tags, nodes and how many checks say what.", INTERNAL),
    route(GET, "/v1/internal/ui/gateway-services-nodes/", INSTANCES_SEEN, READ, to!(internal_ui::gateway_services),
        "Every service that a gateway is linked to, as in the list of services.", INTERNAL),
    route(GET, "/v1/internal/ui/catalog-overview", INSTANCES_SEEN, READ, to!(internal_ui::overview),
        "How many nodes, services and checks are well.", INTERNAL),
    // Snapshots
    route(GET, "/v1/snapshot", Need::Fixed(Resource::Acl, Access::Write), &["stale"], to!(snapshot::save),
        "Streams an archive of the whole state.", "api-docs/snapshot#generate-snapshot"),
    route(PUT, "/v1/snapshot", Need::Fixed(Resource::Acl, Access::Write), NONE, to!(snapshot::restore),
        "Replaces the whole state by an archive's.", "api-docs/snapshot#restore-snapshot"),
];
