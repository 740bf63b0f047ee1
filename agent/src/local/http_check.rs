//! One run of an http check.
//!
//! Owns: the request as CONSUL.md B.6 describes it, redirects, and the text of the result.
//! Never: retries, or keeps a connection.

use std::net::{IpAddr, SocketAddr};

use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, LOCATION, PROXY_AUTHORIZATION, USER_AGENT,
};
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::HttpCheck;
use super::address_guard;
use super::output::cut;
use super::reach::Reach;
use super::status::Status;
use super::tcp_check::dial_if;

/// Redirects followed before giving up.
const REDIRECTS_MAX: usize = 10;
/// Body bytes read before the connection is dropped: output needs only the first few.
const BODY_MAX_BYTES: usize = 1024 * 1024;
/// What a redirect to another host does not take along.
const SECRET_HEADERS: [HeaderName; 4] = [
    AUTHORIZATION,
    COOKIE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-consul-token"),
];

/// Sends the request and judges the answer. `output_max`: bytes of body kept. Cancelled by its
/// caller's time-out.
pub(crate) async fn run(check: &HttpCheck, output_max: usize, reach: &Reach) -> (Status, String) {
    let method = if check.method.is_empty() {
        "GET"
    } else {
        &check.method
    };
    match fetch(check, method, output_max, reach).await {
        Ok(answer) => {
            let body = String::from_utf8_lossy(&answer.body);
            let body = cut(&body, output_max, answer.body_size);
            let line = answer.status_line;
            (
                judge(answer.status),
                format!("HTTP {method} {}: {line} Output: {body}", check.url),
            )
        }
        Err(error) => (
            Status::Critical,
            format!("{} {:?}: {error}", go_verb(method), check.url),
        ),
    }
}

fn judge(status: StatusCode) -> Status {
    match status {
        status if status.is_success() => Status::Passing,
        StatusCode::TOO_MANY_REQUESTS => Status::Warning,
        _ => Status::Critical,
    }
}

/// `GET` → `Get`, as in the errors users know.
fn go_verb(method: &str) -> String {
    let (first, rest) = method.split_at(method.len().min(1));
    format!("{first}{}", rest.to_lowercase())
}

struct Answer {
    status: StatusCode,
    status_line: String,
    /// Its first bytes.
    body: Vec<u8>,
    /// How many there were, as far as they were read.
    body_size: usize,
}

/// One request on the way to the answer.
struct Hop {
    uri: Uri,
    method: Method,
    body: Bytes,
    /// Who sent us here; `None`: the user.
    sent_by: Option<IpAddr>,
    /// Another host than the user's: his secrets are not for it.
    foreign: bool,
}

async fn fetch(
    check: &HttpCheck,
    method: &str,
    output_max: usize,
    reach: &Reach,
) -> Result<Answer, String> {
    let uri: Uri = check
        .url
        .parse()
        .map_err(|error| format!("invalid URL: {error}"))?;
    let first_host = uri.host().unwrap_or_default().to_owned();
    let mut hop = Hop {
        uri,
        method: Method::from_bytes(method.as_bytes()).map_err(|error| error.to_string())?,
        body: Bytes::from(check.body.clone()),
        sent_by: None,
        foreign: false,
    };
    for _ in 0..=REDIRECTS_MAX {
        let (response, peer) = exchange(check, &hop, reach).await?;
        let next = if check.disable_redirects {
            None
        } else {
            redirect(&hop.uri, &response)
        };
        let Some(next) = next else {
            return read(response, output_max).await;
        };
        let keeps_method = matches!(response.status().as_u16(), 307 | 308);
        if !keeps_method && hop.method != Method::HEAD {
            hop.method = Method::GET;
            hop.body = Bytes::new();
        }
        hop.uri = next?;
        hop.sent_by = Some(peer);
        hop.foreign |= hop.uri.host() != Some(&first_host);
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

/// Where a redirect leads; `None` when the answer is none.
fn redirect(from: &Uri, response: &Response<Incoming>) -> Option<Result<Uri, String>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?;
    let text = location.to_str().unwrap_or_default();
    Some(resolve(from, text).ok_or_else(|| format!("failed to parse Location header {text:?}")))
}

/// `location` seen from `from` (RFC 3986 §5.2, without dot segments).
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let text = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let dir = from.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    let uri: Uri = text.split('#').next()?.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}

async fn exchange(
    check: &HttpCheck,
    hop: &Hop,
    reach: &Reach,
) -> Result<(Response<Incoming>, IpAddr), String> {
    let host = hop.uri.host().unwrap_or_default();
    let secure = hop.uri.scheme() == Some(&Scheme::HTTPS);
    let port = hop.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let refuse = |to: SocketAddr| match hop.sent_by {
        None => reach.refusal(to),
        Some(from) => address_guard::redirect_refusal(from, to.ip())
            .map(|what| format!("refused to follow a redirect to {to}: it is {what}")),
    };
    let stream = dial_if(&format!("{host}:{port}"), refuse).await?;
    let peer = stream.peer_addr().map_err(|error| error.to_string())?.ip();
    let request = request(check, hop)?;
    let response = if secure {
        let stream = reach.secure(stream, &check.tls, host, &[]).await?;
        send(stream, request).await?
    } else {
        send(stream, request).await?
    };
    Ok((response, peer))
}

fn request(check: &HttpCheck, hop: &Hop) -> Result<Request<Full<Bytes>>, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in &check.header {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
        if hop.foreign && (name == HOST || SECRET_HEADERS.contains(&name)) {
            continue;
        }
        for value in values {
            headers.append(
                name.clone(),
                HeaderValue::from_str(value).map_err(|error| error.to_string())?,
            );
        }
    }
    let authority = hop
        .uri
        .authority()
        .map_or("", |authority| authority.as_str());
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let defaults = [
        (HOST, authority),
        (USER_AGENT, "Consul Health Check"),
        (ACCEPT, "text/plain, text/*, */*"),
    ];
    for (name, value) in defaults {
        if !headers.contains_key(&name) {
            headers.insert(
                name,
                HeaderValue::from_str(value).map_err(|error| error.to_string())?,
            );
        }
    }
    if !hop.body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let path = hop.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Full::new(hop.body.clone()));
    *request.method_mut() = hop.method.clone();
    *request.uri_mut() = path.parse().map_err(|_| format!("invalid path {path:?}"))?;
    *request.headers_mut() = headers;
    Ok(request)
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    // Ends with the response body, which is dropped with this check's run.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "check connection ended");
        }
    });
    sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())
}

async fn read(response: Response<Incoming>, output_max: usize) -> Result<Answer, String> {
    let status = response.status();
    let reason = response
        .extensions()
        .get::<ReasonPhrase>()
        .and_then(|reason| std::str::from_utf8(reason.as_bytes()).ok())
        .or(status.canonical_reason())
        .unwrap_or_default();
    let status_line = format!("{} {reason}", status.as_u16())
        .trim_end()
        .to_owned();
    let mut incoming = response.into_body();
    let (mut body, mut body_size) = (Vec::new(), 0);
    while body_size < BODY_MAX_BYTES {
        // A body that breaks off does not change what the status line said.
        let Some(Ok(frame)) = incoming.frame().await else {
            break;
        };
        if let Some(data) = frame.data_ref() {
            let wanted = output_max.saturating_sub(body.len()).min(data.len());
            body.extend_from_slice(&data[..wanted]);
            body_size += data.len();
        }
    }
    Ok(Answer {
        status,
        status_line,
        body,
        body_size,
    })
}
