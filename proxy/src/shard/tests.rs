//! Proxies of two nodes, with certificates of one authority, between applications on loopback sockets.

use std::net::SocketAddr;
use std::sync::Mutex;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_catalog::config_entry::Entry as ConfigEntry;
use weft_catalog::intention::DefaultPolicy;
use weft_identity::ca::{Authority, TrustBundle, TrustDomain, create_request, csr_public_key};
use weft_proto::clock::SystemClock;

use super::*;
use crate::balance::{Balancer, Endpoint, EndpointState, Outlier, Policy};
use crate::config::{Address, Gate, Inbound, Intentions, Outbound, Target};
use crate::telemetry::Direction;
use crate::tls::Leaf;

const DAY: Duration = Duration::from_secs(86_400);
const CLUSTER: &str = "11111111-2222-3333-4444-555555555555";

/// One authority, and what it signs.
struct Mesh {
    domain: TrustDomain,
    authority: Authority,
}

impl Mesh {
    fn new(cluster: &str) -> Self {
        let domain = TrustDomain::of_cluster(cluster).unwrap();
        let now = SystemClock::new().wall();
        let pems = Authority::create(&domain, DAY * 30, now).unwrap();
        let authority = Authority::load(&pems, &domain, now).unwrap();
        Self { domain, authority }
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.domain.clone(), [self.authority.certificate()]).unwrap()
    }

    fn spiffe(&self, service: &str) -> SpiffeId {
        SpiffeId::service(&self.domain, "dc1", service).unwrap()
    }

    fn leaf(&self, tls: &Tls, service: &str) -> Leaf {
        let id = self.spiffe(service);
        let request = create_request(&id.to_string()).unwrap();
        let key = csr_public_key(&request.request).unwrap();
        let now = SystemClock::new().wall();
        let signed = self.authority.sign_leaf(&id, &key, DAY, now).unwrap();
        tls.leaf(id, &signed.certificate, request.key.reveal())
            .unwrap()
    }
}

fn intentions(sources: &str) -> Intentions {
    let json = format!(r#"{{"Kind":"service-intentions","Name":"db","Sources":{sources}}}"#);
    let entry = ConfigEntry::parse(&serde_json::from_str(&json).unwrap()).unwrap();
    Intentions {
        exact: Some(Arc::new(entry)),
        any: None,
        default: DefaultPolicy::Deny,
        index: Some(7),
    }
}

const ALLOW_WEB: &str = r#"[{"Name":"web","Action":"allow"}]"#;
const DENY_WEB: &str = r#"[{"Name":"web","Action":"deny"}]"#;

/// Nobody listens there, and nobody else will: the port is held while the tests run.
async fn free() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

/// An application that says its name, then echoes.
async fn application(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reading, mut writing) = stream.split();
                writing.write_all(name.as_bytes()).await.unwrap();
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
            });
        }
    });
    address
}

/// A proxy: one shard, and the configuration it was given last.
struct Node {
    tls: Tls,
    running: Running,
    config: Mutex<Config>,
}

impl Node {
    fn new(mesh: &Mesh) -> Self {
        let tls = Tls::new(mesh.bundle());
        let clock = Arc::new(SystemClock::new());
        Self {
            running: Running::start(0, &tls, clock, 1).unwrap(),
            tls,
            config: Mutex::default(),
        }
    }

    async fn with(&self, service: Service) {
        let config = {
            let mut config = self.config.lock().unwrap();
            config.services.retain(|one| one.id != service.id);
            config.services.push(Arc::new(service));
            Arc::new(config.clone())
        };
        assert_eq!(self.running.apply(config).await, Vec::<String>::new());
    }

    fn service(&self, mesh: &Mesh, name: &str) -> (Service, Leaf) {
        let leaf = mesh.leaf(&self.tls, name);
        let service = Service {
            id: format!("{name}-proxy"),
            name: name.into(),
            identity: Arc::new(self.tls.identity(&leaf, 1).unwrap()),
            inbound: None,
            outbounds: Vec::new(),
        };
        (service, leaf)
    }

