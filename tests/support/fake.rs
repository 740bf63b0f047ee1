//! An agent that answers as a test wants it to, or not at all.
//!
//! Owns: a listener, and what was asked for.
//! Never: means anything by its answers.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Serves until the test's process ends.
pub(crate) struct FakeAgent {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeAgent {
    /// `answer` is given `METHOD target`, and chooses status and body; with `None` the connection stays open and
    /// nothing comes.
    pub(crate) fn start(
        answer: impl Fn(&str) -> Option<(u16, String)> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (answer, asked) = (Arc::new(answer), Arc::new(Mutex::default()));
        let heard = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, heard) = (Arc::clone(&answer), Arc::clone(&heard));
                // Who hangs up early is a client that was stopped.
                thread::spawn(move || drop(serve(stream, &*answer, &heard)));
            }
        });
        Self { address, asked }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// How many requests began like this.
    pub(crate) fn asked(&self, begin: &str) -> usize {
        let asked = self.asked.lock().expect("nobody panics with it");
        asked.iter().filter(|one| one.starts_with(begin)).count()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &dyn Fn(&str) -> Option<(u16, String)>,
    heard: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut body_bytes) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(length) = line.strip_prefix("content-length:") {
            body_bytes = length.trim().parse().unwrap_or_default();
        }
        if line.is_empty() {
            break;
        }
    }
    io::copy(&mut reader.by_ref().take(body_bytes), &mut io::sink())?;
    let request = first.trim_end().trim_end_matches(" HTTP/1.1");
    let answered = answer(request);
    heard
        .lock()
        .expect("nobody panics with it")
        .push(request.to_owned());
    match answered {
        Some((status, body)) => write!(
            stream,
            "HTTP/1.1 {status} Said\r\nX-Consul-Index: 5\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        // Until the client has had enough.
        None => reader.read_to_end(&mut Vec::new()).map(drop),
    }
}
