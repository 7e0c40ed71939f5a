//! Zone and question in, answer out. Pure.

use std::net::Ipv4Addr;

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, PTR, SOA, SRV, TXT},
    },
};

use crate::zone::{Entry, Host, Port, Target, Zone};

/// Seconds an answer may be kept: pods come and go.
pub(crate) const TTL: u32 = 5;
/// Aliases followed within the zone.
const ALIAS_BOUND: usize = 8;
/// Version of the naming scheme, told under `dns-version`.
const SCHEME: &str = "1.1.0";

/// What to answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) records: Vec<Record>,
    pub(crate) authority: Vec<Record>,
    pub(crate) additional: Vec<Record>,
    /// An alias leads out of the zone: ask upstream about this name and add what it says.
    pub(crate) elsewhere: Option<Name>,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resolution {
    /// We do.
    Here(Answer),
    /// Upstream does.
    Upstream,
}

/// What a name within the zone is.
enum Found<'a> {
    Nothing,
    /// There, but without records of its own.
    Empty,
    Address(Vec<Ipv4Addr>),
    Alias(&'a Name),
    Services(Vec<(u16, Name, Ipv4Addr)>),
    Text(&'static str),
    Origin,
}

/// Answers a question of class IN. `turn` rotates lists, so that clients which take the first spread out.
pub(crate) fn resolve(zone: &Zone, name: &Name, kind: RecordType, turn: usize) -> Resolution {
    if zone.domain.zone_of(name) {
        return Resolution::Here(in_zone(zone, name, kind, turn));
    }
    match reverse_address(name) {
        Some(ip) if zone.reverse.iter().any(|net| net.contains(&ip)) => {
            Resolution::Here(pointer(zone, name, kind, ip))
        }
        _ => Resolution::Upstream,
    }
}

/// Whether a name is the zone's business even while the zone is not known yet.
pub(crate) fn is_ours(domain: &Name, reverse: &[ipnet::Ipv4Net], name: &Name) -> bool {
    domain.zone_of(name)
        || reverse_address(name).is_some_and(|ip| reverse.iter().any(|net| net.contains(&ip)))
}

fn in_zone(zone: &Zone, name: &Name, kind: RecordType, turn: usize) -> Answer {
    let mut answer = Answer {
        code: ResponseCode::NoError,
        records: Vec::new(),
        authority: Vec::new(),
        additional: Vec::new(),
        elsewhere: None,
    };
    let mut owner = name.clone();
    for _ in 0..ALIAS_BOUND {
        match find(zone, &owner) {
            Found::Alias(target) => {
                answer.records.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
                if kind == RecordType::CNAME {
                    return answer;
                }
                if !zone.domain.zone_of(target) {
                    answer.elsewhere = Some(target.clone());
                    return answer;
                }
                owner = target.clone();
            }
            found => {
                fill(&mut answer, zone, owner, kind, found, turn);
                break;
            }
        }
    }
    if answer.records.is_empty() || answer.code != ResponseCode::NoError {
        answer.authority.push(soa(zone));
    }
    answer
}

fn fill(answer: &mut Answer, zone: &Zone, owner: Name, kind: RecordType, found: Found<'_>, turn: usize) {
    let asked = |own: RecordType| kind == own || kind == RecordType::ANY;
    match found {
        Found::Nothing => answer.code = ResponseCode::NXDomain,
        Found::Address(mut ips) if asked(RecordType::A) => {
            let by = turn % ips.len().max(1);
            ips.rotate_left(by);
            answer
                .records
                .extend(ips.into_iter().map(|ip| Record::from_rdata(owner.clone(), TTL, RData::A(A(ip)))));
        }
        Found::Services(list) if asked(RecordType::SRV) => {
            let weight = u16::try_from(100 / list.len().max(1)).unwrap_or(0).max(1);
            for (port, target, ip) in list {
                answer.additional.push(Record::from_rdata(target.clone(), TTL, RData::A(A(ip))));
                let data = RData::SRV(SRV::new(0, weight, port, target));
                answer.records.push(Record::from_rdata(owner.clone(), TTL, data));
            }
        }
        Found::Text(text) if asked(RecordType::TXT) => {
            let data = RData::TXT(TXT::new(vec![text.to_owned()]));
            answer.records.push(Record::from_rdata(owner, TTL, data));
        }
        Found::Origin if asked(RecordType::SOA) => answer.records.push(soa(zone)),
        _ => {}
    }
}

/// Finds a name in the zone.
fn find<'a>(zone: &'a Zone, name: &Name) -> Found<'a> {
    let lower = name.to_lowercase();
    let own = usize::from(lower.num_labels() - zone.domain.num_labels());
    let labels: Option<Vec<&str>> =
        lower.iter().take(own).map(|label| std::str::from_utf8(label).ok()).collect();
    let Some(labels) = labels else { return Found::Nothing };
    match labels.as_slice() {
        [] => Found::Origin,
        ["dns-version"] => Found::Text(SCHEME),
        ["svc" | "pod"] => Found::Empty,
        [namespace, "svc"] => known(zone.services.contains_key(*namespace)),
        [_, "pod"] => Found::Empty,
        [address, _, "pod"] => undashed(address).map_or(Found::Nothing, |ip| Found::Address(vec![ip])),
        [service, namespace, "svc"] => entry(zone, namespace, service).map_or(Found::Nothing, of_service),
        [host, service, namespace, "svc"] => {
            let Some(entry) = entry(zone, namespace, service) else { return Found::Nothing };
            of_host(entry, host)
        }
        [port, protocol, service, namespace, "svc"] => {
            let Some(entry) = entry(zone, namespace, service) else { return Found::Nothing };
            of_port(zone, entry, (namespace, service), port, protocol)
        }
        _ => Found::Nothing,
    }
}

