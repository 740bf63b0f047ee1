//! Clusters with the keys of `weft init`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{WEFT, World, said};

/// Three servers with what `weft init` made for them, in the folder `keys`; `change` may edit each configuration.
pub(crate) fn secured(change: impl Fn(String) -> String) -> World {
    let mut w = World::servers(3);
    let addresses: Vec<_> = w
        .names()
        .into_iter()
        .map(|n| (format!("s{n}"), w.address(n)))
        .collect();
    let seats: Vec<_> = addresses
        .iter()
        .map(|(name, address)| (name.as_str(), address.as_str()))
        .collect();
    let keys = w.path("keys");
    init(&keys, &seats);
    for n in w.names() {
        let dir = if n == 1 {
            keys.clone()
        } else {
            installed(&keys, n, &w.path(&format!("etc-s{n}")))
        };
        let config = dir.join("weft.hcl");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, change(text)).unwrap();
        w.argument(n, format!("-config-file={}", config.display()));
    }
    w.start()
}

pub(crate) fn init(directory: &Path, seats: &[(&str, &str)]) {
    let mut command = Command::new(WEFT);
    command
        .arg("init")
        .arg(format!("-directory={}", directory.display()));
    command.args(
        seats
            .iter()
            .map(|(name, address)| format!("-server={name}={address}")),
    );
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
}

/// What is to be copied to server `n`, copied; the configuration names the files where they now are.
pub(crate) fn installed(keys: &Path, n: usize, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(keys.join(format!("s{n}"))).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let config = to.join("weft.hcl");
    let text = std::fs::read_to_string(&config)
        .unwrap()
        .replace(keys.to_str().unwrap(), to.to_str().unwrap());
    std::fs::write(&config, text).unwrap();
    to.to_owned()
}

pub(crate) fn gossip_key(config: &Path) -> String {
    let text = std::fs::read_to_string(config).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("encrypt"))
        .unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}
