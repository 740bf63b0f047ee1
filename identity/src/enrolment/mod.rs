//! Joining by token: what the token says, and the certificate it is traded for.
//!
//! Owns: the token's text form; the CA that servers sign agents' certificates with (TRUST B: a single-use token, bound
//! to a node name; the key stays on the agent, only its public half travels).
//! Never: decides whether a token is still good (the replicated state does), or opens sockets.

mod signer;
mod token;

pub use signer::{
    Issued, Signer, SignerError, check_node, client_name, create_signer, signer_files,
};
pub use token::{JoinToken, SECRET_BYTES, TokenError, new_secret, secret_hash};
