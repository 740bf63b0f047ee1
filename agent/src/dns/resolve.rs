//! From a packet to its answer: catalog, recursors, or a refusal.
//!
//! Owns: which of them a question goes to, and what is counted.
//! Never: opens a listening socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weft_catalog::prepared_query::Expressions;
use weft_catalog::view::ViewTopic;
use weft_catalog::{State, Trace};
use weft_proto::clock::Clock;

use super::alias;
use super::answer::{ANSWERS_MAX, Asked, Sections};
use super::lookup::{Found, Rules, find};
use super::message::{self, Received, Style, Via};
use super::metrics::{Cause, DnsMetrics};
use super::name::{self, Target, Way};
use super::options::DnsOptions;
use super::recurse::{Leave, Recursion};
use super::view::{DnsView, Viewed};

/// Longest wait for the addresses of aliases, whatever the recursors' time-outs add up to.
const ALIASES_WAIT: Duration = Duration::from_secs(10);

/// Questions that may wait for views at once; further ones are SERVFAIL.
const WAITING_MAX: usize = 1_024;
/// Views that one question may wait for, one after the other: its own and those of aliases.
const WAITS_MAX: u8 = 4;

/// Answers packets.
pub(crate) struct Resolver {
    view: Arc<dyn DnsView>,
    options: ArcSwap<Compiled>,
    metrics: DnsMetrics,
    recursion: Recursion,
    expressions: Expressions,
    clock: Arc<dyn Clock>,
    waiting: Arc<Semaphore>,
    /// For names that need no catalog.
    nothing: Arc<State>,
}

/// What becomes of a packet.
pub(crate) enum Step {
    Reply(Vec<u8>),
    Nothing,
    /// Others are asked first.
    Later(Box<Later>),
}

/// A question that waits for recursors.
pub(crate) struct Later {
    question: Box<Message>,
    compiled: Arc<Compiled>,
    via: Via,
    client: IpAddr,
    begun: Duration,
    wants: Wants,
}

enum Wants {
    /// A view that nobody has asked for before.
    View {
        topic: ViewTopic,
        waits: u8,
        _place: OwnedSemaphorePermit,
    },
    /// All of the answer.
    Answer(Leave),
    /// Addresses of the aliases in it.
    Aliases(Sections),
}

/// Who asks, how and since when.
#[derive(Clone, Copy)]
struct Asker {
    via: Via,
    client: IpAddr,
    begun: Duration,
}

/// Options with what is derived from them.
struct Compiled {
    options: DnsOptions,
    domains: Vec<String>,
    /// The domain that answers use where the question is below none: `domain`.
    own: String,
}

impl Compiled {
    fn new(options: DnsOptions) -> Self {
        Self {
            domains: name::ordered(std::iter::once(&options.domain).chain(&options.alt_domain)),
            own: options.domain.trim_matches('.').to_ascii_lowercase(),
            options,
        }
    }

    fn recursive(&self) -> bool {
        !self.options.recursors.addresses.is_empty()
    }

    fn style(&self) -> Style {
        Style {
            answer_limit: self.options.udp_answer_limit,
            set_tc: self.options.enable_truncate,
            compress: !self.options.disable_compression,
            recursion: self.recursive(),
        }
    }

    /// Which of our domains `text` is below, else the own one.
    fn domain_of(&self, text: &str) -> &str {
        let text = text.trim_end_matches('.');
        self.domains
            .iter()
            .find(|domain| name::within(text, domain).is_some())
            .unwrap_or(&self.own)
    }
}