    /// A service that is called.
    async fn called(&self, mesh: &Mesh, name: &str, app: SocketAddr, sources: &str) -> SocketAddr {
        let bind = free().await;
        self.call_at(mesh, name, bind, app, sources).await;
        bind
    }

    async fn call_at(
        &self,
        mesh: &Mesh,
        name: &str,
        bind: SocketAddr,
        app: SocketAddr,
        sources: &str,
    ) {
        let (mut service, _) = self.service(mesh, name);
        service.inbound = Some(Arc::new(Inbound {
            bind,
            application: Address::Tcp(app),
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(2),
            idle_timeout: Duration::ZERO,
            gate: Gate::new(100),
            intentions: intentions(sources),
        }));
        self.with(service).await;
    }

    /// A service that calls `called` at these endpoints; where it finds it.
    async fn caller(
        &self,
        mesh: &Mesh,
        name: &str,
        called: &str,
        endpoints: &[SocketAddr],
    ) -> SocketAddr {
        self.caller_of(mesh, name, mesh.spiffe(called), endpoints, None)
            .await
    }

    async fn caller_of(
        &self,
        mesh: &Mesh,
        name: &str,
        expected: SpiffeId,
        endpoints: &[SocketAddr],
        here: Option<&str>,
    ) -> SocketAddr {
        let bind = free().await;
        let (mut service, leaf) = self.service(mesh, name);
        let endpoints = endpoints.iter().map(|address| Endpoint {
            address: *address,
            weight: 1,
            here: here.map(Arc::from),
            state: Arc::new(EndpointState::default()),
        });
        service.outbounds = vec![Arc::new(Outbound {
            name: "db".into(),
            bind: Address::Tcp(bind),
            targets: vec![Target {
                service: "db".into(),
                server_name: ServerName::try_from("db.default.dc1.internal.mesh").unwrap(),
                client: self.tls.client(&leaf, vec![expected]).unwrap(),
                balancer: Balancer::new(
                    endpoints.collect(),
                    Policy::RoundRobin,
                    Outlier::default(),
                ),
            }],
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::ZERO,
            gate: Gate::new(100),
        })];
        self.with(service).await;
        bind
    }

    async fn reasons(&self) -> Vec<String> {
        let counted = self.running.counted().await;
        let refused = counted.pairs().values().flat_map(|c| c.reasons.keys());
        let turned = counted.handshakes.keys().map(|(_, reason)| reason);
        refused.chain(turned).map(|r| (*r).to_owned()).collect()
    }

    async fn until_reason(&self, reason: &str) {
        for _ in 0..5_000 {
            if self.reasons().await.iter().any(|r| r == reason) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no {reason} among {:?}", self.reasons().await);
    }
}

/// What an application hears after it has said `text`.
async fn talk(address: SocketAddr, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await?;
    Ok(heard)
}

fn run(test: impl Future<Output = ()>) {
    crate::testing::run(test);
}

#[test]
fn an_allowed_service_is_reached_and_a_denied_one_is_not() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (near, far) = (Node::new(&mesh), Node::new(&mesh));
        let db = far
            .called(&mesh, "db", application("db:").await, ALLOW_WEB)
            .await;
        let web = near.caller(&mesh, "web", "db", &[db]).await;
        for n in 0..20 {
            assert_eq!(
                talk(web, &format!("hello {n}")).await.unwrap(),
                format!("db:hello {n}")
            );
        }
        let api = near.caller(&mesh, "api", "db", &[db]).await;
        assert!(talk(api, "hello").await.is_err());
        far.until_reason("intention.default_deny").await;
        near.until_reason("intention.denied").await;
        let counted = far.running.counted().await;
        let pairs: Vec<_> = counted
            .pairs()
            .iter()
            .map(|(pair, counts)| (&*pair.source, counts.opened, counts.request_bytes))
            .collect();
        assert_eq!(pairs, [("api", 0, 0), ("web", 20, 150)]);
    });
}

