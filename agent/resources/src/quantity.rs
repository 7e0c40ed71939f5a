//! Amounts of resources: `100m`, `1.5Gi`, `1e3`.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

/// Nano units in a unit: the finest that upstream keeps.
const NANO: i128 = 1_000_000_000;
/// The largest amount, as upstream caps it.
const MAX: i128 = i64::MAX as i128 * NANO;

/// The text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

/// How an amount is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An exact amount and the way it was written.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    /// Reads an amount.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (negative, body) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (number, suffix) = body.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || text.len() > 256 {
            return Err(ParseError);
        }
        let (base, exponent, format) = scale(suffix)?;
        let nanos = scaled(whole, fraction, base, exponent);
        let nanos = nanos.min(MAX);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// A number of whole units.
    pub fn from_value(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANO, format: Format::DecimalSi }
    }

    /// A number of thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Whole units, rounded away from nought.
    pub fn value(&self) -> i64 {
        clamp(round_away(self.nanos, NANO))
    }

    /// Thousandths, rounded away from nought.
    pub fn milli_value(&self) -> i64 {
        clamp(round_away(self.nanos, NANO / 1000))
    }

    /// Whether it is nought.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below nought.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }
}

/// The sum, written as the first is (or as the other if the first is nought); capped.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }
}

/// The difference, written as the first is (or as the other if the first is nought); capped.
impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + Self { nanos: -other.nanos, format: other.format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANO;
        match self.format {
            Format::BinarySi if !small => {
                let (mantissa, power) = reduce(round_away(self.nanos, NANO), 1024, 6);
                write!(f, "{mantissa}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power])
            }
            Format::DecimalExponent => {
                let (mantissa, power) = reduce(self.nanos, 1000, 9);
                match power as i64 * 3 - 9 {
                    _ if mantissa == 0 => write!(f, "0"),
                    0 => write!(f, "{mantissa}"),
                    exponent => write!(f, "{mantissa}e{exponent}"),
                }
            }
            _ => {
                let (mantissa, power) = reduce(self.nanos, 1000, 9);
                let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][power];
                write!(f, "{mantissa}{}", if mantissa == 0 { "" } else { suffix })
            }
        }
    }
}

/// Takes out factors of `base`, at most `limit` of them.
fn reduce(mut mantissa: i128, base: i128, limit: usize) -> (i128, usize) {
    let mut power = 0;
    while power < limit && mantissa != 0 && mantissa % base == 0 {
        mantissa /= base;
        power += 1;
    }
    (mantissa, power)
}

