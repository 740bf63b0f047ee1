//! What a start finds: after a stop, a power cut, damage, an earlier build.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use serde_json::json;

use super::log::ROOM_MIN_BYTES;
use super::*;

fn id_of(_: Kind, object: &Value) -> Result<String, String> {
    let id = object["ID"].as_str().ok_or("it has no ID")?;
    Ok(id.to_owned())
}

fn open(dir: &Path) -> (Store, Found) {
    Store::open(dir, id_of).unwrap()
}

fn saved(receiver: Saved) {
    receiver.blocking_recv().unwrap().unwrap();
}

fn put(store: &Store, id: &str, n: u32) {
    saved(store.save(Kind::Service, id, &json!({"A": n})));
}

/// `web=1` for each service found.
fn services(found: &Found) -> Vec<String> {
    let entries = found.objects.iter();
    entries
        .map(|((_, id), object)| format!("{id}={}", object["A"]))
        .collect()
}

fn log_of(dir: &Path) -> PathBuf {
    dir.join("registrations/log")
}

/// Where the record that says `text` of its object lies.
fn place_of(bytes: &[u8], text: &str) -> usize {
    let found = bytes
        .windows(text.len())
        .rposition(|window| window == text.as_bytes());
    found.expect("the log holds it")
}

fn change_byte(dir: &Path, at: usize) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(log_of(dir))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
}

#[test]
fn what_was_saved_is_found_again_with_mode_0600() {
    let dir = tempfile::tempdir().unwrap();
    let (store, found) = open(dir.path());
    assert!(found.made, "there was nothing");
    put(&store, "web", 1);
    put(&store, "db", 2);
    put(&store, "web", 3);
    saved(store.remove(Kind::Service, "db"));
    saved(store.remove(Kind::Check, "never there"));
    saved(store.save(Kind::State, "c", &json!({"A": 4})));
    let mode = fs::metadata(log_of(dir.path()))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(store.written(), (6, 5), "a state is not synced");
    drop(store);
    for _ in 0..2 {
        let (_store, found) = open(dir.path());
        assert_eq!(services(&found), ["web=3", "c=4"]);
        assert_eq!((found.corrupt, found.made), (0, false));
    }
}

#[test]
fn the_log_is_compacted_when_its_room_is_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let padding = "x".repeat(100_000);
    for n in 0..60 {
        let object = json!({"A": n, "B": padding});
        saved(store.save(Kind::Service, &format!("s{}", n % 3), &object));
        if n == 30 {
            put(&store, "early", 7);
        }
    }
    let len = fs::metadata(log_of(dir.path())).unwrap().len();
    assert!(len < 2 * ROOM_MIN_BYTES, "{len}");
    drop(store);
    let (store, found) = open(dir.path());
    assert_eq!(services(&found), ["early=7", "s0=57", "s1=58", "s2=59"]);
    // More than the room at once.
    let big = json!({"A": 1, "B": "y".repeat(3_000_000)});
    saved(store.save(Kind::Service, "big", &big));
    drop(store);
    assert_eq!(services(&open(dir.path()).1)[0], "big=1");
}

#[test]
fn a_write_that_was_cut_short_is_dropped_and_what_it_replaced_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    put(&store, "web", 1);
    put(&store, "web", 2);
    drop(store);
    let whole = fs::read(log_of(dir.path())).unwrap();
    // The mark that says the last record is durable is not there after a power cut.
    let at = place_of(&whole, r#"{"A":2}"#);
    for cut in 0..7 {
        let mut torn = whole.clone();
        torn[at + cut..].fill(0);
        fs::write(log_of(dir.path()), &torn).unwrap();
        let (store, found) = open(dir.path());
        assert_eq!(services(&found), ["web=1"], "cut after {cut}");
        assert_eq!((found.corrupt, found.made), (0, false));
        // And it can be written on.
        put(&store, "db", 3);
        drop(store);
        assert_eq!(services(&open(dir.path()).1), ["db=3", "web=1"]);
    }
}