#[test]
fn an_intention_that_changes_ends_open_connections_and_no_others() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (near, far) = (Node::new(&mesh), Node::new(&mesh));
        let app = application("db:").await;
        let both = r#"[{"Name":"web","Action":"allow"},{"Name":"api","Action":"allow"}]"#;
        let db = far.called(&mesh, "db", app, both).await;
        let mut open = Vec::new();
        for name in ["web", "api"] {
            let at = near.caller(&mesh, name, "db", &[db]).await;
            let mut stream = TcpStream::connect(at).await.unwrap();
            let mut hello = [0; 3];
            stream.read_exact(&mut hello).await.unwrap();
            open.push((at, stream));
        }
        let only_api = r#"[{"Name":"web","Action":"deny"},{"Name":"api","Action":"allow"}]"#;
        far.call_at(&mesh, "db", db, app, only_api).await;
        let (web, mut denied) = open.remove(0);
        assert!(denied.read_u8().await.is_err(), "reset");
        assert!(talk(web, "again").await.is_err());
        let (_, mut allowed) = open.remove(0);
        allowed.write_all(b"x").await.unwrap();
        assert_eq!(allowed.read_u8().await.unwrap(), b'x', "untouched");
        far.call_at(&mesh, "db", db, app, both).await;
        assert_eq!(talk(web, "back").await.unwrap(), "db:back");
    });
}

#[test]
fn services_of_one_node_meet_without_tls_and_by_the_same_rules() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let node = Node::new(&mesh);
        let app = application("db:").await;
        let db = node.called(&mesh, "db", app, ALLOW_WEB).await;
        // Another address on purpose: it is not dialled.
        let nowhere = free().await;
        let id = Some("db-proxy");
        let web = node
            .caller_of(&mesh, "web", mesh.spiffe("db"), &[nowhere], id)
            .await;
        assert_eq!(talk(web, "hello").await.unwrap(), "db:hello");
        let api = node
            .caller_of(&mesh, "api", mesh.spiffe("db"), &[nowhere], id)
            .await;
        assert!(talk(api, "hello").await.is_err());
        node.until_reason("intention.default_deny").await;
        let mut open = TcpStream::connect(web).await.unwrap();
        let mut hello = [0; 3];
        open.read_exact(&mut hello).await.unwrap();
        node.call_at(&mesh, "db", db, app, DENY_WEB).await;
        assert!(open.read_u8().await.is_err());
        let counted = node.running.counted().await;
        let of = |direction, source: &str| {
            let mut pairs = counted.pairs().iter();
            let found = pairs.find(|(p, _)| p.direction == direction && *p.source == *source);
            found
                .map(|(_, counts)| (counts.opened, counts.request_bytes))
                .unwrap()
        };
        assert_eq!(of(Direction::Inbound, "web"), (2, 5));
        assert_eq!(of(Direction::Outbound, "web"), (2, 5));
    });
}

#[test]
fn callers_that_know_no_tunnel_are_served_one_by_one() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let far = Node::new(&mesh);
        let app = application("db:").await;
        let db = far.called(&mesh, "db", app, ALLOW_WEB).await;
        let tls = Tls::new(mesh.bundle());
        let leaf = mesh.leaf(&tls, "web");
        for protocols in [Vec::new(), vec![b"h2".to_vec()], vec![b"http/1.1".to_vec()]] {
            let mut client = (*tls.client(&leaf, vec![mesh.spiffe("db")]).unwrap()).clone();
            client.alpn_protocols = protocols;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
            let stream = TcpStream::connect(db).await.unwrap();
            let name = ServerName::try_from("db").unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(b"plain").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut heard = String::new();
            stream.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "db:plain");
        }
    });
}

#[test]
fn endpoints_that_know_no_tunnel_are_called_one_by_one() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let near = Node::new(&mesh);
        let tls = Tls::new(mesh.bundle());
        let identity = tls.identity(&mesh.leaf(&tls, "db"), 1).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(identity.plain_server);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let db = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            for _ in 0..5 {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                all.reverse();
                stream.write_all(&all).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        let web = near.caller(&mesh, "web", "db", &[db]).await;
        for _ in 0..5 {
            assert_eq!(talk(web, "abc").await.unwrap(), "cba");
        }
        serving.await.unwrap();
    });
}

