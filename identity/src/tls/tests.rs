use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::pki::{self, CaRequest, CertKind, CertRequest};
use weft_proto::clock::{Clock as _, SystemClock};

const LIMIT: Duration = Duration::from_secs(20);

/// rustls verifies against the real clock, so the certificates follow it.
fn now() -> UnixMillis {
    SystemClock::new().wall()
}

struct House {
    root: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        pki::write_ca(root.path(), &CaRequest::new("consul"), now()).unwrap();
        Self { root }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn cert(&self, kind: CertKind, datacenter: &str) -> TlsMaterial {
        let ca = pki::ca_files(self.path(), "consul");
        let request = CertRequest::new(kind, datacenter, "consul");
        let (cert, key) = pki::write_cert(self.path(), &request, (&ca.0, &ca.1), now()).unwrap();
        TlsMaterial {
            ca_file: Some(ca.0),
            cert_file: Some(cert),
            key_file: Some(key),
            verify_incoming: true,
            verify_outgoing: true,
            verify_server_hostname: true,
            datacenter: "dc1".into(),
            domain: "consul".into(),
            ..TlsMaterial::default()
        }
    }
}

fn context(material: &TlsMaterial) -> TlsContext {
    TlsContext::load(material.clone(), now()).unwrap()
}

type Seen = (Option<PeerFacts>, Option<PeerFacts>);

/// A handshake in memory and a word each way: what the caller and the called saw, or what they said.
async fn meet(
    caller: &TlsContext,
    called: &TlsContext,
) -> Result<Seen, (Option<String>, Option<String>)> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let call = async {
        let (mut stream, facts) = caller
            .connect(near, "127.0.0.1", LIMIT)
            .await
            .map_err(|e| e.to_string())?;
        stream.write_all(b"ping").await.map_err(|e| e.to_string())?;
        let mut word = [0; 4];
        stream
            .read_exact(&mut word)
            .await
            .map_err(|e| e.to_string())?;
        Ok::<_, String>(facts)
    };
    let answer = async {
        let (mut stream, facts) = called
            .accept(far, "the caller", LIMIT)
            .await
            .map_err(|e| e.to_string())?;
        let mut word = [0; 4];
        stream
            .read_exact(&mut word)
            .await
            .map_err(|e| e.to_string())?;
        stream.write_all(b"pong").await.map_err(|e| e.to_string())?;
        Ok::<_, String>(facts)
    };
    match tokio::join!(call, answer) {
        (Ok(near), Ok(far)) => Ok((near, far)),
        (near, far) => Err((near.err(), far.err())),
    }
}