impl Resolver {
    pub(crate) fn new(
        options: DnsOptions,
        view: Arc<dyn DnsView>,
        metrics: DnsMetrics,
        recursion: Recursion,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            view,
            options: ArcSwap::from_pointee(Compiled::new(options)),
            metrics,
            recursion,
            expressions: Expressions::default(),
            clock,
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            nothing: Arc::default(),
        }
    }

    /// Takes new options for every later question.
    pub(crate) fn reload(&self, options: DnsOptions) {
        self.options.store(Arc::new(Compiled::new(options)));
    }

    #[cfg(test)]
    pub(crate) fn metrics(&self) -> &DnsMetrics {
        &self.metrics
    }

    pub(crate) fn refused_connection(&self, reason: &'static str) {
        self.metrics.refused(reason);
    }

    /// The answer to one packet; nothing for garbage.
    pub(crate) fn answer(
        &self,
        packet: &[u8],
        via: Via,
        client: IpAddr,
        rng: &mut SmallRng,
    ) -> Step {
        match message::receive(packet) {
            Received::Question(question) => {
                let begun = self.clock.monotonic();
                let kind = question.queries.first().map(|query| query.query_type());
                let asker = Asker { via, client, begun };
                let step = self.reply(question, asker, 0, rng);
                if let (Some(kind), Step::Reply(_)) = (kind, &step) {
                    self.took(kind, begun);
                }
                step
            }
            Received::Refused {
                bytes,
                rcode,
                reason,
            } => {
                self.metrics.answered(rcode);
                self.metrics.malformed(reason);
                Step::Reply(bytes)
            }
            Received::Garbage(reason) => {
                self.metrics.malformed(reason);
                Step::Nothing
            }
        }
    }

    fn took(&self, kind: RecordType, begun: Duration) {
        self.metrics
            .took(kind, self.clock.monotonic().saturating_sub(begun));
    }

    /// `waits`: how many views were waited for already.
    fn reply(&self, question: Box<Message>, asker: Asker, waits: u8, rng: &mut SmallRng) -> Step {
        let Asker { via, client, begun } = asker;
        let compiled = self.options.load_full();
        let Some(query) = question.queries.first() else {
            return Step::Nothing;
        };
        let owner = query.name().to_lowercase();
        let qtype = query.query_type();
        let text = name::text(&owner);
        let target = name::parse(&text, &compiled.domains);
        if target == Target::Foreign {
            return self.elsewhere(question, compiled, via, client, begun);
        }
        let state = match self.look(&target, qtype, &compiled.options) {
            Ok(state) => state,
            Err(Some(topic)) => return self.later(question, compiled, asker, (topic, waits)),
            Err(None) => return self.failed(&question, &compiled, Cause::NoView),
        };
        let zone = Zone {
            compiled: &compiled,
            state: &state,
            expressions: &self.expressions,
            client: message::client_of(&question, client),
            clock: self.clock.as_ref(),
        };
        let most = message::most_answers(&question, via, compiled.style());
        let asked = zone.asked(&owner, qtype, &text, most);
        let Some(mut sections) = zone.sections(&target, &asked, rng) else {
            // A reverse name that we do not know is below nobody's zone of ours.
            if compiled.recursive() {
                return self.elsewhere(question, compiled, via, client, begun);
            }
            let sections = asked.sections(Found::NoName(Cause::UnknownAddress), rng);
            return self.done(&question, &compiled, sections, via);
        };
        let mut unknown = None;
        alias::here(&mut sections, &owner, qtype, |name| {
            let text = name::text(&name.to_lowercase());
            let target = name::parse(&text, &compiled.domains);
            let kind = alias::type_here(qtype);
            let state = match self.look(&target, kind, &compiled.options) {
                Ok(state) => state,
                Err(topic) => {
                    unknown = unknown.take().or(topic);
                    return None;
                }
            };
            let zone = Zone {
                state: &state,
                ..zone
            };
            let asked = zone.asked(name, kind, &text, ANSWERS_MAX);
            zone.sections(&target, &asked, rng)
        });
        if let Some(topic) = unknown.filter(|_| waits < WAITS_MAX) {
            return self.later(question, compiled, asker, (topic, waits));
        }
        if compiled.recursive() && !sections.aliases.is_empty() {
            return Step::Later(Box::new(Later {
                question,
                compiled,
                via,
                client,
                begun,
                wants: Wants::Aliases(sections),
            }));
        }
        self.done(&question, &compiled, sections, via)
    }

    /// The state that answers for a target. Error: the view to wait for, or nothing when it is too old.
    fn look(
        &self,
        target: &Target,
        qtype: RecordType,
        options: &DnsOptions,
    ) -> Result<Arc<State>, Option<ViewTopic>> {
        let Some(topic) = topic_of(target, qtype, &options.datacenter) else {
            return Ok(self.nothing.clone());
        };
        match self.view.look(&topic) {
            Viewed::Ready { state, age } if age <= options.max_stale => Ok(state),
            Viewed::Ready { .. } => Err(None),
            Viewed::Unknown => Err(Some(topic)),
        }
    }

    /// An answer after a view has been waited for, if there is room to wait.
    fn later(
        &self,
        question: Box<Message>,
        compiled: Arc<Compiled>,
        asker: Asker,
        (topic, waits): (ViewTopic, u8),
    ) -> Step {
        let place = Arc::clone(&self.waiting).try_acquire_owned();
        let Some(place) = place.ok().filter(|_| waits < WAITS_MAX) else {
            return self.failed(&question, &compiled, Cause::NoView);
        };
        Step::Later(Box::new(Later {
            question,
            compiled,
            via: asker.via,
            client: asker.client,
            begun: asker.begun,
            wants: Wants::View {
                topic,
                waits,
                _place: place,
            },
        }))
    }

    /// A name of another domain: for the recursors, else refused.
    fn elsewhere(
        &self,
        question: Box<Message>,
        compiled: Arc<Compiled>,
        via: Via,
        client: IpAddr,
        begun: Duration,
    ) -> Step {
        if !compiled.recursive() {
            self.metrics.answered("refused");
            self.metrics.empty(Cause::Foreign);
            let bytes = message::bare(&question, ResponseCode::Refused, compiled.style());
            return bytes.map_or(Step::Nothing, Step::Reply);
        }
        let recursors = &compiled.options.recursors;
        match self.recursion.admit(recursors, client, &question) {
            Ok(leave) => Step::Later(Box::new(Later {
                question,
                compiled,
                via,
                client,
                begun,
                wants: Wants::Answer(leave),
            })),
            Err(cause) => self.failed(&question, &compiled, cause),
        }
    }

    /// The answer once others have been asked.
    pub(crate) async fn finish(&self, later: Later) -> Option<Vec<u8>> {
        let Later {
            question,
            compiled,
            via,
            client,
            begun,
            wants,
        } = later;
        let kind = question.queries.first()?.query_type();
        let recursors = &compiled.options.recursors;
        let step = match wants {
            Wants::View {
                topic,
                waits,
                _place,
            } => {
                self.view.wait(&topic).await;
                let id = u64::from(question.metadata.id);
                let mut rng = SmallRng::seed_from_u64(begun.as_nanos() as u64 ^ id << 48);
                let asker = Asker { via, client, begun };
                // A view that is unknown still is not waited for a second time.
                let waits = match self.view.look(&topic) {
                    Viewed::Unknown => WAITS_MAX,
                    Viewed::Ready { .. } => waits + 1,
                };
                match self.reply(question, asker, waits, &mut rng) {
                    Step::Later(later) => return Box::pin(self.finish(*later)).await,
                    step => step,
                }
            }
            Wants::Answer(_leave) => {
                let packet = message::forwarded(&question)?;
                match self.recursion.ask(recursors, &packet, !via.is_udp()).await {
                    Ok(answer) => self.pass_on(&question, answer, via),
                    Err(cause) => self.failed(&question, &compiled, cause),
                }
            }
            Wants::Aliases(mut sections) => {
                let asking =
                    alias::elsewhere(&mut sections, kind, client, &self.recursion, recursors);
                // Out of time: the aliases alone are an answer, too.
                let _ = tokio::time::timeout(ALIASES_WAIT, asking).await;
                self.done(&question, &compiled, sections, via)
            }
        };
        self.took(kind, begun);
        match step {
            Step::Reply(bytes) => Some(bytes),
            Step::Nothing | Step::Later(_) => None,
        }
    }

    fn pass_on(&self, question: &Message, answer: Vec<u8>, via: Via) -> Step {
        let known = Message::from_vec(&answer).map(|message| message.metadata.response_code);
        self.metrics.answered(match known {
            Ok(ResponseCode::NXDomain) => "nxdomain",
            _ => "noerror",
        });
        match message::passed_on(question, answer, via) {
            Some((bytes, cut)) => {
                self.metrics.truncated.inc_by(cut.into());
                Step::Reply(bytes)
            }
            None => Step::Nothing,
        }
    }

    fn done(&self, question: &Message, compiled: &Compiled, sections: Sections, via: Via) -> Step {
        let (cause, exists) = (sections.empty, sections.exists);
        match message::encode(question, sections, via, compiled.style()) {
            Some((bytes, trimmed)) => {
                if let Some(cause) = cause {
                    self.metrics.empty(cause);
                }
                self.metrics
                    .answered(if exists { "noerror" } else { "nxdomain" });
                self.metrics.truncated.inc_by(trimmed.into());
                Step::Reply(bytes)
            }
            None => self.failed(question, compiled, Cause::NotSendable),
        }
    }

    fn failed(&self, question: &Message, compiled: &Compiled, cause: Cause) -> Step {
        self.metrics.answered("servfail");
        self.metrics.empty(cause);
        let bytes = message::bare(question, ResponseCode::ServFail, compiled.style());
        bytes.map_or(Step::Nothing, Step::Reply)
    }
}

