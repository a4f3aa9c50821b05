//! Reads mirrors, Secrets and `ConfigMap`s from files, in place of a cluster.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crds::RegistryMirror;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use mirror::file_read;
use serde_json::Value;
use serde_saphyr::UserMessageFormatter;

use super::{Failure, mistake};
use crate::{
    dereference::{Contents, Reader, Reference},
    kind::Kind,
};

/// The most bytes of a file with documents: `kubectl get -o yaml` prints many of a large cluster.
const MAX_INPUT: u64 = 64 << 20;

/// The files with documents.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "these comments are what --help prints")]
pub(super) struct FileArgs {
    /// A file with RegistryMirror, Secret and ConfigMap documents, a directory of such files (.yaml, .yml, .json), or -
    /// for stdin; may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// The documents of all files.
#[derive(Default)]
pub(super) struct Documents {
    /// The mirrors, with the defaults of the API server.
    pub(super) mirrors: Vec<RegistryMirror>,
    /// The addresses of mirrors that run, by namespace and name: `status.endpoint.url`.
    urls: BTreeMap<(Option<String>, String), String>,
    /// The namespace in the command line.
    namespace: Option<String>,
    /// The content of objects, with the namespace if the document names one.
    objects: BTreeMap<Reference, Vec<(Option<String>, Contents)>>,
}

/// The namespace of a mirror that names none.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// The position of a document, for messages.
struct Origin<'a> {
    file: &'a Path,
    number: usize,
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file.display(), self.number)
    }
}

impl FileArgs {
    /// Replaces directories by their files.
    fn expanded(&self) -> Result<Vec<PathBuf>, Failure> {
        let all = self.files.iter().map(|path| {
            if !path.is_dir() {
                return Ok(vec![path.clone()]);
            }
            files_of(path).map_err(|error| unreadable(path, &error))
        });
        Ok(all.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Reads all files. Mirrors that name no namespace get `namespace`.
    ///
    /// # Errors
    /// All documents that are none, that an API server would refuse, or that name another namespace.
    pub(super) fn read(&self, namespace: Option<&str>) -> Result<Documents, Failure> {
        let mut documents = Documents {
            namespace: namespace.map(str::to_owned),
            ..Documents::default()
        };
        let mut mistakes = Vec::new();
        for file in &self.expanded()? {
            match parsed(file) {
                Ok(values) => {
                    for (index, value) in values.iter().enumerate() {
                        let number = index + 1;
                        let added = documents.add(value, &Origin { file, number });
                        mistakes.extend(added.err().map(|mistake| mistake.to_string()));
                    }
                }
                Err(mistake) => mistakes.push(mistake.to_string()),
            }
        }
        if !mistakes.is_empty() {
            return Err(Failure::Invalid(mistakes.join("\n")));
        }
        if documents.mirrors.is_empty() {
            let files = self
                .files
                .iter()
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
                .join(", ");
            return Err(Failure::Invalid(format!(
                "{files}: no RegistryMirror found: add the file of one with -f"
            )));
        }
        Ok(documents)
    }
}

/// Returns the files of a directory that may contain documents, by name, without subdirectories.
fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yaml" | "yml" | "json")) && file.is_file()
    });
    files.sort();
    Ok(files)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Invalid(format!("{}: not readable: {error}", path.display()))
}

/// Returns the documents of a file.
fn parsed(file: &Path) -> Result<Vec<Value>, Failure> {
    let yaml = text(file)?;
    serde_saphyr::from_multiple(&yaml).map_err(|error| {
        let said = error
            .without_snippet()
            .render_with_formatter(&UserMessageFormatter);
        // A parser of YAML reports the column in which it noticed a wrong indentation.
        let advice = if said.contains("block mapping") || said.contains("tabs") {
            "; indent with spaces, and the keys of a map and the items of a list in one column each"
        } else {
            ""
        };
        Failure::Invalid(format!("{}: {said}{advice}", file.display()))
    })
}

