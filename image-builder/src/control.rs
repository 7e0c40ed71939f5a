//! Debian's control format (deb822): paragraphs of `Field: value`, and the two things read from it here, a package
//! index and the relations between packages.

use crate::version::Version;
use std::cmp::Ordering;

/// The paragraphs of a control file.
pub fn paragraphs(text: &str) -> impl Iterator<Item = Paragraph<'_>> {
    text.split("\n\n").map(|p| p.trim_matches('\n')).filter(|p| !p.is_empty()).map(Paragraph)
}

/// One paragraph.
#[derive(Clone, Copy, Debug)]
pub struct Paragraph<'a>(&'a str);

impl<'a> Paragraph<'a> {
    /// The field's value, with its further lines as they stand.
    pub fn get(&self, field: &str) -> Option<&'a str> {
        let mut at = 0;
        while at < self.0.len() {
            let rest = &self.0[at..];
            if let Some((name, value)) = rest.split_once(':')
                && name.eq_ignore_ascii_case(field)
            {
                return Some(value[..end_of_value(value)].trim());
            }
            at += rest.find('\n').map_or(rest.len(), |i| i + 1);
        }
        None
    }
}

/// A value ends at the first line that does not begin with a blank.
fn end_of_value(value: &str) -> usize {
    let bytes = value.as_bytes();
    let ends = |i: usize| bytes[i] == b'\n' && !matches!(bytes.get(i + 1), Some(b' ' | b'\t'));
    (0..bytes.len()).find(|i| ends(*i)).unwrap_or(bytes.len())
}

/// One package of an index.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// `arm64` or `all`.
    pub arch: String,
    /// `Pre-Depends` and `Depends`: each must be met, by any of its alternatives.
    pub depends: Vec<Vec<Relation>>,
    /// Packages that it cannot be beside.
    pub conflicts: Vec<Relation>,
    /// Virtual packages that it is, at a version where one is given.
    pub provides: Vec<(String, Option<Version>)>,
    /// Path below the archive's URI.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Hash of the `.deb`, lower-case hexadecimal.
    pub sha256: String,
}

/// `name (>= version)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The package, real or virtual.
    pub name: String,
    /// Bound on its version.
    pub bound: Option<(Bound, Version)>,
}

/// How a version is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `<<`
    Less,
    /// `<=`
    AtMost,
    /// `=`
    Exactly,
    /// `>=`
    AtLeast,
    /// `>>`
    More,
}

impl Relation {
    /// Whether a package of this version meets it.
    pub fn allows(&self, version: &Version) -> bool {
        let Some((bound, wanted)) = &self.bound else { return true };
        let order = version.cmp(wanted);
        match bound {
            Bound::Less => order == Ordering::Less,
            Bound::AtMost => order != Ordering::Greater,
            Bound::Exactly => order == Ordering::Equal,
            Bound::AtLeast => order != Ordering::Less,
            Bound::More => order == Ordering::Greater,
        }
    }

    /// Whether the package meets it, by its own name or by what it provides. An unversioned `Provides` meets no bound.
    pub fn met_by(&self, package: &Package) -> bool {
        if package.name == self.name {
            return self.allows(&package.version);
        }
        package.provides.iter().any(|(name, version)| {
            *name == self.name && (self.bound.is_none() || version.as_ref().is_some_and(|v| self.allows(v)))
        })
    }
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        let Some((bound, version)) = &self.bound else { return Ok(()) };
        let sign = match bound {
            Bound::Less => "<<",
            Bound::AtMost => "<=",
            Bound::Exactly => "=",
            Bound::AtLeast => ">=",
            Bound::More => ">>",
        };
        write!(f, " ({sign} {version})")
    }
}

/// Why a control file is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A field that must be there is not.
    #[error("package {package:?} has no {field}")]
    Missing {
        /// Name as far as it is known.
        package: String,
        /// The field.
        field: &'static str,
    },
    /// A field makes no sense.
    #[error("package {package:?}: {field} is {value:?}")]
    Bad {
        /// Its name.
        package: String,
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
}

/// The packages of a `Packages` file.
pub fn package_index(text: &str) -> Result<Vec<Package>, Error> {
    paragraphs(text).map(|p| package(&p)).collect()
}