#[test]
fn who_is_not_who_it_should_be_is_refused_by_name() {
    run(async {
        let (mesh, other) = (
            Mesh::new(CLUSTER),
            Mesh::new("99999999-2222-3333-4444-555555555555"),
        );
        let (near, far, stranger) = (Node::new(&mesh), Node::new(&mesh), Node::new(&other));
        let app = application("db:").await;
        let db = far.called(&mesh, "db", app, ALLOW_WEB).await;
        // The endpoint is db, and billing was meant.
        let web = near.caller(&mesh, "web", "billing", &[db]).await;
        assert!(talk(web, "x").await.is_err());
        near.until_reason("identity.not_the_target").await;
        // A caller of another mesh.
        let web = stranger.caller(&other, "web", "db", &[db]).await;
        assert!(talk(web, "x").await.is_err());
        stranger.until_reason("identity.trust_domain.foreign").await;
        // No TLS at all.
        let mut plain = TcpStream::connect(db).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut heard = Vec::new();
        let _ = plain.read_to_end(&mut heard).await;
        assert!(!String::from_utf8_lossy(&heard).contains("db:"));
        far.until_reason("tls.not_tls").await;
        // TLS to a port that speaks none.
        let echo = application("db:").await;
        let web = near.caller(&mesh, "web", "db", &[echo]).await;
        assert!(talk(web, "x").await.is_err());
        near.until_reason("tls.not_tls").await;
    });
}

#[test]
fn another_endpoint_is_tried_and_none_is_said_to_be_none() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (near, far) = (Node::new(&mesh), Node::new(&mesh));
        let db = far
            .called(&mesh, "db", application("db:").await, ALLOW_WEB)
            .await;
        let gone = free().await;
        let web = near.caller(&mesh, "web", "db", &[gone, db]).await;
        for _ in 0..6 {
            assert_eq!(talk(web, "x").await.unwrap(), "db:x");
        }
        let none = near.caller(&mesh, "lonely", "db", &[]).await;
        assert!(talk(none, "x").await.is_err());
        near.until_reason("proxy.no_endpoint").await;
        let silent = far.called(&mesh, "db", free().await, ALLOW_WEB).await;
        let web = near.caller(&mesh, "web", "db", &[silent]).await;
        assert!(talk(web, "x").await.is_err());
        near.until_reason("proxy.no_application").await;
    });
}

#[test]
fn a_new_leaf_is_used_at_once_and_open_connections_go_on() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (near, far) = (Node::new(&mesh), Node::new(&mesh));
        let app = application("db:").await;
        let db = far.called(&mesh, "db", app, ALLOW_WEB).await;
        let old = near.caller(&mesh, "web", "db", &[db]).await;
        let mut open = TcpStream::connect(old).await.unwrap();
        let mut hello = [0; 3];
        open.read_exact(&mut hello).await.unwrap();
        // Both ends are given other leaves.
        far.call_at(&mesh, "db", db, app, ALLOW_WEB).await;
        let new = near.caller(&mesh, "web", "db", &[db]).await;
        assert_eq!(talk(new, "new").await.unwrap(), "db:new");
        for byte in *b"still" {
            open.write_all(&[byte]).await.unwrap();
            assert_eq!(open.read_u8().await.unwrap(), byte);
        }
    });
}

#[test]
fn a_drained_proxy_takes_nothing_new_and_ends_with_its_last_connection() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (near, far) = (Node::new(&mesh), Node::new(&mesh));
        let db = far
            .called(&mesh, "db", application("db:").await, ALLOW_WEB)
            .await;
        let web = near.caller(&mesh, "web", "db", &[db]).await;
        let mut open = TcpStream::connect(web).await.unwrap();
        let mut hello = [0; 3];
        open.read_exact(&mut hello).await.unwrap();
        let Node { running, .. } = far;
        running.drain(Duration::from_secs(50)).await;
        let ending = tokio::task::spawn_blocking(move || running.join());
        while TcpStream::connect(db).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        open.write_all(b"x").await.unwrap();
        assert_eq!(open.read_u8().await.unwrap(), b'x');
        assert!(!ending.is_finished(), "it waits for what is open");
        open.shutdown().await.unwrap();
        let mut rest = Vec::new();
        open.read_to_end(&mut rest).await.unwrap();
        ending.await.unwrap();
    });
}

