//! Answers of upstream, for as long as they may be kept, and no more of them than a bound. Pure: time comes in.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::time::Instant;

/// Answers kept.
const BOUND: usize = 1024;
/// Longest time anything is kept.
const TTL_MAX: u32 = 300;
/// Longest time a "no" is kept.
const NEGATIVE_MAX: u32 = 30;

type Key = (Name, RecordType);

struct Kept {
    message: Message,
    since: Instant,
    until: Instant,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Cache {
    answers: HashMap<Key, Kept>,
    order: VecDeque<Key>,
}

impl Cache {
    /// What is known, with the time it may still be kept.
    pub(crate) fn get(&self, name: &Name, kind: RecordType, now: Instant) -> Option<Message> {
        let kept = self.answers.get(&(name.to_lowercase(), kind)).filter(|kept| now < kept.until)?;
        let age = u32::try_from(now.saturating_duration_since(kept.since).as_secs()).unwrap_or(u32::MAX);
        let mut message = kept.message.clone();
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        sections.into_iter().flatten().for_each(|record| record.ttl = record.ttl.saturating_sub(age));
        Some(message)
    }

    /// Keeps an answer, if it may be kept.
    pub(crate) fn put(&mut self, name: &Name, kind: RecordType, message: &Message, now: Instant) {
        let Some(ttl) = lifetime(message).filter(|ttl| *ttl > 0) else { return };
        let key = (name.to_lowercase(), kind);
        let until = now + Duration::from_secs(u64::from(ttl));
        let kept = Kept { message: message.clone(), since: now, until };
        if self.answers.insert(key.clone(), kept).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > BOUND {
            if let Some(oldest) = self.order.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }
}

fn lifetime(message: &Message) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain if message.answers.is_empty() => {
            let soa = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            soa.map(|ttl| ttl.min(NEGATIVE_MAX))
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            message.answers.iter().map(|record| record.ttl).min().map(|ttl| ttl.min(TTL_MAX))
        }
        _ => None,
    }
}
