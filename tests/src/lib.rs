//! What tests across the crates share.
