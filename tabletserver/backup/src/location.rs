//! Where backups lie.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

/// A parsed URL: `file:///dir` or
/// `s3://bucket/prefix?endpoint=URL&region=R&path-style=true&ca=FILE`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// A directory that every server sees under the same path.
    Directory(PathBuf),
    /// A bucket. What is none comes from the environment.
    S3(Bucket),
}

/// A bucket and how to reach it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What the names of objects begin with; empty or without a slash at its ends.
    pub prefix: String,
    /// URL of a server other than the usual one.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Whether the bucket stands in the path, not in the host; as usual for other endpoints.
    pub path_style: Option<bool>,
    /// File with the certificate authority of the endpoint.
    pub ca: Option<PathBuf>,
}

/// A URL that names no place for backups. Displays what is wrong and how to write it; never the
/// URL itself, which may hold what nobody should see.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadLocation(pub String);

/// What URLs look like.
const HINT: &str =
    "give file:///DIRECTORY or s3://BUCKET/PREFIX, such as s3://backups/ebla?endpoint=https://s3.example.org";

/// How credentials are given instead.
const NO_CREDENTIALS: &str = "a URL of a backup holds no credentials, as it is kept and shown: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE";

impl Location {
    /// Reads a URL.
    ///
    /// # Errors
    /// When it is none of a place for backups.
    pub fn parse(url: &str) -> Result<Self, BadLocation> {
        if let Some(path) = url.strip_prefix("file://") {
            return directory(path).map(Self::Directory);
        }
        match url.strip_prefix("s3://") {
            Some(rest) => bucket(rest).map(Self::S3),
            None => Err(bad(format!("not a URL of a place for backups: {HINT}"))),
        }
    }
}

fn bad(text: impl Into<String>) -> BadLocation {
    BadLocation(text.into())
}

fn directory(path: &str) -> Result<PathBuf, BadLocation> {
    if !path.starts_with('/') {
        return Err(bad("a file URL names an absolute path after three slashes: give file:///DIRECTORY"));
    }
    if path.contains(['?', '#']) {
        return Err(bad(
            "a file URL has no parameters: in the name of a directory write %3F for '?' and %23 for '#'",
        ));
    }
    let path = PathBuf::from(OsString::from_vec(decode(path)?));
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.components().all(is_plain) || path.as_os_str().as_bytes().contains(&0) {
        return Err(bad("the path of a file URL holds `..`: give the directory itself"));
    }
    // Without repeated and trailing slashes, so that one directory has one URL.
    Ok(path.components().collect())
}

fn bucket(rest: &str) -> Result<Bucket, BadLocation> {
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
    if name.contains('@') {
        return Err(bad(NO_CREDENTIALS));
    }
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_known) {
        return Err(bad(format!("an S3 URL names a bucket of letters, digits, '.', '-' and '_': {HINT}")));
    }
    let prefix = text(prefix)?.trim_matches('/').to_owned();
    if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
        return Err(bad("the prefix of an S3 URL holds an empty, `.` or `..` part: leave it out"));
    }
    let mut bucket = Bucket { name: name.to_owned(), prefix, ..Bucket::default() };
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        bucket.set(parameter)?;
    }
    Ok(bucket)
}

impl Bucket {
    /// Reads one parameter of a URL.
    fn set(&mut self, parameter: &str) -> Result<(), BadLocation> {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = text(value)?;
        if value.is_empty() {
            return Err(bad("a parameter of an S3 URL has no value: write name=value, or leave it out"));
        }
        match name {
            "endpoint" => self.endpoint = Some(endpoint(value)?),
            "region" => self.region = Some(value),
            "path-style" | "path_style" => {
                let is_path = match value.as_str() {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(bad("path-style is true or false")),
                };
                self.path_style = Some(is_path);
            }
            "ca" => self.ca = Some(PathBuf::from(value)),
            // Its name may be half of a secret: it is not repeated.
            _ => {
                return Err(bad(
                    "an S3 URL has a parameter that is none of endpoint, region, path-style and ca: remove it; credentials come from the environment",
                ));
            }
        }
        Ok(())
    }
}

/// An endpoint without a slash at its end.
pub(crate) fn endpoint(url: String) -> Result<String, BadLocation> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    match rest {
        Some(rest) if rest.contains('@') => Err(bad(NO_CREDENTIALS)),
        Some(rest) if !rest.trim_end_matches('/').is_empty() && !rest.contains(['?', '#', ' ']) => {
            Ok(url.trim_end_matches('/').to_owned())
        }
        Some(_) | None => Err(bad("an endpoint is a URL: give endpoint=https://HOST:PORT")),
    }
}

