//! Keys: set, compare-and-set, locks, deletion.
//!
//! Owns: the verbs' verdicts and the tombstones that keep indexes from running back.
//! Never: judges a key's form or the 512 KiB limit; the HTTP API does, before proposing.
//! Source: Consul HTTP API, "KV Store"; CONSUL.md B.4, B.5.

use std::ops::Bound;

use bytes::Bytes;
use weft_proto::ids::UnixMillis;
use weft_proto::v1::{self, KvCommand, KvEntry, KvVerb};

use crate::keys;
use crate::refusal::{Verdict, applied, internal, invalid};
use crate::rows::Change;

/// A value apply refuses whatever the HTTP layer's limit is: 8 MiB.
pub const KV_VALUE_BYTES_MAX: usize = 8 << 20;

/// A key apply refuses: 64 KiB.
pub const KV_KEY_BYTES_MAX: usize = 64 << 10;

pub(crate) fn command(change: &mut Change<'_>, now: UnixMillis, command: &KvCommand) -> Verdict {
    let Some(entry) = &command.entry else {
        return Err(invalid("kv.key.missing", "Missing key name"));
    };
    check_bounds(entry)?;
    let verdict = match command.verb() {
        KvVerb::Set => {
            set(change, entry);
            true
        }
        KvVerb::Cas => cas(change, entry),
        KvVerb::Lock => lock(change, now, entry)? == Lock::Acquired,
        KvVerb::Unlock => unlock(change, entry)?,
        KvVerb::Delete => {
            delete(change, &entry.key);
            true
        }
        KvVerb::DeleteCas => delete_cas(change, &entry.key, entry.modify_index),
        KvVerb::DeleteTree => {
            delete_tree(change, &entry.key);
            true
        }
        other => {
            return Err(invalid(
                "kv.verb.unknown",
                format!(
                    "KV verb {:?} is only allowed in a transaction",
                    other.as_str_name()
                ),
            ));
        }
    };
    Ok(applied(verdict))
}

pub(crate) fn check_bounds(entry: &KvEntry) -> Result<(), v1::Refusal> {
    if entry.value.len() > KV_VALUE_BYTES_MAX {
        return Err(invalid(
            "kv.value.too_large",
            format!(
                "value of {} bytes is above the hard bound of {KV_VALUE_BYTES_MAX} bytes",
                entry.value.len()
            ),
        ));
    }
    if entry.key.len() > KV_KEY_BYTES_MAX {
        return Err(invalid(
            "kv.key.too_large",
            format!(
                "key of {} bytes is above the hard bound of {KV_KEY_BYTES_MAX} bytes",
                entry.key.len()
            ),
        ));
    }
    Ok(())
}

/// Writes value and flags; a holder stays, for locks are advisory.
pub(crate) fn set(change: &mut Change<'_>, wanted: &KvEntry) {
    let before = change.state.kv.get(&wanted.key[..]);
    let session = before
        .map(|before| before.session.clone())
        .unwrap_or_default();
    let lock_index = before.map_or(0, |before| before.lock_index);
    write(change, wanted, session, lock_index);
}

/// Writes unless nothing would change: an identical entry keeps its index and wakes nobody.
fn write(change: &mut Change<'_>, wanted: &KvEntry, session: String, lock_index: u64) {
    let before = change.state.kv.get(&wanted.key[..]);
    let same = before.is_some_and(|before| {
        before.flags == wanted.flags
            && before.session == session
            && before.lock_index == lock_index
            && before.value == wanted.value
    });
    if same {
        return;
    }
    let create_index = before.map_or(change.index, |before| before.create_index);
    // Copied out of the log entry, so that a small value does not keep a whole batch alive.
    let value = Bytes::copy_from_slice(&wanted.value);
    let key = before.map_or_else(
        || Bytes::copy_from_slice(&wanted.key),
        |before| before.key.clone(),
    );
    let modify_index = change.index;
    change.put_kv(KvEntry {
        key,
        value,
        flags: wanted.flags,
        session,
        lock_index,
        create_index,
        modify_index,
    });
}

