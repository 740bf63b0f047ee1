//! What an authority makes is accepted; what is wrong in any one way is refused with a reason of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Purpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose as Usage, NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use weft_proto::ids::UnixMillis;

use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const CLUSTER: &str = "11111111-2222-3333-4444-555555555555";
const HOUR: Duration = Duration::from_secs(3_600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn domain() -> TrustDomain {
    TrustDomain::of_cluster(CLUSTER).unwrap()
}

fn id(service: &str) -> SpiffeId {
    SpiffeId::service(&domain(), "dc1", service).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn root() -> (Authority, RootPems) {
    let pems = Authority::create(&domain(), YEAR * 10, NOW).unwrap();
    (Authority::load(&pems, &domain(), NOW).unwrap(), pems)
}

fn verify(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    side: Side,
    now: UnixMillis,
) -> Result<VerifiedPeer, PeerRefusal> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    bundle.verify(
        chain,
        side,
        now,
        provider.signature_verification_algorithms.all,
    )
}

fn later(by: Duration) -> UnixMillis {
    UnixMillis(NOW.get() + u64::try_from(by.as_millis()).unwrap())
}

#[test]
fn a_leaf_proves_who_its_holder_is_on_both_ends() {
    let (authority, pems) = root();
    let asked = create_request("spiffe://somebody.else/ns/default/dc/dc1/svc/admin").unwrap();
    let public = csr_public_key(&asked.request).unwrap();
    let leaf = authority
        .sign_leaf(&id("web"), &public, HOUR * 72, NOW)
        .unwrap();
    let again = authority
        .sign_leaf(&id("web"), &public, HOUR * 72, NOW)
        .unwrap();
    assert_ne!(leaf.serial, again.serial);
    let bundle = TrustBundle::new(domain(), [pems.certificate.as_str()]).unwrap();
    for side in [Side::Client, Side::Server] {
        let peer = verify(&bundle, &[der(&leaf.certificate)], side, NOW).unwrap();
        assert_eq!(peer.id, id("web"));
        assert_eq!(
            (&peer.serial, peer.not_after),
            (&leaf.serial, leaf.not_after)
        );
        assert_eq!(peer.not_after - peer.not_before, 72 * 3_600 + 300);
    }
    let facts = crate::PeerFacts::read(&der(&leaf.certificate)).unwrap();
    assert_eq!(facts.common_name, "web.svc.default.11111111.consul");
    assert!(facts.dns_names.is_empty() && facts.addresses.is_empty());
    // The key is answered in the form that Consul's API has.
    assert!(
        asked
            .key_sec1
            .reveal()
            .starts_with("-----BEGIN EC PRIVATE KEY-----\n")
    );
    let sec1 = rustls_pki_types::PrivateKeyDer::from_pem_slice(asked.key_sec1.reveal().as_bytes())
        .unwrap();
    let pair = KeyPair::from_der_and_sign_algo(&sec1, &PKCS_ECDSA_P256_SHA256).unwrap();
    assert_eq!(pair.subject_public_key_info(), public);
}

#[test]
fn no_leaf_outlives_its_root_and_no_root_is_used_beyond_its_end() {
    let pems = Authority::create(&domain(), HOUR, NOW).unwrap();
    let authority = Authority::load(&pems, &domain(), NOW).unwrap();
    let (_, public) = crate::pki::create_key().unwrap();
    let leaf = authority
        .sign_leaf(&id("web"), &public, HOUR * 72, NOW)
        .unwrap();
    assert_eq!(leaf.not_after, authority.facts().not_after);
    let over = later(HOUR * 2);
    let refused = authority
        .sign_leaf(&id("web"), &public, HOUR, over)
        .unwrap_err();
    assert_eq!(refused.reason(), "ca.root.expired");
    assert_eq!(
        Authority::load(&pems, &domain(), over)
            .unwrap_err()
            .reason(),
        "ca.root.expired"
    );
}

#[test]
fn a_bridge_lets_who_knows_only_the_old_root_trust_leaves_of_the_new_one() {
    let ((old, old_pems), (new, new_pems)) = (root(), root());
    let (_, public) = crate::pki::create_key().unwrap();
    let leaf = der(&new
        .sign_leaf(&id("web"), &public, HOUR, NOW)
        .unwrap()
        .certificate);
    let bridge = der(&old.cross_sign(&new_pems.certificate, NOW).unwrap());
    let knows = |pems: &RootPems| TrustBundle::new(domain(), [pems.certificate.as_str()]).unwrap();
    let without = verify(
        &knows(&old_pems),
        std::slice::from_ref(&leaf),
        Side::Client,
        NOW,
    )
    .unwrap_err();
    assert_eq!(without.reason, RefusalReason::IssuerUnknown);
    for pems in [&old_pems, &new_pems] {
        let chain = [leaf.clone(), bridge.clone()];
        assert_eq!(
            verify(&knows(pems), &chain, Side::Client, NOW).unwrap().id,
            id("web")
        );
    }
    // And over two rotations.
    let (newest, newest_pems) = root();
    let second = der(&new.cross_sign(&newest_pems.certificate, NOW).unwrap());
    let leaf = der(&newest
        .sign_leaf(&id("web"), &public, HOUR, NOW)
        .unwrap()
        .certificate);
    let chain = [leaf, second, bridge];
    assert_eq!(
        verify(&knows(&old_pems), &chain, Side::Server, NOW)
            .unwrap()
            .id,
        id("web")
    );
    assert_eq!(
        old.cross_sign("no certificate", NOW).unwrap_err().reason(),
        "ca.root.certificate"
    );
}

#[test]
fn an_operators_root_must_be_a_pair_of_this_cluster() {
    let ((_, ours), (_, other)) = (root(), root());
    let key = |pems: &RootPems| crate::pki::pem_block("PRIVATE KEY", pems.key.reveal());
    let read = |certificate: &str, key: &str, domain: &TrustDomain| {
        Authority::read(certificate, key, domain, NOW)
            .map(drop)
            .map_err(|why| why.reason())
    };
    assert_eq!(read(&ours.certificate, &key(&ours), &domain()), Ok(()));
    assert_eq!(
        read(&ours.certificate, &key(&other), &domain()),
        Err("ca.root.pair")
    );
    assert_eq!(read("", &key(&ours), &domain()), Err("ca.root.certificate"));
    assert_eq!(read(&ours.certificate, "", &domain()), Err("ca.root.key"));
    let elsewhere = TrustDomain::parse("elsewhere.consul").unwrap();
    assert_eq!(
        read(&ours.certificate, &key(&ours), &elsewhere),
        Err("ca.root.trust_domain")
    );
    let (certificate, leaf_key) = leaf_of(|_| ()).0;
    let leaf = crate::pki::certificates_pem(&[certificate]);
    assert_eq!(
        read(&leaf, &leaf_key, &domain()),
        Err("ca.root.certificate")
    );
    let facts = root_facts(&ours.certificate).unwrap();
    assert!(
        facts.common_name.starts_with("pri-")
            && facts.common_name.ends_with(".consul.ca.11111111.consul")
    );
    assert_eq!((facts.id.len(), facts.key_id.len()), (59, 95));
    assert!(facts.serial > 0);
}

#[test]
fn of_a_request_only_a_proven_key_is_taken() {
    let good = create_request("spiffe://x").unwrap().request;
    assert!(csr_public_key(&good).is_ok());
    let pem = crate::pki::pem_block("CERTIFICATE REQUEST", &good);
    assert!(csr_public_key(pem.as_bytes()).is_ok());
    let other = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .der()
            .to_vec()
    };
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    let behind = [&good[..], b"x"].concat();
    let cases: [(&[u8], CsrError); 7] = [
        (&changed, CsrError::Signature),
        (&behind, CsrError::Malformed),
        (b"", CsrError::Malformed),
        (&good[..good.len() / 2], CsrError::Malformed),
        (&vec![0; CSR_BYTES_MAX + 1], CsrError::TooLarge),
        (&other(&PKCS_ECDSA_P384_SHA384), CsrError::Key),
        (&other(&PKCS_ED25519), CsrError::Key),
    ];
    for (csr, why) in cases {
        assert_eq!(csr_public_key(csr).unwrap_err(), why);
    }
    // Somebody else's key in one's own request: the signature is by another key than the one it is for.
    let theirs = create_request("spiffe://x").unwrap();
    let theirs = csr_public_key(&theirs.request).unwrap();
    let mine = csr_public_key(&good).unwrap();
    let at = good
        .windows(mine.len())
        .position(|window| window == mine)
        .unwrap();
    let mut stolen = good.clone();
    stolen[at..at + theirs.len()].copy_from_slice(&theirs);
    assert_eq!(csr_public_key(&stolen).unwrap_err(), CsrError::Signature);
}

