//! A pair of proxies to measure: `pair ca DIR`, then `pair called DIR LISTEN APPLICATION` and
//! `pair caller DIR LISTEN ENDPOINT`, all on loopback. `pair both DIR LISTEN APPLICATION` is a same-node call.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a tool for measuring"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use weft_catalog::intention::DefaultPolicy;
use weft_identity::ca::{
    Authority, SpiffeId, TrustBundle, TrustDomain, create_request, csr_public_key,
};
use weft_proto::clock::{Clock as _, SystemClock};
use weft_proxy::balance::{Balancer, Endpoint, Outlier, Policy};
use weft_proxy::config::{Address, Config, Gate, Inbound, Intentions, Outbound, Service, Target};
use weft_proxy::shard::Running;
use weft_proxy::tls::{Leaf, Tls};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DAY: Duration = Duration::from_secs(86_400);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *words {
        ["ca", dir] => certificates(Path::new(dir)),
        ["called", dir, listen, application] => {
            serve(dir, |material| vec![material.called(listen, application)])
        }
        ["caller", dir, listen, endpoint] => serve(dir, |material| {
            vec![material.caller(listen, endpoint, None)]
        }),
        ["both", dir, listen, application] => serve(dir, |material| {
            let here = "127.0.0.1:1";
            vec![
                material.called("127.0.0.1:0", application),
                material.caller(listen, here, Some("db")),
            ]
        }),
        _ => {
            eprintln!(
                "usage: pair ca DIR | called DIR LISTEN APPLICATION | caller DIR LISTEN ENDPOINT | both DIR LISTEN APPLICATION"
            );
            std::process::exit(2);
        }
    }
}

fn domain() -> TrustDomain {
    TrustDomain::of_cluster("11111111-2222-3333-4444-555555555555").unwrap()
}

fn spiffe(name: &str) -> SpiffeId {
    SpiffeId::service(&domain(), "dc1", name).unwrap()
}

fn certificates(dir: &Path) {
    let now = SystemClock::new().wall();
    let pems = Authority::create(&domain(), DAY * 30, now).unwrap();
    let authority = Authority::load(&pems, &domain(), now).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("root.pem"), authority.certificate()).unwrap();
    for name in ["web", "db"] {
        let request = create_request(&spiffe(name).to_string()).unwrap();
        let key = csr_public_key(&request.request).unwrap();
        let leaf = authority.sign_leaf(&spiffe(name), &key, DAY, now).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), leaf.certificate).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), request.key.reveal()).unwrap();
    }
}

struct Material {
    tls: Tls,
    dir: std::path::PathBuf,
}

impl Material {
    fn leaf(&self, name: &str) -> Leaf {
        let read = |suffix: &str| {
            std::fs::read_to_string(self.dir.join(format!("{name}.{suffix}"))).unwrap()
        };
        self.tls
            .leaf(spiffe(name), &read("pem"), &read("key"))
            .unwrap()
    }

    fn service(&self, name: &str) -> Service {
        Service {
            id: name.to_owned(),
            name: name.into(),
            identity: Arc::new(self.tls.identity(&self.leaf(name), 1).unwrap()),
            inbound: None,
            outbounds: Vec::new(),
        }
    }

    fn called(&self, listen: &str, application: &str) -> Arc<Service> {
        let mut service = self.service("db");
        service.inbound = Some(Arc::new(Inbound {
            bind: listen.parse().unwrap(),
            application: Address::Tcp(application.parse().unwrap()),
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3_600),
            gate: Gate::new(100_000),
            intentions: Intentions {
                exact: None,
                any: None,
                default: DefaultPolicy::Allow,
                index: Some(1),
            },
        }));
        Arc::new(service)
    }

    fn caller(&self, listen: &str, endpoint: &str, here: Option<&str>) -> Arc<Service> {
        let mut service = self.service("web");
        let address: SocketAddr = endpoint.parse().unwrap();
        let endpoint = Endpoint {
            address,
            weight: 1,
            here: here.map(Arc::from),
            state: Arc::default(),
        };
        service.outbounds = vec![Arc::new(Outbound {
            name: "db".into(),
            bind: Address::Tcp(listen.parse().unwrap()),
            targets: vec![Target {
                service: "db".into(),
                server_name: ServerName::try_from("db.default.dc1.internal.mesh").unwrap(),
                client: self
                    .tls
                    .client(&self.leaf("web"), vec![spiffe("db")])
                    .unwrap(),
                balancer: Balancer::new(vec![endpoint], Policy::LeastLoad, Outlier::default()),
            }],
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(3_600),
            gate: Gate::new(100_000),
        })];
        Arc::new(service)
    }
}

fn serve(dir: &str, services: impl Fn(&Material) -> Vec<Arc<Service>>) {
    let root = std::fs::read_to_string(Path::new(dir).join("root.pem")).unwrap();
    let tls = Tls::new(TrustBundle::new(domain(), [root.as_str()]).unwrap());
    let material = Material {
        tls: tls.clone(),
        dir: dir.into(),
    };
    let config = Config {
        index: 1,
        services: services(&material),
    };
    let shard = Running::start(0, &tls, Arc::new(SystemClock::new()), 1).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let failures = runtime.block_on(shard.apply(Arc::new(config)));
    assert!(failures.is_empty(), "{failures:?}");
    println!("ready");
    loop {
        std::thread::park();
    }
}
