//! The running agent: every part, started in order and stopped in reverse.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use weft_agent::config::{self, RuntimeConfig, runtime};
use weft_agent::dns::{
    DnsListen, DnsMetrics, DnsOptions, DnsServer, DnsView, RecursorOptions, Soa, Strategy, TtlRules,
};
use weft_agent::events::Events;
use weft_agent::http::{
    self, AgentInfo, Deps, HttpConfig, HttpLimits, HttpServer, InProcess, Listen,
};
use weft_agent::leaves::{LeafDeps, Leaves};
use weft_agent::local::{Local, LocalConfig, Reach, Running};
use weft_agent::mesh::{Mesh, MeshConfig, MeshDeps};
use weft_agent::views::{Views, ViewsConfig};
use weft_agent::watch::{WatchMetrics, Watches};
use weft_gossip::{CoreConfig, Gossip, GossipConfig, Keyring, LanTiming};
use weft_identity::ServerKey;
use weft_proto::clock::Clock;
use weft_server::subscribe::SubscribeLimits;
use weft_server::{Bootstrap, LogBackend, Server, ServerConfig};

use super::activation::Sockets;
use super::control::Process;
use super::enrolment::{self, Office};
use super::node::{self, DataDirLock};
use super::role::Role;
use super::tls::Tls;
use super::{client, glue, join, logging, places, pool_metrics};

/// How long a leaving node waits for the pool to have heard it.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long all parts together may take to stop; the process ends then.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How long the cluster may take to let this server go.
const LEAVE_LIMIT: Duration = Duration::from_secs(60);

/// Everything that runs.
pub(crate) struct Parts {
    config: ArcSwap<RuntimeConfig>,
    role: Role,
    gossip: Arc<Gossip>,
    /// The pool was told goodbye: its task ends.
    leaving: AtomicBool,
    local: Local,
    running: Mutex<Option<Running>>,
    /// The task that keeps views up to date, and on disk when it ends.
    viewing: Mutex<Option<tokio::task::JoinHandle<()>>>,
    /// The task that keeps the proxies; it ends when their connections have, or soon after.
    meshing: Mutex<Option<tokio::task::JoinHandle<()>>>,
    http: Mutex<Option<HttpServer>>,
    inside: InProcess,
    dns: Vec<DnsServer>,
    watches: Watches,
    tls: Tls,
    stop: CancellationToken,
    /// Why the process must end, should joining give up.
    given_up: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<String>>,
    /// Whether whom the configuration names was found, or it names nobody.
    joined: tokio::sync::watch::Receiver<bool>,
    _data_dir: DataDirLock,
}

