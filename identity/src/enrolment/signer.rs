//! The CA below the cluster's CA with which servers sign certificates of agents.
//!
//! Owns: what such a certificate says. Its holder is `<node>.client.<dc>.<domain>`, never a server: the signer's own
//! certificate permits no other names, so its key, which lies on every server, cannot make one.
//! Never: signs a request as it came; only the public key of the caller is taken over.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use weft_proto::ids::UnixMillis;

use crate::certificate::PeerFacts;
use crate::pki::{self, Pems, PkiError};

/// Names a certificate of this machine itself may be called by.
const LOCALHOST: &str = "localhost";

/// A signer, loaded.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM: the second of every chain.
    certificate: String,
    /// Last second it is valid, Unix time.
    not_after: i64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Signer")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The signer's files cannot be used.
    #[error("join_tokens: {0}")]
    Pair(#[from] PkiError),
    /// The signer's certificate has run out.
    #[error(
        "join_tokens.cert_file: the signer's certificate has expired; make another with `weft tls ca signer`"
    )]
    Expired,
    /// What the caller sent is not a public key that can be certified.
    #[error("the caller's public key cannot be read")]
    PublicKey,
}

/// A certificate for an agent.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM: the agent's certificate, then the signer's.
    pub chain: String,
    /// Last second it is valid, Unix time.
    pub not_after: i64,
}

impl Signer {
    /// Reads certificate and key.
    ///
    /// Errors: [`SignerError::Pair`], [`SignerError::Expired`].
    pub fn load(files: (&Path, &Path), now: UnixMillis) -> Result<Self, SignerError> {
        let pems = pki::read_pair(files)?;
        let issuer = pki::issuer(&pems, files)?;
        let facts = CertificateDer::from_pem_slice(pems.certificate.as_bytes())
            .ok()
            .and_then(|der| PeerFacts::read(&der))
            .ok_or_else(|| PkiError::Ca {
                path: files.0.display().to_string(),
            })?;
        let signer = Self {
            issuer,
            certificate: pems.certificate,
            not_after: facts.not_after,
        };
        signer.left(now).map(|_| signer)
    }

    /// Life that is left.
    fn left(&self, now: UnixMillis) -> Result<Duration, SignerError> {
        let now = i64::try_from(now.get() / 1_000).unwrap_or(i64::MAX);
        match u64::try_from(self.not_after.saturating_sub(now)) {
            Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
            _ => Err(SignerError::Expired),
        }
    }

    /// Signs a certificate of the agent on `node` with this public key (DER of a `SubjectPublicKeyInfo`, RFC 5280
    /// §4.1). It lives for `life`, or as long as the signer.
    ///
    /// Errors: any of [`SignerError`]; [`PkiError::Name`] when the node's name cannot stand in a certificate.
    pub fn sign(
        &self,
        node: &str,
        (datacenter, domain): (&str, &str),
        public_key: &[u8],
        life: Duration,
        now: UnixMillis,
    ) -> Result<Issued, SignerError> {
        let life = life.min(self.left(now)?);
        let key = PublicKey(
            SubjectPublicKeyInfo::from_der(public_key).map_err(|_| SignerError::PublicKey)?,
        );
        let role = client_name(datacenter, domain);
        let name = check_node(node, (datacenter, domain))?;
        let mut params = pki::params_for(&name, pki::serial()?, life, now);
        for name in [name.as_str(), &role, LOCALHOST] {
            let text = name.try_into().map_err(|_| PkiError::Name {
                name: name.to_owned(),
            })?;
            params.subject_alt_names.push(SanType::DnsName(text));
        }
        params
            .subject_alt_names
            .push(SanType::IpAddress(IpAddr::from([127, 0, 0, 1])));
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let not_after = params.not_after.unix_timestamp();
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(PkiError::Crypto)?;
        Ok(Issued {
            chain: format!("{}{}", certificate.pem(), self.certificate),
            not_after,
        })
    }
}

/// Somebody else's public key.
struct PublicKey(SubjectPublicKeyInfo);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

