use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use proptest::prelude::*;

use super::{Packet, encode, local, payload, read, response};
use crate::{
    resolver::{Resolution, resolve},
    zone::{Zone, parse_domain},
};

fn query(name: &str) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query
}

fn code(packet: &Packet) -> Option<ResponseCode> {
    match packet {
        Packet::Refused(message) => Some(message.metadata.response_code),
        _ => None,
    }
}

#[test]
fn wrong_packets_are_told_so_and_answers_are_not_answered() {
    let good = query("a.b.").to_vec().unwrap();
    assert!(matches!(read(&good), Packet::Question { .. }));
    assert!(matches!(read(&good[..11]), Packet::Silence));
    assert_eq!(code(&read(&good[..good.len() - 1])), Some(ResponseCode::FormErr));
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert!(matches!(read(&answer), Packet::Silence));
    let mut two = query("a.b.");
    two.add_query(Query::query(Name::from_ascii("c.").unwrap(), RecordType::A));
    assert_eq!(code(&read(&two.to_vec().unwrap())), Some(ResponseCode::FormErr));
    let mut notify = query("a.b.");
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&read(&notify.to_vec().unwrap())), Some(ResponseCode::NotImp));
}

#[test]
fn the_question_comes_back_in_its_own_letters() {
    let asked = query("wEb.DeFault.");
    let answer = Message::from_vec(&encode(response(&asked, ResponseCode::NoError), 512).unwrap()).unwrap();
    assert!(answer.queries[0].name().eq_case(asked.queries[0].name()));
    assert_eq!(answer.metadata.id, 7);
}

#[test]
fn too_long_is_cut_off_to_what_the_client_takes() {
    let mut asked = query("web.");
    let answer = |asked: &Message| {
        let mut message = response(asked, ResponseCode::NoError);
        let record =
            |i: u8| Record::from_rdata(Name::from_ascii("web.").unwrap(), 5, RData::A(A::new(10, 1, 0, i)));
        message.add_answers((0..60).map(record));
        encode(message, payload(asked)).unwrap()
    };
    let short = answer(&asked);
    assert!(short.len() <= 512);
    assert!(Message::from_vec(&short).unwrap().metadata.truncation);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asked.set_edns(edns);
    let long = Message::from_vec(&answer(&asked)).unwrap();
    assert!(!long.metadata.truncation);
    assert_eq!(long.answers.len(), 60);
    assert!(long.edns.is_some());
}

proptest! {
    /// Whatever comes in, nothing breaks, and what goes out is a DNS answer with the same identifier.
    #[test]
    fn hostile_packets(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), valid in any::<bool>(), at in 0..300_usize, flip in any::<u8>()) {
        if valid {
            bytes = query("web.default.svc.cluster.local.").to_vec().unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
        }
        let zone = Zone::new(parse_domain("cluster.local").unwrap(), Vec::new(), 1, [].iter(), [].iter());
        let message = match read(&bytes) {
            Packet::Silence => return Ok(()),
            Packet::Refused(message) => *message,
            Packet::Question { query, question } => match resolve(&zone, question.name(), question.query_type(), 3) {
                Resolution::Here(answer) => local(&query, answer),
                Resolution::Upstream => response(&query, ResponseCode::ServFail),
            },
        };
        let out = encode(message, 512).unwrap();
        prop_assert!(out.len() <= 512);
        prop_assert_eq!(&out[..2], &bytes[..2]);
        prop_assert!(out[2] & 0x80 != 0);
    }
}