fn known(is: bool) -> Found<'static> {
    if is { Found::Empty } else { Found::Nothing }
}

fn entry<'a>(zone: &'a Zone, namespace: &str, service: &str) -> Option<&'a Entry> {
    zone.services.get(namespace)?.get(service)
}

fn of_service(entry: &Entry) -> Found<'_> {
    match &entry.target {
        Target::Cluster { ip, .. } => Found::Address(vec![*ip]),
        Target::External(name) => Found::Alias(name),
        // Without anybody behind it the name does not exist, as the naming scheme has it.
        Target::Headless => addresses(entry.ready()),
    }
}

fn of_host<'a>(entry: &'a Entry, label: &str) -> Found<'a> {
    if matches!(label, "_tcp" | "_udp" | "_sctp") {
        return known(!matches!(entry.target, Target::External(_)));
    }
    addresses(entry.ready().filter(|host| host.name.eq_ignore_ascii_case(label)))
}

fn addresses<'a>(hosts: impl Iterator<Item = &'a Host>) -> Found<'static> {
    let mut ips: Vec<Ipv4Addr> = hosts.map(|host| host.ip).collect();
    ips.sort();
    ips.dedup();
    if ips.is_empty() { Found::Nothing } else { Found::Address(ips) }
}

fn of_port<'a>(zone: &Zone, entry: &Entry, place: (&str, &str), port: &str, protocol: &str) -> Found<'a> {
    let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
        return Found::Nothing;
    };
    let is = |p: &&Port| p.name == port && p.protocol == protocol && !port.is_empty();
    let list: Vec<(u16, Name, Ipv4Addr)> = match &entry.target {
        Target::External(_) => Vec::new(),
        Target::Cluster { ip, ports } => {
            let name = zone.service_name(place.0, place.1);
            ports.iter().filter(is).filter_map(|p| Some((p.number, name.clone()?, *ip))).collect()
        }
        Target::Headless => entry
            .ready()
            .flat_map(|host| host.ports.iter().map(move |p| (host, p)))
            .filter(|(_, p)| is(p))
            .filter_map(|(host, p)| Some((p.number, zone.host_name(place.0, place.1, &host.name)?, host.ip)))
            .collect(),
    };
    if list.is_empty() { Found::Nothing } else { Found::Services(list) }
}

fn pointer(zone: &Zone, name: &Name, kind: RecordType, ip: Ipv4Addr) -> Answer {
    let target = zone.pointers.get(&ip);
    let code = if target.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let asked = matches!(kind, RecordType::PTR | RecordType::ANY);
    let record = |target: &Name| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target.clone())));
    let records: Vec<Record> = target.filter(|_| asked).map(record).into_iter().collect();
    let authority = if records.is_empty() { vec![soa(zone)] } else { Vec::new() };
    Answer { code, records, authority, additional: Vec::new(), elsewhere: None }
}

/// The address a reverse name is about.
fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    let lower = name.to_lowercase();
    let labels: Vec<&[u8]> = lower.iter().collect();
    let [d, c, b, a, b"in-addr", b"arpa"] = labels.as_slice() else { return None };
    let octet = |label: &[u8]| std::str::from_utf8(label).ok()?.parse::<u8>().ok();
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

/// `1-2-3-4` as an address.
fn undashed(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok()
}

/// The record that says who is responsible and how long a "no" may be kept.
pub(crate) fn soa(zone: &Zone) -> Record {
    let under = |label: &str| zone.domain.prepend_label(label).unwrap_or_else(|_| zone.domain.clone());
    let data = SOA::new(under("ns.dns"), under("hostmaster"), zone.serial, 7200, 1800, 86400, TTL);
    Record::from_rdata(zone.domain.clone(), TTL, RData::SOA(data))
}

#[cfg(test)]
pub(crate) mod tests;
