//! The mesh's CA in the replicated state: replaced whole, sealed in snapshots, without keys in views.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use weft_catalog::view::{Slice, ViewTopic};
use weft_catalog::{Catalog, State, TableTopic, Trace, snapshot};
use weft_proto::ids::LogIndex;
use weft_proto::v1::outcome::Result as Answer;
use weft_proto::v1::{self, stamped::Command};

fn apply(catalog: &mut Catalog, at: u64, command: v1::MeshCaCommand) -> Answer {
    let stamped = v1::Stamped {
        at_millis: 1_000 + at,
        command: Some(Command::MeshCa(command)),
        ..v1::Stamped::default()
    };
    let outcome = catalog.apply(LogIndex(at), &stamped).unwrap();
    outcome.result.unwrap()
}

fn root(id: &str, active: bool) -> v1::MeshRoot {
    v1::MeshRoot {
        id: id.into(),
        certificate: format!("certificate of {id}"),
        active,
        keys: vec![v1::SealedKey {
            public_key: vec![4; 65].into(),
            sealed: format!("sealed key of {id}").into_bytes().into(),
        }],
        ..v1::MeshRoot::default()
    }
}

fn ca(roots: Vec<v1::MeshRoot>, config: &str) -> v1::MeshCa {
    v1::MeshCa {
        trust_domain: "d.consul".into(),
        provider: "consul".into(),
        config_json: config.into(),
        roots,
        ..v1::MeshCa::default()
    }
}

fn set(expect: u64, wanted: v1::MeshCa) -> v1::MeshCaCommand {
    v1::MeshCaCommand {
        expect_modify_index: expect,
        wanted: Some(wanted),
    }
}

fn row(state: &State) -> v1::MeshCa {
    let trace = Trace::off();
    v1::MeshCa::clone(state.read(&trace).mesh_ca().rows.unwrap())
}

#[test]
fn it_is_replaced_only_by_who_knew_it_and_indexes_move_with_what_changed() {
    let mut catalog = Catalog::new();
    let first = ca(vec![root("a", true)], "{}");
    assert_eq!(
        apply(&mut catalog, 1, set(0, first.clone())),
        Answer::Applied(true)
    );
    let made = row(catalog.state());
    assert_eq!(
        (
            made.config_create_index,
            made.roots_modify_index,
            made.modify_index
        ),
        (2, 2, 2)
    );
    assert_eq!(
        apply(&mut catalog, 2, set(0, first.clone())),
        Answer::Applied(false)
    );
    // Sealing for one more server moves neither roots nor settings.
    let mut sealed = first.clone();
    sealed.roots[0].keys.push(v1::SealedKey::default());
    assert_eq!(
        apply(&mut catalog, 3, set(2, sealed.clone())),
        Answer::Applied(true)
    );
    let now = row(catalog.state());
    assert_eq!(
        (
            now.config_modify_index,
            now.roots_modify_index,
            now.modify_index
        ),
        (2, 2, 4)
    );
    assert_eq!(now.roots[0].modify_index, 2);
    sealed.config_json = r#"{"LeafCertTTL":"1h"}"#.into();
    assert_eq!(
        apply(&mut catalog, 4, set(4, sealed.clone())),
        Answer::Applied(true)
    );
    let now = row(catalog.state());
    assert_eq!(
        (
            now.config_create_index,
            now.config_modify_index,
            now.roots_modify_index
        ),
        (2, 5, 2)
    );
    sealed.roots[0].active = false;
    sealed.roots.insert(0, root("b", true));
    assert_eq!(
        apply(&mut catalog, 5, set(5, sealed)),
        Answer::Applied(true)
    );
    let now = row(catalog.state());
    assert_eq!(
        (
            now.roots_modify_index,
            now.roots[0].create_index,
            now.roots[1].create_index
        ),
        (6, 6, 2)
    );
    assert_eq!(now.roots[1].modify_index, 6);
    let (_, touched) = catalog.publish();
    assert!(touched.tables().any(|table| table == TableTopic::MeshCa));
}

#[test]
fn what_is_no_ca_is_refused() {
    let mut catalog = Catalog::new();
    let two = ca(vec![root("a", true), root("b", true)], "{}");
    let none = ca(vec![root("a", false)], "{}");
    let mut many = ca(vec![root("a", true)], "{}");
    many.roots
        .extend((0..weft_catalog::MESH_ROOTS_MAX).map(|n| root(&n.to_string(), false)));
    for (at, (wanted, reason)) in [
        (two, "ca.incomplete"),
        (none, "ca.incomplete"),
        (many, "ca.too_many"),
    ]
    .into_iter()
    .enumerate()
    {
        let Answer::Refusal(refusal) = apply(&mut catalog, at as u64 + 1, set(0, wanted)) else {
            panic!("not refused");
        };
        assert_eq!(refusal.reason, reason);
    }
    assert!(catalog.state().read(&Trace::off()).mesh_ca().rows.is_none());
}

#[test]
fn snapshots_keep_it_and_views_have_no_keys() {
    let mut catalog = Catalog::new();
    apply(&mut catalog, 1, set(0, ca(vec![root("a", true)], "{}")));
    let mut bytes = Vec::new();
    snapshot::write(catalog.state(), &mut bytes).unwrap();
    let again = snapshot::read(&mut &bytes[..]).unwrap();
    assert_eq!(row(again.state()), row(catalog.state()));
    assert_eq!(again.state().hash(), catalog.state().hash());

    let expressions = weft_catalog::prepared_query::Expressions::default();
    let (slice, _) = Slice::of(catalog.state(), &ViewTopic::MeshCa, None, &expressions).unwrap();
    let parts = slice.whole();
    assert!(
        parts
            .iter()
            .all(|part| !part.windows(6).any(|window| window == b"sealed"))
    );
    let mut view = State::default();
    for part in parts {
        let frame = prost::Message::decode(part).unwrap();
        view = view.amended(frame).unwrap().0;
    }
    let seen = row(&view);
    assert!(seen.roots[0].keys.is_empty());
    assert_eq!(seen.roots[0].certificate, "certificate of a");
    assert_eq!(view.view_fingerprint(), slice.fingerprint());
    // A later seal is no news to a view.
    let mut sealed = ca(vec![root("a", true)], "{}");
    sealed.roots[0].keys.push(v1::SealedKey::default());
    apply(&mut catalog, 2, set(2, sealed));
    let (later, _) = Slice::of(
        catalog.state(),
        &ViewTopic::MeshCa,
        Some(&slice),
        &expressions,
    )
    .unwrap();
    assert!(later.since(&slice).is_none());
    assert_eq!(
        ViewTopic::of_wire(&ViewTopic::MeshCa.wire()),
        Some(ViewTopic::MeshCa)
    );
}
