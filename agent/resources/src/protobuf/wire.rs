//! The wire format: tags, and what they carry.

use super::DecodeError;

/// One field's content.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire<'b> {
    /// Numbers and flags.
    Varint(u64),
    /// Doubles.
    Fixed64([u8; 8]),
    /// Floats, which no message has.
    Fixed32,
    /// Texts, bytes, messages.
    Bytes(&'b [u8]),
}

impl<'b> Wire<'b> {
    /// The content as bytes.
    pub fn bytes(self) -> Result<&'b [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(DecodeError::Malformed("a field has another wire type than its message says")),
        }
    }

    /// The content as text.
    pub fn text(self) -> Result<&'b str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Malformed("a text is not UTF-8"))
    }

    /// The content as a number.
    pub fn varint(self) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(number) => Ok(number),
            _ => Err(DecodeError::Malformed("a field has another wire type than its message says")),
        }
    }
}

/// Reads one message's fields in order.
pub struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    /// Reads this message.
    pub fn new(message: &'b [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field's tag and content.
    pub fn next(&mut self) -> Result<Option<(u64, Wire<'b>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| DecodeError::Truncated)?;
                Wire::Fixed64(bytes)
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Wire::Fixed32)?,
            _ => return Err(DecodeError::Malformed("an unknown wire type")),
        };
        match key >> 3 {
            0 => Err(DecodeError::Malformed("a tag of nought")),
            tag => Ok(Some((tag, wire))),
        }
    }

    /// The next number alone, as in a packed list.
    pub fn packed(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut number: u64 = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::Malformed("a number has too many bytes"))
    }
}
