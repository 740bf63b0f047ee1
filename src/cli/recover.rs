//! `weft recover`: a server goes on without the others, which are lost for ever.
//!
//! Owns: what an operator is shown before anything changes, and the reasons to refuse.
//! Never: changes anything without -yes; `weft_server::recover` does the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use weft_agent::config::{Flag, Request, RuntimeConfig};
use weft_proto::clock::{Clock, SystemClock};
use weft_server::recover::{self, Found, Survivor};

use super::failure::{Done, Exit, Failure};
use super::output::{self, Format, FormatArgs};

/// Let the last server go on when the others are lost for ever
///
/// Run it on a server that survived, while weft is stopped there. Without -yes it changes nothing: it shows what this
/// server holds, who else was a member and what would be lost.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weft recover -config-dir=/etc/weft.d\n  weft recover -config-dir=/etc/weft.d -compare=s2.json -yes"
)]
pub(crate) struct RecoverArgs {
    /// Configuration file of this server; may be repeated
    #[arg(long, value_name = "FILE")]
    config_file: Vec<PathBuf>,
    /// Directory of its configuration files; may be repeated
    #[arg(long, value_name = "DIR")]
    config_dir: Vec<PathBuf>,
    /// Configuration as text; may be repeated
    #[arg(long, value_name = "TEXT")]
    hcl: Vec<String>,
    /// Directory of its state, if the configuration does not say
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Only show what would be done; so unless -yes is given
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Report (-o json) of another server that survived: the one with the newest log must go on; may be repeated
    #[arg(long, value_name = "FILE")]
    compare: Vec<PathBuf>,
    /// Member that is lost although something answers at its address; may be repeated
    #[arg(long, value_name = "NAME")]
    lost: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(args: RecoverArgs) -> Done {
    let config = configuration(&args)?;
    let Some(data_dir) = config.data_dir.clone() else {
        return Err(Failure::usage(
            "weft recover needs the server's data: -config-dir, -config-file or -data-dir",
        ));
    };
    if !data_dir.join("raft").is_dir() {
        return Err(Failure::new(
            Exit::NotFound,
            format!(
                "recover.no_server: {} holds no server's state; run this on a server that survived",
                data_dir.display()
            ),
        ));
    }
    let _lock = crate::run::lock_data_dir(&data_dir).map_err(|cause| {
        Failure::new(
            Exit::Conflict,
            format!("recover.running: {cause:#}; a server that runs needs no recovery"),
        )
    })?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let survivor = open(&config, &clock)?;
    let found = ask(&config, &survivor, &args.lost, clock)?;
    let others = compared(&args.compare)?;
    let report = Report {
        place: place(&data_dir, &config, &survivor),
        interrupted: survivor.interrupted(),
        members: found,
        others,
    };
    if let Some(why) = report.refusal() {
        report.show(args.format.output, None, Some(&why))?;
        return Err(Failure::new(Exit::Negative, why));
    }
    if !args.yes {
        return report.show(args.format.output, None, None);
    }
    let recovered = survivor
        .go_on_alone()
        .map_err(|cause| Failure::new(Exit::Negative, said(&cause)))?;
    report.show(
        args.format.output,
        Some(&recovered.raft_id.to_string()),
        None,
    )
}

fn configuration(args: &RecoverArgs) -> Result<RuntimeConfig, Failure> {
    let data_dir = args.data_dir.iter().map(|value| Flag {
        name: "-data-dir".into(),
        key: "data_dir",
        value: value.clone(),
    });
    let request = Request {
        paths: args
            .config_file
            .iter()
            .chain(&args.config_dir)
            .cloned()
            .collect(),
        hcl: args.hcl.clone(),
        flags: data_dir.collect(),
        ..Request::default()
    };
    super::agent::agent_args(&request)
        .map_err(|problems| Failure::new(Exit::Config, problems.to_string()))
}

fn open(config: &RuntimeConfig, clock: &Arc<dyn Clock>) -> Result<Survivor, Failure> {
    let settings = crate::run::server_settings(config);
    let opened = Survivor::open(&settings, clock.clone())
        .map_err(|cause| Failure::new(Exit::Negative, said(&cause)))?;
    opened.ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            "recover.no_log: this server was never part of a cluster; start it, and it joins one",
        )
    })
}

/// An error with its causes.
fn said(cause: &dyn std::error::Error) -> String {
    let mut text = cause.to_string();
    let mut next = cause.source();
    while let Some(deeper) = next {
        text = format!("{text}: {deeper}");
        next = deeper.source();
    }
    text
}

/// What is found of a member, in words and as a word.
struct Member {
    name: String,
    id: String,
    address: String,
    voter: bool,
    state: &'static str,
    detail: String,
}