impl Parts {
    /// Starts the server role or the client's, the pool, local registrations, HTTP and DNS.
    ///
    /// Errors name what could not be had and the remedy.
    pub(crate) async fn start(
        config: RuntimeConfig,
        clock: Arc<dyn Clock>,
        process: Arc<Process>,
        mut sockets: Sockets,
    ) -> anyhow::Result<Self> {
        let data_dir = node::lock_data_dir(config.data_dir.as_deref())?;
        let id = node::node_id(&config)?;
        let tls = Tls::load(&config, clock.clone())?;
        let seed = seed_of(&id, clock.as_ref());
        let registry = Arc::new(Mutex::new(Registry::default()));
        // Before a server says a word to Raft's peers: a copy must not be counted as what it is a copy of.
        let join = [&config.join.retry_join[..], &config.join.start_join].concat();
        weft_gossip::fence(&gossip_config(&config, &id, None)?, &join).await?;
        let role = if config.server {
            let server = start_server(&config, &id, &tls, seed, clock.clone()).await?;
            let office = Office::new(&config, &tls, server.clone(), clock.clone());
            Role::Server(server, Arc::new(office))
        } else {
            Role::Client(client::role(&config, &id, &tls, seed, clock.clone()))
        };
        let gossip = start_gossip(&config, &id, role.raft_id().as_deref(), clock.clone()).await?;
        role.attach_gossip(&gossip, &config.datacenter);
        let local = Local::open(local_config(&config, &tls, &id, seed), clock.clone())?;
        local
            .replace_files(config.services.clone(), config.node_checks.clone())
            .await
            .map_err(|causes| anyhow::anyhow!(all(&causes)))?;
        let seams = role.seams(&config.node.name, || {
            Views::open(views_config(&config, seed), clock.clone())
        });
        let running = local.start(seams.backend.clone());
        let events = Events::new(local.clone());
        tokio::spawn(places::report(
            gossip.clone(),
            seams.backend.clone(),
            config.node.name.clone(),
        ));
        tokio::spawn(glue::carry_events(gossip.clone(), events.clone()));

        let stop = CancellationToken::new();
        let dns_metrics = DnsMetrics::default();
        let watch_metrics = WatchMetrics::default();
        {
            let mut registry = registry.lock();
            role.register_metrics(&mut registry);
            local.metrics().register(&mut registry, &local);
            dns_metrics.register(&mut registry);
            watch_metrics.register(&mut registry);
            if let Some(views) = &seams.views {
                views.register_metrics(&mut registry);
            }
            events.register(&mut registry);
            pool_metrics::register(&mut registry, gossip.clone());
            process.manager().register_metrics(&mut registry);
            sockets.register_metrics(&mut registry);
        }
        let listen = dns_listen(&config, &mut sockets);
        let dns = start_dns(
            listen,
            &config,
            &seams.view,
            &dns_metrics,
            (&clock, seed),
            &stop,
        )
        .await?;
        let leaves = Leaves::open(
            LeafDeps {
                operator: seams.operator.clone(),
                relay: seams.relay.clone(),
                backend: seams.backend.clone(),
                views: seams.views.clone(),
                node_name: config.node.name.clone(),
                dir: config.data_dir.as_ref().map(|dir| dir.join("leaves")),
                seed,
            },
            clock.clone(),
        );
        leaves.register_metrics(&mut registry.lock());
        tokio::spawn(leaves.clone().run(stop.clone()));
        let mesh = Mesh::new();
        mesh.register_metrics(&mut registry.lock());
        let meshing = tokio::spawn(mesh.clone().run(
            mesh_config(&config, seed),
            MeshDeps {
                local: local.clone(),
                leaves: leaves.clone(),
                backend: seams.backend.clone(),
                views: seams.views.clone(),
                clock: clock.clone(),
            },
            stop.clone(),
        ));
        let deps = Deps {
            leaves,
            mesh,
            backend: seams.backend,
            relay: seams.relay,
            views: seams.views.clone(),
            operator: seams.operator,
            membership: Arc::new(glue::Pool(gossip.clone())),
            local: Arc::new(local.clone()),
            events,
            control: process,
            authorizer: Arc::new(weft_catalog::acl::AllowAll),
            clock: clock.clone(),
            registry: registry.clone(),
            info: Arc::new(agent_info(&config, &id)),
        };
        let http = HttpServer::start(
            http_config(&config, &tls, &sockets, seed)?,
            deps,
            stop.clone(),
        )
        .await?;
        role.attach_api(http.inside());
        if let Role::Client(client) = &role {
            tokio::spawn(client.clone().run(stop.clone()));
        }
        if let Some(renewal) = enrolment::Renewal::new(&config, &tls, &gossip, clock, seed) {
            renewal.register_metrics(&mut registry.lock());
            tokio::spawn(renewal.run(stop.clone()));
        }
        let viewing = seams.views.zip(role.client()).map(|(views, client)| {
            let streams = Arc::new(client::Streaming(client.clone()));
            tokio::spawn(views.run(streams, stop.clone()))
        });
        let watches = Watches::new(http.inside(), watch_metrics, seed);
        watches.replace(&config.watches);
        join::at_start(&gossip, &config.join.start_join).await?;
        let (give_up, given_up) = tokio::sync::mpsc::channel(1);
        let (tell_joined, joined) = tokio::sync::watch::channel(false);
        tokio::spawn({
            let (gossip, join) = (gossip.clone(), config.join.clone());
            async move {
                match join::retry(gossip, join).await {
                    Ok(()) => {
                        tell_joined.send_replace(true);
                    }
                    Err(cause) => {
                        let _ = give_up.send(cause.to_string()).await;
                    }
                }
            }
        });
        Ok(Self {
            config: ArcSwap::from_pointee(config),
            role,
            gossip,
            leaving: AtomicBool::new(false),
            local,
            running: Mutex::new(Some(running)),
            viewing: Mutex::new(viewing),
            meshing: Mutex::new(Some(meshing)),
            inside: http.inside(),
            http: Mutex::new(Some(http)),
            dns,
            watches,
            tls,
            stop,
            given_up: tokio::sync::Mutex::new(given_up),
            joined,
            _data_dir: data_dir,
        })
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<RuntimeConfig> {
        self.config.load_full()
    }

    /// Resolves once somebody was found to join, or at once when nobody is to be looked for.
    pub(crate) async fn joined(&self) {
        if self
            .joined
            .clone()
            .wait_for(|joined| *joined)
            .await
            .is_err()
        {
            // Given up; the process ends for it.
            std::future::pending::<()>().await;
        }
    }

    /// What this agent is and sees, in a line.
    pub(crate) fn summary(&self) -> String {
        let members = self.gossip.members();
        let (mut servers, mut alive) = (0, 0);
        for member in members.iter() {
            if member.status == weft_gossip::MemberStatus::Alive {
                alive += 1;
                servers += usize::from(member.tag("role") == "consul");
            }
        }
        let datacenter = &self.config().datacenter;
        let standing = self.role.standing(&self.gossip, datacenter);
        let gone = members.len() - alive;
        format!("{standing}; {servers} servers and {alive} members alive, {gone} not")
    }

    /// Whether the API answers a call from within this process, and what it needs for that still works.
    pub(crate) async fn answers(&self) -> Result<(), String> {
        let Ok(mut stream) = self.inside.connect() else {
            // A bound was met: it is busy, which takes somebody alive.
            return Ok(());
        };
        let call = b"GET /v1/agent/self HTTP/1.1\r\nHost: weft\r\nConnection: close\r\n\r\n";
        let mut answer = Vec::new();
        let spoken = async {
            stream.write_all(call).await?;
            stream.read_to_end(&mut answer).await
        };
        spoken.await.map_err(|cause| cause.to_string())?;
        if answer.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        let line = answer.split(|byte| *byte == b'\r').next();
        Err(String::from_utf8_lossy(line.unwrap_or_default()).into_owned())
    }

    /// Resolves when the process must end, with the reason.
    pub(crate) async fn fatal(&self) -> String {
        let mut given_up = self.given_up.lock().await;
        tokio::select! {
            why = self.role.failed() => why,
            Some(why) = given_up.recv() => why,
            why = self.gossip_lost() => why,
        }
    }

    /// Resolves when the gossip task has ended although this agent is not on its way out, with the reason.
    async fn gossip_lost(&self) -> String {
        self.gossip.ended().await;
        if self.leaving.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match self.gossip.fate() {
            Some(fate) => format!("{}: {fate}", fate.reason()),
            None => "gossip.stopped: the gossip task ended; this is a defect of weft".into(),
        }
    }

    /// Takes a new configuration as far as a running agent can; the rest is named and waits for a restart.
    pub(crate) async fn reload(&self, new: RuntimeConfig) -> Result<(), String> {
        let old = self.config();
        let changes = config::changes(&old, &new);
        self.tls.reload().map_err(|cause| format!("{cause:#}"))?;
        self.local
            .replace_files(new.services.clone(), new.node_checks.clone())
            .await
            .map_err(|causes| all(&causes))?;
        let mut record = self.local.node();
        record.meta = node::record(&new, &record.id).meta;
        self.local.set_node(record);
        logging::set_level(&new.log);
        for dns in &self.dns {
            dns.reload(dns_options(&new));
        }
        self.watches.replace(&new.watches);
        self.inside.set_limits(http_limits(&new), http_rates(&new));
        self.inside.set_naming(http_naming(&new));
        self.role.set_rpc_max_conns(rpc_max_conns(&new));
        if !changes.needs_restart.is_empty() {
            tracing::warn!(keys = ?changes.needs_restart, "these settings changed but need a restart");
        }
        self.config.store(Arc::new(new));
        Ok(())
    }

    /// Leaves for good: out of the Raft membership, then out of the pool.
    pub(crate) async fn leave(&self) -> Result<(), String> {
        self.leaving.store(true, Ordering::SeqCst);
        // What a client registered goes with its node: nothing may bring it back meanwhile.
        let running = match &self.role {
            Role::Client(_) => self.running.lock().take(),
            Role::Server(..) => None,
        };
        if let Some(running) = running {
            in_time(STOP_LIMIT, "ending checks", running.stop()).await;
        }
        let leaving = in_time(LEAVE_LIMIT, "leaving", self.role.leave()).await;
        let left = leaving.unwrap_or_else(|| Err(format!("no answer within {LEAVE_LIMIT:?}")));
        self.gossip.leave(GOODBYE).await;
        left
    }

    /// Stops every part within [`STOP_LIMIT`]; what is durable is on disk already. Answers whether all of
    /// them have stopped.
    pub(crate) async fn stop(&self) -> bool {
        in_time(STOP_LIMIT, "stopping", self.stop_all())
            .await
            .is_some()
    }

    async fn stop_all(&self) {
        self.watches.stop().await;
        self.stop.cancel();
        let http = self.http.lock().take();
        if let Some(http) = http {
            let _ = tokio::time::timeout(Duration::from_secs(2), http.stopped()).await;
        }
        let running = self.running.lock().take();
        if let Some(running) = running {
            let _ = tokio::time::timeout(Duration::from_secs(2), running.stop()).await;
        }
        let meshing = self.meshing.lock().take();
        if let Some(meshing) = meshing {
            let _ = tokio::time::timeout(Duration::from_secs(6), meshing).await;
        }
        let viewing = self.viewing.lock().take();
        if let Some(viewing) = viewing {
            let _ = tokio::time::timeout(Duration::from_secs(5), viewing).await;
        }
        self.role.shutdown().await;
        self.gossip.shutdown().await;
    }
}

/// What `work` answers, or `None` and an error in the log when it takes too long.
async fn in_time<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(limit, work).await.ok();
    if done.is_none() {
        tracing::error!(reason = "process.stop_limit", limit = ?limit, "{what} takes too long; going on without");
    }
    done
}

