//! The mesh's certificate authority: who a workload is, and how that is proven.
//!
//! Owns: SPIFFE ids in Consul's form ([`SpiffeId`]), making roots, cross-signed roots and leaves ([`Authority`]), reading
//! a request for a leaf ([`csr_public_key`]), verifying what a peer shows ([`TrustBundle::verify`],
//! [`MeshVerifier`]), sealing a CA's key ([`seal`]).
//! Never: decides who may have a certificate or call whom; takes anything but the public key out of a request;
//! stores anything; reads a clock (but [`MeshVerifier`], which is told the time by rustls).
//! Source: SPIFFE-ID and X.509-SVID standards; Consul docs, "Connect certificate management"; CONSUL.md G.

mod authority;
mod request;
mod seal;
mod spiffe;
#[cfg(test)]
mod tests;
mod verifier;
mod verify;

pub use authority::{
    Authority, AuthorityError, Leaf, ROOT_LIFE_MAX, RootFacts, RootPems, root_facts,
};
pub use request::{CSR_BYTES_MAX, CsrError, KeyAndRequest, create_request, csr_public_key};
pub use seal::{SealError, open, seal};
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain, check_segment};
pub use verifier::MeshVerifier;
pub use verify::{
    CHAIN_BYTES_MAX, CHAIN_CERTIFICATES_MAX, PeerRefusal, RefusalReason, Side, SpiffeRefusal,
    TrustBundle, VerifiedPeer, prove,
};
