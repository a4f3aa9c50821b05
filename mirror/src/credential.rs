//! The credential of an upstream.

use crate::secret::Secret;

/// A credential for an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credential {
    /// No credential: requests are anonymous.
    #[default]
    Anonymous,
    /// A user and a password, for Basic authentication or for a token server.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token for the token server (`OAuth2`, `grant_type=refresh_token`).
    IdentityToken {
        /// The user, for registries that require one.
        username: String,
        /// The token.
        token: Secret,
    },
}
