//! The files that `imports` of containerd's configuration name, as containerd reads them: a pattern with `*` is one of
//! Go's `filepath.Glob`, any other text is a path.

use crate::node_config::NodeRoot;

/// A pattern of `imports` that containerd refuses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidPattern;

/// An element of a pattern: it stands for one character, or for any number of them.
enum Element {
    Any,
    AnyNumber,
    Char(char),
    /// The ranges, and whether a character of none of them fits.
    Class(Vec<(char, char)>, bool),
}

impl Element {
    fn fits(&self, character: char) -> bool {
        match self {
            Self::Any | Self::AnyNumber => true,
            Self::Char(expected) => *expected == character,
            Self::Class(ranges, negated) => {
                let mut ranges = ranges.iter();
                ranges.any(|(low, high)| (*low..=*high).contains(&character)) != *negated
            }
        }
    }
}

/// Returns the files of an import, of which `most` are enough.
pub(super) fn expand(
    root: &NodeRoot,
    parent: &str,
    import: &str,
    most: usize,
) -> Result<Vec<String>, InvalidPattern> {
    let path = absolute(parent, import);
    if !is_pattern(import) {
        return Ok(vec![path]);
    }
    let mut paths = vec![String::new()];
    for part in path.split('/') {
        let elements = parse(part)?;
        let characters = elements.iter().map(|element| match element {
            Element::Char(character) => Some(*character),
            _ => None,
        });
        let literal: Option<String> = characters.collect();
        let mut next = Vec::new();
        for directory in paths {
            let names = match &literal {
                Some(name) => vec![name.clone()],
                None => names(root, &directory),
            };
            let names = names.into_iter().filter(|name| fits(&elements, name));
            next.extend(names.map(|name| format!("{directory}{name}/")));
            next.truncate(most);
        }
        paths = next;
    }
    let files = paths
        .into_iter()
        .map(|path| path.trim_end_matches('/').to_owned());
    Ok(files.filter(|file| exists(root, file)).collect())
}

/// Returns whether a file would be read, if it existed, by an import of a file.
pub(super) fn is_imported(parent: &str, import: &str, file: &str) -> bool {
    let path = absolute(parent, import);
    if !is_pattern(import) {
        return path == file;
    }
    let fits_part = |(part, name): (&str, &str)| parse(part).is_ok_and(|elements| fits(&elements, name));
    path.split('/').count() == file.split('/').count() && path.split('/').zip(file.split('/')).all(fits_part)
}

/// Returns the names in a directory, whose path ends with a slash or is empty.
fn names(root: &NodeRoot, directory: &str) -> Vec<String> {
    let names = match directory.strip_suffix('/') {
        Some(path) => root.names(path).ok().flatten(),
        None => root.top_names().ok(),
    };
    names.unwrap_or_default()
}

fn is_pattern(import: &str) -> bool {
    import.contains('*')
}

fn exists(root: &NodeRoot, file: &str) -> bool {
    let (directory, name) = file.split_at(file.rfind('/').map_or(0, |at| at + 1));
    names(root, directory).iter().any(|found| found == name)
}