/// The view that answers for a target; `None`: none is needed.
fn topic_of(target: &Target, qtype: RecordType, datacenter: &str) -> Option<ViewTopic> {
    let here = |dc: &Option<String>| {
        dc.as_deref()
            .is_none_or(|dc| dc.eq_ignore_ascii_case(datacenter))
    };
    let apex = || ViewTopic::service("consul");
    // The zone's own records are given for every name below it.
    if matches!(qtype, RecordType::SOA | RecordType::NS)
        && !matches!(target, Target::Reverse(_) | Target::Foreign)
    {
        return Some(apex());
    }
    Some(match target {
        Target::Apex => apex(),
        Target::Node { name, datacenter } if here(datacenter) => ViewTopic::node(name),
        Target::Service {
            name, datacenter, ..
        } if here(datacenter) => ViewTopic::service(name),
        Target::Query { name, datacenter } if here(datacenter) => ViewTopic::query(name),
        Target::Mesh {
            name,
            way,
            datacenter,
        } if here(datacenter) => match way {
            Way::Connect => ViewTopic::connect(name),
            Way::Ingress => ViewTopic::ingress(name),
        },
        Target::Reverse(ip) => ViewTopic::Address(*ip),
        _ => return None,
    })
}

/// Our names at one moment.
#[derive(Clone, Copy)]
struct Zone<'z> {
    compiled: &'z Compiled,
    state: &'z State,
    expressions: &'z Expressions,
    client: IpAddr,
    clock: &'z dyn Clock,
}

