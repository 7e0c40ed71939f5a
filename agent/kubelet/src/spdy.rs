//! SPDY/3.1, as far as Kubernetes' clients speak it: frames ([`Frame`], [`Codec`]), and sessions of streams
//! ([`session`]).
//!
//! kubectl up to 1.29 runs exec and attach over it, every kubectl port-forward (newer ones inside WebSocket messages).
//! Their library knows no flow control, so neither side waits for windows: a slow reader holds the connection up.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

pub mod session;

/// Longest control frame that is taken.
const CONTROL_BYTES: usize = 64 << 10;
/// Longest header block, unpacked.
const HEADER_BYTES: usize = 64 << 10;
const HEADER_COUNT: u32 = 256;
/// A data frame is passed on in pieces of this size.
const PIECE_BYTES: usize = 32 << 10;
const VERSION: u16 = 3;
const FIN: u8 = 1;

/// Names and values.
pub type Headers = Vec<(String, String)>;

/// A frame, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    Syn {
        /// Stream id.
        id: u32,
        /// What it is for.
        headers: Headers,
        /// The opener sends nothing on it.
        fin: bool,
    },
    /// Accepts one.
    Reply {
        /// Stream id.
        id: u32,
        /// Empty, usually.
        headers: Headers,
    },
    /// Bytes of a stream.
    Data {
        /// Stream id.
        id: u32,
        /// The bytes.
        bytes: Bytes,
        /// There are no more.
        fin: bool,
    },
    /// Ends a stream at once.
    Reset {
        /// Stream id.
        id: u32,
        /// Why.
        status: u32,
    },
    /// To be sent back.
    Ping(u32),
    /// No new streams.
    GoAway {
        /// The last that was taken.
        last: u32,
    },
    /// Whatever else: settings, windows, late headers. Nothing here depends on them.
    Other(u16),
}

/// Frames out of bytes, and bytes out of frames. Header blocks share one compression state in each direction.
pub struct Codec {
    pack: Compress,
    unpack: Decompress,
    /// Rest of a data frame that was only begun.
    rest: Option<(u32, usize, bool)>,
}

impl Codec {
    /// For one connection.
    pub fn new() -> io::Result<Codec> {
        let mut pack = Compress::new(Compression::fast(), true);
        pack.set_dictionary(&dictionary()).map_err(io::Error::other)?;
        Ok(Codec { pack, unpack: Decompress::new(true), rest: None })
    }

    /// Takes the next frame off the front, if it is there.
    pub fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Frame>> {
        if let Some(rest) = self.rest {
            return Ok(self.piece(rest, from));
        }
        if from.len() < 8 {
            return Ok(None);
        }
        let (word, flags, length) = head(from);
        if word & 0x8000_0000 == 0 {
            from.advance(8);
            return Ok(self.piece((word, length, flags & FIN != 0), from));
        }
        if length > CONTROL_BYTES {
            return Err(bad("control frame too long"));
        }
        if from.len() < 8 + length {
            return Ok(None);
        }
        from.advance(8);
        let body = from.split_to(length).freeze();
        if (word >> 16) & 0x7fff != u32::from(VERSION) {
            return Err(bad("not SPDY/3"));
        }
        self.control((word & 0xffff) as u16, flags, body).map(Some)
    }

    fn piece(&mut self, (id, left, fin): (u32, usize, bool), from: &mut BytesMut) -> Option<Frame> {
        let bytes = from.split_to(left.min(from.len()).min(PIECE_BYTES)).freeze();
        let left = left - bytes.len();
        self.rest = (left > 0).then_some((id, left, fin));
        if bytes.is_empty() && left > 0 {
            return None;
        }
        Some(Frame::Data { id, bytes, fin: fin && left == 0 })
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> io::Result<Frame> {
        let fixed = match kind {
            1 => 10,
            2 | 6 => 4,
            3 | 7 => 8,
            _ => 0,
        };
        if body.len() < fixed {
            return Err(bad("control frame too short"));
        }
        Ok(match kind {
            1 => {
                let id = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                Frame::Syn { id, headers: self.unpack(&body)?, fin: flags & FIN != 0 }
            }
            2 => {
                let id = body.get_u32() & 0x7fff_ffff;
                Frame::Reply { id, headers: self.unpack(&body)? }
            }
            3 => Frame::Reset { id: body.get_u32() & 0x7fff_ffff, status: body.get_u32() },
            6 => Frame::Ping(body.get_u32()),
            7 => Frame::GoAway { last: body.get_u32() & 0x7fff_ffff },
            8 if body.len() >= 4 => {
                // Unpacked all the same: what follows is packed with it in mind.
                body.advance(4);
                self.unpack(&body)?;
                Frame::Other(kind)
            }
            other => Frame::Other(other),
        })
    }

    fn unpack(&mut self, packed: &[u8]) -> io::Result<Headers> {
        let mut out = Vec::with_capacity(1024);
        let mut at = 0;
        loop {
            let (read, written) = (self.unpack.total_in(), self.unpack.total_out());
            let status = self.unpack.decompress_vec(&packed[at..], &mut out, FlushDecompress::Sync);
            at += usize::try_from(self.unpack.total_in() - read).unwrap_or(0);
            let idle = self.unpack.total_in() == read && self.unpack.total_out() == written;
            match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.unpack.set_dictionary(&dictionary()).map_err(io::Error::other)?;
                    continue;
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                Ok(Status::StreamEnd) => return Err(bad("header compression ended")),
                Ok(_) => {}
            }
            if out.len() > HEADER_BYTES {
                return Err(bad("header block too long"));
            }
            if out.len() < out.capacity() && (at == packed.len() || idle) {
                break;
            }
            out.reserve(1024);
        }
        parse_headers(&out)
    }

