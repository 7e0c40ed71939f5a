//! The suite: where Debian's packages come from, `image-builder/suites/NAME.toml`.

use serde::Deserialize;
use toml::Spanned;

/// A Debian release as a source of packages.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// File with the OpenPGP certificates that may sign it, relative to this file or absolute.
    pub keyring: Spanned<String>,
    /// Archives to take packages from. Where two have a package, the higher version wins.
    pub sources: Vec<Source>,
    /// Where a package is found that its archive has dropped, as all do some time after an update: an archive of
    /// archives. `@ARCHIVE@` is the last part of the source's URI, `@TIME@` a moment when it had the locked release.
    pub fallback: Option<Spanned<String>>,
}

/// One archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `http://deb.debian.org/debian`.
    pub uri: Spanned<String>,
    /// Names below `dists/` under which the release is found; a second one is tried when the first one's index does
    /// not match its own signed InRelease, as happens on mirrors in the middle of an update.
    pub suites: Vec<String>,
    /// What its signed `Codename:` must be, so that a signed index of another release is not taken for this one.
    pub codename: String,
    /// `main`, `non-free-firmware`.
    pub components: Vec<String>,
    /// Lock without this source when no suite name has a sound index of the architecture (security updates of a
    /// mirror that lags). The lock says so.
    #[serde(default)]
    pub optional: bool,
}
