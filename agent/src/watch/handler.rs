//! Telling a handler what is new.
//!
//! Owns: the command's standard input, environment, time and output, and the request.
//! Never: decides what is new.
//! Source: Consul docs, "Watches: Handlers".

use std::time::Duration;

use super::definition::Handler;
use super::follower::News;
use crate::local::{Ended, HttpCheck, Job, Reach, Status, http_exchange, run_job};

/// Bytes of a handler's output that are kept for the log.
const OUTPUT_MAX_BYTES: usize = 4_096;
/// A command that runs longer than this does not come to an end.
pub(super) const SCRIPT_LIMIT: Duration = Duration::from_secs(60 * 60);

impl Handler {
    /// A word for metrics and the log.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Script(_) => "script",
            Self::Http(_) => "http",
        }
    }

    /// Tells it, and answers what it said.
    ///
    /// Errors: it did not take the news, with the reason and what it said.
    pub(super) async fn tell(&self, news: &News) -> Result<String, String> {
        match self {
            Self::Script(args) => script(args, news).await,
            Self::Http(request) => post(request, news).await,
        }
    }
}

async fn script(args: &[String], news: &News) -> Result<String, String> {
    let index = news.index.to_string();
    let job = Job {
        args,
        stdin: Some(format!("{}\n", news.json).into()),
        env: &[("CONSUL_INDEX", &index), ("WEFT_INDEX", &index)],
        limit: SCRIPT_LIMIT,
        output_max: OUTPUT_MAX_BYTES,
    };
    match run_job(job, ()).await {
        Ended::Exited(Some(0), output) => Ok(output.text()),
        Ended::Exited(Some(code), output) => Err(format!("exit code {code}: {}", output.text())),
        Ended::Exited(None, output) => Err(output.text()),
        Ended::TimedOut(output) => {
            let limit = weft_proto::duration::format(SCRIPT_LIMIT);
            Err(format!("killed after {limit}: {}", output.text()))
        }
        Ended::Flooded(output) => Err(format!("killed, it wrote without end: {}", output.text())),
        Ended::NotStarted(error) => Err(format!("cannot run {:?}: {error}", args[0])),
    }
}

async fn post(request: &HttpCheck, news: &News) -> Result<String, String> {
    let mut request = request.clone();
    for (name, value) in [
        ("Content-Type", "application/json"),
        ("User-Agent", "Consul Watch"),
        ("X-Consul-Index", &news.index.to_string()),
    ] {
        let given = request
            .header
            .keys()
            .any(|key| key.eq_ignore_ascii_case(name));
        if !given {
            request
                .header
                .insert(name.to_owned(), vec![value.to_owned()]);
        }
    }
    request.body = news.json.to_string();
    // The address is the operator's own: it stands in a file of the agent.
    let reach = Reach {
        link_local: true,
        ..Reach::default()
    };
    let (limit, sending) = (
        request.pace.timeout,
        http_exchange(&request, OUTPUT_MAX_BYTES, &reach),
    );
    match tokio::time::timeout(limit, sending).await {
        Ok((Status::Passing, text)) => Ok(text),
        Ok((_, text)) => Err(text),
        Err(_) => Err(format!(
            "no answer within {}",
            weft_proto::duration::format(limit)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news() -> News {
        News {
            index: 7,
            json: r#"[{"Node":"a"}]"#.into(),
        }
    }

    fn shell(line: &str) -> Handler {
        Handler::Script(["/bin/sh", "-c", line].map(str::to_owned).to_vec())
    }

    #[tokio::test]
    async fn a_command_gets_the_data_and_the_index() {
        let said = shell("cat; echo $CONSUL_INDEX").tell(&news()).await;
        assert_eq!(said.as_deref(), Ok("[{\"Node\":\"a\"}]\n7\n"));
        // One that does not read is no failure, however much there is to read.
        let large = News {
            json: "x".repeat(1 << 20).into(),
            ..news()
        };
        assert_eq!(shell("true").tell(&large).await.as_deref(), Ok(""));
        let failed = shell("echo no; exit 3").tell(&news()).await;
        assert_eq!(failed.unwrap_err(), "exit code 3: no\n");
        let missing = Handler::Script(vec!["/does/not/exist".into()])
            .tell(&news())
            .await;
        assert!(missing.unwrap_err().starts_with("cannot run"));
    }

    #[tokio::test]
    async fn output_is_kept_in_part() {
        let said = shell("yes | head -c 100000").tell(&news()).await.unwrap();
        assert!(said.len() < OUTPUT_MAX_BYTES + 100 && said.starts_with("Captured 4096 of 100000"));
    }

    #[tokio::test]
    async fn a_request_carries_the_data_and_the_index() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"]") {
                stream.read_buf(&mut seen).await.unwrap();
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine";
            stream.write_all(answer).await.unwrap();
            String::from_utf8(seen).unwrap().to_ascii_lowercase()
        });
        let config = serde_json::json!({
            "type": "nodes", "handler_type": "http",
            "http_handler_config": {"path": format!("http://{address}/hook")}
        });
        let definition = super::super::WatchDefinition::parse(&config).unwrap();
        assert!(
            definition
                .handler
                .tell(&news())
                .await
                .unwrap()
                .ends_with("fine")
        );
        let seen = serving.await.unwrap();
        assert!(seen.starts_with("post /hook http/1.1\r\n"), "{seen}");
        for expected in [
            "x-consul-index: 7\r\n",
            "content-type: application/json\r\n",
            "[{\"node\":\"a\"}]",
        ] {
            assert!(seen.contains(expected), "{expected} in {seen}");
        }
    }
}
