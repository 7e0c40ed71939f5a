//! Sets of a job's numbers, as its status writes them: `0-2,5`.

use std::fmt;

/// Ranges in order that do not touch. As many as were written, however wide they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Reads what is below a bound; what is not a range is left out.
    pub(super) fn parse(text: &str, below: u32) -> Self {
        let mut all = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>())
                && first <= last
                && first < below
            {
                all.insert(first, last.min(below - 1));
            }
        }
        all
    }

    /// Puts a range in.
    pub(super) fn insert(&mut self, mut first: u32, mut last: u32) {
        let apart =
            |r: &(u32, u32)| r.1.checked_add(1).is_some_and(|n| n < first) || last.saturating_add(1) < r.0;
        let (apart, touching): (Vec<_>, Vec<_>) = self.0.iter().copied().partition(apart);
        for range in touching {
            first = first.min(range.0);
            last = last.max(range.1);
        }
        self.0 = apart;
        let place = self.0.partition_point(|r| r.0 < first);
        self.0.insert(place, (first, last));
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        let place = self.0.partition_point(|r| r.1 < index);
        self.0.get(place).is_some_and(|r| r.0 <= index)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|r| usize::try_from(r.1 - r.0).unwrap_or(usize::MAX).saturating_add(1)).sum()
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                // Two in a row are written one by one.
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_are_written_as_upstream_writes_them() {
        let mut all = Indexes::parse("0,2,4-6,x,9-8,40-99999999", 50);
        assert_eq!(all.to_string(), "0,2,4-6,40-49");
        all.insert(1, 1);
        assert_eq!((all.to_string().as_str(), all.len()), ("0-2,4-6,40-49", 16));
        all.insert(8, 9);
        assert_eq!(all.to_string(), "0-2,4-6,8,9,40-49");
        assert_eq!(Indexes::parse("0-4294967295", u32::MAX).len(), usize::try_from(u32::MAX).unwrap());
    }

    proptest! {
        #[test]
        fn they_are_a_set(ranges in proptest::collection::vec((0..60_u32, 0..5_u32), 0..20)) {
            let (mut ours, mut set) = (Indexes::default(), BTreeSet::new());
            for (first, more) in ranges {
                ours.insert(first, first + more);
                set.extend(first..=first + more);
            }
            prop_assert_eq!(ours.len(), set.len());
            prop_assert!((0..70).all(|i| ours.contains(i) == set.contains(&i)));
            prop_assert_eq!(Indexes::parse(&ours.to_string(), 100), ours);
        }
    }
}
