//! SIGHUP: service files and the log level are taken anew; a bad file changes nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use rustix::process::Signal;
use support::{World, said};

#[test]
fn a_reload_takes_new_services_and_the_log_level_and_refuses_bad_files() {
    let mut w = World::servers(1);
    let dir = w.path("conf.d");
    std::fs::create_dir(&dir).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("web.json", r#"{"service":{"name":"web","port":80}}"#);
    write("log.hcl", "log_level = \"warn\"\n");
    w.argument(1, format!("-config-dir={}", dir.display()));
    let w = w.start();
    let services = || w.at(1).get("/v1/agent/services").unwrap().ok().json();
    assert_eq!(services()["web"]["Port"], 80);
    assert!(!w.log(1).contains("[INFO]"), "the level is warn");

    write("web.json", r#"{"service":{"name":"web","port":8080}}"#);
    write("db.hcl", "service {\n  name = \"db\"\n  port = 5432\n}\n");
    write("log.hcl", "log_level = \"info\"\n");
    w.signal(1, Signal::HUP);
    w.until("the new service", || {
        (services()["db"]["Port"] == 5432).then_some(())
    });
    assert_eq!(services()["web"]["Port"], 8080);
    w.until("the catalog to have it", || {
        let rows = w.at(1).get("/v1/catalog/service/db").unwrap().ok().json();
        (rows.as_array()?.len() == 1).then_some(())
    });
    w.until("a line of the new level", || {
        w.log(1).contains("configuration reloaded").then_some(())
    });

    write(
        "cache.hcl",
        "service {\n  name = \"cache\"\n  port = 6379\n}\n",
    );
    write("bad.hcl", "service {\n  nmae = \"typo\"\n}\n");
    w.signal(1, Signal::HUP);
    w.until("the refusal", || {
        w.log(1).contains("reload refused").then_some(())
    });
    assert!(w.log(1).contains("bad.hcl"), "the file is named");
    let refused = w.cli(1, &["reload"]);
    assert!(
        !refused.status.success() && said(&refused).contains("nmae"),
        "{}",
        said(&refused)
    );
    assert!(services()["cache"].is_null(), "all or nothing");
    assert_eq!(
        (&services()["db"]["Port"], &services()["web"]["Port"]),
        (&5432.into(), &8080.into()),
        "the old stays in force"
    );

    std::fs::remove_file(dir.join("bad.hcl")).unwrap();
    std::fs::remove_file(dir.join("db.hcl")).unwrap();
    let reloaded = w.cli(1, &["reload"]);
    assert!(reloaded.status.success(), "{}", said(&reloaded));
    w.until("the mended configuration", || {
        (services()["cache"]["Port"] == 6379 && services()["db"].is_null()).then_some(())
    });
}
