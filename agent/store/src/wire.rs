//! What the store puts in log entries, in snapshots and in the log file. Every replica must decode these bytes to
//! the same thing for ever: fields are only added, never renumbered.
//!
//! A decoder skips fields that it does not know, so an older agent would take an entry with a new field for one
//! without it. Whoever adds a field that changes what an entry means therefore raises [`FORMAT`] and has the entry say
//! that it `needs` the new one: an agent of an older format stops before such an entry instead of misapplying it. And
//! the leader writes none before every member has said that it understands them ([`crate::Store::understood`]); how
//! it does without until then is for [`crate::kv::Txn`] to say.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{Entry, Message, Snapshot};
use raft_prost::Message as _;

use crate::kv::{Expect, Record, Revision, Txn, Write};

/// The newest form of entries and snapshots that this code understands.
///
/// * 0: as the first agents wrote them
/// * 1: [`Expect::Stays`]
pub const FORMAT: u32 = 1;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
#[error("undecodable {what}: {reason}")]
pub(crate) struct DecodeError {
    pub what: &'static str,
    pub reason: String,
}

impl DecodeError {
    pub(crate) fn new(what: &'static str, reason: impl ToString) -> Self {
        Self { what, reason: reason.to_string() }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnMessage {
    #[prost(message, repeated, tag = "1")]
    writes: Vec<WriteMessage>,
    /// The format without which this must not be applied.
    #[prost(uint32, tag = "2")]
    needs: u32,
}

/// What can be read of any entry or snapshot, however new.
#[derive(Clone, PartialEq, prost::Message)]
struct TxnNeeds {
    #[prost(uint32, tag = "2")]
    needs: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteMessage {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", optional, tag = "2")]
    value: Option<Bytes>,
    /// Absent: anything; zero: the key must not exist; else the revision that must have modified it last.
    #[prost(uint64, optional, tag = "3")]
    expect: Option<u64>,
    /// The key stays as it is.
    #[prost(bool, tag = "4")]
    stays: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageMessage {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(message, repeated, tag = "2")]
    records: Vec<RecordMessage>,
    /// The format without which this must not be taken over.
    #[prost(uint32, tag = "3")]
    needs: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecordMessage {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
    #[prost(uint64, tag = "3")]
    created: u64,
    #[prost(uint64, tag = "4")]
    modified: u64,
}

/// What one frame of the log file holds: the hard state after it and the entries it appends.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Batch {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    #[prost(uint64, tag = "3")]
    pub commit: u64,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub entries: Vec<Bytes>,
}

/// The whole state at one revision. Cloning records is cheap: their bytes are shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub revision: Revision,
    pub records: Vec<Record>,
}

pub(crate) fn encode_txn(txn: Txn) -> Vec<u8> {
    let needs = txn.needs();
    let writes = txn.writes.into_iter().map(|write| WriteMessage {
        stays: matches!(write.expect, Expect::Stays(_)),
        key: write.key,
        value: write.value,
        expect: match write.expect {
            Expect::Any => None,
            Expect::Absent => Some(0),
            Expect::Modified(revision) | Expect::Stays(revision) => Some(revision),
        },
    });
    TxnMessage { writes: writes.collect(), needs }.encode_to_vec()
}

/// The format that an entry needs. Bytes that are no entry need none: every replica skips them alike.
pub(crate) fn needs(entry: &[u8]) -> u32 {
    TxnNeeds::decode(entry).map_or(0, |entry| entry.needs)
}

pub(crate) fn decode_txn(bytes: Bytes) -> Result<Txn, DecodeError> {
    let message = TxnMessage::decode(bytes).map_err(|e| DecodeError::new("transaction", e))?;
    let writes = message.writes.into_iter().map(|write| Write {
        key: write.key,
        value: write.value,
        expect: match write.expect {
            None => Expect::Any,
            Some(revision) if write.stays => Expect::Stays(revision),
            Some(0) => Expect::Absent,
            Some(revision) => Expect::Modified(revision),
        },
    });
    Ok(Txn { writes: writes.collect() })
}

/// Why something is not applied.
pub(crate) fn too_new(needs: u32, known: u32) -> String {
    format!(
        "the cluster's state was written by a newer agent (format {needs}, this one knows {known}): upgrade this node"
    )
}

/// An upper bound of what `encode_txn` makes, without making it.
pub(crate) fn txn_size(txn: &Txn) -> usize {
    txn.writes.iter().map(|w| w.key.len() + w.value.as_ref().map_or(0, Bytes::len) + 32).sum()
}

pub(crate) fn encode_image(image: Image) -> Vec<u8> {
    let records = image.records.into_iter().map(|record| RecordMessage {
        key: record.key.to_string(),
        value: record.value,
        created: record.created,
        modified: record.modified,
    });
    ImageMessage { revision: image.revision, records: records.collect(), needs: 0 }.encode_to_vec()
}

pub(crate) fn decode_image(bytes: &[u8]) -> Result<Image, DecodeError> {
    // Decoded from a slice, each value gets its own buffer: one big shared buffer would stay alive for ever.
    let message = ImageMessage::decode(bytes).map_err(|e| DecodeError::new("snapshot", e))?;
    if message.needs > FORMAT {
        return Err(DecodeError::new("snapshot", too_new(message.needs, FORMAT)));
    }
    let records = message.records.into_iter().map(|record| Record {
        key: Arc::from(record.key),
        value: record.value,
        created: record.created,
        modified: record.modified,
    });
    Ok(Image { revision: message.revision, records: records.collect() })
}

pub(crate) fn encode_entry(entry: &Entry) -> Bytes {
    entry.encode_to_vec().into()
}

pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    Entry::decode(bytes).map_err(|e| DecodeError::new("log entry", e))
}

pub(crate) fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.encode_to_vec()
}

