//! A nearly full disk: writes are refused with a clear text, reads go on, and room makes writes go on.
//!
//! Mounts a small ext4 on a loop device, which only root may do; without that it says so and ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::World;

const MIB: u64 = 1 << 20;

#[test]
fn a_nearly_full_disk_refuses_writes_and_serves_reads() {
    let mut w = World::servers(1);
    let Some(disk) = SmallDisk::mount(&w.path("disk"), 512 * MIB) else {
        return;
    };
    w.keep_data_in(1, &disk.at.join("s1"));
    let w = Guarded {
        world: w.start(),
        _disk: disk,
    };
    let (at, dir) = (w.world.at(1), w.world.path("disk").join("mnt"));
    at.kv_put("color", "red");

    let ballast = dir.join("ballast");
    fill(&dir, &ballast, 2);
    let refused = w.world.until("writes to be refused", || {
        let reply = at.put("/v1/kv/color", "blue").unwrap();
        (reply.status != 200).then_some(reply)
    });
    assert_eq!(refused.status, 500);
    for words in ["disk nearly full", "reads go on", dir.to_str().unwrap()] {
        assert!(
            refused.text().contains(words),
            "{words:?} is missing: {}",
            refused.text()
        );
    }
    let value = at.kv_get("color", "").unwrap();
    assert!(value == "red" || value == "blue", "{value}");
    assert_eq!(
        at.kv_get("color", "stale"),
        Some(value.clone()),
        "reads go on"
    );
    assert!(
        at.put("/v1/kv/color", "green")
            .unwrap()
            .text()
            .contains("disk nearly full")
    );
    assert_eq!(
        at.kv_get("color", ""),
        Some(value),
        "a refused write changes nothing"
    );

    std::fs::remove_file(&ballast).unwrap();
    w.world.until("writes to go on", || {
        at.put("/v1/kv/color", "green")
            .ok()
            .filter(|reply| reply.status == 200)
    });
    assert_eq!(at.kv_get("color", "").as_deref(), Some("green"));
}

/// Drops the world, and so its processes, before the disk they use.
struct Guarded {
    world: World,
    _disk: SmallDisk,
}

/// Leaves `percent` of the file system free.
fn fill(dir: &Path, ballast: &Path, percent: u64) {
    let fs = rustix::fs::statvfs(dir).unwrap();
    let (free, total) = (fs.f_bavail * fs.f_frsize, fs.f_blocks * fs.f_frsize);
    let length = free.saturating_sub(total * percent / 100);
    run(
        "fallocate",
        &["-l", &length.to_string(), ballast.to_str().unwrap()],
    )
    .unwrap();
}

/// Written past the test runner's capture: nobody is to take a skipped test for a passed one.
fn skipped(why: &str) {
    let line = format!("\nSKIPPED a_nearly_full_disk_refuses_writes_and_serves_reads: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

/// An ext4 of its own.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(dir: &Path, bytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("mounting a small ext4 needs root");
            return None;
        }
        let (image, at) = (dir.join("image"), dir.join("mnt"));
        std::fs::create_dir_all(&at).unwrap();
        std::fs::File::create(&image)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let (image, mount) = (image.to_str().unwrap(), at.to_str().unwrap());
        // No blocks set aside for root: what is free is free for the server.
        run("mkfs.ext4", &["-q", "-F", "-m", "0", image]).unwrap();
        if let Err(why) = run("mount", &["-o", "loop", image, mount]) {
            skipped(&format!("may not mount here: {why}"));
            return None;
        }
        Some(Self { at })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(why) = run("umount", &[self.at.to_str().unwrap()]) {
            eprintln!("cannot unmount: {why}");
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    // Root's tools live in sbin, which a user's PATH may lack.
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .map_err(|cause| format!("{program}: {cause}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(support::said(&output))
    }
}