/// Returns the mistake of a document whose kind is a misspelt `RegistryMirror`, or another kind of its API group.
fn misspelt_kind(document: &Value, kind: &str, origin: &Origin<'_>) -> Option<Failure> {
    let version = document
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let is_ours = version.starts_with("registrymirror.io/");
    (is_ours || crds::validate::closest(kind, ["RegistryMirror"]).is_some()).then(|| {
        Failure::Invalid(format!(
            "{origin}: kind {kind} does not exist: did you mean RegistryMirror?"
        ))
    })
}

fn text(file: &Path) -> Result<String, Failure> {
    let read = if file == Path::new("-") {
        file_read::read_text_from(&mut io::stdin().lock(), MAX_INPUT)
    } else {
        file_read::read_text(file, MAX_INPUT)
    };
    read.map_err(|error| unreadable(file, &error))
}

/// Returns the namespace, if the mirror names one, and the name.
fn id(mirror: &RegistryMirror) -> (Option<String>, String) {
    (mirror.namespace(), mirror.name_any())
}

impl Documents {
    /// Returns `status.endpoint.url` of a mirror. The mirror itself is as the API server would create it: without status.
    pub(super) fn url(&self, mirror: &RegistryMirror) -> Option<&str> {
        self.urls.get(&id(mirror)).map(String::as_str)
    }

    /// Explains that the files have an object in another namespace than the mirror that refers to it.
    pub(super) fn misplaced(&self, mirror: &RegistryMirror, reference: &Reference) -> Option<String> {
        let namespace = mirror.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let objects = self.objects.get(reference)?;
        let mut elsewhere = objects.iter().filter_map(|(of, _)| of.as_deref());
        let other = elsewhere.find(|other| *other != namespace)?;
        Some(format!(
            "{reference} is in namespace {other}, and RegistryMirror {} in namespace {namespace}, which has none of that \
             name: a mirror reads its own namespace only; correct metadata.namespace of one of them",
            mirror.name_any()
        ))
    }

    fn add(&mut self, document: &Value, origin: &Origin<'_>) -> Result<(), Failure> {
        match document.get("kind").and_then(Value::as_str) {
            Some("RegistryMirror") => {
                let mirror = self.in_namespace(mirror(document, origin)?, origin)?;
                let url = document.pointer("/status/endpoint/url").and_then(Value::as_str);
                self.urls.extend(url.map(|url| (id(&mirror), url.to_owned())));
                self.add_mirror(mirror, origin)?;
            }
            // As `kubectl get -o yaml` prints several objects.
            Some("List" | "RegistryMirrorList" | "SecretList" | "ConfigMapList") => {
                let items = document.get("items").and_then(Value::as_array);
                for item in items.into_iter().flatten() {
                    self.add(item, origin)?;
                }
            }
            Some("Secret") => {
                all_text(document, &["data", "stringData"], origin)?;
                let secret: Secret = parse(document, origin)?;
                self.put(
                    Reference::secret(&secret.name_any()),
                    secret.namespace(),
                    secret.into(),
                    origin,
                )?;
            }
            Some("ConfigMap") => {
                all_text(document, &["data", "binaryData"], origin)?;
                let map: ConfigMap = parse(document, origin)?;
                self.put(
                    Reference::config_map(&map.name_any()),
                    map.namespace(),
                    map.into(),
                    origin,
                )?;
            }
            // Files may contain other objects.
            Some(kind) => misspelt_kind(document, kind, origin).map_or(Ok(()), Err)?,
            None if document.is_null() => {}
            None => {
                return Err(Failure::Invalid(format!("{origin}: kind is missing: add it")));
            }
        }
        Ok(())
    }

    /// Puts a mirror into the namespace of the command line, as kubectl does.
    fn in_namespace(
        &self,
        mut mirror: RegistryMirror,
        origin: &Origin<'_>,
    ) -> Result<RegistryMirror, Failure> {
        match (&self.namespace, &mirror.metadata.namespace) {
            (Some(given), Some(own)) if given != own => Err(Failure::Invalid(format!(
                "{origin}: RegistryMirror {} is in namespace {own}, and --namespace is {given}: remove one of them",
                mirror.name_any()
            ))),
            (Some(given), None) => {
                mirror.metadata.namespace = Some(given.clone());
                Ok(mirror)
            }
            _ => Ok(mirror),
        }
    }

