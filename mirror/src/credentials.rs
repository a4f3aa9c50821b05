//! What the mirror shows to an upstream, and the directory that it comes from.

use crate::secret::Secret;

/// What an upstream is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    #[default]
    Anonymous,
    /// A user and a password, for Basic or for the token server.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token for the token server (`OAuth2`, `grant_type=refresh_token`).
    IdentityToken {
        /// The user, where the registry wants to know.
        username: String,
        /// The token.
        token: Secret,
    },
}
