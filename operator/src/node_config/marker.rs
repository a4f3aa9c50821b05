//! The first line of each file on a node, by which a program recognizes the files that it wrote.

use std::path::Path;

use super::NodeFile;

/// The end of a first line.
const END: &str = ". Changes are lost.";

/// The start of a first line, which names the program that wrote the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker(&'static str);

impl Marker {
    /// The marker of `registry-mirror node-config`.
    pub const COMMAND: Self = Self("# Written by registry-mirror node-config");

    /// The marker of `registry-mirror agent`.
    pub const AGENT: Self = Self("# Written by registry-mirror agent");

    /// Adds the marker to a file for the mirror `id`. A file in JSON stays as it is: JSON has no comments.
    #[must_use]
    pub fn add(self, file: NodeFile, id: &str) -> NodeFile {
        let extension = Path::new(&file.path).extension();
        if extension.is_some_and(|extension| extension == "json") {
            return file;
        }
        let text = format!("{} for {id}{END}\n{}", self.0, file.text);
        NodeFile { text, ..file }
    }

    /// Returns the `id` with which the marker was added to a file.
    pub fn id(self, content: &[u8]) -> Option<&str> {
        let line = content.split(|byte| *byte == b'\n').next()?;
        let line = std::str::from_utf8(line).ok()?.strip_prefix(self.0)?;
        line.strip_prefix(" for ")?.strip_suffix(END)
    }

    /// Returns whether a file begins with the marker.
    pub fn is_in(self, content: &[u8]) -> bool {
        content.starts_with(self.0.as_bytes())
    }
}