/// Every reason, for the user to mend in one go.
fn all(causes: &[weft_agent::local::LocalError]) -> String {
    causes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Dice differ between nodes and starts; nothing depends on their being secret.
fn seed_of(node_id: &str, clock: &dyn Clock) -> u64 {
    let start = clock.wall().get();
    node_id
        .bytes()
        .fold(start.wrapping_mul(0x9e37_79b9_7f4a_7c15), |seed, byte| {
            (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

fn served_views(views: runtime::ServedViews) -> SubscribeLimits {
    SubscribeLimits {
        streams: views.agents,
        topics_per_stream: views.per_agent,
        topics: views.views,
        opens_per_second: views.begins_per_second,
        opens_burst: views.begins_burst,
    }
}

pub(super) fn server_config(config: &RuntimeConfig, id: &str, seed: u64) -> ServerConfig {
    ServerConfig {
        node_name: config.node.name.clone(),
        node_id: id.to_owned(),
        datacenter: config.datacenter.clone(),
        data_dir: config.data_dir.clone(),
        rpc_bind: config.network.rpc,
        rpc_advertise: config.network.advertise_rpc(),
        backend: match (config.data_dir.is_some(), config.raft.backend) {
            (false, _) => LogBackend::Memory,
            (true, runtime::LogBackend::Wal) => LogBackend::Wal,
            (true, runtime::LogBackend::Sled) => LogBackend::Sled,
        },
        bootstrap: match config.bootstrap {
            runtime::Bootstrap::Join => Bootstrap::Join,
            runtime::Bootstrap::Alone => Bootstrap::Alone,
            runtime::Bootstrap::Expect(n) => Bootstrap::Expect(n as usize),
        },
        join: [&config.join.start_join[..], &config.join.retry_join[..]].concat(),
        compare_states_every: Duration::from_mins(1),
        raft_multiplier: config.raft.multiplier,
        snapshot_threshold: config.raft.snapshot_threshold,
        trailing_logs: config.raft.trailing_logs,
        hold_timeout: config.raft.rpc_hold_timeout,
        tombstone_ttl: Duration::from_mins(15),
        rpc_max_conns_per_client: rpc_max_conns(config),
        rpc_handshake_timeout: config.limits.rpc_handshake_timeout,
        views: served_views(config.views.server),
        stabilization: config.autopilot.server_stabilization_time,
        last_contact_threshold: config.autopilot.last_contact_threshold,
        max_trailing_logs: config.autopilot.max_trailing_logs,
        min_quorum: config.autopilot.min_quorum,
        wal_segment_bytes: config.raft.segment_size_bytes,
        cleanup_dead_servers: config.autopilot.cleanup_dead_servers,
        seed,
    }
}

async fn start_server(
    config: &RuntimeConfig,
    id: &str,
    tls: &Tls,
    seed: u64,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Server> {
    let (key, public_key) = match &config.data_dir {
        Some(dir) => {
            let key = ServerKey::load_or_create(dir).context("the server's own key")?;
            let public_key = Bytes::copy_from_slice(key.public_key());
            (key, public_key)
        }
        // Nothing is bound to a key that is gone with the process.
        None => (
            ServerKey::ephemeral().context("the server's own key")?,
            Bytes::new(),
        ),
    };
    let settings = server_config(config, id, seed);
    let server = Server::start(settings, tls.rpc(), public_key, clock).await?;
    server.attach_ca_key(Arc::new(key));
    Ok(server)
}

async fn start_gossip(
    config: &RuntimeConfig,
    id: &str,
    raft_id: Option<&str>,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<Gossip>> {
    let gossip = gossip_config(config, id, raft_id)?;
    Ok(Arc::new(Gossip::start(gossip, clock).await?))
}

fn gossip_config(
    config: &RuntimeConfig,
    id: &str,
    raft_id: Option<&str>,
) -> anyhow::Result<GossipConfig> {
    let mut core = CoreConfig::new(
        &config.node.name,
        id,
        &config.datacenter,
        config.network.advertise_serf_lan(),
    );
    let lan = &config.gossip;
    let small = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
    core.timing = LanTiming {
        gossip_nodes: small(lan.gossip_nodes),
        gossip_interval: lan.gossip_interval,
        probe_interval: lan.probe_interval,
        probe_timeout: lan.probe_timeout,
        suspicion_mult: small(lan.suspicion_mult),
        retransmit_mult: small(lan.retransmit_mult),
        ..LanTiming::default()
    };
    core.reconnect_timeout = lan.reconnect_timeout;
    core.coordinates = lan.coordinates;
    core.tags = node::tags(config, id, raft_id);
    let mut gossip = GossipConfig::new(core, config.network.serf_lan);
    gossip.verify_incoming = lan.verify_incoming;
    gossip.verify_outgoing = lan.verify_outgoing;
    gossip.rejoin_after_leave = config.join.rejoin_after_leave;
    gossip.known_path = config
        .data_dir
        .as_ref()
        .map(|dir| dir.join("serf").join("local.snapshot"));
    gossip.keyring_path = config
        .data_dir
        .as_ref()
        .filter(|_| lan.keyring_file)
        .map(|dir| dir.join("serf").join("local.keyring"));
    if let Some(key) = &lan.key {
        gossip.keyring = Some(Keyring::new(
            weft_gossip::GossipKey::from_bytes(key.bytes()).context("encrypt")?,
        ));
    }
    Ok(gossip)
}

fn local_config(config: &RuntimeConfig, tls: &Tls, id: &str, seed: u64) -> LocalConfig {
    LocalConfig {
        data_dir: config.data_dir.clone(),
        check_update_interval: config.checks.update_interval,
        discard_check_output: config.checks.discard_output,
        check_output_max_size: config.checks.output_max_bytes,
        script_checks: config.checks.scripts,
        reach: Reach {
            link_local: config.checks.link_local,
            agent_tls: tls.checks(),
        },
        docker_host: std::env::var("DOCKER_HOST").unwrap_or_default(),
        seed,
        ..LocalConfig::in_memory(node::record(config, id))
    }
}

fn views_config(config: &RuntimeConfig, seed: u64) -> ViewsConfig {
    ViewsConfig {
        node_name: config.node.name.clone(),
        datacenter: config.datacenter.clone(),
        dir: config.data_dir.as_ref().map(|dir| dir.join("views")),
        max: config.views.max,
        max_bytes: config.views.max_bytes,
        idle_ttl: config.views.idle_ttl,
        missing_idle_ttl: config.views.missing_idle_ttl,
        first_wait: config.views.first_wait,
        seed,
    }
}

fn mesh_config(config: &RuntimeConfig, seed: u64) -> MeshConfig {
    MeshConfig {
        node_name: config.node.name.clone(),
        datacenter: config.datacenter.clone(),
        bind: config.network.bind,
        default_policy: config.default_intention_policy,
        seed,
    }
}

/// What was passed, or else what the configuration says.
fn dns_listen(config: &RuntimeConfig, sockets: &mut Sockets) -> Vec<DnsListen> {
    let passed = sockets.dns();
    if passed.is_empty() {
        let own = config.network.dns.iter().copied();
        return own.map(DnsListen::from).collect();
    }
    passed
}

async fn start_dns(
    listen: Vec<DnsListen>,
    config: &RuntimeConfig,
    view: &Arc<dyn DnsView>,
    metrics: &DnsMetrics,
    (clock, seed): (&Arc<dyn Clock>, u64),
    stop: &CancellationToken,
) -> anyhow::Result<Vec<DnsServer>> {
    let mut servers = Vec::new();
    for at in listen {
        let server = DnsServer::start(
            at,
            dns_options(config),
            view.clone(),
            metrics.clone(),
            clock.clone(),
            seed.wrapping_add(servers.len() as u64),
            stop.clone(),
        )
        .await?;
        tracing::info!(dns.addr = %server.local_addr(), "DNS is up");
        servers.push(server);
    }
    Ok(servers)
}

fn dns_options(config: &RuntimeConfig) -> DnsOptions {
    let dns = &config.dns;
    let seconds = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    DnsOptions {
        domain: config.domain.trim_matches('.').to_ascii_lowercase(),
        alt_domain: config.alt_domain.clone(),
        datacenter: config.datacenter.clone(),
        node: config.node.name.clone(),
        node_ttl: dns.node_ttl,
        service_ttl: TtlRules::new(dns.service_ttl.clone()),
        only_passing: dns.only_passing,
        udp_answer_limit: dns.udp_answer_limit,
        a_record_limit: dns.a_record_limit,
        enable_truncate: dns.enable_truncate,
        disable_compression: dns.disable_compression,
        node_meta_txt: dns.node_meta_txt,
        recursors: RecursorOptions {
            addresses: dns.recursors.clone(),
            strategy: match dns.recursor_strategy {
                runtime::RecursorStrategy::Sequential => Strategy::Sequential,
                runtime::RecursorStrategy::Random => Strategy::Random,
            },
            timeout: dns.recursor_timeout,
        },
        soa: Soa {
            refresh: seconds(dns.soa.refresh_seconds),
            retry: seconds(dns.soa.retry_seconds),
            expire: seconds(dns.soa.expire_seconds),
            min_ttl: dns.soa.min_ttl_seconds,
        },
        max_stale: if dns.allow_stale {
            dns.max_stale
        } else {
            Duration::from_secs(5)
        },
    }
}

/// Where the API is served: what was passed, and for the rest what the configuration says.
fn http_listen(
    config: &RuntimeConfig,
    tls: &Tls,
    sockets: &Sockets,
) -> anyhow::Result<Vec<Listen>> {
    let mode = config.unix_sockets.mode;
    let clear = config.network.http.iter().map(|address| match address {
        runtime::ListenAddr::Ip(address) => Listen::Tcp(*address),
        runtime::ListenAddr::Unix(path) => Listen::Unix {
            path: path.clone(),
            mode,
        },
    });
    let mut addresses = sockets.http();
    if addresses.is_empty() {
        addresses.extend(clear);
    }
    if sockets.has_https() {
        addresses.extend(sockets.https(&tls.https()?));
        return Ok(addresses);
    }
    for address in &config.network.https {
        match address {
            runtime::ListenAddr::Ip(address) => addresses.push(Listen::Tls(*address, tls.https()?)),
            runtime::ListenAddr::Unix(path) => anyhow::bail!(
                "addresses.https: {} is a unix socket; give it to addresses.http instead",
                path.display()
            ),
        }
    }
    Ok(addresses)
}

fn http_config(
    config: &RuntimeConfig,
    tls: &Tls,
    sockets: &Sockets,
    seed: u64,
) -> anyhow::Result<HttpConfig> {
    let addresses = http_listen(config, tls, sockets)?;
    let headers = config.http.response_headers.iter().map(|(name, value)| {
        let header = (name.parse().ok()).zip(value.parse().ok());
        header.with_context(|| {
            format!("http_config.response_headers: {name:?} is not a header that can be sent")
        })
    });
    Ok(HttpConfig {
        addresses,
        always_pretty: config.dev,
        response_headers: headers.collect::<anyhow::Result<_>>()?,
        block_endpoints: config.http.block_endpoints.clone(),
        allow_write_from: config.http.allow_write_from.clone(),
        default_query_time: config.default_query_time,
        max_query_time: config.max_query_time,
        discovery_max_stale: config.discovery_max_stale,
        validate_kv_keys: config.validate_kv_keys,
        use_cache: config.http.use_cache,
        prometheus: !config.prometheus_retention.is_zero(),
        session_ttl_min: config.session_ttl_min,
        default_intention_policy: config.default_intention_policy,
        limits: http_limits(config),
        rates: http_rates(config),
        push: http_push(config),
        naming: http_naming(config),
        seed,
    })
}

fn http_push(config: &RuntimeConfig) -> http::PushConfig {
    let telemetry = config.telemetry.clone();
    http::PushConfig {
        statsd: telemetry.statsd,
        statsite: telemetry.statsite,
        dogstatsd: telemetry.dogstatsd,
        dogstatsd_tags: telemetry.dogstatsd_tags,
        host: telemetry.host,
    }
}

fn http_naming(config: &RuntimeConfig) -> http::Naming {
    let telemetry = &config.telemetry;
    http::Naming {
        prefix: telemetry.prefix.clone(),
        filter: telemetry.filter.clone(),
        others: telemetry.filter_default,
    }
}

fn http_rates(config: &RuntimeConfig) -> http::RateLimits {
    let of = |limits: runtime::RateLimits| http::RateLimit {
        mode: limits.mode,
        read: limits.read,
        write: limits.write,
    };
    let limits = &config.limits;
    http::RateLimits {
        server: of(limits.request),
        source: of(limits.source),
        rpc: limits.rpc_rate.map(|rate| (rate, limits.rpc_max_burst)),
    }
}

fn http_limits(config: &RuntimeConfig) -> HttpLimits {
    HttpLimits {
        max_conns_per_client: match config.limits.http_max_conns_per_client {
            0 => usize::MAX,
            max => max,
        },
        max_conns: config.limits.http_max_conns,
        max_blocking_queries: config.limits.http_max_blocking_queries,
        max_blocking_queries_per_agent: config.limits.rpc_max_blocking_queries_per_agent,
        header_timeout: config.http.read_header_timeout,
        stall_timeout: config.http.stall_timeout,
        handshake_timeout: config.limits.https_handshake_timeout,
        max_header_bytes: config.http.max_header_bytes,
        kv_max_value_bytes: config.limits.kv_max_value_bytes as u64,
        txn_max_bytes: config.limits.txn_max_request_bytes as u64,
        max_body_bytes: config.limits.http_max_request_body_bytes as u64,
        ..HttpLimits::default()
    }
}

/// Connections to the server port of one address; 0 is no limit.
fn rpc_max_conns(config: &RuntimeConfig) -> usize {
    match config.limits.rpc_max_conns_per_client {
        0 => usize::MAX,
        max => max,
    }
}

fn agent_info(config: &RuntimeConfig, id: &str) -> AgentInfo {
    AgentInfo {
        datacenter: config.datacenter.clone(),
        domain: format!("{}.", config.domain.trim_matches('.')),
        primary_datacenter: config.primary_datacenter.clone(),
        node_name: config.node.name.clone(),
        node_id: id.to_owned(),
        server: config.server,
        version: node::CONSUL_VERSION.into(),
        revision: option_env!("WEFT_REVISION").unwrap_or_default().into(),
        build_date: option_env!("WEFT_BUILD_DATE")
            .unwrap_or("1970-01-01T00:00:00Z")
            .into(),
        meta: config.node.meta.clone(),
        grpc_port: -1,
        grpc_tls_port: -1,
        debug_config: super::about::debug_config(config, id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_never_ends_is_given_up() {
        let limit = Duration::from_millis(5);
        let never = in_time(limit, "waiting", std::future::pending::<()>()).await;
        assert_eq!(never, None);
        assert_eq!(in_time(limit, "counting", async { 3 }).await, Some(3));
    }
}