fn round_away(nanos: i128, unit: i128) -> i128 {
    let whole = nanos / unit;
    if nanos % unit == 0 { whole } else { whole + nanos.signum() }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// A suffix's base, exponent and format.
fn scale(suffix: &str) -> Result<(i128, i32, Format), ParseError> {
    let decimal = |exponent| Ok((10, exponent, Format::DecimalSi));
    let binary = |exponent| Ok((1024, exponent, Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
            let exponent: i32 = digits.parse().map_err(|_| ParseError)?;
            Ok((10, exponent.clamp(-300, 300), Format::DecimalExponent))
        }
    }
}

/// `whole.fraction * base^exponent` in nanos, rounded up, no more than [`MAX`].
fn scaled(whole: &str, fraction: &str, base: i128, exponent: i32) -> i128 {
    if base != 10 {
        let unit = base.pow(exponent.unsigned_abs());
        let (whole, _) = decimal(whole, "", 0);
        let parts = fraction_of(fraction, unit.saturating_mul(NANO));
        return whole.saturating_mul(unit).saturating_mul(NANO).saturating_add(parts).min(MAX);
    }
    let (value, rest) = decimal(whole, fraction, exponent + 9);
    value.saturating_add(i128::from(rest)).min(MAX)
}

/// The digits with the decimal point moved right by `shift`, and whether anything but noughts was cut off.
fn decimal(whole: &str, fraction: &str, shift: i32) -> (i128, bool) {
    let digits: Vec<i128> = whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0')).collect();
    let keep = whole.len() as i64 + i64::from(shift);
    let mut value: i128 = 0;
    for i in 0..keep.max(0) as usize {
        value = value.saturating_mul(10).saturating_add(digits.get(i).copied().unwrap_or(0)).min(MAX);
    }
    let cut = digits.iter().skip(keep.max(0) as usize).any(|d| *d != 0);
    (value, cut)
}

/// `0.fraction * unit`, rounded up.
fn fraction_of(fraction: &str, unit: i128) -> i128 {
    // Nine digits times the largest unit (Ei in nanos, about 1.2e27) stay below the 1.7e38 that i128 holds.
    let kept = &fraction[..fraction.len().min(9)];
    let mut divisor: i128 = 1;
    let mut value: i128 = 0;
    for digit in kept.bytes() {
        value = value * 10 + i128::from(digit - b'0');
        divisor *= 10;
    }
    let product = value * unit;
    let cut = fraction.len() > kept.len() && fraction[kept.len()..].bytes().any(|b| b != b'0');
    product / divisor + i128::from(product % divisor != 0 || cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn writes_the_canonical_form() {
        for (text, canonical, milli) in [
            ("100m", "100m", 100),
            ("0.5", "500m", 500),
            ("1", "1", 1000),
            ("1000m", "1", 1000),
            ("1.5Gi", "1536Mi", 1_610_612_736_000),
            ("128974848", "128974848", 128_974_848_000),
            ("1e3", "1e3", 1_000_000),
            ("1E3", "1e3", 1_000_000),
            ("1500k", "1500k", 1_500_000_000),
            ("2000000", "2M", 2_000_000_000),
            ("1024", "1024", 1_024_000),
            ("1024Ki", "1Mi", 1_048_576_000),
            ("0.5Ki", "512", 512_000),
            ("0", "0", 0),
            ("-250m", "-250m", -250),
            (".5", "500m", 500),
            ("1n", "1n", 1),
            ("0.1n", "1n", 1),
            ("5.", "5", 5000),
        ] {
            let quantity = Quantity::parse(text).expect(text);
            assert_eq!(quantity.to_string(), canonical, "{text}");
            assert_eq!(quantity.milli_value(), milli, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_amount() {
        for text in ["", "m", "1.2.3", "1x", "1ki", "1 Gi", "--1", "1e", "1ee3", "."] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn caps_huge_amounts() {
        assert_eq!(Quantity::parse("9e99").expect("huge").value(), i64::MAX);
        assert_eq!(Quantity::parse("99999999999999999999Ei").expect("huge").value(), i64::MAX);
        assert_eq!(Quantity::parse(&"9".repeat(200)).expect("huge").value(), i64::MAX);
    }

    #[test]
    fn adds_and_compares() {
        let sum = Quantity::parse("100m").expect("a") + Quantity::parse("1.9").expect("b");
        assert_eq!(sum.to_string(), "2");
        assert!(Quantity::parse("1Gi").expect("a") > Quantity::parse("1G").expect("b"));
        assert_eq!(Quantity::parse("1Ki").expect("a"), Quantity::parse("1024").expect("b"));
        let zero = Quantity::from_value(0);
        assert_eq!((zero + Quantity::parse("2Ki").expect("b")).to_string(), "2Ki");
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+]?[0-9.]{0,40}[eEinumkKMGTPi]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let again = Quantity::parse(&quantity.to_string()).expect("canonical form");
                prop_assert_eq!(again.to_string(), quantity.to_string());
            }
        }

        #[test]
        fn sums_are_sums(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000) {
            let sum = Quantity::from_milli(a) + Quantity::from_milli(b);
            prop_assert_eq!(sum.milli_value(), a + b);
            prop_assert_eq!(sum - Quantity::from_milli(b), Quantity::from_milli(a));
            let cmp = Quantity::from_milli(a).cmp(&Quantity::from_milli(b));
            prop_assert_eq!(cmp, a.cmp(&b));
        }
    }
}
