//! What no correct member sends. Raft trusts its peers and panics on some of it, so it is found here before.

use raft::Raft;
use raft::eraftpb::{EntryType, Message, MessageType, Snapshot};

use crate::memlog::{MemLog, Position};
use crate::wire;

/// Members a configuration may have.
pub(crate) const MEMBERS: usize = 1000;

/// Whether Raft can take the message; `installing` says that a snapshot is being written.
pub(crate) fn check(raft: &Raft<MemLog>, installing: bool, m: &Message) -> Result<(), &'static str> {
    let log = &raft.raft_log;
    let kind = MessageType::from_i32(m.msg_type).ok_or("unknown kind")?;
    if m.to != raft.id || m.from == 0 || m.from == raft.id {
        return Err("wrong address");
    }
    match kind {
        MessageType::MsgAppend => entries(raft, m),
        MessageType::MsgHeartbeat if m.commit > log.last_index() && m.term >= raft.term => {
            Err("commits more than this node has: was its disk wiped?")
        }
        MessageType::MsgAppendResponse if m.index > log.last_index() => Err("acknowledges the unknown"),
        MessageType::MsgTimeoutNow if installing => Err("still installing a snapshot"),
        MessageType::MsgSnapshot => snapshot(m.get_snapshot()),
        MessageType::MsgRequestVote
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse
            if m.term == 0 =>
        {
            Err("no term")
        }
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp => Err("not sent between members"),
        _ => Ok(()),
    }
}

fn entries(raft: &Raft<MemLog>, m: &Message) -> Result<(), &'static str> {
    let log = &raft.raft_log;
    let mut previous = Position { index: m.index, term: m.log_term };
    for entry in &m.entries {
        if EntryType::from_i32(entry.entry_type).is_none() {
            return Err("unknown entry type");
        }
        if previous.index.checked_add(1) != Some(entry.index)
            || entry.term < previous.term
            || entry.term > m.term
        {
            return Err("entries out of order");
        }
        let known = log.term(entry.index).unwrap_or(0);
        if entry.index <= log.committed && known != 0 && known != entry.term {
            return Err("contradicts what is committed");
        }
        previous = Position { index: entry.index, term: entry.term };
    }
    Ok(())
}

fn snapshot(snapshot: &Snapshot) -> Result<(), &'static str> {
    let metadata = snapshot.get_metadata();
    let conf = metadata.get_conf_state();
    let members = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    if metadata.index == 0 || metadata.term == 0 || conf.voters.is_empty() {
        return Err("empty snapshot");
    }
    for (i, set) in members.iter().enumerate() {
        let mut seen = std::collections::BTreeSet::new();
        if set.len() > MEMBERS || !set.iter().all(|id| *id != 0 && seen.insert(*id)) {
            return Err("malformed members");
        }
        // Learners are no voters; the next learners still are outgoing voters.
        if i == 1 && set.iter().any(|id| conf.voters.contains(id) || conf.voters_outgoing.contains(id)) {
            return Err("malformed members");
        }
        if i == 3 && set.iter().any(|id| conf.voters.contains(id) || !conf.voters_outgoing.contains(id)) {
            return Err("malformed members");
        }
    }
    wire::decode_image(&snapshot.data).map(drop).map_err(|_| "undecodable snapshot")
}
