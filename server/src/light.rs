//! Which commands take microseconds to apply, told from their first bytes.
//!
//! Owns: the list. Never: decodes a command; `fsm` does that once, when it applies it.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use weft_proto::v1::KvVerb;

/// Field numbers of `Stamped.command` (`proto/weft/v1/command.proto`).
const FIRST_COMMAND: u32 = 10;
const KV: u32 = 12;
const SESSION_RENEW: u32 = 15;
/// Field number of `KvCommand.verb`.
const VERB: u32 = 1;

/// With more watches than this, waking is no work for the Raft thread: all of them may watch one key.
const WATCHES_MAX: u64 = 256;

/// Whether applying `stamped`, an encoded `Stamped`, takes microseconds: it touches one key or one session,
/// and wakes at most a few of the `watches` there are.
pub(crate) fn is_light(stamped: &[u8], watches: u64) -> bool {
    watches <= WATCHES_MAX && touches_one(stamped)
}

/// Whether `stamped` touches one key or one session and so costs the same whatever the state holds.
/// Anything that cannot be told does not.
fn touches_one(mut stamped: &[u8]) -> bool {
    let body = &mut stamped;
    while let Ok((field, wire)) = decode_key(body) {
        match field {
            SESSION_RENEW => return true,
            KV => return wire == WireType::LengthDelimited && of_one_key(body),
            FIRST_COMMAND.. => return false,
            _ => {}
        }
        if skip_field(wire, field, body, DecodeContext::default()).is_err() {
            return false;
        }
    }
    false
}

/// `body` is at the length of a `KvCommand`, whose verb we write first.
fn of_one_key(body: &mut &[u8]) -> bool {
    if decode_varint(body).is_err() {
        return false;
    }
    let Ok((VERB, WireType::Varint)) = decode_key(body) else {
        return false;
    };
    let verb = decode_varint(body)
        .ok()
        .and_then(|verb| i32::try_from(verb).ok())
        .and_then(|verb| KvVerb::try_from(verb).ok());
    matches!(
        verb,
        Some(
            KvVerb::Set
                | KvVerb::Cas
                | KvVerb::Lock
                | KvVerb::Unlock
                | KvVerb::Delete
                | KvVerb::DeleteCas
        )
    )
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use weft_proto::v1::{self, stamped::Command};

    use super::*;

    fn light(command: Command) -> bool {
        let stamped = v1::Stamped {
            at_millis: 1_700_000_000_000,
            term: 7,
            source_id: "agent".into(),
            source_sequence: 3,
            scope: Some(v1::Scope::default()),
            command: Some(command),
        };
        touches_one(&stamped.encode_to_vec())
    }

    fn kv(verb: KvVerb) -> Command {
        Command::Kv(v1::KvCommand {
            verb: verb.into(),
            entry: Some(v1::KvEntry {
                key: "a".into(),
                ..v1::KvEntry::default()
            }),
        })
    }

    #[test]
    fn one_key_or_one_session_is_light() {
        for verb in [
            KvVerb::Set,
            KvVerb::Cas,
            KvVerb::Lock,
            KvVerb::Unlock,
            KvVerb::Delete,
            KvVerb::DeleteCas,
        ] {
            assert!(light(kv(verb)), "{verb:?}");
        }
        assert!(light(Command::SessionRenew(v1::SessionRenew::default())));
    }

    #[test]
    fn what_may_touch_many_rows_or_wake_many_is_not() {
        for verb in [KvVerb::DeleteTree, KvVerb::GetTree, KvVerb::Unspecified] {
            assert!(!light(kv(verb)), "{verb:?}");
        }
        for command in [
            Command::Register(v1::Register::default()),
            Command::Deregister(v1::Deregister::default()),
            Command::SessionCreate(v1::SessionCreate::default()),
            Command::SessionDestroy(v1::SessionDestroy::default()),
            Command::SessionExpire(v1::SessionExpire::default()),
            Command::Txn(v1::Txn::default()),
            Command::TombstoneReap(v1::TombstoneReap::default()),
            Command::LeaderStart(v1::LeaderStart::default()),
        ] {
            assert!(!light(command.clone()), "{command:?}");
        }
    }

    #[test]
    fn nonsense_is_not_light() {
        for bytes in [&b""[..], b"\xff", b"\x62", b"\x62\x02", b"\x62\x02\x10\x01"] {
            assert!(!touches_one(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn a_key_that_many_may_watch_is_not_light() {
        let put = v1::Stamped {
            command: Some(kv(KvVerb::Set)),
            ..v1::Stamped::default()
        }
        .encode_to_vec();
        assert_eq!(
            [0, WATCHES_MAX, WATCHES_MAX + 1].map(|watches| is_light(&put, watches)),
            [true, true, false]
        );
    }
}