#[test]
fn damage_is_told_and_costs_only_what_it_hit() {
    for hit in [1, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path());
        for n in 1..=3 {
            put(&store, &format!("s{n}"), n);
        }
        drop(store);
        let bytes = fs::read(log_of(dir.path())).unwrap();
        change_byte(dir.path(), place_of(&bytes, &format!(r#"{{"A":{hit}}}"#)));
        let damaged = fs::read(log_of(dir.path())).unwrap();
        let (store, found) = open(dir.path());
        let left: Vec<String> = (1..=3)
            .filter(|n| *n != hit)
            .map(|n| format!("s{n}={n}"))
            .collect();
        assert_eq!(services(&found), left);
        assert_eq!(found.corrupt, 1);
        let kept = fs::read(dir.path().join("registrations/log.corrupt")).unwrap();
        assert_eq!(kept, damaged);
        drop(store);
        let again = open(dir.path()).1;
        assert_eq!((services(&again), again.corrupt), (left, 0), "told once");
    }
}

#[test]
fn a_file_that_is_no_log_is_kept_and_a_later_builds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    for bytes in [&b""[..], b"{}", &[0; 200]] {
        fs::write(log_of(dir.path()), bytes).unwrap();
        let (_store, found) = open(dir.path());
        assert_eq!((found.corrupt, found.objects.len()), (1, 0));
        let kept = dir.path().join("registrations/log.corrupt");
        assert_eq!(fs::read(kept).unwrap(), bytes);
    }
    let mut later = record::Salt([0; 16]).header();
    later[8] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&later[..12]), &later[16..]);
    later[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(log_of(dir.path()), later).unwrap();
    let refused = Store::open(dir.path(), id_of).err().expect("refused");
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("it has format 2"), "{cause}");
    assert_eq!(fs::read(log_of(dir.path())).unwrap(), later, "untouched");
}

#[test]
fn the_mark_goes_before_the_damage_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    put(&store, "web", 1);
    drop(store);
    mark::set(dir.path()).unwrap();
    drop(open(dir.path()));
    assert!(mark::is_set(dir.path()), "nothing was lost");
    let bytes = fs::read(log_of(dir.path())).unwrap();
    change_byte(dir.path(), place_of(&bytes, r#"{"A":1}"#));
    drop(open(dir.path()));
    assert!(!mark::is_set(dir.path()));
}

#[test]
fn a_lost_log_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    put(&store, "web", 1);
    drop(store);
    fs::remove_file(log_of(dir.path())).unwrap();
    let (_store, found) = open(dir.path());
    assert!(found.made && found.objects.is_empty());
}

#[test]
fn a_failed_write_is_reported_and_the_next_one_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    put(&store, "web", 1);
    // The new file cannot be made, so the room that is left is all there is.
    let aside = dir.path().join("registrations/log.new");
    fs::create_dir(&aside).unwrap();
    let big = json!({"A": 2, "B": "x".repeat(2_000_000)});
    let verdict = store
        .save(Kind::Service, "big", &big)
        .blocking_recv()
        .unwrap();
    assert!(verdict.is_err());
    put(&store, "db", 3);
    fs::remove_dir(&aside).unwrap();
    saved(store.save(Kind::Service, "big", &big));
    let most = json!("x".repeat(record::BODY_MAX_BYTES));
    let verdict = store
        .save(Kind::Service, "most", &most)
        .blocking_recv()
        .unwrap();
    assert!(verdict.unwrap_err().contains("more than the limit"));
    drop(store);
    assert_eq!(services(&open(dir.path()).1), ["big=2", "db=3", "web=1"]);
}