/// The name of the agent on `node` in its certificate: `<node>.client.<dc>.<domain>`, lower case.
///
/// Errors: [`PkiError::Name`] when that is no DNS name.
pub fn check_node(node: &str, (datacenter, domain): (&str, &str)) -> Result<String, PkiError> {
    let name = format!("{node}.{}", client_name(datacenter, domain)).to_ascii_lowercase();
    pki::check_name(&name)?;
    Ok(name)
}

/// `client.<dc>.<domain>`, lower case, no dot at the end.
#[must_use]
pub fn client_name(datacenter: &str, domain: &str) -> String {
    format!("client.{datacenter}.{}", domain.trim_matches('.')).to_ascii_lowercase()
}

/// Makes a signer below `ca`: it may sign names under [`client_name`] and `localhost`, and no further CA. `named` are
/// the files of the CA pair, for error texts.
///
/// Errors: as [`pki::create_cert`].
pub fn create_signer(
    (datacenter, domain): (&str, &str),
    days: u32,
    ca: &Pems,
    named: (&Path, &Path),
    now: UnixMillis,
) -> Result<Pems, PkiError> {
    let issuer = pki::issuer(ca, named)?;
    let key = pki::new_key()?;
    let permitted = client_name(datacenter, domain);
    pki::check_name(&permitted)?;
    let serial = pki::serial()?;
    let name = format!("Weft Agent Signer {}", hex::encode(&serial));
    let mut params = pki::params(&name, serial, days, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(permitted),
            GeneralSubtree::DnsName(LOCALHOST.to_owned()),
        ],
        excluded_subtrees: Vec::new(),
    });
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).map_err(PkiError::Crypto)?;
    Ok(Pems {
        certificate: certificate.pem(),
        key: crate::secret::Secret::new(key.serialize_pem()),
    })
}

