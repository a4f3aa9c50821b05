//! Images as this machine has them: their programs as files of the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The programs of an image; the first one is its entrypoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    entrypoint: String,
    programs: BTreeMap<String, PathBuf>,
}

impl Image {
    /// Creates an image with the program `path` (absolute in the image), which is `host` on this machine.
    pub fn new(path: &str, host: impl Into<PathBuf>) -> Self {
        Self {
            entrypoint: path.to_owned(),
            programs: BTreeMap::from([(path.to_owned(), host.into())]),
        }
    }

    /// Adds a program that a container's `command` may name.
    #[must_use]
    pub fn with(mut self, path: &str, host: impl Into<PathBuf>) -> Self {
        self.programs.insert(path.to_owned(), host.into());
        self
    }

    pub(super) fn entrypoint(&self) -> &str {
        &self.entrypoint
    }

    /// Returns the program that a word of a command names, by its path or, as its PATH holds every directory, its name.
    pub(super) fn program(&self, word: &str) -> Option<&Path> {
        let named = |path: &str| !word.contains('/') && path.rsplit('/').next() == Some(word);
        let mut programs = self.programs.iter();
        let (_, host) = programs.find(|(path, _)| *path == word || named(path))?;
        Some(host)
    }
}

/// `REFERENCE,PATH=FILE[,PATH=FILE…]`: an image with its name, as a command line gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// The reference, word for word as Pods name it.
    pub reference: String,
    /// The content of the image.
    pub image: Image,
}

impl FromStr for NamedImage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let reference = parts.next().unwrap_or_default().to_owned();
        let mut programs = parts.map(|part| {
            part.split_once('=')
                .ok_or_else(|| format!("{part:?} is not PATH=FILE"))
        });
        let (path, file) = programs
            .next()
            .ok_or("at least one PATH=FILE must follow the image's name")??;
        let image = programs.try_fold(Image::new(path, file), |image, program| {
            program.map(|(path, file)| image.with(path, file))
        })?;
        Ok(Self { reference, image })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program is found by its path and by its name.
    #[test]
    fn program_is_found_by_path_and_name() {
        let image = Image::new("/bin/a", "/host/a").with("/b", "/host/b");
        for (word, host) in [
            ("/bin/a", Some("/host/a")),
            ("a", Some("/host/a")),
            ("b", Some("/host/b")),
            ("/a", None),
            ("c", None),
        ] {
            assert_eq!(image.program(word), host.map(Path::new), "{word}");
        }
    }

    /// A command line gives an image with its programs.
    #[test]
    fn command_line_gives_image_with_programs() {
        let parsed: NamedImage = "r.test/x:1,/a=/host/a,/b=/host/b".parse().unwrap();
        assert_eq!(parsed.reference, "r.test/x:1");
        assert_eq!(parsed.image, Image::new("/a", "/host/a").with("/b", "/host/b"));
        assert!("r.test/x:1".parse::<NamedImage>().is_err());
        assert!("r.test/x:1,/a".parse::<NamedImage>().is_err());
    }
}