#[test]
fn an_identity_that_was_cut_off_needs_a_leaf_made_since() {
    let (authority, pems) = root();
    let (_, public) = crate::pki::create_key().unwrap();
    let bundle = TrustBundle::new(domain(), [pems.certificate.as_str()]).unwrap();
    let bundle = bundle.cut_off(id("web"), later(HOUR));
    let made = |service: &str, at: UnixMillis| {
        der(&authority
            .sign_leaf(&id(service), &public, HOUR * 9, at)
            .unwrap()
            .certificate)
    };
    let at = later(HOUR * 2);
    let refused = verify(&bundle, &[made("web", NOW)], Side::Client, at).unwrap_err();
    assert_eq!(refused.reason, RefusalReason::Revoked);
    verify(
        &bundle,
        &[made("web", later(HOUR + Duration::from_secs(1)))],
        Side::Client,
        at,
    )
    .unwrap();
    verify(&bundle, &[made("api", NOW)], Side::Client, at).unwrap();
}

/// A leaf as it should be, but for what `change` does to it; with its key, and its signer.
fn leaf_of(
    change: impl FnOnce(&mut CertificateParams),
) -> ((CertificateDer<'static>, String), RootPems) {
    let (_, pems) = root();
    let made = leaf_under(&issuer(&pems), change);
    (made, pems)
}

fn issuer(pems: &RootPems) -> Issuer<'static, KeyPair> {
    let key = rustls_pki_types::PrivateKeyDer::try_from(pems.key.reveal().clone()).unwrap();
    let key = KeyPair::from_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).unwrap();
    Issuer::from_ca_cert_der(&der(&pems.certificate), key).unwrap()
}

