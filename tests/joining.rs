//! A new machine comes with a token: it gets its certificate, and with it everything else; once, in time, under its
//! own name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::keys::secured;
use support::{Api, WEFT, World};

/// A machine outside the cluster.
struct Machine {
    name: &'static str,
    address: String,
    dir: PathBuf,
    child: Option<Child>,
}

impl Machine {
    fn new(w: &mut World, n: usize, name: &'static str) -> Self {
        w.add(n);
        let dir = w.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self {
            name,
            address: w.address(n),
            dir,
            child: None,
        }
    }

    /// One command and one token.
    fn start(&mut self, arguments: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let mut command = Command::new(WEFT);
        command
            .args(["agent", "-log-level=debug"])
            .arg(format!("-data-dir={}", self.dir.join("data").display()))
            .arg(format!("-bind={}", self.address))
            .arg(format!("-client={}", self.address))
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn token_file(&self, token: &str) -> String {
        let path = self.dir.join("token");
        std::fs::write(&path, token).unwrap();
        format!("-join-token-file={}", path.display())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn identity(&self) -> PathBuf {
        self.dir.join("data/identity")
    }

    fn api(&self) -> Api {
        Api::new(&format!("{}:8500", self.address))
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// Runs until it gives up by itself, and answers what it said.
    fn refused(&mut self, w: &World, arguments: &[&str]) -> String {
        let before = self.log().len();
        self.start(arguments);
        let mut child = self.child.take().unwrap();
        let status = w.until(&format!("{} to give up", self.name), || {
            child.try_wait().unwrap()
        });
        assert!(!status.success(), "{}", self.log());
        self.log()[before..].to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log());
        }
    }
}

fn token(w: &World, node: &str, ttl: &str) -> Value {
    let body = json!({"Node": node, "TTL": ttl}).to_string();
    let reply = w.at(2).put("/v1/operator/join-token", &body);
    reply.unwrap().ok().json()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap().to_owned()
}

fn passing(w: &World, node: &str) {
    w.until(&format!("{node} to be seen alive"), || {
        let checks = w.at(1).get(&format!("/v1/health/node/{node}")).ok()?;
        let checks = checks.json();
        let alive = checks
            .as_array()?
            .iter()
            .any(|check| check["CheckID"] == "serfHealth" && check["Status"] == "passing");
        alive.then_some(())
    });
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_machine_with_a_token_joins_by_one_command_and_stays_without_it() {
    let mut w = secured(|config| config);
    let mut web = Machine::new(&mut w, 4, "web-1");
    let made = token(&w, "web-1", "10m");
    let file = web.token_file(&text(&made, "Token"));
    web.start(&[&file]);
    passing(&w, "web-1");
    for file in ["agent-key.pem", "enrolled.json"] {
        assert_eq!(mode(&web.identity().join(file)), 0o600, "{file}");
    }
    // It does what an agent does: over mTLS, through the servers.
    web.api().kv_put("color", "red");
    assert_eq!(w.at(3).kv_get("color", "").as_deref(), Some("red"));
    let listed = w.at(1).get("/v1/operator/join-tokens").unwrap().ok().json();
    assert_eq!(listed[0]["Status"], "used", "{listed}");
    assert!(!listed.to_string().contains(&text(&made, "Token")));
    // A restart needs no token, and a token that was used is no harm to who used it.
    web.kill();
    web.start(&[]);
    w.until("the node to answer again", || {
        web.api()
            .get("/v1/kv/color")
            .ok()
            .filter(|r| r.status == 200)
    });
    // The token is worth nothing on another machine, be it under the same name.
    let mut thief = Machine::new(&mut w, 5, "thief");
    let stolen = thief.token_file(&text(&made, "Token"));
    let said = thief.refused(&w, &[&stolen]);
    assert!(said.contains("used already"), "{said}");
    assert!(!thief.identity().join("agent.pem").exists());
}

#[test]
fn tokens_of_no_use_are_refused_with_the_reason() {
    let mut w = secured(|config| config);
    let mut db = Machine::new(&mut w, 4, "db-1");
    let open = token(&w, "db-1", "10m");
    let open = db.token_file(&text(&open, "Token"));
    let said = db.refused(&w, &[&open, "-node=db-2"]);
    assert!(said.contains("\"db-1\"") && said.contains("db-2"), "{said}");
    let said = db.refused(&w, &["-join-token=weft-join-1.AAAA"]);
    assert!(said.contains("not a join token"), "{said}");
    let revoked = token(&w, "db-1", "10m");
    let path = format!("/v1/operator/join-token/{}", text(&revoked, "ID"));
    w.at(1).delete(&path).unwrap().ok();
    let said = db.refused(&w, &[&format!("-join-token={}", text(&revoked, "Token"))]);
    assert!(said.contains("join_token.unknown"), "{said}");
    let short = token(&w, "db-1", "1s");
    std::thread::sleep(Duration::from_millis(1_500));
    let said = db.refused(&w, &[&format!("-join-token={}", text(&short, "Token"))]);
    assert!(said.contains("has expired"), "{said}");
    // What was refused has cost the good token nothing.
    db.start(&[&open]);
    passing(&w, "db-1");
    let bad = json!({"Node": "a b"}).to_string();
    let reply = w.at(1).put("/v1/operator/join-token", &bad).unwrap();
    assert_eq!(reply.status, 400, "{}", reply.text());
}

#[test]
fn certificates_are_renewed_before_they_run_out() {
    let short = |config: String| {
        config.replace(
            "join_tokens {",
            "join_tokens {\n  certificate_ttl = \"20s\"",
        )
    };
    let mut w = secured(short);
    let mut web = Machine::new(&mut w, 4, "web-1");
    let file = web.token_file(&text(&token(&w, "web-1", "10m"), "Token"));
    web.start(&[&file]);
    passing(&w, "web-1");
    let certificate = web.identity().join("agent.pem");
    let first = std::fs::read_to_string(&certificate).unwrap();
    // Due between a third and a half of its life.
    w.until("another certificate", || {
        let now = std::fs::read_to_string(&certificate).ok()?;
        (now != first && now.contains("BEGIN CERTIFICATE")).then_some(())
    });
    web.api().kv_put("color", "blue");
    assert_eq!(w.at(3).kv_get("color", "").as_deref(), Some("blue"));
}