impl Zone<'_> {
    /// What is known of a name; `None` when it is for others to say.
    fn sections(&self, target: &Target, asked: &Asked<'_>, rng: &mut SmallRng) -> Option<Sections> {
        let options = &self.compiled.options;
        // The zone's own records are given for every name below it.
        let apex = matches!(asked.qtype, RecordType::SOA | RecordType::NS)
            && !matches!(target, Target::Reverse(_) | Target::Foreign);
        let target = if apex { &Target::Apex } else { target };
        let rules = Rules {
            datacenter: &options.datacenter,
            domain: asked.domain,
            only_passing: options.only_passing,
            node: &options.node,
            client: self.client,
            expressions: self.expressions,
        };
        let trace = Trace::off();
        let found = find(target, self.state, &rules, &trace, rng);
        let ours = !matches!(
            (target, &found),
            (_, Found::Foreign) | (Target::Reverse(_), Found::NoName(_))
        );
        ours.then(|| asked.sections(found, rng))
    }

    /// `text`: the owner's, in lower case.
    fn asked<'q>(
        &'q self,
        owner: &'q Name,
        qtype: RecordType,
        text: &str,
        most: usize,
    ) -> Asked<'q> {
        Asked {
            options: &self.compiled.options,
            owner,
            qtype,
            domain: self.compiled.domain_of(text),
            most,
            wall: self.clock.wall(),
        }
    }
}