fn ask(
    config: &RuntimeConfig,
    survivor: &Survivor,
    lost: &[String],
    clock: Arc<dyn Clock>,
) -> Result<Vec<Member>, Failure> {
    let me = survivor.me().map(|me| me.peer.id);
    let members = &survivor.survey().members;
    if let Some(unknown) = lost
        .iter()
        .find(|name| members.iter().all(|m| m.peer.name != **name))
    {
        return Err(Failure::usage(format!(
            "-lost={unknown}: no member is called that"
        )));
    }
    let others: Vec<_> = members
        .iter()
        .filter(|m| Some(m.peer.id) != me && !lost.contains(&m.peer.name))
        .collect();
    let tls = crate::run::rpc_tls(config, clock)
        .map_err(|cause| Failure::new(Exit::Config, format!("{cause:#}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start: {error}")))?;
    let mut answers = runtime
        .block_on(recover::ask(&others, &config.datacenter, tls))
        .into_iter();
    let shown = members.iter().map(|m| {
        let (state, detail) = if Some(m.peer.id) == me {
            ("this server", String::new())
        } else if lost.contains(&m.peer.name) {
            ("declared lost", String::new())
        } else {
            match answers.next() {
                Some(Found::Alive) => ("alive", String::new()),
                Some(Found::Replaced) => ("replaced", "a server with another Raft id".into()),
                Some(Found::Unclear(why)) => ("unclear", why),
                Some(Found::Silent(why)) => ("silent", why),
                None => ("silent", String::new()),
            }
        };
        Member {
            name: m.peer.name.clone(),
            id: m.peer.id.to_string(),
            address: m.peer.address.clone(),
            voter: m.voter,
            state,
            detail,
        }
    });
    Ok(shown.collect())
}

/// Where the log of a server that survived ends.
struct Tail {
    node: String,
    cluster: String,
    last_term: u64,
    last_index: u64,
    recoveries: u64,
}

impl Tail {
    /// Of two logs, the higher is the newer.
    const fn rank(&self) -> (u64, u64, u64) {
        (self.recoveries, self.last_term, self.last_index)
    }
}

fn compared(files: &[PathBuf]) -> Result<Vec<Tail>, Failure> {
    let read = |file: &PathBuf| {
        let wrong = |why: String| {
            Failure::usage(format!(
                "-compare={}: {why}; it wants the output of `weft recover -o json` there",
                file.display()
            ))
        };
        let text = std::fs::read_to_string(file).map_err(|cause| wrong(cause.to_string()))?;
        let report: Value =
            serde_json::from_str(&text).map_err(|cause| wrong(cause.to_string()))?;
        let number = |name: &str| report[name].as_u64();
        let words = |name: &str| report[name].as_str().map(str::to_owned);
        let tail = || {
            Some(Tail {
                node: words("node")?,
                cluster: words("cluster_id")?,
                last_term: number("last_term")?,
                last_index: number("last_index")?,
                recoveries: number("recoveries")?,
            })
        };
        tail().ok_or_else(|| wrong("not such a report".into()))
    };
    files.iter().map(read).collect()
}

/// What this server is and holds.
struct Place {
    node: String,
    data_dir: String,
    raft_id: String,
    cluster: String,
    datacenter: String,
    survey: weft_raft::Survey,
    index: u64,
    recoveries: u64,
    counts: weft_catalog::Counts,
}

fn place(data_dir: &Path, config: &RuntimeConfig, survivor: &Survivor) -> Place {
    Place {
        node: survivor
            .me()
            .map_or_else(|| config.node.name.clone(), |me| me.peer.name.clone()),
        data_dir: data_dir.display().to_string(),
        raft_id: survivor.raft_id().to_string(),
        cluster: survivor.cluster_id().to_owned(),
        datacenter: config.datacenter.clone(),
        survey: survivor.survey().clone(),
        index: survivor.index(),
        recoveries: survivor.recoveries(),
        counts: survivor.counts(),
    }
}

struct Report {
    place: Place,
    interrupted: bool,
    members: Vec<Member>,
    others: Vec<Tail>,
}

impl Report {
    /// Why this server must not go on alone, with what to do instead.
    fn refusal(&self) -> Option<String> {
        let me = self.members.iter().find(|m| m.state == "this server");
        if me.is_none() {
            return Some(format!(
                "recover.not_a_member: the membership in this server's log does not hold its Raft id {}: it was removed, and others have gone on without it; recover one of them, or restore a backup",
                self.place.raft_id
            ));
        }
        if self.members.len() == 1 && !self.interrupted {
            return Some("recover.alone: this server is the only member already; start it".into());
        }
        self.quorum().or_else(|| self.newer())
    }

