//! What an alias leads to: an answer that is a host name comes with that name's addresses.
//!
//! Owns: how far aliases are followed, here and at recursors, and where the addresses go.
//! Never: builds an alias; trims.
//! Source: RFC 1034 §3.6.2, RFC 2782 (additional data); CONSUL.md C.1 "Hostname address".

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use hickory_proto::rr::{Name, Record, RecordType};

use super::answer::Sections;
use super::recurse::{Recursion, RecursorOptions};

/// How long a chain of aliases may be: longer ones are mistakes or loops.
const DEPTH_MAX: usize = 3;
/// Names followed for one answer; one question must not become hundreds.
const NAMES_MAX: usize = 8;

/// The type that is asked of an alias's target here: addresses of either family where the question did
/// not name one.
pub(crate) fn type_here(asked: RecordType) -> RecordType {
    match asked {
        RecordType::A | RecordType::AAAA => asked,
        _ => RecordType::ANY,
    }
}

/// Follows the aliases that are names of ours. `look` answers what such a name leads to, `None` for a
/// name of another domain; those remain among the aliases.
pub(crate) fn here(
    sections: &mut Sections,
    owner: &Name,
    asked: RecordType,
    mut look: impl FnMut(&Name) -> Option<Sections>,
) {
    if sections.aliases.is_empty() {
        return;
    }
    let mut pending = std::mem::take(&mut sections.aliases);
    let mut seen = BTreeSet::from([owner.to_lowercase()]);
    let mut foreign = Vec::new();
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for name in pending {
            if seen.len() > NAMES_MAX || !seen.insert(name.to_lowercase()) {
                continue;
            }
            match look(&name) {
                Some(found) => {
                    add(sections, asked, found.answers);
                    next.extend(found.aliases);
                    sections.for_client |= found.for_client;
                }
                None => foreign.push(name),
            }
        }
        pending = next;
    }
    sections.aliases = foreign;
}

/// Asks recursors for the aliases that remain. What they do not know stays unsaid: the alias itself is
/// the answer.
pub(crate) async fn elsewhere(
    sections: &mut Sections,
    asked: RecordType,
    client: IpAddr,
    recursion: &Recursion,
    options: &RecursorOptions,
) {
    let kinds: &[RecordType] = match asked {
        RecordType::A => &[RecordType::A],
        RecordType::AAAA => &[RecordType::AAAA],
        _ => &[RecordType::A, RecordType::AAAA],
    };
    let aliases = std::mem::take(&mut sections.aliases);
    let questions = aliases
        .iter()
        .flat_map(|name| kinds.iter().map(move |kind| (name, *kind)))
        .map(|(name, kind)| recursion.addresses(options, client, name, kind));
    for mut records in join_all(questions).await {
        if let Some(most) = sections.alias_ttl {
            cap(&mut records, most);
        }
        add(sections, asked, records);
    }
}

fn cap(records: &mut [Record], most: Duration) {
    let most = u32::try_from(most.as_secs()).unwrap_or(u32::MAX);
    for record in records {
        record.ttl = record.ttl.min(most);
    }
}

/// Records a section is filled up to with what aliases lead to. Each is compared with all before it.
const RECORDS_MAX: usize = 256;

fn add(sections: &mut Sections, asked: RecordType, records: Vec<Record>) {
    let into = match asked {
        RecordType::SRV => &mut sections.additionals,
        _ => &mut sections.answers,
    };
    for record in records {
        if into.len() >= RECORDS_MAX {
            sections.more = true;
            return;
        }
        let kind = record.record_type();
        let leads = matches!(kind, RecordType::A | RecordType::AAAA | RecordType::CNAME);
        // Both families of one name begin with the same alias.
        if leads && !into.contains(&record) {
            into.push(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn alias(from: &str, to: &str) -> Sections {
        let data = RData::CNAME(CNAME(name(to)));
        Sections {
            answers: vec![Record::from_rdata(name(from), 5, data)],
            aliases: vec![name(to)],
            ..Sections::default()
        }
    }

    fn host(text: &str) -> Sections {
        let data = RData::A(A([10, 0, 0, 1].into()));
        Sections {
            answers: vec![Record::from_rdata(name(text), 5, data)],
            ..Sections::default()
        }
    }

    /// Names followed from `a.consul.`, and what is left for recursors.
    fn check(look: impl Fn(&str) -> Option<Sections>, answers: usize, foreign: &[&str]) {
        let mut sections = alias("a.consul.", "b.consul.");
        here(&mut sections, &name("a.consul."), RecordType::A, |next| {
            look(&next.to_ascii())
        });
        assert_eq!(sections.answers.len(), answers);
        let foreign: Vec<Name> = foreign.iter().map(|text| name(text)).collect();
        assert_eq!(sections.aliases, foreign);
    }

    #[test]
    fn a_chain_ends_at_an_address_or_at_a_foreign_name() {
        check(|next| Some(host(next)), 2, &[]);
        check(
            |next| match next {
                "b.consul." => Some(alias("b.consul.", "c.consul.")),
                "c.consul." => Some(alias("c.consul.", "www.example.")),
                _ => None,
            },
            3,
            &["www.example."],
        );
    }

    #[test]
    fn an_answer_for_one_client_stays_one_behind_an_alias() {
        let mut sections = alias("a.consul.", "b.consul.");
        here(&mut sections, &name("a.consul."), RecordType::A, |next| {
            Some(Sections {
                for_client: true,
                ..host(&next.to_ascii())
            })
        });
        assert!(sections.for_client);
    }

    #[test]
    fn a_chain_that_goes_round_or_on_and_on_ends() {
        check(|_| Some(alias("b.consul.", "a.consul.")), 2, &[]);
        check(|_| Some(alias("b.consul.", "b.consul.")), 2, &[]);
        let longer = |next: &str| Some(alias(next, &format!("x{next}")));
        check(longer, 1 + DEPTH_MAX, &[]);
    }

    #[test]
    fn one_answer_follows_a_bounded_number_of_names() {
        let mut sections = Sections {
            aliases: (0..100).map(|n| name(&format!("h{n}.example."))).collect(),
            ..Sections::default()
        };
        here(&mut sections, &name("a.consul."), RecordType::SRV, |_| None);
        assert_eq!(sections.aliases.len(), NAMES_MAX);
    }
}