/// Returns the path of an import below the root directory, without `.` and `..`.
fn absolute(parent: &str, import: &str) -> String {
    let directory = match parent.rsplit_once('/') {
        Some((directory, _)) if !import.starts_with('/') => directory,
        _ => "",
    };
    let mut parts = Vec::new();
    for part in directory.split('/').chain(import.split('/')) {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Returns whether a name fits a pattern without slashes.
fn fits(pattern: &[Element], name: &str) -> bool {
    let name: Vec<_> = name.chars().collect();
    let (mut at, mut read) = (0, 0);
    // The place after the last `*`, and the characters that it stands for.
    let mut retry = None;
    while read < name.len() {
        match pattern.get(at) {
            Some(Element::AnyNumber) => {
                at += 1;
                retry = Some((at, read));
            }
            Some(element) if element.fits(name[read]) => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((after, start)) = retry else { return false };
                (at, read) = (after, start + 1);
                retry = Some((after, start + 1));
            }
        }
    }
    pattern[at..]
        .iter()
        .all(|element| matches!(element, Element::AnyNumber))
}

fn parse(pattern: &str) -> Result<Vec<Element>, InvalidPattern> {
    let (mut elements, mut characters) = (Vec::new(), pattern.chars());
    while let Some(character) = characters.next() {
        elements.push(match character {
            '*' => Element::AnyNumber,
            '?' => Element::Any,
            '[' => class(&mut characters)?,
            '\\' => Element::Char(characters.next().ok_or(InvalidPattern)?),
            character => Element::Char(character),
        });
    }
    Ok(elements)
}

/// Reads a class of characters after its `[`.
fn class(characters: &mut std::str::Chars<'_>) -> Result<Element, InvalidPattern> {
    let is_negated = characters.as_str().starts_with('^');
    if is_negated {
        characters.next();
    }
    let mut ranges = Vec::new();
    while ranges.is_empty() || !characters.as_str().starts_with(']') {
        let low = bound(characters)?;
        let has_high = characters.as_str().starts_with('-');
        let high = if has_high {
            characters.next();
            bound(characters)?
        } else {
            low
        };
        ranges.push((low, high));
    }
    characters.next();
    Ok(Element::Class(ranges, is_negated))
}

/// Reads a bound of a range of characters.
fn bound(characters: &mut std::str::Chars<'_>) -> Result<char, InvalidPattern> {
    match characters.next() {
        None | Some('-' | ']') => Err(InvalidPattern),
        Some('\\') => characters.next().ok_or(InvalidPattern),
        Some(character) => Ok(character),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    /// The cases are those of Go's `filepath.Match`.
    #[test_case("*", "abc" => Ok(true))]
    #[test_case("**.toml", "a.toml" => Ok(true); "two stars are one")]
    #[test_case("*.toml", ".toml" => Ok(true); "hidden file")]
    #[test_case("a*b*c", "axbxbyc" => Ok(true); "several stars")]
    #[test_case("a*b", "axbx" => Ok(false); "end")]
    #[test_case("?.toml", "ä.toml" => Ok(true); "one character")]
    #[test_case("[a-d]*", "c1" => Ok(true); "range")]
    #[test_case("[a-d]*", "e1" => Ok(false); "outside of the range")]
    #[test_case("[^a-d]*", "e1" => Ok(true); "negated")]
    #[test_case("[\\-x]*", "-" => Ok(true); "escaped bound")]
    #[test_case("\\*", "*" => Ok(true); "escaped star")]
    #[test_case("{a,b}*", "a" => Ok(false); "braces mean nothing")]
    #[test_case("[a*", "a" => Err(InvalidPattern); "no end of the class")]
    #[test_case("[]a]*", "]" => Err(InvalidPattern); "empty class")]
    #[test_case("[x-]*", "x" => Err(InvalidPattern); "no upper bound")]
    #[test_case("a\\", "a" => Err(InvalidPattern); "nothing escaped")]
    fn pattern_fits_as_in_go(pattern: &str, name: &str) -> Result<bool, InvalidPattern> {
        Ok(fits(&parse(pattern)?, name))
    }

    #[test_case("conf.d/*.toml", "etc/containerd/conf.d/a.toml" => true; "relative")]
    #[test_case("./x/../conf.d/*.toml", "etc/containerd/conf.d/a.toml" => true; "parent directory")]
    #[test_case("/etc/*/conf.d/a.toml", "etc/containerd/conf.d/a.toml" => true; "star in a directory")]
    #[test_case("*", "etc/containerd/conf.d/a.toml" => false; "star is of one name")]
    #[test_case("conf.d/[a-d].toml", "etc/containerd/conf.d/a.toml" => false; "no pattern without a star")]
    #[test_case("conf.d/a.toml", "etc/containerd/conf.d/a.toml" => true; "path")]
    fn import_names_a_file(import: &str, file: &str) -> bool {
        is_imported("etc/containerd/config.toml", import, file)
    }
}
