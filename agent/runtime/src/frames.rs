//! The attach protocol between the daemon and a shim: one byte of kind, four of length, the payload. Pure.

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Bytes for the container's standard input.
    Stdin(Vec<u8>),
    /// No more standard input.
    StdinEnd,
    /// New terminal size: columns, rows.
    Resize(u16, u16),
    /// Bytes from the container.
    Stdout(Vec<u8>),
    /// Bytes from the container.
    Stderr(Vec<u8>),
}

/// Longer payloads are refused.
pub(crate) const MAX_PAYLOAD: usize = 64 << 10;
const HEADER: usize = 5;

impl Frame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let resize;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::StdinEnd => (1, &[]),
            Self::Resize(columns, rows) => {
                resize = [columns.to_be_bytes(), rows.to_be_bytes()].concat();
                (2, &resize)
            }
            Self::Stdout(bytes) => (3, bytes),
            Self::Stderr(bytes) => (4, bytes),
        };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(HEADER + payload.len());
        out.push(kind);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(payload);
        out
    }
}

/// Puts frames together from bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. An error means that the other side does not speak this protocol.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, ()> {
        let [kind, a, b, c, d, ..] = self.buffer[..] else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX_PAYLOAD {
            return Err(());
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let payload: Vec<u8> = self.buffer.drain(..HEADER + length).skip(HEADER).collect();
        let frame = match (kind, &payload[..]) {
            (0, _) => Frame::Stdin(payload),
            (1, []) => Frame::StdinEnd,
            (2, [a, b, c, d]) => Frame::Resize(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
            (3, _) => Frame::Stdout(payload),
            (4, _) => Frame::Stderr(payload),
            _ => return Err(()),
        };
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_survive_any_cutting() {
        let frames = [
            Frame::Stdin(b"hello".to_vec()),
            Frame::Resize(80, 24),
            Frame::StdinEnd,
            Frame::Stdout(vec![7; MAX_PAYLOAD]),
            Frame::Stderr(vec![]),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for size in [1, 3, 4096, bytes.len()] {
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for chunk in bytes.chunks(size) {
                decoder.feed(chunk);
                while let Some(frame) = decoder.next().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames, "cut into {size}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics_nor_loops(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            let mut frames = 0;
            while let Ok(Some(_)) = decoder.next() {
                frames += 1;
                prop_assert!(frames <= 200);
            }
        }
    }
}
