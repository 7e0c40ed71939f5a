//! Which endpoint a new connection goes to. Pure: the time comes in as an argument.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long an endpoint that refused a connection is passed over.
const SUSPECT_FOR: Duration = Duration::from_secs(10);
/// The clients remembered for session affinity; a client beyond them is balanced like any other.
const MAX_CLIENTS: usize = 16_384;

/// The endpoints of one frontend and what is known about them.
///
/// The choice goes round; of the two whose turn is next, the one with fewer open connections is taken.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    endpoints: Vec<SocketAddr>,
    affinity: Option<Duration>,
    turn: usize,
    open: HashMap<SocketAddr, usize>,
    suspects: HashMap<SocketAddr, Instant>,
    clients: HashMap<IpAddr, (SocketAddr, Instant)>,
}

impl Balancer {
    pub(crate) fn new(endpoints: Vec<SocketAddr>, affinity: Option<Duration>) -> Self {
        Self { endpoints, affinity, ..Self::default() }
    }

    /// Takes other endpoints; what is known about those that stay is kept.
    pub(crate) fn update(&mut self, endpoints: Vec<SocketAddr>, affinity: Option<Duration>) {
        self.suspects.retain(|endpoint, _| endpoints.contains(endpoint));
        self.clients.retain(|_, (endpoint, _)| affinity.is_some() && endpoints.contains(endpoint));
        self.endpoints = endpoints;
        self.affinity = affinity;
    }

    pub(crate) fn contains(&self, endpoint: &SocketAddr) -> bool {
        self.endpoints.contains(endpoint)
    }

    /// The endpoint for a client's next connection, other than those tried in vain for it. Suspects are tried when
    /// nothing else is left.
    pub(crate) fn choose(
        &mut self,
        client: IpAddr,
        tried: &[SocketAddr],
        now: Instant,
    ) -> Option<SocketAddr> {
        self.suspects.retain(|_, until| *until > now);
        if let Some(endpoint) = self.remembered(client, tried, now) {
            return Some(endpoint);
        }
        let candidates: Vec<SocketAddr> =
            self.endpoints.iter().copied().filter(|endpoint| !tried.contains(endpoint)).collect();
        let trusted: Vec<SocketAddr> =
            candidates.iter().copied().filter(|endpoint| !self.suspects.contains_key(endpoint)).collect();
        let endpoint = self.next_of(if trusted.is_empty() { &candidates } else { &trusted })?;
        self.remember(client, endpoint, now);
        Some(endpoint)
    }

    fn next_of(&mut self, candidates: &[SocketAddr]) -> Option<SocketAddr> {
        let at = |turn: usize| turn.checked_rem(candidates.len()).map(|index| candidates[index]);
        let (first, second) = (at(self.turn)?, at(self.turn.wrapping_add(1))?);
        let load = |endpoint| self.open.get(&endpoint).copied().unwrap_or(0);
        let (endpoint, step) = if load(second) < load(first) { (second, 2) } else { (first, 1) };
        self.turn = self.turn.wrapping_add(step);
        Some(endpoint)
    }

    fn remembered(&mut self, client: IpAddr, tried: &[SocketAddr], now: Instant) -> Option<SocketAddr> {
        let timeout = self.affinity?;
        let (endpoint, last) = self.clients.get_mut(&client)?;
        let usable = !tried.contains(endpoint) && !self.suspects.contains_key(endpoint);
        (usable && now.duration_since(*last) < timeout).then(|| {
            *last = now;
            *endpoint
        })
    }