fn package(paragraph: &Paragraph<'_>) -> Result<Package, Error> {
    let name = paragraph.get("Package").unwrap_or_default();
    let need = |field: &'static str| {
        paragraph.get(field).ok_or_else(|| Error::Missing { package: name.to_owned(), field })
    };
    let bad = |field, value: &str| Error::Bad { package: name.to_owned(), field, value: value.to_owned() };
    need("Package")?;
    let path = need("Filename")?;
    if crate::schema::plain_path(path).is_err() {
        return Err(bad("Filename", path));
    }
    let sha256 = need("SHA256")?;
    if !crate::hash::is_sha256(sha256) {
        return Err(bad("SHA256", sha256));
    }
    let size = need("Size")?;
    let list = |field: &'static str| match paragraph.get(field) {
        Some(text) => relations(text).ok_or_else(|| bad(field, text)),
        None => Ok(Vec::new()),
    };
    let mut depends = list("Pre-Depends")?;
    depends.extend(list("Depends")?);
    let mut conflicts = list("Conflicts")?.concat();
    conflicts.extend(list("Breaks")?.concat());
    let provides =
        list("Provides")?.concat().into_iter().map(|r| (r.name, r.bound.map(|(_, v)| v))).collect();
    Ok(Package {
        name: name.to_owned(),
        version: Version::new(need("Version")?),
        arch: need("Architecture")?.to_owned(),
        depends,
        conflicts,
        provides,
        path: path.to_owned(),
        size: size.parse().map_err(|_| bad("Size", size))?,
        sha256: sha256.to_owned(),
    })
}

/// `a (>= 1) | b, c:any`.
pub fn relations(text: &str) -> Option<Vec<Vec<Relation>>> {
    let groups = text.split(',').map(str::trim).filter(|g| !g.is_empty());
    groups.map(|group| group.split('|').map(|r| relation(r.trim())).collect()).collect()
}

fn relation(text: &str) -> Option<Relation> {
    // Architecture lists (`[linux-any]`) and build profiles are not in binary packages' relations.
    let (name, rest) = match text.split_once('(') {
        Some((name, rest)) => (name.trim(), Some(rest.strip_suffix(')')?.trim())),
        None => (text, None),
    };
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
        return None;
    }
    let bound = match rest {
        None => None,
        Some(rest) => {
            let sign = rest.bytes().take_while(|b| b"<>=".contains(b)).count();
            let bound = match &rest[..sign] {
                "<<" => Bound::Less,
                "<=" | "<" => Bound::AtMost,
                "=" => Bound::Exactly,
                ">=" | ">" => Bound::AtLeast,
                ">>" => Bound::More,
                _ => return None,
            };
            Some((bound, Version::new(rest[sign..].trim())))
        }
    };
    Some(Relation { name: name.to_owned(), bound })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn an_index_is_read() {
        let text = format!(
            "Package: bash\nVersion: 5.2-1\nArchitecture: arm64\nPre-Depends: libc6 (>= 2.38)\nDepends: base-files \
             (>= 2.1.12), debianutils | which:any\nDescription: shell\n Depends: not a field\nFilename: \
             pool/b/bash.deb\nSize: 12\nSHA256: {HASH}\n\n\nPackage: dbus-broker\nProvides: dbus-system-bus (= 36), \
             dbus-bin\nVersion: 36\nArchitecture: arm64\nFilename: p\nSize: 1\nSHA256: {HASH}\n"
        );
        let packages = package_index(&text).unwrap();
        assert_eq!(packages.len(), 2);
        let shown: Vec<String> = packages[0]
            .depends
            .iter()
            .map(|g| g.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "))
            .collect();
        assert_eq!(shown, ["libc6 (>= 2.38)", "base-files (>= 2.1.12)", "debianutils | which"]);
        let meets = |relation: &str| relations(relation).unwrap()[0][0].met_by(&packages[1]);
        assert!(meets("dbus-system-bus (>= 30)") && meets("dbus-bin") && meets("dbus-broker (<< 37)"));
        assert!(!meets("dbus-system-bus (>= 37)") && !meets("dbus-bin (>= 1)") && !meets("dbus"));
    }

    #[test]
    fn a_hostile_path_or_hash_is_refused() {
        let entry = |path: &str, hash: &str| {
            package_index(&format!(
                "Package: x\nVersion: 1\nArchitecture: all\nFilename: {path}\nSize: 1\nSHA256: {hash}\n"
            ))
        };
        assert!(entry("pool/x.deb", HASH).is_ok());
        assert!(entry("../../etc/passwd", HASH).is_err());
        assert!(entry("/etc/passwd", HASH).is_err());
        assert!(entry("pool/x.deb", "00").is_err());
    }

    proptest! {
        #[test]
        fn relations_come_back_as_written(names in proptest::collection::vec("[a-z][a-z0-9+.-]{1,8}", 1..4), version in "[0-9][0-9a-z.+~]{0,6}") {
            let text = names.iter().map(|n| format!("{n} (>= {version})")).collect::<Vec<_>>().join(" | ");
            let read = relations(&text).unwrap();
            let shown = read[0].iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
            prop_assert_eq!(shown, text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}") {
            relations(&text);
            let _ = package_index(&text);
        }
    }
}