fn text(encoded: &str) -> Result<String, BadLocation> {
    String::from_utf8(decode(encoded)?)
        .map_err(|_| bad("an S3 URL is UTF-8, also where it is escaped with %"))
}

/// Undoes `%XX`.
fn decode(encoded: &str) -> Result<Vec<u8>, BadLocation> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = after.split_at_checked(2).and_then(|(digits, _)| std::str::from_utf8(digits).ok());
        let decoded = digits.and_then(crate::hex::from_hex);
        let decoded =
            decoded.ok_or_else(|| bad("a URL has a % without two hexadecimal digits: write %25"))?;
        out.extend(decoded);
        rest = &after[2..];
    }
    Ok(out)
}

/// Writes bytes so that [`decode`] gives them back and no mark of a URL stands among them.
fn encode(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => f.write_char(char::from(*byte))?,
            _ if b"/-._~:+,=@".contains(byte) => f.write_char(char::from(*byte))?,
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => {
                f.write_str("file://")?;
                encode(path.as_os_str().as_bytes(), f)
            }
            Self::S3(bucket) => bucket.fmt(f),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/", self.name)?;
        encode(self.prefix.as_bytes(), f)?;
        let path_style = self.path_style.map(|is_path| OsStr::new(if is_path { "true" } else { "false" }));
        let parameters = [
            ("endpoint", self.endpoint.as_deref().map(OsStr::new)),
            ("region", self.region.as_deref().map(OsStr::new)),
            ("path-style", path_style),
            ("ca", self.ca.as_deref().map(Path::as_os_str)),
        ];
        let given = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
        for (index, (name, value)) in given.enumerate() {
            write!(f, "{}{name}=", if index == 0 { '?' } else { '&' })?;
            encode(value.as_bytes(), f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(url: &str) -> Location {
        Location::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn urls_of_both_kinds() {
        assert_eq!(parse("file:///a//b/"), Location::Directory("/a/b".into()));
        assert_eq!(parse("file:///a%20b"), Location::Directory("/a b".into()));
        assert_eq!(parse("file:///a%3Fb"), Location::Directory("/a?b".into()));
        assert!(Location::parse("file:///a?endpoint=b").is_err());
        let bucket = |name: &str, prefix: &str| Bucket {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            ..Bucket::default()
        };
        assert_eq!(parse("s3://b"), Location::S3(bucket("b", "")));
        assert_eq!(parse("s3://b/p/q/"), Location::S3(bucket("b", "p/q")));
        let all = "s3://b/p?endpoint=http://127.0.0.1:9000&region=r&path-style=true&ca=/etc/a%26b.pem";
        let wanted = Bucket {
            endpoint: Some("http://127.0.0.1:9000".to_owned()),
            region: Some("r".to_owned()),
            path_style: Some(true),
            ca: Some("/etc/a&b.pem".into()),
            ..bucket("b", "p")
        };
        assert_eq!(parse(all), Location::S3(wanted));
        assert_eq!(parse(all).to_string(), all);
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for url in [
            "",
            "/dir",
            "file://dir",
            "file:///a/../b",
            "s3://",
            "s3:///p",
            "s3://b/../c",
            "s3://b/x//y",
            "s3://b?region",
            "s3://b?endpoint=host:1",
            "s3://b?what=1",
            "https://b/x",
            "file:///a%2",
            "s3://b?path-style=maybe",
        ] {
            assert!(Location::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn credentials_are_refused_and_not_repeated() {
        for url in [
            "s3://user:hunter2@b/p",
            "s3://b/p?endpoint=https://user:hunter2@host",
            "s3://b/p?secret=hunter2",
            "s3://b/p?hunter2",
            "user:hunter2@b",
        ] {
            let error = Location::parse(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(path in proptest::collection::vec("[^/\0.]{1,6}", 1..4), prefix in "[a-z &?%#=ä]{0,8}", ca in "[a-z &?%#=ä]{1,8}") {
            let directory = Location::Directory(format!("/{}", path.join("/")).into());
            prop_assert_eq!(parse(&directory.to_string()), directory);
            let bucket = Bucket { name: "b".to_owned(), prefix, ca: Some(ca.into()), ..Bucket::default() };
            let location = Location::S3(bucket);
            prop_assert_eq!(parse(&location.to_string()), location);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = Location::parse(&text);
            let _ = Location::parse(&format!("s3://{text}"));
            let _ = Location::parse(&format!("file:///{text}"));
        }
    }
}
