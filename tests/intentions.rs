//! Who may call whom: written anywhere, decided everywhere alike, also where no server is left to ask.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use serde_json::{Value, json};
use support::{Api, World, said};

fn allowed(at: &Api, source: &str, destination: &str) -> (bool, String) {
    let path = format!("/v1/connect/intentions/check?source={source}&destination={destination}");
    let answer = at.get(&path).unwrap().ok();
    let reason = answer.header("x-weft-reason").unwrap().to_owned();
    (answer.json()["Allowed"].as_bool().unwrap(), reason)
}

fn authorize(at: &Api, domain: &str, source: &str) -> Option<Value> {
    let body = json!({
        "Target": "db",
        "ClientCertURI": format!("spiffe://{domain}/ns/default/dc/dc1/svc/{source}"),
        "ClientCertSerial": "01"
    });
    let answer = at.request(
        "POST",
        "/v1/agent/connect/authorize",
        body.to_string().as_bytes(),
    );
    let answer = answer.ok()?;
    (answer.status == 200).then(|| answer.json())
}

#[test]
fn precedence_decides_and_agents_decide_without_servers() {
    let mut w = World::servers(3).clients(1).start();
    let agent = w.at(11);
    let domain = w.until("a trust domain", || {
        let roots = agent.get("/v1/connect/ca/roots").ok()?.json();
        let domain = roots["TrustDomain"].as_str()?.to_owned();
        (!domain.is_empty()).then_some(domain)
    });
    assert_eq!(
        allowed(&agent, "web", "db"),
        (true, "intention.default_allow".into())
    );
    for (arguments, says) in [
        (
            &["intention", "create", "-deny", "*", "db"][..],
            "Created: * => db (deny)\n",
        ),
        (
            &["intention", "create", "web", "db"][..],
            "Created: web => db (allow)\n",
        ),
    ] {
        assert_eq!(said(&w.cli(11, arguments)), says);
    }
    let twice = w.cli(11, &["intention", "create", "web", "db"]);
    assert_eq!(twice.status.code(), Some(1), "{}", said(&twice));
    assert_eq!(
        allowed(&agent, "web", "db"),
        (true, "intention.allow".into())
    );
    assert_eq!(
        allowed(&agent, "api", "db"),
        (false, "intention.deny".into())
    );
    let denied = w.cli(1, &["intention", "check", "api", "db"]);
    assert_eq!(
        (denied.status.code(), said(&denied)),
        (Some(2), "Denied\n".to_owned())
    );
    let table = said(&w.cli(1, &["intention", "match", "db"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[1].starts_with("web") && lines[2].starts_with('*'),
        "{table}"
    );

    // Permissions of requests allow no connection.
    let l7 = json!({"Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]});
    let defaults = json!({"Kind": "service-defaults", "Name": "db", "Protocol": "http"});
    agent.put("/v1/config", defaults.to_string()).unwrap().ok();
    let pair = "/v1/connect/intentions/exact?source=report&destination=db";
    agent.put(pair, l7.to_string()).unwrap().ok();
    assert_eq!(
        allowed(&agent, "report", "db"),
        (false, "intention.l7".into())
    );

    w.until("the agent's own view", || authorize(&agent, &domain, "web"));
    w.until("the agent to know the last change", || {
        let answer = authorize(&agent, &domain, "report")?;
        answer["Reason"]
            .as_str()?
            .contains("PERMISSIONS")
            .then_some(())
    });
    for n in [1, 2, 3] {
        w.kill(n);
    }
    let decide = |source: &str| authorize(&agent, &domain, source).unwrap()["Authorized"].clone();
    assert_eq!(
        [decide("web"), decide("api"), decide("report")],
        [true, false, false].map(Value::Bool)
    );
    let foreign = authorize(&agent, "elsewhere.consul", "web").unwrap();
    assert_eq!(foreign["Authorized"], false);
}

#[test]
fn legacy_ids_and_entries_are_the_same_intentions() {
    let w = World::servers(1).start();
    let at = w.at(1);
    let post = |body: Value| {
        at.request(
            "POST",
            "/v1/connect/intentions",
            body.to_string().as_bytes(),
        )
        .unwrap()
    };
    let made = post(
        json!({"SourceName": "web", "DestinationName": "db", "Action": "allow", "Meta": {"team": "a"}}),
    );
    let id = made.ok().json()["ID"].as_str().unwrap().to_owned();
    let duplicate = post(json!({"SourceName": "web", "DestinationName": "db", "Action": "deny"}));
    assert_eq!(duplicate.status, 500);
    assert!(
        duplicate
            .text()
            .starts_with("duplicate intention found: ALLOW default/web => default/db"),
        "{}",
        duplicate.text()
    );
    let entry = at
        .get("/v1/config/service-intentions/db")
        .unwrap()
        .ok()
        .json();
    assert_eq!(entry["Sources"][0]["LegacyID"], id);
    let path = format!("/v1/connect/intentions/{id}");
    let shown = at.get(&path).unwrap().ok().json();
    assert_eq!(
        (
            &shown["SourceName"],
            &shown["Precedence"],
            &shown["Meta"]["team"]
        ),
        (&json!("web"), &json!(9), &json!("a"))
    );
    at.put(
        &path,
        json!({"SourceName": "web", "DestinationName": "db", "Action": "deny"}).to_string(),
    )
    .unwrap()
    .ok();
    assert_eq!(allowed(&at, "web", "db").1, "intention.deny");
    let listed = at
        .get("/v1/connect/intentions?filter=SourceName==web")
        .unwrap()
        .ok()
        .json();
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["ID"]),
        (1, &json!(id))
    );
    assert_eq!(
        at.get("/v1/connect/intentions?filter=SourceName==api")
            .unwrap()
            .ok()
            .text()
            .trim(),
        "[]"
    );
    at.delete(&path).unwrap().ok();
    assert_eq!(at.get(&path).unwrap().status, 404);
    assert_eq!(
        at.get("/v1/config/service-intentions/db").unwrap().status,
        404
    );
    for (parameters, status) in [
        ("source=web", 400),
        ("source=web&destination=ns2/db", 400),
        ("source=web&destination=db", 404),
    ] {
        let path = format!("/v1/connect/intentions/exact?{parameters}");
        assert_eq!(at.get(&path).unwrap().status, status, "{parameters}");
    }
}
