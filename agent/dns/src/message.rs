//! Packets in, packets out: what is the same for every answer. Pure.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::DNSClass,
};

use crate::resolver::Answer;

/// What we take and give by UDP at most: fits into a packet everywhere.
pub(crate) const EDNS_PAYLOAD: u16 = 1232;
/// What a client without EDNS takes by UDP.
const PLAIN_PAYLOAD: u16 = 512;
/// Longest query: a name, a type, a few options.
pub(crate) const QUERY_BOUND: usize = 4096;
const HEADER: usize = 12;

/// What a packet is.
#[derive(Debug)]
pub(crate) enum Packet {
    /// A question we may answer.
    Question { query: Box<Message>, question: Query },
    /// Wrong: this is the answer.
    Refused(Box<Message>),
    /// Nothing to answer.
    Silence,
}

/// Reads a packet.
pub(crate) fn read(bytes: &[u8]) -> Packet {
    // An answer, or too short to have an identifier: answering those would make loops.
    if bytes.len() < HEADER || bytes.len() > QUERY_BOUND || bytes[2] & 0x80 != 0 {
        return Packet::Silence;
    }
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    let Ok(query) = Message::from_vec(bytes) else {
        return Packet::Refused(Box::new(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)));
    };
    let code = match query.queries.as_slice() {
        _ if query.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
        [_] if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) => ResponseCode::BADVERS,
        [question] if question.query_class() == DNSClass::IN => {
            let question = question.clone();
            return Packet::Question { query: Box::new(query), question };
        }
        [_] => ResponseCode::Refused,
        _ => ResponseCode::FormErr,
    };
    Packet::Refused(Box::new(response(&query, code)))
}

/// An answer without records: the question comes back exactly as it was asked, letter case included.
pub(crate) fn response(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.response_code = code;
    message.metadata.recursion_available = true;
    message.add_queries(query.queries.iter().take(1).cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD);
        edns.set_rcode_high(code.high());
        message.set_edns(edns);
    }
    message
}

/// Our own answer.
pub(crate) fn local(query: &Message, answer: Answer) -> Message {
    let mut message = response(query, answer.code);
    message.metadata.authoritative = true;
    message.answers = answer.records;
    message.authorities = answer.authority;
    message.additionals = answer.additional;
    message
}

/// Upstream's answer, to this query.
pub(crate) fn relayed(query: &Message, upstream: Message) -> Message {
    let mut message = response(query, upstream.metadata.response_code);
    message.answers = upstream.answers;
    message.authorities = upstream.authorities;
    message.additionals = upstream.additionals;
    message
}

/// How large an answer by UDP may be.
pub(crate) fn payload(query: &Message) -> usize {
    let asked = query.edns.as_ref().map_or(PLAIN_PAYLOAD, Edns::max_payload);
    usize::from(asked.clamp(PLAIN_PAYLOAD, EDNS_PAYLOAD))
}

/// The bytes of an answer, cut off if they are more than `bound`.
pub(crate) fn encode(mut message: Message, bound: usize) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= bound {
        return Some(bytes);
    }
    // What is merely helpful goes first, and without a mark.
    message.additionals.clear();
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= bound { Some(bytes) } else { message.truncate().to_vec().ok() }
}

#[cfg(test)]
mod tests;
