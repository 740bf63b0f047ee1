//! Listening sockets follow the configuration: what is new is opened, what is gone is closed, the rest is not touched.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use super::Shard;
use crate::config::{Address, Config};
use crate::local::Local;

const BACKLOG: i32 = 4_096;
/// After an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(100);

/// Who listens at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    /// The public port of a service.
    Inbound(String),
    /// An upstream of a service, by name.
    Outbound(String, String),
}

/// The open sockets.
pub(super) struct Listeners {
    shard: Rc<Shard>,
    listens_at_paths: bool,
    /// Something could not be opened the last time.
    is_missing_some: bool,
    open: BTreeMap<Address, (Role, AbortHandle)>,
}

impl Listeners {
    pub(super) fn new(shard: Rc<Shard>, listens_at_paths: bool) -> Self {
        Self {
            shard,
            listens_at_paths,
            is_missing_some: false,
            open: BTreeMap::new(),
        }
    }

    /// Opens and closes what differs. What could not be opened, and why.
    pub(super) fn follow(&mut self, config: &Config) -> Vec<String> {
        let wanted = wanted(config);
        self.open.retain(|address, (role, task)| {
            let stays = wanted.get(address) == Some(role);
            if !stays {
                close(address, task);
            }
            stays
        });
        let mut failures = Vec::new();
        for (address, role) in wanted {
            let is_other_shards = matches!(address, Address::Unix(..)) && !self.listens_at_paths;
            if is_other_shards || self.open.contains_key(&address) {
                continue;
            }
            match self.listen(&address, role.clone()) {
                Ok(task) => {
                    self.open.insert(address, (role, task));
                }
                Err(error) => {
                    failures.push(format!("cannot listen at {}: {error}", shown(&address)))
                }
            }
        }
        self.is_missing_some = !failures.is_empty();
        failures
    }

    /// Tries again what could not be opened.
    pub(super) fn retry(&mut self, config: &Config) {
        if self.is_missing_some && self.follow(config).is_empty() {
            tracing::info!("all listeners are open now");
        }
    }

    /// Closes all.
    pub(super) fn close(&mut self) {
        self.is_missing_some = false;
        for (address, (_, task)) in std::mem::take(&mut self.open) {
            close(&address, &task);
        }
    }

    fn listen(&self, address: &Address, role: Role) -> io::Result<AbortHandle> {
        let shard = self.shard.clone();
        let task = match address {
            Address::Tcp(address) => {
                let listener = TcpListener::from_std(bound(*address)?)?;
                tokio::task::spawn_local(async move {
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => shard.accepted(&role, stream.into()),
                            Err(error) => pause(&error).await,
                        }
                    }
                })
            }
            Address::Unix(path, mode) => {
                let listener = bound_path(path, *mode)?;
                tokio::task::spawn_local(async move {
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => shard.accepted(&role, stream.into()),
                            Err(error) => pause(&error).await,
                        }
                    }
                })
            }
        };
        Ok(task.abort_handle())
    }
}

impl Shard {
    /// A connection came: it is treated as configured now.
    fn accepted(self: &Rc<Self>, role: &Role, local: Local) {
        let shard = self.clone();
        let config = self.config.borrow();
        match role {
            Role::Inbound(id) => {
                let Some(service) = config.service(id).cloned() else {
                    return;
                };
                if let Local::Tcp(stream) = local {
                    tokio::task::spawn_local(async move { shard.answer(service, stream).await });
                }
            }
            Role::Outbound(id, name) => {
                let Some(service) = config.service(id).cloned() else {
                    return;
                };
                let mut outbounds = service.outbounds.iter();
                let Some(outbound) = outbounds.find(|o| *o.name == **name).cloned() else {
                    return;
                };
                tokio::task::spawn_local(async move { shard.call(service, outbound, local).await });
            }
        }
    }
}

/// The socket itself goes when the task is dropped; its path goes now, so that another may have it.
fn close(address: &Address, task: &AbortHandle) {
    task.abort();
    if let Address::Unix(path, _) = address {
        // Gone already is as well.
        let _ = std::fs::remove_file(path);
    }
}

fn wanted(config: &Config) -> BTreeMap<Address, Role> {
    let mut wanted = BTreeMap::new();
    for service in &config.services {
        if let Some(inbound) = &service.inbound {
            let role = Role::Inbound(service.id.clone());
            wanted.entry(Address::Tcp(inbound.bind)).or_insert(role);
        }
        for outbound in &service.outbounds {
            let role = Role::Outbound(service.id.clone(), outbound.name.to_string());
            wanted.entry(outbound.bind.clone()).or_insert(role);
        }
    }
    wanted
}

/// One of several sockets at this address: each shard has its own, and the kernel deals connections out.
fn bound(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bound_path(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    // A socket that nobody listens at is left from before.
    if std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    if let Some(mode) = mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(listener)
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot accept");
    tokio::time::sleep(PAUSE).await;
}

fn shown(address: &Address) -> String {
    match address {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path, _) => path.display().to_string(),
    }
}