/// Writes if the key's modify index is the expected one; 0: if there is no such key.
pub(crate) fn cas(change: &mut Change<'_>, wanted: &KvEntry) -> bool {
    let current = change
        .state
        .kv
        .get(&wanted.key[..])
        .map_or(0, |before| before.modify_index);
    if current != wanted.modify_index {
        return false;
    }
    set(change, wanted);
    true
}

/// What became of an attempt to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Acquired,
    Held,
    Delayed,
}

pub(crate) fn lock(
    change: &mut Change<'_>,
    now: UnixMillis,
    wanted: &KvEntry,
) -> Result<Lock, v1::Refusal> {
    if wanted.session.is_empty() {
        return Err(internal("kv.session.missing", "missing session"));
    }
    let Some(session) = change
        .state
        .sessions
        .get(keys::fold(&wanted.session).as_ref())
    else {
        return Err(internal(
            "kv.session.invalid",
            format!("invalid session \"{}\"", wanted.session),
        ));
    };
    let holder = session.id.clone();
    let before = change.state.kv.get(&wanted.key[..]);
    let lock_index = match before {
        Some(before) if before.session == holder => before.lock_index,
        Some(before) if !before.session.is_empty() => return Ok(Lock::Held),
        other => {
            if change
                .state
                .lock_delays
                .get(&wanted.key[..])
                .is_some_and(|until| now.get() < *until)
            {
                return Ok(Lock::Delayed);
            }
            other.map_or(0, |before| before.lock_index) + 1
        }
    };
    change.state.lock_delays.remove(&wanted.key[..]);
    write(change, wanted, holder, lock_index);
    Ok(Lock::Acquired)
}

pub(crate) fn unlock(change: &mut Change<'_>, wanted: &KvEntry) -> Result<bool, v1::Refusal> {
    if wanted.session.is_empty() {
        return Err(internal("kv.session.missing", "missing session"));
    }
    let Some(before) = change.state.kv.get(&wanted.key[..]) else {
        return Ok(false);
    };
    if !before.session.eq_ignore_ascii_case(&wanted.session) {
        return Ok(false);
    }
    let lock_index = before.lock_index;
    write(change, wanted, String::new(), lock_index);
    Ok(true)
}

pub(crate) fn delete(change: &mut Change<'_>, key: &Bytes) {
    if change.drop_kv(key) {
        change
            .state
            .key_tombstones
            .insert(Bytes::copy_from_slice(key), change.index);
    }
}

/// Deletes if the modify index is the expected one. A key that is not there is deleted already.
pub(crate) fn delete_cas(change: &mut Change<'_>, key: &Bytes, expected: u64) -> bool {
    match change.state.kv.get(&key[..]) {
        None => true,
        Some(before) if before.modify_index != expected => false,
        Some(_) => {
            delete(change, key);
            true
        }
    }
}

/// Deletes every key with these first bytes, and leaves one tombstone for all of them.
pub(crate) fn delete_tree(change: &mut Change<'_>, prefix: &Bytes) {
    let from = (Bound::Included(&prefix[..]), Bound::Unbounded);
    let keys: Vec<Bytes> = change
        .state
        .kv
        .range::<_, [u8]>(from)
        .take_while(|(key, _)| key.starts_with(prefix))
        .map(|(key, _)| key.clone())
        .collect();
    if keys.is_empty() {
        return;
    }
    for key in &keys {
        change.drop_kv(key);
    }
    change
        .state
        .tree_tombstones
        .insert(Bytes::copy_from_slice(prefix), change.index);
}

/// Clears the holder of a key whose session ended, as a change of that key.
pub(crate) fn release(change: &mut Change<'_>, key: &Bytes) {
    let Some(before) = change.state.kv.get(&key[..]) else {
        return;
    };
    let mut entry = KvEntry::clone(before);
    entry.session.clear();
    entry.modify_index = change.index;
    change.put_kv(entry);
}