/// A node on which db has these limits, and a caller of it elsewhere.
async fn limited(
    mesh: &Mesh,
    change: impl FnOnce(&mut Inbound),
) -> (Node, Node, SocketAddr, SocketAddr) {
    let (near, far) = (Node::new(mesh), Node::new(mesh));
    let (mut service, _) = far.service(mesh, "db");
    let bind = free().await;
    let mut inbound = Inbound {
        bind,
        application: Address::Tcp(application("db:").await),
        connect_timeout: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(30),
        idle_timeout: Duration::ZERO,
        gate: Gate::new(100),
        intentions: intentions(ALLOW_WEB),
    };
    change(&mut inbound);
    service.inbound = Some(Arc::new(inbound));
    far.with(service).await;
    let web = near.caller(mesh, "web", "db", &[bind]).await;
    (near, far, web, bind)
}

async fn greeted(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut hello = [0; 3];
    stream.read_exact(&mut hello).await.unwrap();
    stream
}

#[test]
fn no_more_connections_than_there_may_be() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (_near, far, web, _) = limited(&mesh, |db| db.gate = Gate::new(1)).await;
        let first = greeted(web).await;
        assert!(talk(web, "second").await.is_err());
        far.until_reason("proxy.limit").await;
        drop(first);
        while talk(web, "third").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn who_is_silent_for_too_long_is_let_go() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let second = Duration::from_secs(1);
        let (near, _far, web, _) = limited(&mesh, |db| db.idle_timeout = second).await;
        let mut silent = greeted(web).await;
        assert!(silent.read_u8().await.is_err());
        near.until_reason("proxy.idle").await;
    });
}

#[test]
fn who_connects_and_proves_nothing_is_not_waited_for() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let short = Duration::from_millis(200);
        let (_near, far, _, bind) = limited(&mesh, |db| db.handshake_timeout = short).await;
        let mut mute = TcpStream::connect(bind).await.unwrap();
        let mut heard = Vec::new();
        let _ = mute.read_to_end(&mut heard).await;
        far.until_reason("tls.handshake_timeout").await;
    });
}

#[test]
fn a_revoked_identity_loses_its_open_connections() {
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (_near, far, web, bind) = limited(&mesh, |_| ()).await;
        let mut open = greeted(web).await;
        let later = weft_proto::ids::UnixMillis(SystemClock::new().wall().get() + 3_600_000);
        far.tls
            .replace(mesh.bundle().cut_off(mesh.spiffe("web"), later));
        far.call_at(&mesh, "db", bind, application("db:").await, ALLOW_WEB)
            .await;
        assert!(open.read_u8().await.is_err());
        assert!(talk(web, "again").await.is_err());
    });
}

#[test]
fn an_upstream_at_a_path_follows_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    run(async {
        let mesh = Mesh::new(CLUSTER);
        let (near, far) = (Node::new(&mesh), Node::new(&mesh));
        let db = far
            .called(&mesh, "db", application("db:").await, ALLOW_WEB)
            .await;
        near.caller(&mesh, "web", "db", &[db]).await;
        let folder = std::env::temp_dir().join(format!("weft-proxy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("db.sock");
        for mode in [0o600, 0o660] {
            let (mut service, leaf) = near.service(&mesh, "web");
            service.outbounds = vec![Arc::new(Outbound {
                name: "db".into(),
                bind: Address::Unix(path.clone(), Some(mode)),
                targets: vec![Target {
                    service: "db".into(),
                    server_name: ServerName::try_from("db").unwrap(),
                    client: near.tls.client(&leaf, vec![mesh.spiffe("db")]).unwrap(),
                    balancer: Balancer::new(
                        vec![Endpoint {
                            address: db,
                            weight: 1,
                            here: None,
                            state: Arc::default(),
                        }],
                        Policy::LeastLoad,
                        Outlier::default(),
                    ),
                }],
                connect_timeout: Duration::from_secs(10),
                idle_timeout: Duration::ZERO,
                gate: Gate::new(100),
            })];
            near.with(service).await;
            let seen = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(seen & 0o777, mode);
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            let mut hello = [0; 3];
            stream.read_exact(&mut hello).await.unwrap();
            assert_eq!(&hello, b"db:");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    });
}
