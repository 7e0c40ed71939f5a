//! Which packages a request needs: a small resolver, without the solver's search. Debian's own relations inside one
//! release rarely need more than "the first alternative that is there", and where they do, a recipe names the package
//! that it wants and the choice is made.

use crate::control::{Package, Relation};
use std::collections::{BTreeMap, BTreeSet};

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Packages wanted.
    pub packages: BTreeSet<String>,
    /// Packages that are never taken: what depends on them is taken without them.
    pub exclude: BTreeSet<String>,
}

/// Why a request cannot be met.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A wanted package does not exist.
    #[error("no package is called {0:?}")]
    Unknown(String),
    /// One package is both wanted and excluded.
    #[error("package {0:?} is both wanted and excluded")]
    Contradiction(String),
    /// Something needs what is not there.
    #[error("{package} needs {relation}, which no package is")]
    Unmet {
        /// Who needs it.
        package: String,
        /// All alternatives.
        relation: String,
    },
    /// Two chosen packages do not go together.
    #[error("{package} cannot be beside {other}: it conflicts with {relation}")]
    Conflict {
        /// One.
        package: String,
        /// The other.
        other: String,
        /// As the one puts it.
        relation: String,
    },
}

/// All packages known, the highest version of each.
#[derive(Debug, Default)]
pub struct Pool {
    packages: BTreeMap<String, Package>,
    providers: BTreeMap<String, BTreeSet<String>>,
}

impl Pool {
    /// Adds an index. Of one name the higher version stays, the first of two equal ones.
    pub fn add(&mut self, packages: impl IntoIterator<Item = Package>) {
        for package in packages {
            match self.packages.get(&package.name) {
                Some(known) if known.version >= package.version => {}
                _ => {
                    self.packages.insert(package.name.clone(), package);
                }
            }
        }
        self.providers.clear();
        for package in self.packages.values() {
            for (virtual_name, _) in &package.provides {
                self.providers.entry(virtual_name.clone()).or_default().insert(package.name.clone());
            }
        }
    }

    /// The packages that meet the request, by name.
    pub fn resolve(&self, request: &Request) -> Result<BTreeMap<&str, &Package>, Error> {
        if let Some(name) = request.packages.intersection(&request.exclude).next() {
            return Err(Error::Contradiction(name.clone()));
        }
        let mut chosen: BTreeMap<&str, &Package> = BTreeMap::new();
        for name in &request.packages {
            let package = self.packages.get(name).ok_or_else(|| Error::Unknown(name.clone()))?;
            chosen.insert(&package.name, package);
        }
        let mut open: Vec<&Package> = chosen.values().rev().copied().collect();
        while let Some(package) = open.pop() {
            for group in &package.depends {
                if let Some(needed) = self.choose(package, group, &chosen, &request.exclude)? {
                    chosen.insert(&needed.name, needed);
                    open.push(needed);
                }
            }
        }
        check_conflicts(&chosen)?;
        Ok(chosen)
    }

    /// The package to add for a dependency, or none when it is met or left out on purpose.
    fn choose<'a>(
        &'a self,
        package: &Package,
        group: &'a [Relation],
        chosen: &BTreeMap<&str, &Package>,
        exclude: &BTreeSet<String>,
    ) -> Result<Option<&'a Package>, Error> {
        if group
            .iter()
            .any(|relation| self.candidates(relation).any(|c| chosen.contains_key(c.name.as_str())))
        {
            return Ok(None);
        }
        let mut all = group.iter().flat_map(|relation| self.candidates(relation)).peekable();
        let any = all.peek().is_some();
        match all.find(|candidate| !exclude.contains(&candidate.name)) {
            Some(candidate) => Ok(Some(candidate)),
            None if any || group.iter().any(|r| exclude.contains(&r.name)) => Ok(None),
            None => Err(Error::Unmet { package: package.name.clone(), relation: alternatives(group) }),
        }
    }

    /// Those that meet a relation, the one of that very name first.
    fn candidates<'a>(&'a self, relation: &'a Relation) -> impl Iterator<Item = &'a Package> {
        let providers = self.providers.get(&relation.name).into_iter().flatten();
        let real = self.packages.get(&relation.name);
        real.into_iter()
            .chain(providers.filter_map(|name| self.packages.get(name)))
            .filter(move |package| relation.met_by(package))
    }
}