/// `<domain>-agent-signer.pem` and `<domain>-agent-signer-key.pem` in `directory`.
#[must_use]
pub fn signer_files(directory: &Path, domain: &str) -> (PathBuf, PathBuf) {
    let domain = domain.trim_matches('.');
    (
        directory.join(format!("{domain}-agent-signer.pem")),
        directory.join(format!("{domain}-agent-signer-key.pem")),
    )
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::files;
    use crate::pki::{CaRequest, CertKind, CertRequest};
    use crate::tls::{TlsContext, TlsMaterial};

    const LIMIT: Duration = Duration::from_secs(20);
    const PLACE: (&str, &str) = ("dc1", "consul");
    const HOUR: Duration = Duration::from_secs(3_600);

    fn now() -> UnixMillis {
        use weft_proto::clock::Clock as _;
        weft_proto::clock::SystemClock::new().wall()
    }

    /// A cluster's directory: CA, a server's pair, signer.
    struct House {
        root: tempfile::TempDir,
        ca: (PathBuf, PathBuf),
        server: (PathBuf, PathBuf),
        signer: Signer,
    }

    impl House {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let ca = pki::write_ca(root.path(), &CaRequest::new("consul"), now()).unwrap();
            let request = CertRequest::new(CertKind::Server, "dc1", "consul");
            let server = pki::write_cert(root.path(), &request, (&ca.0, &ca.1), now()).unwrap();
            let pems = pki::read_pair((&ca.0, &ca.1)).unwrap();
            let made = create_signer(PLACE, 30, &pems, (&ca.0, &ca.1), now()).unwrap();
            let files = signer_files(root.path(), "consul");
            pki::write_pair(&files, &made).unwrap();
            let signer = Signer::load((&files.0, &files.1), now()).unwrap();
            Self {
                root,
                ca,
                server,
                signer,
            }
        }

        fn material(&self, pair: &(PathBuf, PathBuf)) -> TlsMaterial {
            TlsMaterial {
                ca_file: Some(self.ca.0.clone()),
                cert_file: Some(pair.0.clone()),
                key_file: Some(pair.1.clone()),
                verify_incoming: true,
                verify_outgoing: true,
                verify_server_hostname: true,
                datacenter: "dc1".into(),
                domain: "consul".into(),
                ..TlsMaterial::default()
            }
        }

        /// An agent with a certificate of the signer, or of a signer of its own that pretends.
        fn agent(&self, signer: &Signer) -> (PathBuf, PathBuf) {
            let (key, public) = pki::create_key().unwrap();
            let issued = signer.sign("Web-1", PLACE, &public, HOUR, now()).unwrap();
            let files = (
                self.root.path().join("agent.pem"),
                self.root.path().join("agent-key.pem"),
            );
            files::write(&files.0, issued.chain.as_bytes(), 0o600).unwrap();
            files::write(&files.1, key.reveal().as_bytes(), 0o600).unwrap();
            files
        }

        /// Both sides of a handshake: what the server found out about the caller, or why either refused.
        async fn meet(
            &self,
            caller: TlsMaterial,
            called: TlsMaterial,
        ) -> Result<PeerFacts, String> {
            let caller = TlsContext::load(caller, now()).unwrap();
            let called = TlsContext::load(called, now()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await;
            let (far, _) = listener.accept().await.unwrap();
            let (near, far) = tokio::join!(
                caller.connect(near.unwrap(), "localhost", LIMIT),
                called.accept(far, "caller", LIMIT)
            );
            near.map_err(|cause| cause.to_string())?;
            let (_, facts) = far.map_err(|cause| cause.to_string())?;
            Ok(facts.unwrap())
        }
    }

    #[tokio::test]
    async fn an_agent_is_known_by_its_node_and_cannot_pass_for_a_server() {
        let house = House::new();
        let agent = house.agent(&house.signer);
        let (agent, server) = (house.material(&agent), house.material(&house.server));
        let facts = house.meet(agent.clone(), server.clone()).await.unwrap();
        assert_eq!(facts.dns_names[0], "web-1.client.dc1.consul");
        assert!(!facts.is_server("dc1", "consul"));
        let life = facts.not_after - facts.not_before;
        assert_eq!(life, 3_600 + 300);
        let refused = house.meet(server, agent).await.unwrap_err();
        assert!(refused.contains("server.dc1.consul"), "{refused}");
    }

    #[tokio::test]
    async fn the_signers_key_makes_no_servers() {
        let house = House::new();
        // What whoever stole a server's disk would try: a server's name under the signer.
        let (cert, key) = signer_files(house.root.path(), "consul");
        let pems = pki::read_pair((&cert, &key)).unwrap();
        let request = CertRequest::new(CertKind::Server, "dc1", "consul");
        let forged = pki::create_cert(&request, &pems, (&cert, &key), now()).unwrap();
        let files = (
            house.root.path().join("forged.pem"),
            house.root.path().join("forged-key.pem"),
        );
        let chain = format!("{}{}", forged.certificate, pems.certificate);
        files::write(&files.0, chain.as_bytes(), 0o600).unwrap();
        files::write(&files.1, forged.key.reveal().as_bytes(), 0o600).unwrap();
        let (forged, server) = (house.material(&files), house.material(&house.server));
        house
            .meet(forged.clone(), server.clone())
            .await
            .unwrap_err();
        house.meet(server, forged).await.unwrap_err();
    }

    #[test]
    fn what_cannot_be_signed_is_refused() {
        let house = House::new();
        let (_, public) = pki::create_key().unwrap();
        let sign = |node: &str, key: &[u8], at: UnixMillis| {
            let made = house.signer.sign(node, PLACE, key, HOUR, at);
            made.map(|issued| issued.not_after)
                .map_err(|cause| cause.to_string())
        };
        for node in ["", "a b", "a..b", "-x", "x\n"] {
            let refused = sign(node, &public, now()).unwrap_err();
            assert!(refused.contains("is not a DNS name"), "{refused}");
        }
        let refused = sign("web", b"no key", now()).unwrap_err();
        assert!(refused.contains("public key"), "{refused}");
        // Near its own end the signer gives no more than it has.
        let end = house.signer.not_after;
        let late = UnixMillis(u64::try_from(end - 60).unwrap() * 1_000);
        assert_eq!(sign("web", &public, late).unwrap(), end);
        let over = UnixMillis(u64::try_from(end + 60).unwrap() * 1_000);
        assert!(sign("web", &public, over).unwrap_err().contains("expired"));
    }
}