    fn quorum(&self) -> Option<String> {
        let voters = || self.members.iter().filter(|m| m.voter);
        let needed = voters().count() / 2 + 1;
        let is = |word: &'static str| voters().filter(move |m| m.state == word);
        let sure = is("this server").chain(is("alive")).count();
        let unclear = is("unclear").count();
        let names = |word| {
            is(word)
                .map(|m| m.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        if sure >= needed {
            return Some(format!(
                "recover.quorum_alive: {} answer: with this server they are a quorum of {}; start this server instead",
                names("alive"),
                voters().count()
            ));
        }
        (sure + unclear >= needed).then(|| {
            format!(
                "recover.unclear: something answers for {} and cannot be asked who it is; with it there would be a quorum. If that is not the old server, say -lost=NAME",
                names("unclear")
            )
        })
    }

    /// Whether another server that survived must go on instead of this one.
    fn newer(&self) -> Option<String> {
        let place = &self.place;
        if let Some(other) = self.others.iter().find(|o| o.cluster != place.cluster) {
            return Some(format!(
                "recover.other_cluster: {} was of cluster {}, this server of {}",
                other.node, other.cluster, place.cluster
            ));
        }
        let newest = self.others.iter().max_by_key(|other| other.rank())?;
        let own = (
            place.recoveries,
            place.survey.last_term,
            place.survey.last_index,
        );
        (newest.rank() > own).then(|| {
            format!(
                "recover.not_newest: the log of {} goes to entry {} of term {}, this one to entry {} of term {}; recover {} and let this server join it with an empty raft folder",
                newest.node, newest.last_index, newest.last_term, own.2, own.1, newest.node
            )
        })
    }

    /// `done`: the new Raft id. `refused`: why nothing was done.
    fn show(&self, format: Format, done: Option<&str>, refused: Option<&str>) -> Done {
        match format {
            Format::Json => output::json(&self.object(done, refused)),
            Format::Table => {
                self.table()?;
                if refused.is_some() {
                    return Ok(());
                }
                output::line(self.outcome(done))
            }
        }
    }

    fn object(&self, done: Option<&str>, refused: Option<&str>) -> Value {
        let (place, counts) = (&self.place, &self.place.counts);
        let members = self.members.iter().map(|m| {
            json!({"name": m.name, "id": m.id, "address": m.address, "voter": m.voter, "state": m.state, "detail": m.detail})
        });
        json!({
            "node": place.node, "data_dir": place.data_dir, "raft_id": place.raft_id,
            "cluster_id": place.cluster, "datacenter": place.datacenter,
            "term": place.survey.term, "last_term": place.survey.last_term, "last_index": place.survey.last_index,
            "committed_index": place.survey.committed, "snapshot_index": place.survey.snapshot,
            "index": place.index, "recoveries": place.recoveries, "interrupted": self.interrupted,
            "holds": {
                "keys": counts.kv_entries, "nodes": counts.nodes, "instances": counts.instances,
                "checks": counts.checks, "sessions": counts.sessions, "config_entries": counts.config_entries,
                "prepared_queries": counts.prepared_queries,
            },
            "members": members.collect::<Vec<_>>(),
            "recovered": done.is_some(), "new_raft_id": done, "refused": refused,
        })
    }

    fn table(&self) -> Done {
        let (place, survey, counts) = (&self.place, &self.place.survey, &self.place.counts);
        output::line(format!(
            "Server   {}, Raft id {}, state in {}",
            place.node, place.raft_id, place.data_dir
        ))?;
        output::line(format!(
            "Cluster  {}, datacenter {}",
            place.cluster, place.datacenter
        ))?;
        output::line(format!(
            "Log      to entry {} of term {}; {} known to be committed; snapshot of {}",
            survey.last_index, survey.last_term, survey.committed, survey.snapshot
        ))?;
        output::line(format!(
            "Holds    {} keys, {} nodes, {} service instances, {} checks, {} sessions, {} config entries\n",
            counts.kv_entries,
            counts.nodes,
            counts.instances,
            counts.checks,
            counts.sessions,
            counts.config_entries
        ))?;
        let mut rows = vec![output::row(["Member", "Address", "Voter", "State"])];
        rows.extend(self.members.iter().map(|m| {
            let state = if m.detail.is_empty() {
                m.state.to_owned()
            } else {
                format!("{}: {}", m.state, m.detail)
            };
            vec![
                m.name.clone(),
                m.address.clone(),
                m.voter.to_string(),
                state,
            ]
        }));
        for other in &self.others {
            output::line(format!(
                "Also survived: {}, log to entry {} of term {}",
                other.node, other.last_index, other.last_term
            ))?;
        }
        output::table(&rows)
    }

    fn outcome(&self, done: Option<&str>) -> String {
        let name = &self.place.node;
        let others = self.members.iter().filter(|m| m.state != "this server");
        let others = others
            .map(|m| m.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        match done {
            None => format!(
                "\nNothing was changed. With -yes, {name} goes on alone with all of the above, under a new Raft id; indexes go on upwards.\nLost: what {others} acknowledged and {name} never got, after entry {}. They must not come back with their old data.\nIf another of them survived, compare first: weft recover -o json there, then -compare=FILE here.",
                self.place.survey.last_index
            ),
            Some(id) => format!(
                "\nRecovered: {name} is the only member of its cluster now, with Raft id {id}.\nNext: start it, then start further servers with an empty data_dir and this server in retry_join; each joins, and votes when it has everything.\nDo not start {others} with their old data: move their raft folder away first."
            ),
        }
    }
}
