//! `/v1/agent/monitor`: the log, as it is written.
//!
//! Owns: the level asked for, and ending the stream with the agent.
//! Never: formats a line.
//! Source: Consul HTTP API, "Stream Logs".

use tokio::sync::mpsc;

use super::LogLevel;
use super::call::{Call, parse_bool};
use super::config::LogLines;
use super::error::Failure;
use super::reply::Reply;

pub(super) async fn stream(call: Call) -> Result<Reply, Failure> {
    let asked = call.query.get("loglevel").filter(|text| !text.is_empty());
    let level = level(asked.unwrap_or("info")).ok_or_else(|| {
        let text = format!("Unknown log level: {}", asked.unwrap_or_default());
        Failure::bad_request("agent.monitor.level", text)
    })?;
    let json = match call.query.get("logjson") {
        None => false,
        Some("") => true,
        Some(text) => parse_bool(text).ok_or_else(|| {
            Failure::bad_request("agent.monitor.json", "Invalid value for ?logjson")
        })?,
    };
    let lines = call
        .api
        .deps
        .control
        .monitor(level, json)
        .map_err(|text| Failure::too_many("agent.monitor.too_many", text))?;
    let stopping = call.api.stopping.clone();
    Ok(Reply::stream(
        "text/plain; charset=utf-8",
        until(lines, stopping.cancelled_owned()),
    ))
}

/// The same lines, until the agent stops: an endless answer would hold it up.
fn until(mut lines: LogLines, stop: impl Future<Output = ()> + Send + 'static) -> LogLines {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut stop = std::pin::pin!(stop);
        loop {
            let line = tokio::select! {
                biased;
                () = &mut stop => return,
                () = sender.closed() => return,
                line = lines.recv() => line,
            };
            let Some(line) = line else { return };
            // A reader that takes nothing must not hold the agent up either.
            tokio::select! {
                biased;
                () = &mut stop => return,
                sent = sender.send(line) => if sent.is_err() { return },
            }
        }
    });
    receiver
}

/// Consul's names, in any case.
fn level(text: &str) -> Option<LogLevel> {
    Some(match text.to_ascii_lowercase().as_str() {
        "trace" => LogLevel::Trace,
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" => LogLevel::Warn,
        "err" | "error" => LogLevel::Error,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_consuls() {
        assert_eq!(level("ERR"), Some(LogLevel::Error));
        assert_eq!(level("Debug"), Some(LogLevel::Debug));
        assert_eq!(level("loud"), None);
    }

    #[tokio::test]
    async fn the_stream_ends_with_the_agent_and_with_the_reader() {
        let (sender, lines) = mpsc::channel(4);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut seen = until(lines, async move {
            // Dropped or sent: both mean the end.
            let _ = stopped.await;
        });
        sender.send(Ok("one\n".into())).await.unwrap();
        assert_eq!(seen.recv().await.unwrap().unwrap(), "one\n");
        stop.send(()).unwrap();
        assert!(seen.recv().await.is_none());

        // Nobody reads, and the answer's own buffer is full.
        let (sender, lines) = mpsc::channel(4);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let _unread = until(lines, async move {
            let _ = stopped.await;
        });
        for _ in 0..6 {
            sender.send(Ok("line\n".into())).await.unwrap();
        }
        stop.send(()).unwrap();
        sender.closed().await;

        let (sender, lines) = mpsc::channel(4);
        drop(until(lines, std::future::pending()));
        sender.closed().await;
    }
}