fn alternatives(group: &[Relation]) -> String {
    group.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

fn check_conflicts(chosen: &BTreeMap<&str, &Package>) -> Result<(), Error> {
    for package in chosen.values() {
        for relation in &package.conflicts {
            // A package may conflict with the virtual package that it provides: there can be one of its kind.
            let other = chosen.values().find(|other| other.name != package.name && relation.met_by(other));
            if let Some(other) = other {
                return Err(Error::Conflict {
                    package: package.name.clone(),
                    other: other.name.clone(),
                    relation: relation.to_string(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::relations;
    use crate::version::Version;
    use proptest::prelude::*;

    fn package(name: &str, version: &str, depends: &str, other: &str) -> Package {
        let (provides, conflicts) = other.split_once(';').unwrap_or((other, ""));
        Package {
            name: name.into(),
            version: Version::new(version),
            arch: "all".into(),
            depends: relations(depends).unwrap(),
            conflicts: relations(conflicts).unwrap().concat(),
            provides: relations(provides).unwrap().concat().into_iter().map(|r| (r.name, None)).collect(),
            path: name.into(),
            size: 1,
            sha256: String::new(),
        }
    }

    fn pool(packages: &[Package]) -> Pool {
        let mut pool = Pool::default();
        pool.add(packages.iter().cloned());
        pool
    }

    fn request(packages: &[&str], exclude: &[&str]) -> Request {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Request { packages: set(packages), exclude: set(exclude) }
    }

    fn names(pool: &Pool, packages: &[&str], exclude: &[&str]) -> Result<String, Error> {
        Ok(pool.resolve(&request(packages, exclude))?.into_keys().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn it_follows_dependencies_and_takes_the_first_alternative_that_is_there() {
        let pool = pool(&[
            package("web", "1", "libc (>= 2), gone | mail-agent, shell", ""),
            package("libc", "2.1", "", ""),
            package("dash", "1", "", "shell"),
            package("bash", "1", "", "shell"),
            package("exim", "1", "web", "mail-agent"),
        ]);
        assert_eq!(names(&pool, &["web"], &[]).unwrap(), "bash exim libc web");
        assert_eq!(names(&pool, &["web", "dash"], &[]).unwrap(), "dash exim libc web");
        assert_eq!(names(&pool, &["web"], &["exim", "bash"]).unwrap(), "dash libc web");
        assert_eq!(names(&pool, &["web"], &["libc", "exim"]).unwrap(), "bash web");
    }

    #[test]
    fn it_says_what_it_cannot_do() {
        let pool = pool(&[
            package("web", "1", "libc (>= 3)", ""),
            package("libc", "2.1", "", ""),
            package("exim", "1", "", "mta;mta"),
            package("postfix", "1", "", "mta;mta"),
        ]);
        assert_eq!(names(&pool, &["nginx"], &[]).unwrap_err(), Error::Unknown("nginx".into()));
        assert_eq!(names(&pool, &["libc"], &["libc"]).unwrap_err(), Error::Contradiction("libc".into()));
        assert_eq!(
            names(&pool, &["web"], &[]).unwrap_err().to_string(),
            "web needs libc (>= 3), which no package is"
        );
        assert_eq!(names(&pool, &["exim"], &[]).unwrap(), "exim");
        assert!(matches!(names(&pool, &["exim", "postfix"], &[]), Err(Error::Conflict { .. })));
    }

    #[test]
    fn the_higher_version_wins_whichever_comes_first() {
        for versions in [["1", "2"], ["2", "1"]] {
            let pool = pool(&versions.map(|v| package("a", v, "", "")));
            assert_eq!(pool.resolve(&request(&["a"], &[])).unwrap()["a"].version.as_str(), "2");
        }
    }

    proptest! {
        /// Whatever it answers is closed under dependency, holds what was asked and nothing that was excluded.
        #[test]
        fn an_answer_is_closed(
            edges in proptest::collection::vec((0usize..12, 0usize..12, 0usize..12), 0..30),
            wanted in proptest::collection::btree_set(0usize..12, 1..4),
            excluded in proptest::collection::btree_set(0usize..12, 0..3),
        ) {
            let packages: Vec<Package> = (0..12).map(|i| {
                let depends: Vec<String> =
                    edges.iter().filter(|e| e.0 == i).map(|e| format!("p{} | p{}", e.1, e.2)).collect();
                package(&format!("p{i}"), "1", &depends.join(", "), "")
            }).collect();
            let pool = pool(&packages);
            let name = |i: &usize| format!("p{i}");
            let request = Request {
                packages: wanted.iter().map(name).collect(),
                exclude: excluded.iter().map(name).collect(),
            };
            match pool.resolve(&request) {
                Err(error) => prop_assert!(matches!(error, Error::Contradiction(_)), "{}", error),
                Ok(chosen) => {
                    prop_assert!(request.packages.iter().all(|p| chosen.contains_key(p.as_str())));
                    prop_assert!(!request.exclude.iter().any(|p| chosen.contains_key(p.as_str())));
                    for package in chosen.values() {
                        for group in &package.depends {
                            prop_assert!(group.iter().any(|r| chosen.contains_key(r.name.as_str()))
                                || group.iter().all(|r| request.exclude.contains(&r.name)));
                        }
                    }
                }
            }
        }
    }
}