    /// Appends a frame's bytes.
    pub fn encode(&mut self, frame: &Frame, to: &mut BytesMut) -> io::Result<()> {
        match frame {
            Frame::Syn { id, headers, fin } => {
                let block = self.packed(headers)?;
                control(to, 1, u8::from(*fin), 10 + block.len());
                to.put_u32(*id);
                to.put_u32(0);
                to.put_u16(0);
                to.extend_from_slice(&block);
            }
            Frame::Reply { id, headers } => {
                let block = self.packed(headers)?;
                control(to, 2, 0, 4 + block.len());
                to.put_u32(*id);
                to.extend_from_slice(&block);
            }
            Frame::Data { id, bytes, fin } => {
                to.put_u32(*id);
                to.put_u32(u32::from(*fin) << 24 | bytes.len() as u32 & 0xff_ffff);
                to.extend_from_slice(bytes);
            }
            Frame::Reset { id, status } => {
                control(to, 3, 0, 8);
                to.put_u32(*id);
                to.put_u32(*status);
            }
            Frame::Ping(id) => {
                control(to, 6, 0, 4);
                to.put_u32(*id);
            }
            Frame::GoAway { last } => {
                control(to, 7, 0, 8);
                to.put_u32(*last);
                to.put_u32(0);
            }
            Frame::Other(kind) => control(to, *kind, 0, 0),
        }
        Ok(())
    }

    fn packed(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut block = Vec::new();
        block.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(text.len() as u32);
            block.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(block.len() + 64);
        let mut at = 0;
        loop {
            let read = self.pack.total_in();
            self.pack.compress_vec(&block[at..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
            at += usize::try_from(self.pack.total_in() - read).unwrap_or(0);
            if at == block.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(1024);
        }
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn head(from: &BytesMut) -> (u32, u8, usize) {
    let mut head = &from[..8];
    let word = head.get_u32();
    let flags_and_length = head.get_u32();
    (word, (flags_and_length >> 24) as u8, (flags_and_length & 0xff_ffff) as usize)
}

fn control(to: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    to.put_u16(0x8000 | VERSION);
    to.put_u16(kind);
    to.put_u32(u32::from(flags) << 24 | length as u32 & 0xff_ffff);
}

fn parse_headers(mut block: &[u8]) -> io::Result<Headers> {
    let number = |block: &mut &[u8]| {
        if block.len() < 4 { Err(bad("header block too short")) } else { Ok(block.get_u32()) }
    };
    let count = number(&mut block)?;
    if count > HEADER_COUNT {
        return Err(bad("too many headers"));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let mut text = || {
            let length = number(&mut block)? as usize;
            if block.len() < length {
                return Err(bad("header block too short"));
            }
            let (text, rest) = block.split_at(length);
            block = rest;
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        headers.push((text()?, text()?));
    }
    Ok(headers)
}

/// The dictionary that both sides of SPDY/3 begin with: the protocol's words, each after its length, then frequent
/// values.
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding \
        content-language content-length content-location content-md5 content-range content-type date etag expect \
        expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
        location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
        trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK \
        version HTTP/1.1 url public set-cookie keep-alive origin";
    const VALUES: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154164175025\
        04505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 \
        Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service \
        UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, \
        GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        out.put_u32(word.len() as u32);
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(VALUES.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_protocol_s() {
        assert_eq!(dictionary().len(), 1423);
        let mut pack = Compress::new(Compression::fast(), true);
        assert_eq!(pack.set_dictionary(&dictionary()).unwrap(), 0xe3c6_a7c2);
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let id = 0..0x7fff_ffffu32;
        let headers = proptest::collection::vec(("[a-z-]{1,12}", "[ -~]{0,40}"), 0..6);
        let bytes = proptest::collection::vec(any::<u8>(), 1..200);
        prop_oneof![
            (id.clone(), headers.clone(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::Syn {
                id,
                headers,
                fin
            }),
            (id.clone(), headers).prop_map(|(id, headers)| Frame::Reply { id, headers }),
            (id.clone(), bytes, any::<bool>()).prop_map(|(id, bytes, fin)| Frame::Data {
                id,
                bytes: bytes.into(),
                fin
            }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::Reset { id, status }),
            any::<u32>().prop_map(Frame::Ping),
            id.prop_map(|last| Frame::GoAway { last }),
        ]
    }

    /// Data of one frame may come in pieces.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut out: Vec<Frame> = Vec::new();
        for frame in frames {
            match (out.last_mut(), frame) {
                (Some(Frame::Data { id, bytes, fin }), Frame::Data { id: next, bytes: more, fin: end })
                    if *id == next && !*fin =>
                {
                    *bytes = [&bytes[..], &more[..]].concat().into();
                    *fin = end;
                }
                (_, frame) => out.push(frame),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(frames in proptest::collection::vec(frame(), 1..12), cut in 1..50usize) {
            let (mut ours, mut theirs) = (Codec::new().unwrap(), Codec::new().unwrap());
            let mut wire = BytesMut::new();
            for frame in &frames {
                ours.encode(frame, &mut wire).unwrap();
            }
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(frame) = theirs.decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(joined(got), joined(frames));
        }

        #[test]
        fn junk_never_panics(junk in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut codec = Codec::new().unwrap();
            let mut buffer = BytesMut::from(&junk[..]);
            while let Ok(Some(_)) = codec.decode(&mut buffer) {}
        }
    }
}