pub(crate) fn decode_snapshot(bytes: &[u8]) -> Result<Snapshot, DecodeError> {
    Snapshot::decode(bytes).map_err(|e| DecodeError::new("snapshot", e))
}

pub(crate) fn encode_message(message: &Message) -> Bytes {
    message.encode_to_vec().into()
}

pub(crate) fn decode_message(bytes: &[u8]) -> Result<Message, DecodeError> {
    Message::decode(bytes).map_err(|e| DecodeError::new("Raft message", e))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_txn(Bytes::from(bytes.clone()));
            let _ = decode_image(&bytes);
            let _ = decode_message(&bytes);
            let _ = decode_snapshot(&bytes);
        }

        #[test]
        fn a_transaction_survives_the_wire(
            writes in proptest::collection::vec((".{0,40}", any::<Option<Vec<u8>>>(), 0u64..6), 0..8),
        ) {
            let writes = writes.into_iter().map(|(key, value, expect)| Write {
                key,
                value: value.map(Bytes::from),
                expect: match expect {
                    0 => Expect::Any,
                    1 => Expect::Absent,
                    2 | 3 => Expect::Modified(expect),
                    _ => Expect::Stays(expect),
                },
            });
            let txn = Txn { writes: writes.collect() };
            let bytes = encode_txn(txn.clone());
            prop_assert!(bytes.len() <= txn_size(&txn));
            prop_assert_eq!(decode_txn(Bytes::from(bytes)).unwrap(), txn);
        }
    }

    /// Entries as agents have written them. These bytes are in the logs of clusters: they may never mean anything else.
    #[test]
    fn recorded_entries_mean_what_they_meant() {
        let write = |key: &str, value: Option<&'static [u8]>, expect| Write {
            key: key.to_owned(),
            value: value.map(Bytes::from_static),
            expect,
        };
        let recorded: [(&[u8], Write, u32); 6] = [
            (b"\x0a\x07\x0a\x02/a\x12\x01v", write("/a", Some(b"v"), Expect::Any), 0),
            (b"\x0a\x09\x0a\x02/a\x12\x01v\x18\x00", write("/a", Some(b"v"), Expect::Absent), 0),
            (b"\x0a\x09\x0a\x02/a\x12\x01v\x18\x07", write("/a", Some(b"v"), Expect::Modified(7)), 0),
            (b"\x0a\x06\x0a\x02/a\x18\x07", write("/a", None, Expect::Modified(7)), 0),
            // Before entries said what they need.
            (b"\x0a\x08\x0a\x02/a\x18\x07\x20\x01", write("/a", None, Expect::Stays(7)), 0),
            (b"\x0a\x08\x0a\x02/a\x18\x07\x20\x01\x10\x01", write("/a", None, Expect::Stays(7)), 1),
        ];
        for (bytes, write, format) in recorded {
            let txn = Txn { writes: vec![write] };
            assert_eq!(decode_txn(Bytes::from_static(bytes)).unwrap(), txn);
            assert_eq!(needs(bytes), format);
            assert!(encode_txn(txn.clone()) == bytes || txn.needs() > format, "{txn:?}");
        }
    }

    #[test]
    fn what_is_newer_says_so_however_new_it_is() {
        // A field of another type where the writes were, and one that nobody knows.
        let entry = b"\x08\x05\x10\x63\x7a\x03abc";
        assert!(decode_txn(Bytes::from_static(entry)).is_err());
        assert_eq!(needs(entry), 99);
        let image = ImageMessage { revision: 5, records: Vec::new(), needs: FORMAT + 1 };
        let error = decode_image(&image.encode_to_vec()).unwrap_err();
        assert!(error.to_string().contains("upgrade this node"), "{error}");
    }
}