    fn add_mirror(&mut self, mirror: RegistryMirror, origin: &Origin<'_>) -> Result<(), Failure> {
        if self.mirrors.iter().any(|other| id(other) == id(&mirror)) {
            return Err(twice(&format!("RegistryMirror {}", mirror.name_any()), origin));
        }
        self.mirrors.push(mirror);
        Ok(())
    }

    fn put(
        &mut self,
        reference: Reference,
        namespace: Option<String>,
        contents: Contents,
        origin: &Origin<'_>,
    ) -> Result<(), Failure> {
        let message = reference.to_string();
        let of_this_name = self.objects.entry(reference).or_default();
        if of_this_name.iter().any(|(other, _)| *other == namespace) {
            return Err(twice(&message, origin));
        }
        of_this_name.push((namespace, contents));
        Ok(())
    }
}

/// Returns the failure of two documents with one name.
fn twice(what: &str, origin: &Origin<'_>) -> Failure {
    Failure::Invalid(format!("{origin}: {what} occurs twice: remove one of them"))
}

fn mirror(document: &Value, origin: &Origin<'_>) -> Result<RegistryMirror, Failure> {
    crds::validate::created(document).map_err(|violations| {
        let name = document
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or("without a name");
        let lines: Vec<_> = violations
            .iter()
            .map(|violation| match mistake::suggest(document, &violation.path) {
                Some(suggestion) => format!("\n  {violation}; {suggestion}"),
                None => format!("\n  {violation}"),
            })
            .collect();
        Failure::Invalid(format!(
            "{origin}: RegistryMirror {name} is not valid:{}",
            lines.concat()
        ))
    })
}

/// Checks that the values are texts. The errors of the typed parser would repeat a value.
fn all_text(document: &Value, fields: &[&str], origin: &Origin<'_>) -> Result<(), Failure> {
    for field in fields {
        for (key, value) in document
            .get(field)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            if !value.is_string() {
                return Err(Failure::Invalid(format!(
                    "{origin}: {field}.{key} is not a text: put it in quotes"
                )));
            }
        }
    }
    Ok(())
}

fn parse<K: serde::de::DeserializeOwned>(document: &Value, origin: &Origin<'_>) -> Result<K, Failure> {
    serde_json::from_value(document.clone()).map_err(|_| {
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
        Failure::Invalid(format!(
            "{origin}: not a valid {kind}: data is base64, and stringData plain text"
        ))
    })
}

/// A document without a namespace is in every namespace that is asked for, as with `kubectl apply`.
impl Reader for Documents {
    type Error = Infallible;

    async fn read(&self, namespace: &str, reference: &Reference) -> Result<Option<Contents>, Infallible> {
        debug_assert!(matches!(reference.kind, Kind::Secret | Kind::ConfigMap));
        let namespace = if namespace.is_empty() {
            DEFAULT_NAMESPACE
        } else {
            namespace
        };
        let candidates = self.objects.get(reference).into_iter().flatten();
        let mut fitting = candidates.filter(|(of, _)| of.as_deref().is_none_or(|of| of == namespace));
        Ok(fitting.next().map(|(_, contents)| contents.clone()))
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    const MIRROR: &str = "
apiVersion: registrymirror.io/v1alpha1
kind: RegistryMirror
metadata: {name: hub}
spec: {upstreams: [{host: quay.io}], storage: {type: Ephemeral}}
";

    fn read(yaml: &str) -> Result<Documents, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mirror.yaml");
        fs::write(&file, yaml).unwrap();
        FileArgs { files: vec![file] }.read(None).map_err(|failure| {
            assert_eq!(
                format!("{:?}", failure.code()),
                format!("{:?}", std::process::ExitCode::from(2))
            );
            failure.to_string()
        })
    }

    fn contents(documents: &Documents, namespace: &str, reference: &Reference) -> Option<Contents> {
        block_on(documents.read(namespace, reference)).unwrap()
    }