#[test]
fn after_a_failed_sync_nothing_is_written_to_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::begin(dir.path(), None, &BTreeMap::new()).unwrap();
    let key = |id: &str| (Kind::Service, id.to_owned());
    let (web, db) = (key("web"), key("db"));
    log.append(&[(&web, Some("1"))], true).unwrap();
    // A handle that cannot write stands for a disk that does not.
    log.replace_file(File::open(dir.path().join("log")).unwrap());
    let before = fs::metadata(dir.path().join("log")).unwrap();
    assert!(log.append(&[(&db, Some("2"))], true).is_err());
    assert!(!log.wants_mark());
    log.append(&[(&db, Some("3"))], true).unwrap();
    let after = fs::metadata(dir.path().join("log")).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_ne!(before.ino(), after.ino(), "another file");
    let read = log::read(dir.path()).unwrap();
    let objects: Vec<_> = read.objects.values().map(String::as_str).collect();
    assert_eq!((objects, read.damaged), (vec!["3", "1"], 0));
}

/// Writes what earlier builds wrote.
fn write_earlier(root: &Path, place: &str, object: Value) {
    let mut object = object;
    let sum = earlier::checksum(&object);
    object["Sum"] = json!(sum);
    fs::create_dir_all(root.join(place).parent().unwrap()).unwrap();
    fs::write(root.join(place), object.to_string()).unwrap();
}

#[test]
fn the_files_of_an_earlier_build_are_taken_over_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write_earlier(root, "services/ab", json!({"ID": "web", "A": 1}));
    write_earlier(root, "checks/cd", json!({"ID": "c", "A": 2}));
    write_earlier(root, "checks/state/cd", json!({"ID": "c", "A": 3}));
    fs::write(root.join("services/ef"), r#"{"ID":"consuls","A":4}"#).unwrap();
    fs::write(root.join("services/ef.tmp"), "half").unwrap();
    let (store, found) = open(root);
    assert_eq!(services(&found), ["consuls=4", "web=1", "c=2", "c=3"]);
    assert_eq!((found.corrupt, found.made), (0, false));
    saved(store.remove(Kind::Service, "web"));
    drop(store);
    assert!(!root.join("services").exists() && !root.join("checks").exists());
    assert!(root.join("registrations/before-1/services/ab").exists());
    let (_store, found) = open(root);
    assert_eq!(services(&found), ["consuls=4", "c=2", "c=3"]);
    assert_eq!((found.corrupt, found.made), (0, false));
}

#[test]
fn a_take_over_that_was_cut_short_is_finished_and_a_detour_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write_earlier(root, "services/ab", json!({"ID": "web", "A": 1}));
    fs::create_dir(root.join("checks")).unwrap();
    drop(open(root));
    // The log was there, the directories not yet away.
    let before = root.join("registrations/before-1");
    fs::rename(before.join("services"), root.join("services")).unwrap();
    let (store, found) = open(root);
    assert_eq!(services(&found), ["web=1"]);
    assert!(!found.made && !root.join("services").exists());
    drop(store);
    // An earlier build ran here again and knows better.
    write_earlier(root, "services/ab", json!({"ID": "web", "A": 5}));
    let (_store, found) = open(root);
    assert_eq!(services(&found), ["web=5"]);
    assert!(found.made, "what it removed is not known");
}

#[test]
fn damaged_files_of_an_earlier_build_are_kept_and_told() {
    for damage in [
        &b"{\"ID\":\"x\",\"Sum\":\"00\"}"[..],
        b"",
        b"[]",
        b"{\"A\":1}",
        b"{\"A\":",
        b"\xff\xfe",
    ] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["services", "checks"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("services/ab"), damage).unwrap();
        let (_store, found) = open(dir.path());
        assert_eq!((found.corrupt, found.objects.len()), (1, 0));
        let kept = dir.path().join("registrations/before-1/services/ab");
        assert_eq!(fs::read(kept).unwrap(), damage);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("services")).unwrap();
    assert!(open(dir.path()).1.made, "checks/ is gone");
}
