//! `admin`.

use crate::config::overlay::section;

section! {
    /// The page on the admin port.
    Admin {
        /// Enables the page at `/` of the admin port, and `/status/content`, `/status/fills` and `/status/history`.
        "page" => page: Option<bool>,
    }
}