    /// A file of another kind, or a huge one, is invalid input: nothing waits for the writer of a FIFO.
    #[test]
    fn input_of_another_kind_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let [fifo, huge] = ["fifo.yaml", "huge.yaml"].map(|name| directory.path().join(name));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        for (file, reason) in [(fifo, "it is a FIFO"), (huge, "it is larger than 64 MiB")] {
            let message = text(&file).unwrap_err().to_string();
            let path = file.display().to_string();
            assert!(message.contains(&path) && message.contains(reason), "{message}");
        }
    }

    #[test]
    fn secrets_are_read_in_both_forms() {
        let secret = "kind: Secret\nmetadata: {name: s}\ndata: {a: YQ==}\nstringData: {b: b}";
        let documents = read(&format!("{MIRROR}---\n{secret}\n---\n")).unwrap();
        let data = contents(&documents, "default", &Reference::secret("s"))
            .unwrap()
            .data;
        assert_eq!(
            (data["a"].as_slice(), data["b"].as_slice()),
            (&b"a"[..], &b"b"[..])
        );
    }

    /// A reference does not find an object of a different namespace.
    #[test]
    fn object_of_other_namespace_is_missing() {
        let map = "kind: ConfigMap\nmetadata: {name: c, namespace: other}\ndata: {a: a}";
        let documents = read(&format!("{MIRROR}---\n{map}")).unwrap();
        assert!(contents(&documents, "default", &Reference::config_map("c")).is_none());
        assert!(contents(&documents, "other", &Reference::config_map("c")).is_some());
    }

    #[test]
    fn unknown_kind_is_ignored() {
        assert_eq!(
            read(&format!("{MIRROR}---\nkind: Namespace\nmetadata: {{name: n}}"))
                .unwrap()
                .mirrors
                .len(),
            1
        );
    }

    /// A list as kubectl prints it is read.
    #[test]
    fn kubectl_list_is_read() {
        let mirror: Value = serde_saphyr::from_str(MIRROR).unwrap();
        let secret = json!({"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "YQ=="}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [mirror, secret]});
        let documents = read(&list.to_string()).unwrap();
        assert_eq!(documents.mirrors[0].name_any(), "hub");
        assert!(contents(&documents, "default", &Reference::secret("s")).is_some());
    }

    /// A byte order mark and the line ends of Windows are accepted.
    #[test]
    fn byte_order_mark_and_crlf_are_accepted() {
        let windows = format!("\u{feff}{}", MIRROR.trim_start().replace('\n', "\r\n"));
        assert_eq!(read(&windows).unwrap().mirrors.len(), 1);
    }

    /// The error for an invalid document names it and contains no secret.
    #[test_case(&format!("{MIRROR}---{MIRROR}"), "document 2: RegistryMirror hub occurs twice"; "a mirror twice")]
    #[test_case("kind: Secret\nmetadata: {name: s}\n---\nkind: Secret\nmetadata: {name: s}\nstringData: {password: hunter2}", "document 2: Secret s occurs twice"; "a Secret twice")]
    #[test_case("a: [", "mirror.yaml: "; "no YAML")]
    #[test_case("a: 1", "document 1: kind is missing"; "no object")]
    #[test_case("kind: Secret\nmetadata: {name: s}", "no RegistryMirror found"; "no mirror")]
    #[test_case(&MIRROR.replace("Ephemeral}", "Ephemeral, kind: x}"), "spec.storage"; "an unknown field")]
    #[test_case(&MIRROR.replace("hub", "null"), "metadata.name: Required value"; "null as name")]
    #[test_case(&MIRROR.replace("Ephemeral", "Tape"), "spec.storage.type"; "a value that does not exist")]
    #[test_case("kind: Secret\nstringData: {password: 1234}", "stringData.password is not a text"; "a number")]
    #[test_case("kind: Secret\ndata: {password: hunter2!}", "data is base64"; "no base64")]
    fn invalid_documents_are_named_without_secrets(yaml: &str, expected: &str) {
        let error = read(yaml).err().unwrap();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("1234") && !error.contains("hunter2"), "{error}");
    }
}