fn leaf_params() -> CertificateParams {
    let mut params = crate::pki::params_for("web", vec![7; 16], HOUR, NOW);
    params.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web")];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Usage::DigitalSignature];
    params.extended_key_usages = vec![Purpose::ClientAuth, Purpose::ServerAuth];
    params
}

fn leaf_under(
    issuer: &Issuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = leaf_params();
    change(&mut params);
    (
        params.signed_by(&key, issuer).unwrap().der().clone(),
        key.serialize_pem(),
    )
}

/// `DOMAIN` stands for ours.
fn uri(text: &str) -> SanType {
    SanType::URI(
        text.replace("DOMAIN", domain().as_str())
            .as_str()
            .try_into()
            .unwrap(),
    )
}

fn extension(oid: &[u64], content: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// A subject alternative name extension with these names, each (tag, bytes).
fn names(names: &[(u8, &[u8])]) -> CustomExtension {
    let mut body = Vec::new();
    for (tag, name) in names {
        body.extend_from_slice(&[*tag, u8::try_from(name.len()).unwrap()]);
        body.extend_from_slice(name);
    }
    let mut content = vec![0x30, u8::try_from(body.len()).unwrap()];
    content.extend(body);
    extension(&[2, 5, 29, 17], &content, false)
}

type Change = fn(&mut CertificateParams);

/// One thing wrong with a leaf, and the reason it must be refused for.
const BAD_LEAVES: &[(&str, Change, &str)] = &[
    (
        "foreign trust domain",
        |p| p.subject_alt_names = vec![uri("spiffe://other.consul/ns/default/dc/dc1/svc/web")],
        "identity.trust_domain.foreign",
    ),
    (
        "ours as a subdomain",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN.evil/ns/default/dc/dc1/svc/web")],
        "identity.trust_domain.foreign",
    ),
    (
        "ours behind a prefix",
        |p| p.subject_alt_names = vec![uri("spiffe://xDOMAIN/ns/default/dc/dc1/svc/web")],
        "identity.trust_domain.foreign",
    ),
    (
        "ours as a path",
        |p| p.subject_alt_names = vec![uri("spiffe://evil/DOMAIN/ns/default/dc/dc1/svc/web")],
        "identity.spiffe.form",
    ),
    (
        "ours in upper case",
        |p| {
            p.subject_alt_names = vec![uri(
                "spiffe://11111111-2222-3333-4444-555555555555.CONSUL/ns/default/dc/dc1/svc/web",
            )]
        },
        "identity.spiffe.trust_domain",
    ),
    (
        "a port",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN:8443/ns/default/dc/dc1/svc/web")],
        "identity.spiffe.trust_domain",
    ),
    (
        "a user",
        |p| p.subject_alt_names = vec![uri("spiffe://web@DOMAIN/ns/default/dc/dc1/svc/web")],
        "identity.spiffe.trust_domain",
    ),
    (
        "no domain",
        |p| p.subject_alt_names = vec![uri("spiffe:///ns/default/dc/dc1/svc/web")],
        "identity.spiffe.trust_domain",
    ),
    (
        "two URIs",
        |p| {
            p.subject_alt_names
                .push(uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/api"))
        },
        "identity.san.many_uris",
    ),
    (
        "the same URI twice",
        |p| {
            p.subject_alt_names
                .push(uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web"))
        },
        "identity.san.many_uris",
    ),
    (
        "a second URI that is none of ours",
        |p| p.subject_alt_names.push(uri("https://example.org/")),
        "identity.san.many_uris",
    ),
    (
        "two names extensions",
        |p| {
            p.custom_extensions
                .push(names(&[(0x86, b"spiffe://x/ns/default/dc/dc1/svc/web")]))
        },
        "identity.certificate.extension",
    ),
    (
        "no names",
        |p| p.subject_alt_names.clear(),
        "identity.san.none",
    ),
    (
        "the id as common name only",
        |p| {
            p.subject_alt_names.clear();
            p.distinguished_name
                .push(DnType::CommonName, "spiffe://d/ns/default/dc/dc1/svc/web");
        },
        "identity.san.none",
    ),
    (
        "a DNS name only",
        |p| p.subject_alt_names = vec![SanType::DnsName("web.example.org".try_into().unwrap())],
        "identity.san.no_uri",
    ),
    (
        "the id as a DNS name",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions
                .push(names(&[(0x82, b"spiffe://d/ns/default/dc/dc1/svc/web")]));
        },
        "identity.san.no_uri",
    ),
    (
        "an address only",
        |p| p.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())],
        "identity.san.no_uri",
    ),
    (
        "empty list of names",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(names(&[]));
        },
        "identity.san.no_uri",
    ),
    (
        "an empty URI",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(names(&[(0x86, b"")]));
        },
        "identity.spiffe.scheme",
    ),
    (
        "a URI with a NUL",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions
                .push(names(&[(0x86, b"spiffe://d/ns/default/dc/dc1/svc/web\0x")]));
        },
        "identity.spiffe.segment",
    ),
    (
        "a URI in UTF-8",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(names(&[(
                0x86,
                "spiffe://d/ns/default/dc/dc1/svc/wéb".as_bytes(),
            )]));
        },
        "identity.spiffe.encoding",
    ),
    (
        "a URI of wild bytes",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(names(&[(0x86, &[0xff, 0xfe])]));
        },
        "identity.certificate.extension",
    ),
    (
        "names that are no list",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions
                .push(extension(&[2, 5, 29, 17], &[0x04, 0x01, 0x00], false));
        },
        "identity.certificate.extension",
    ),
    (
        "names cut off",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions
                .push(extension(&[2, 5, 29, 17], &[0x30, 0x20, 0x86], false));
        },
        "identity.certificate.extension",
    ),
    (
        "another scheme",
        |p| p.subject_alt_names = vec![uri("https://DOMAIN/ns/default/dc/dc1/svc/web")],
        "identity.spiffe.scheme",
    ),
    (
        "the scheme in upper case",
        |p| p.subject_alt_names = vec![uri("SPIFFE://DOMAIN/ns/default/dc/dc1/svc/web")],
        "identity.spiffe.scheme",
    ),
    (
        "space before",
        |p| p.subject_alt_names = vec![uri(" spiffe://DOMAIN/ns/default/dc/dc1/svc/web")],
        "identity.spiffe.scheme",
    ),
    (
        "space behind",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web ")],
        "identity.spiffe.segment",
    ),
    (
        "a line end",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web\n")],
        "identity.spiffe.segment",
    ),
    (
        "a query",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web?x=1")],
        "identity.spiffe.query",
    ),
    (
        "a fragment",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web#x")],
        "identity.spiffe.query",
    ),
    (
        "an encoded letter",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/w%65b")],
        "identity.spiffe.encoding",
    ),
    (
        "an encoded slash",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc%2fweb")],
        "identity.spiffe.encoding",
    ),
    (
        "dots that lead up",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/api/../web")],
        "identity.spiffe.segment",
    ),
    (
        "a wildcard",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/*")],
        "identity.spiffe.segment",
    ),
    (
        "no service",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/")],
        "identity.spiffe.segment",
    ),
    (
        "two slashes",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default//dc/dc1/svc/web")],
        "identity.spiffe.segment",
    ),
    (
        "a slash behind",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web/")],
        "identity.spiffe.segment",
    ),
    (
        "one part too many",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc/web/v2")],
        "identity.spiffe.form",
    ),
    (
        "one part too few",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/default/dc/dc1/svc")],
        "identity.spiffe.form",
    ),
    (
        "parts in upper case",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/NS/default/DC/dc1/SVC/web")],
        "identity.spiffe.form",
    ),
    (
        "another namespace",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ns/other/dc/dc1/svc/web")],
        "identity.spiffe.namespace",
    ),
    (
        "another partition",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN/ap/other/ns/default/dc/dc1/svc/web")],
        "identity.spiffe.partition",
    ),
    (
        "the authority's id",
        |p| p.subject_alt_names = vec![uri("spiffe://DOMAIN")],
        "identity.leaf.authority",
    ),
    (
        "an id too long",
        |p| {
            p.subject_alt_names = vec![uri(&format!(
                "spiffe://DOMAIN/ns/default/dc/dc1/svc/{}",
                "x".repeat(2_048)
            ))]
        },
        "identity.spiffe.too_long",
    ),
    (
        "expired",
        |p| p.not_after = p.not_before + Duration::from_secs(60),
        "identity.expired",
    ),
    (
        "not valid yet",
        |p| {
            p.not_before += HOUR;
            p.not_after += HOUR;
        },
        "identity.not_yet_valid",
    ),
    (
        "ends before it begins",
        |p| std::mem::swap(&mut p.not_before, &mut p.not_after),
        "identity.certificate.validity",
    ),
    (
        "for another purpose",
        |p| p.extended_key_usages = vec![Purpose::CodeSigning],
        "identity.leaf.purpose",
    ),
    (
        "for the other end",
        |p| p.extended_key_usages = vec![Purpose::ServerAuth],
        "identity.leaf.purpose",
    ),
    (
        "for no purpose",
        |p| p.extended_key_usages.clear(),
        "identity.leaf.purpose_missing",
    ),
    (
        "for any purpose",
        |p| p.extended_key_usages = vec![Purpose::Any],
        "identity.leaf.purpose",
    ),
    (
        "a CA",
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        "identity.leaf.ca",
    ),
    (
        "a CA for no further CAs",
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
        "identity.leaf.ca",
    ),
    (
        "not for signatures",
        |p| p.key_usages = vec![Usage::KeyEncipherment],
        "identity.leaf.key_usage",
    ),
    (
        "may sign certificates",
        |p| p.key_usages.push(Usage::KeyCertSign),
        "identity.leaf.key_usage",
    ),
    (
        "may sign revocations",
        |p| p.key_usages.push(Usage::CrlSign),
        "identity.leaf.key_usage",
    ),
    (
        "number 0",
        |p| p.serial_number = Some(SerialNumber::from(vec![0])),
        "identity.certificate.serial",
    ),
    (
        "a number too long",
        |p| p.serial_number = Some(SerialNumber::from(vec![7; 21])),
        "identity.certificate.serial",
    ),
    (
        "an unknown critical extension",
        |p| {
            p.custom_extensions
                .push(extension(&[1, 2, 3, 4], &[5, 0], true))
        },
        "identity.certificate.extension",
    ),
    (
        "an extension twice",
        |p| {
            p.custom_extensions = vec![
                extension(&[1, 2, 3, 4], &[5, 0], false),
                extension(&[1, 2, 3, 4], &[5, 0], false),
            ]
        },
        "identity.certificate.extension",
    ),
];

#[test]
fn whatever_is_wrong_with_a_leaf_is_refused_with_its_own_reason() {
    let (_, pems) = root();
    let (issuer, bundle) = (
        issuer(&pems),
        TrustBundle::new(domain(), [pems.certificate.as_str()]).unwrap(),
    );
    let good = leaf_under(&issuer, |_| ()).0;
    verify(&bundle, &[good], Side::Client, NOW).unwrap();
    let (mut reasons, mut wrong) = (BTreeSet::new(), Vec::new());
    for (case, change, reason) in BAD_LEAVES {
        let leaf = leaf_under(&issuer, change).0;
        let refused = verify(&bundle, &[leaf], Side::Client, NOW).expect_err(case);
        if refused.reason.id() != *reason {
            wrong.push(format!(
                "{case}: {} ({refused}), not {reason}",
                refused.reason.id()
            ));
        }
        assert!(
            !refused.to_string().contains(['\n', '\0']),
            "{case}: {refused}"
        );
        reasons.insert(*reason);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(BAD_LEAVES.len() >= 60, "{}", BAD_LEAVES.len());
    assert!(reasons.len() >= 23, "{reasons:?}");
}

/// A CA below the root, as it should be but for `change`.
fn middle(
    pems: &RootPems,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = crate::pki::params_for("middle", vec![9; 16], YEAR, NOW);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign];
    change(&mut params);
    let made = params.signed_by(&key, &issuer(pems)).unwrap().der().clone();
    (made, Issuer::new(params, key))
}

#[test]
fn whatever_is_wrong_with_a_chain_is_refused_with_its_own_reason() {
    let (_, pems) = root();
    let bundle = TrustBundle::new(domain(), [pems.certificate.as_str()]).unwrap();
    let check = |case: &str, chain: &[CertificateDer<'_>], reason: &str| {
        let refused = verify(&bundle, chain, Side::Server, NOW).expect_err(case);
        assert_eq!(refused.reason.id(), reason, "{case}: {refused}");
    };
    let (good, below) = middle(&pems, |_| ());
    let leaf = leaf_under(&below, |_| ()).0;
    verify(&bundle, &[leaf.clone(), good.clone()], Side::Server, NOW).unwrap();
    check("no chain", &[], "identity.chain.empty");
    check(
        "a chain too long",
        &vec![leaf.clone(); 9],
        "identity.chain.long",
    );
    let huge = CertificateDer::from(vec![0; CHAIN_BYTES_MAX]);
    check(
        "a chain too large",
        &[leaf.clone(), huge],
        "identity.chain.large",
    );
    check(
        "the middle is missing",
        std::slice::from_ref(&leaf),
        "identity.issuer.unknown",
    );
    check(
        "nothing",
        &[CertificateDer::from(vec![])],
        "identity.certificate.malformed",
    );
    check(
        "rubbish",
        &[CertificateDer::from(vec![0x30; 99])],
        "identity.certificate.malformed",
    );
    let behind = CertificateDer::from([&leaf[..], b"x"].concat());
    check(
        "something behind",
        &[behind, good.clone()],
        "identity.certificate.trailing",
    );
    let cut = CertificateDer::from(leaf[..leaf.len() - 1].to_vec());
    check(
        "cut off",
        &[cut, good.clone()],
        "identity.certificate.malformed",
    );
    let mut broken = leaf.to_vec();
    *broken.last_mut().unwrap() ^= 1;
    check(
        "a signature changed",
        &[CertificateDer::from(broken), good.clone()],
        "identity.signature",
    );
    // Another's key under the same name: a forged root.
    let forged = leaf_under(
        &Issuer::new(
            crate::pki::params_for("x", vec![1], HOUR, NOW),
            crate::pki::new_key().unwrap(),
        ),
        |_| (),
    )
    .0;
    check("a stranger's root", &[forged], "identity.issuer.unknown");
    let facts = root_facts(&pems.certificate).unwrap();
    let mut same = crate::pki::params_for(&facts.common_name, vec![1], YEAR, NOW);
    same.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let forged = leaf_under(&Issuer::new(same, crate::pki::new_key().unwrap()), |_| ()).0;
    check("a root of the same name", &[forged], "identity.signature");
    let own = {
        let key = crate::pki::new_key().unwrap();
        leaf_params().self_signed(&key).unwrap().der().clone()
    };
    check("signed by itself", &[own], "identity.issuer.unknown");

    let cases: [(&str, Change, &str); 7] = [
        (
            "a middle that is no CA",
            |p| p.is_ca = IsCa::ExplicitNoCa,
            "identity.issuer.not_ca",
        ),
        (
            "a middle that may not sign",
            |p| p.key_usages = vec![Usage::DigitalSignature],
            "identity.issuer.key_usage",
        ),
        (
            "a middle for other purposes",
            |p| p.extended_key_usages = vec![Purpose::CodeSigning],
            "identity.issuer.purpose",
        ),
        (
            "a middle that has expired",
            |p| p.not_after = p.not_before + Duration::from_secs(60),
            "identity.expired",
        ),
        (
            "a middle of the future",
            |p| p.not_before += HOUR,
            "identity.not_yet_valid",
        ),
        (
            "a middle for other names",
            |p| {
                p.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
                    excluded_subtrees: vec![],
                })
            },
            "identity.name_constraint",
        ),
        (
            "a middle with a critical extension",
            |p| {
                p.custom_extensions
                    .push(extension(&[1, 2, 3], &[5, 0], true))
            },
            "identity.certificate.extension",
        ),
    ];
    for (case, change, reason) in cases {
        let (certificate, below) = middle(&pems, change);
        let leaf = leaf_under(&below, |p| {
            p.subject_alt_names
                .push(SanType::DnsName("web.internal".try_into().unwrap()))
        })
        .0;
        check(case, &[leaf, certificate], reason);
    }
    let (first, below) = middle(&pems, |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))
    });
    let key = crate::pki::new_key().unwrap();
    let mut params = crate::pki::params_for("second", vec![3], YEAR, NOW);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let second = params.signed_by(&key, &below).unwrap().der().clone();
    let leaf = leaf_under(&Issuer::new(params, key), |_| ()).0;
    check(
        "one CA too many",
        &[leaf, second, first],
        "identity.path_length",
    );
    for (case, algorithm, reason) in [
        ("an RSA key of 1024 bits", None, "identity.leaf.key"),
        ("Ed25519", Some(&PKCS_ED25519), ""),
    ] {
        let signer = issuer(&pems);
        match algorithm {
            Some(algorithm) => {
                let key = KeyPair::generate_for(algorithm).unwrap();
                let leaf = leaf_params()
                    .signed_by(&key, &signer)
                    .unwrap()
                    .der()
                    .clone();
                verify(&bundle, &[leaf], Side::Server, NOW)
                    .unwrap_or_else(|why| panic!("{case}: {why}"));
            }
            None => {
                let leaf = leaf_params()
                    .signed_by(&SmallRsa, &signer)
                    .unwrap()
                    .der()
                    .clone();
                check(case, &[leaf], reason);
            }
        }
    }
}

/// A public RSA key of 1,024 bits; nobody has the private one.
struct SmallRsa;

impl rcgen::PublicKeyData for SmallRsa {
    fn der_bytes(&self) -> &[u8] {
        static KEY: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        KEY.get_or_init(|| {
            let modulus = [vec![0x02, 0x81, 0x81, 0x00], vec![0xc5; 128]].concat();
            [
                &[0x30, 0x81, 0x89][..],
                &modulus,
                &[0x02, 0x03, 0x01, 0x00, 0x01],
            ]
            .concat()
        })
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

#[test]
fn times_are_explained_with_the_clock() {
    let ((leaf, _), pems) = leaf_of(|_| ());
    let bundle = TrustBundle::new(domain(), [pems.certificate.as_str()]).unwrap();
    let leaf = [leaf];
    let early = UnixMillis(NOW.get() - 900_000);
    let refused = verify(&bundle, &leaf, Side::Client, early).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("by 600 s by our clock; compare the clocks"),
        "{refused}"
    );
    let refused = verify(
        &bundle,
        &leaf,
        Side::Client,
        later(HOUR + Duration::from_secs(60)),
    )
    .unwrap_err();
    assert!(
        refused.to_string().ends_with("by 60 s by our clock)"),
        "{refused}"
    );
    for reason in RefusalReason::ALL {
        assert!(reason.id().starts_with("identity."), "{}", reason.id());
    }
    let ids: BTreeSet<_> = RefusalReason::ALL
        .iter()
        .map(|reason| reason.id())
        .collect();
    assert_eq!(ids.len(), RefusalReason::ALL.len());
    assert!(TrustBundle::new(domain(), [""]).is_err());
}
