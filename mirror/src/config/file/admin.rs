//! `admin`.

use crate::config::overlay::section;

section! {
    /// The page on the admin port.
    Admin {
        /// Enables the page at `/` of the admin port, and `/status/content`, `/status/fills` and `/status/history`.
        "page" => page: Option<bool>,
        /// The names by which browsers may open the page, `/status` and what is below it, such as `mirror.example.com`, next to addresses, `localhost` and names of the cluster. Requests by other names get 421.
        "hosts" => hosts: Vec<String>,
    }
}