async fn refused(caller: &TlsContext, called: &TlsContext, by_caller: &str, by_called: &str) {
    let (near, far) = meet(caller, called).await.unwrap_err();
    for (said, word) in [(near, by_caller), (far, by_called)] {
        let said = said.unwrap_or_default();
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

#[tokio::test]
async fn servers_know_each_other() {
    let house = House::new();
    let (one, two) = (
        house.cert(CertKind::Server, "dc1"),
        house.cert(CertKind::Server, "dc1"),
    );
    let (near, far) = meet(&context(&one), &context(&two)).await.unwrap();
    let (near, far) = (near.unwrap(), far.unwrap());
    assert!(near.is_server("dc1", "consul") && far.is_server("dc1", "consul"));
    assert_eq!(near, context(&two).own().unwrap());
    assert_ne!(near.fingerprint, far.fingerprint);
    for version in [MinVersion::Tls12, MinVersion::Tls13] {
        let strict = TlsMaterial {
            min_version: version,
            ..one.clone()
        };
        meet(&context(&strict), &context(&two)).await.unwrap();
    }
}

#[tokio::test]
async fn another_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (House::new(), House::new());
    let (one, two) = (
        context(&ours.cert(CertKind::Server, "dc1")),
        context(&theirs.cert(CertKind::Server, "dc1")),
    );
    refused(&one, &two, "not signed by a CA in", "").await;
    let blind = TlsMaterial {
        verify_outgoing: false,
        verify_server_hostname: false,
        ..ours.cert(CertKind::Client, "dc1")
    };
    refused(&context(&blind), &two, "", "not signed by a CA in").await;
}

#[tokio::test]
async fn only_a_server_of_the_datacenter_passes_for_one() {
    let house = House::new();
    let caller = house.cert(CertKind::Client, "dc1");
    let strict = context(&caller);
    let lax = context(&TlsMaterial {
        verify_server_hostname: false,
        ..caller.clone()
    });
    for (kind, datacenter) in [(CertKind::Client, "dc1"), (CertKind::Server, "dc2")] {
        let called = context(&house.cert(kind, datacenter));
        refused(&strict, &called, "is not for server.dc1.consul", "").await;
        meet(&lax, &called).await.unwrap();
    }
    meet(&strict, &context(&house.cert(CertKind::Server, "dc1")))
        .await
        .unwrap();
    let cli = TlsMaterial {
        verify_incoming: false,
        ..house.cert(CertKind::Cli, "dc1")
    };
    refused(&lax, &context(&cli), "not for this use", "").await;
}

#[tokio::test]
async fn verify_incoming_asks_for_a_certificate() {
    let house = House::new();
    let called = house.cert(CertKind::Server, "dc1");
    let bare = TlsMaterial {
        cert_file: None,
        key_file: None,
        verify_incoming: false,
        ..called.clone()
    };
    refused(
        &context(&bare),
        &context(&called),
        "",
        "verify_incoming asks for one",
    )
    .await;
    let open = TlsMaterial {
        verify_incoming: false,
        ..called.clone()
    };
    let (_, far) = meet(&context(&bare), &context(&open)).await.unwrap();
    assert_eq!(far, None);
    let (_, far) = meet(&context(&called), &context(&open)).await.unwrap();
    assert!(
        far.unwrap().is_server("dc1", "consul"),
        "shown and verified although not demanded"
    );
    let dialled = TlsMaterial {
        verify_dialled_name: true,
        verify_server_hostname: false,
        ..bare
    };
    meet(&context(&dialled), &context(&open)).await.unwrap();
}

#[tokio::test]
async fn a_name_constrained_ca_signs_only_its_names() {
    let root = tempfile::tempdir().unwrap();
    let request = CaRequest {
        name_constraint: true,
        ..CaRequest::new("consul")
    };
    let ca = pki::write_ca(root.path(), &request, now()).unwrap();
    let house = House { root };
    let good = house.cert(CertKind::Server, "dc1");
    meet(&context(&good), &context(&good)).await.unwrap();
    let mut request = CertRequest::new(CertKind::Server, "dc1", "consul");
    request.dns_names = vec!["www.example.org".into()];
    let (cert, key) = pki::write_cert(house.path(), &request, (&ca.0, &ca.1), now()).unwrap();
    let bad = TlsMaterial {
        cert_file: Some(cert),
        key_file: Some(key),
        ..good.clone()
    };
    refused(&context(&good), &context(&bad), "certificate", "").await;
}

#[tokio::test]
async fn reload_takes_the_new_and_keeps_the_old_when_it_is_bad() {
    let house = House::new();
    let material = house.cert(CertKind::Server, "dc1");
    let context = context(&material);
    let first = context.own().unwrap();
    let other = house.cert(CertKind::Server, "dc1");
    std::fs::copy(
        other.cert_file.as_ref().unwrap(),
        material.cert_file.as_ref().unwrap(),
    )
    .unwrap();
    let error = context.reload(now()).unwrap_err().to_string();
    assert!(
        error.contains("is not the key of the certificate"),
        "{error}"
    );
    assert_eq!(context.own().unwrap(), first);
    meet(&context, &context).await.unwrap();
    std::fs::copy(
        other.key_file.as_ref().unwrap(),
        material.key_file.as_ref().unwrap(),
    )
    .unwrap();
    context.reload(now()).unwrap();
    assert_ne!(context.own().unwrap(), first);
    meet(&context, &context).await.unwrap();
}

#[tokio::test]
async fn a_ca_directory_may_hold_the_old_and_the_new() {
    let (old, new) = (House::new(), House::new());
    let directory = tempfile::tempdir().unwrap();
    for (name, house) in [("old.pem", &old), ("new.crt", &new)] {
        std::fs::copy(
            pki::ca_files(house.path(), "consul").0,
            directory.path().join(name),
        )
        .unwrap();
    }
    let both = |house: &House| {
        let material = house.cert(CertKind::Server, "dc1");
        context(&TlsMaterial {
            ca_file: None,
            ca_path: Some(directory.path().to_owned()),
            ..material
        })
    };
    meet(&both(&old), &both(&new)).await.unwrap();
    meet(&both(&new), &both(&old)).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_told_apart() {
    let house = House::new();
    let context = context(&house.cert(CertKind::Server, "dc1"));
    let (near, mut far) = tokio::io::duplex(4_096);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .unwrap();
    let error = context
        .connect(near, "127.0.0.1", LIMIT)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not speak TLS"), "{error}");
    let (near, _silent) = tokio::io::duplex(4_096);
    let error = context
        .connect(near, "10.0.0.1", Duration::from_millis(20))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("10.0.0.1") && error.contains("handshake_timeout"),
        "{error}"
    );
}

#[test]
fn errors_name_key_file_and_remedy() {
    let house = House::new();
    let good = house.cert(CertKind::Server, "dc1");
    let file = |name: &str, bytes: &[u8]| {
        let path = house.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Some(path)
    };
    let (cert, key) = (good.cert_file.clone(), good.key_file.clone());
    let check_at = |at: UnixMillis, material: TlsMaterial, words: &[&str]| {
        let error = TlsContext::load(material, at).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    };
    let check = |material: TlsMaterial, words: &[&str]| check_at(now(), material, words);
    let base = || good.clone();
    check(
        TlsMaterial {
            ca_file: Some("/no/ca.pem".into()),
            ..base()
        },
        &["tls.ca_file", "/no/ca.pem", "no such file"],
    );
    check(
        TlsMaterial {
            ca_path: Some("/no".into()),
            ..base()
        },
        &["tls.ca_path", "/no"],
    );
    check(
        TlsMaterial {
            cert_file: file("junk.pem", b"junk"),
            ..base()
        },
        &["cert_file", "junk.pem", "BEGIN CERTIFICATE"],
    );
    check(
        TlsMaterial {
            cert_file: file("der.pem", &[0x30, 0x82, 1]),
            ..base()
        },
        &["is DER", "openssl x509"],
    );
    check(
        TlsMaterial {
            cert_file: key.clone(),
            ..base()
        },
        &["holds a key, not a certificate"],
    );
    check(
        TlsMaterial {
            key_file: cert,
            ..base()
        },
        &["key_file", "is not a PEM private key"],
    );
    let locked =
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    check(
        TlsMaterial {
            key_file: file("locked.pem", locked),
            ..base()
        },
        &["passphrase", "openssl pkey"],
    );
    check(
        TlsMaterial {
            key_file: None,
            ..base()
        },
        &["tls.cert_file needs key_file"],
    );
    check(
        TlsMaterial {
            cert_file: None,
            ..base()
        },
        &["tls.key_file needs cert_file"],
    );
    check(
        TlsMaterial {
            ca_file: None,
            ..base()
        },
        &["verify_incoming needs ca_file"],
    );
    check(
        TlsMaterial {
            verify_outgoing: false,
            ..base()
        },
        &["verify_server_hostname needs verify_outgoing"],
    );
    let later = UnixMillis(now().get() + 400 * 86_400_000);
    check_at(
        later,
        base(),
        &["cert_file", "expired 35 days ago", "weft tls cert create"],
    );
    let earlier = UnixMillis(now().get() - 86_400_000);
    check_at(
        earlier,
        TlsMaterial {
            ca_file: None,
            verify_incoming: false,
            verify_outgoing: false,
            ..base()
        },
        &["clock"],
    );
    assert!(
        MinVersion::parse("TLSv1_0")
            .unwrap_err()
            .to_string()
            .contains("TLSv1_2")
    );
}