    fn remember(&mut self, client: IpAddr, endpoint: SocketAddr, now: Instant) {
        let Some(timeout) = self.affinity else { return };
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&client) {
            self.clients.retain(|_, (_, last)| now.duration_since(*last) < timeout);
        }
        if self.clients.len() < MAX_CLIENTS || self.clients.contains_key(&client) {
            self.clients.insert(client, (endpoint, now));
        }
    }

    /// A connection to the endpoint was made: it is above suspicion.
    pub(crate) fn opened(&mut self, endpoint: SocketAddr) {
        self.suspects.remove(&endpoint);
        *self.open.entry(endpoint).or_default() += 1;
    }

    pub(crate) fn closed(&mut self, endpoint: SocketAddr) {
        if let Some(count) = self.open.get_mut(&endpoint) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&endpoint);
            }
        }
    }

    /// The endpoint could not be reached.
    pub(crate) fn failed(&mut self, endpoint: SocketAddr, now: Instant) {
        if self.contains(&endpoint) {
            self.suspects.insert(endpoint, now + SUSPECT_FOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, n], 80))
    }

    fn client(n: u8) -> IpAddr {
        IpAddr::from([192, 168, 1, n])
    }

    fn balancer(n: u8, affinity: Option<u64>) -> Balancer {
        Balancer::new((1..=n).map(endpoint).collect(), affinity.map(Duration::from_secs))
    }

    #[test]
    fn everybody_has_a_turn() {
        let (mut balancer, now) = (balancer(3, None), Instant::now());
        let chosen: Vec<_> = (0..6).filter_map(|_| balancer.choose(client(1), &[], now)).collect();
        assert_eq!(chosen, [1, 2, 3, 1, 2, 3].map(endpoint));
        assert_eq!(Balancer::default().choose(client(1), &[], now), None);
    }

    #[test]
    fn a_busy_endpoint_is_passed_over() {
        let (mut balancer, now) = (balancer(3, None), Instant::now());
        (0..10).for_each(|_| balancer.opened(endpoint(1)));
        let chosen: Vec<_> = (0..4).filter_map(|_| balancer.choose(client(1), &[], now)).collect();
        assert_eq!(chosen, [2, 3, 2, 3].map(endpoint));
        (0..10).for_each(|_| balancer.closed(endpoint(1)));
        assert_eq!(balancer.choose(client(1), &[], now), Some(endpoint(1)));
    }

    #[test]
    fn a_suspect_is_avoided_until_there_is_nobody_else_or_time_has_passed() {
        let (mut balancer, now) = (balancer(2, None), Instant::now());
        balancer.failed(endpoint(1), now);
        assert!((0..4).all(|_| balancer.choose(client(1), &[], now) == Some(endpoint(2))));
        assert_eq!(balancer.choose(client(1), &[endpoint(2)], now), Some(endpoint(1)));
        assert_eq!(balancer.choose(client(1), &[endpoint(1), endpoint(2)], now), None);
        let later = now + SUSPECT_FOR;
        assert!((0..2).any(|_| balancer.choose(client(1), &[], later) == Some(endpoint(1))));
    }

    #[test]
    fn a_client_keeps_its_endpoint() {
        let (mut balancer, start) = (balancer(3, Some(60)), Instant::now());
        let mine = balancer.choose(client(1), &[], start).unwrap();
        let other = balancer.choose(client(2), &[], start).unwrap();
        assert_ne!(mine, other);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(balancer.choose(client(1), &[], at(50)), Some(mine));
        assert_eq!(balancer.choose(client(1), &[], at(100)), Some(mine));
        // It fails: the client moves and stays moved.
        balancer.failed(mine, at(101));
        let moved = balancer.choose(client(1), &[mine], at(101)).unwrap();
        assert_ne!(moved, mine);
        assert_eq!(balancer.choose(client(1), &[], at(150)), Some(moved));
        balancer.update(vec![mine], Some(Duration::from_secs(60)));
        assert_eq!(balancer.choose(client(1), &[], at(151)), Some(mine));
    }

    #[test]
    fn the_memory_of_clients_is_bounded() {
        let (mut balancer, now) = (balancer(2, Some(60)), Instant::now());
        for n in 0..MAX_CLIENTS as u32 + 100 {
            balancer.choose(IpAddr::from(n.to_be_bytes()), &[], now);
        }
        assert_eq!(balancer.clients.len(), MAX_CLIENTS);
    }

    proptest! {
        /// Whatever happened before, a choice is one of the endpoints, is none of those tried, and there is one as
        /// long as any endpoint is untried.
        #[test]
        fn a_choice_is_always_a_usable_one(
            events in proptest::collection::vec((0_u8..5, 1_u8..8, 0_u64..40), 0..60),
            tried in proptest::collection::vec(1_u8..8, 0..6),
            sticky in any::<bool>(),
        ) {
            let mut balancer = balancer(4, sticky.then_some(20));
            let mut now = Instant::now();
            for (what, n, seconds) in events {
                now += Duration::from_secs(seconds);
                match what {
                    0 => balancer.opened(endpoint(n)),
                    1 => balancer.closed(endpoint(n)),
                    2 => balancer.failed(endpoint(n), now),
                    3 => balancer.update((1..n).map(endpoint).collect(), balancer.affinity),
                    _ => { balancer.choose(client(n), &[], now); }
                }
            }
            let tried: Vec<_> = tried.into_iter().map(endpoint).collect();
            let choice = balancer.choose(client(1), &tried, now);
            let usable: Vec<_> = balancer.endpoints.iter().filter(|e| !tried.contains(e)).copied().collect();
            match choice {
                Some(endpoint) => prop_assert!(usable.contains(&endpoint)),
                None => prop_assert!(usable.is_empty()),
            }
        }
    }
}
