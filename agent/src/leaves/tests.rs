use super::*;

fn leaf(not_before: i64, not_after: i64) -> HeldLeaf {
    HeldLeaf {
        key_sec1: Secret::new("the key".to_owned()),
        chain: "chain".into(),
        serial: "01".into(),
        uri: "spiffe://d/ns/default/dc/dc1/svc/web".into(),
        not_before,
        not_after,
        index: 7,
        root_id: "r1".into(),
    }
}

#[test]
fn a_leaf_is_renewed_between_a_third_and_a_half_of_its_life() {
    let leaf = leaf(1_000 - BACKDATED_SECONDS, 1_600);
    assert_eq!(renewal_at(&leaf, 0.0), 1_200.0);
    assert_eq!(renewal_at(&leaf, 1.0), 1_300.0);
    assert!(backoff(1, 600, 1.0) <= 1.0 && backoff(30, 259_200, 1.0) <= 60.0);
    assert!(backoff(30, 6, 1.0) <= 0.5);
}

#[test]
fn a_new_root_or_a_cut_off_makes_it_due_before() {
    let leaf = leaf(1_000 - BACKDATED_SECONDS, 1_600);
    let root = |id: &str| weft_proto::v1::MeshRoot {
        id: id.into(),
        active: true,
        ..weft_proto::v1::MeshRoot::default()
    };
    let ca = |id: &str, cut: u64| weft_proto::v1::MeshCa {
        roots: vec![root(id)],
        cut_offs: vec![weft_proto::v1::MeshCutOff {
            spiffe_id: leaf.uri.clone(),
            not_issued_before_millis: cut,
        }],
        ..weft_proto::v1::MeshCa::default()
    };
    assert_eq!(sooner(&leaf, &ca("r1", 0), 1_100.0, 0.5), None);
    assert_eq!(sooner(&leaf, &ca("r2", 0), 1_100.0, 0.5), Some(1_130.0));
    assert_eq!(
        sooner(&leaf, &ca("r1", 1_000_000), 1_100.0, 0.5),
        Some(1_100.0)
    );
    assert_eq!(sooner(&leaf, &ca("r1", 999_999), 1_100.0, 0.5), None);
}

#[test]
fn files_are_sealed_private_and_useless_elsewhere() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let disk = Disk::open(root.path()).unwrap();
    disk.save("web", &leaf(1, 2)).unwrap();
    let file = std::fs::read_dir(root.path())
        .unwrap()
        .map(|file| file.unwrap().path());
    let file = file
        .into_iter()
        .find(|path| path.extension().is_some_and(|kind| kind == "leaf"))
        .unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert!(!bytes.windows(7).any(|window| window == b"the key"));
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = Disk::open(root.path()).unwrap().load();
    assert_eq!(again.len(), 1);
    assert_eq!(
        (again[0].0.as_str(), again[0].1.key_sec1.reveal().as_str()),
        ("web", "the key")
    );
    let other = tempfile::tempdir().unwrap();
    let elsewhere = Disk::open(other.path()).unwrap();
    std::fs::copy(&file, other.path().join("a.leaf")).unwrap();
    assert!(elsewhere.load().is_empty());
    disk.remove("web");
    assert!(disk.load().is_empty());
}
