//! Debian's order of version numbers: deb-version(7).

use std::cmp::Ordering;

/// A version, kept as it was written.
#[derive(Clone, Debug)]
pub struct Version(String);

impl Version {
    /// Any text is a version here: one that Debian would refuse still has its place in the order.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Epoch, upstream version, revision. An epoch that is no number counts as the greatest.
    fn parts(&self) -> (u64, &str, &str) {
        let (epoch, rest) = match self.0.split_once(':') {
            Some((epoch, rest)) => (epoch.parse().unwrap_or(u64::MAX), rest),
            None => (0, self.0.as_str()),
        };
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch, upstream, revision)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((epoch, upstream, revision), (their_epoch, their_upstream, their_revision)) =
            (self.parts(), other.parts());
        epoch
            .cmp(&their_epoch)
            .then_with(|| compare_part(upstream, their_upstream))
            .then_with(|| compare_part(revision, their_revision))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

// Two spellings of one version ("1.0" and "0:1.00") are equal.
impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Turn by turn a run of non-digits, by `weight`, and a run of digits, by value.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let (word, rest) = split(a, |c| !c.is_ascii_digit());
        let (their_word, their_rest) = split(b, |c| !c.is_ascii_digit());
        let (number, rest) = split(rest, u8::is_ascii_digit);
        let (their_number, their_rest) = split(their_rest, u8::is_ascii_digit);
        let order = compare_words(word, their_word).then_with(|| compare_numbers(number, their_number));
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest, their_rest);
    }
    Ordering::Equal
}

fn split(text: &[u8], belongs: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|c| !belongs(c)).unwrap_or(text.len()))
}

fn compare_words(a: &[u8], b: &[u8]) -> Ordering {
    let weights = |word: &[u8], i: usize| word.get(i).map_or(0, |c| weight(*c));
    (0..a.len().max(b.len()))
        .map(|i| weights(a, i).cmp(&weights(b, i)))
        .find(|o| o.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// `~` before the end, the end before letters, letters before all else.
fn weight(c: u8) -> i32 {
    match c {
        b'~' => -1,
        c if c.is_ascii_alphabetic() => i32::from(c),
        c => i32::from(c) + 256,
    }
}

/// As numbers of any length.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let significant = |n: &'_ [u8]| n.iter().position(|c| *c != b'0').map_or(n.len(), |i| i);
    let (a, b) = (&a[significant(a)..], &b[significant(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_manual_s_examples_hold() {
        let ascending = ["~~", "~~a", "~", "", "a"];
        for pair in ascending.windows(2) {
            assert!(Version::new(pair[0]) < Version::new(pair[1]), "{pair:?}");
        }
        for (less, more) in [
            ("1.0~rc1-1", "1.0-1"),
            ("1.0-1", "1.0-1+deb13u1"),
            ("1.9", "1.10"),
            ("9:0", "10:0"),
            ("2.0", "1:1.0"),
            ("1.0-1~bpo12+1", "1.0-1"),
            ("6.12.9-1", "6.12.48-1"),
            ("1.0a", "1.0+"),
            ("252.39-1~deb12u1", "257.8-1~deb13u2"),
        ] {
            assert!(Version::new(less) < Version::new(more), "{less} < {more}");
        }
        assert_eq!(Version::new("1.0"), Version::new("0:1.00"));
        assert_eq!(Version::new("1.0"), Version::new("1.0-0"));
    }

    fn version() -> impl Strategy<Value = Version> {
        "([0-9]{1,2}:)?[0-9a-z.~+]{0,6}(-[0-9a-z.~+]{1,4})?".prop_map(Version::new)
    }

    proptest! {
        #[test]
        fn it_is_a_total_order(a in version(), b in version(), c in version()) {
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a.cmp(&a), Ordering::Equal);
            if a <= b && b <= c {
                prop_assert!(a <= c, "{} {} {}", a, b, c);
            }
        }

        #[test]
        fn a_tilde_goes_before_and_a_plus_after(base in "[0-9]{1,3}(\\.[0-9a-z]{1,3}){0,2}", tail in "[a-z0-9]{1,3}") {
            let plain = Version::new(base.clone());
            let (before, after) = (Version::new(format!("{base}~{tail}")), Version::new(format!("{base}+{tail}")));
            prop_assert!(before < plain && plain < after);
        }
    }
}
