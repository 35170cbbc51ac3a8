//! Where new tablets go: the wrapped hash ring gives stable candidates, then zones and the
//! present load decide. The result is stored in the metadata; nobody computes it again.

use crate::limits::RING_NODES_PER_SERVER;
use ebla_kernel::ids::ServerId;
use hashring::HashRing;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A server that may take new tablets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    pub id: ServerId,
    pub zone: String,
    /// Copies that it holds already.
    pub tablets: usize,
}

/// One of the places that a server has on the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RingNode {
    server: ServerId,
    node: u32,
}

impl Hash for RingNode {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.server.0.to_be_bytes());
        hasher.write(&self.node.to_be_bytes());
    }
}

/// A hash that is the same in every build and on every machine: FNV-1a, then mixed, since
/// the ring compares high bits first.
struct StableHasher(u64);

impl Default for StableHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

type Ring = HashRing<RingNode, BuildHasherDefault<StableHasher>>;

/// Places `tablets` tablets of a table with `copies` copies each on `candidates`. None when
/// there are too few of them.
pub(crate) fn place(
    table: &str,
    tablets: usize,
    copies: usize,
    candidates: &[Candidate],
) -> Option<Vec<Vec<ServerId>>> {
    if candidates.len() < copies || copies == 0 {
        return None;
    }
    let order = ring_order(table, candidates);
    let mut load: BTreeMap<ServerId, usize> =
        candidates.iter().map(|candidate| (candidate.id, candidate.tablets)).collect();
    Some((0..tablets).map(|index| place_one(&order, index, copies, &mut load)).collect())
}

/// Every candidate once, in the order of the ring from the table's place on.
fn ring_order<'a>(table: &str, candidates: &'a [Candidate]) -> Vec<&'a Candidate> {
    let mut ring: Ring = HashRing::with_hasher(BuildHasherDefault::default());
    let nodes = candidates
        .iter()
        .flat_map(|candidate| (0..RING_NODES_PER_SERVER).map(|node| RingNode { server: candidate.id, node }));
    ring.batch_add(nodes.collect());
    let around = ring.get_with_replicas(&table, ring.len()).unwrap_or_default();
    let mut seen = BTreeSet::new();
    let first_seen = around.into_iter().filter(|node| seen.insert(node.server));
    first_seen.filter_map(|node| candidates.iter().find(|candidate| candidate.id == node.server)).collect()
}

/// The least loaded servers, each in another zone while there are zones left; of equal ones
/// the next on the ring, going round with the tablet's index.
fn place_one(
    order: &[&Candidate],
    index: usize,
    copies: usize,
    load: &mut BTreeMap<ServerId, usize>,
) -> Vec<ServerId> {
    let mut chosen: Vec<&Candidate> = Vec::with_capacity(copies);
    for _ in 0..copies {
        let zones: BTreeSet<&str> = chosen.iter().map(|candidate| candidate.zone.as_str()).collect();
        let turn = |position: usize| (position + order.len() - index % order.len()) % order.len();
        let free = order.iter().enumerate().filter(|(_, one)| chosen.iter().all(|other| other.id != one.id));
        let best = free.min_by_key(|(position, candidate)| {
            let used = zones.contains(candidate.zone.as_str());
            (used, load.get(&candidate.id).copied().unwrap_or(0), turn(*position))
        });
        let Some((_, best)) = best else { break };
        *load.entry(best.id).or_default() += 1;
        chosen.push(best);
    }
    chosen.into_iter().map(|candidate| candidate.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(zones: &[&str]) -> Vec<Candidate> {
        let zones = zones.iter().enumerate();
        zones
            .map(|(index, zone)| Candidate {
                id: ServerId(index as u64 + 1),
                zone: (*zone).to_owned(),
                tablets: 0,
            })
            .collect()
    }

    #[test]
    fn tablets_are_spread_evenly() {
        let placed = place("t", 10_000, 1, &candidates(&["", "", ""])).unwrap();
        let mut load: BTreeMap<ServerId, usize> = BTreeMap::new();
        for servers in placed {
            *load.entry(servers[0]).or_default() += 1;
        }
        assert!(load.values().all(|tablets| (3_333..=3_334).contains(tablets)), "{load:?}");
    }

    #[test]
    fn copies_go_to_different_zones() {
        let candidates = candidates(&["a", "a", "b", "b", "c"]);
        for servers in place("t", 50, 3, &candidates).unwrap() {
            let zone = |id: &ServerId| candidates.iter().find(|one| one.id == *id).unwrap().zone.clone();
            let zones: BTreeSet<String> = servers.iter().map(zone).collect();
            assert_eq!(zones.len(), 3);
        }
    }

    #[test]
    fn empty_servers_come_first() {
        let mut candidates = candidates(&["", ""]);
        candidates[0].tablets = 100;
        let placed = place("t", 50, 1, &candidates).unwrap();
        assert!(placed.iter().all(|servers| servers == &[ServerId(2)]));
    }

    #[test]
    fn too_few_servers_are_told() {
        assert_eq!(place("t", 1, 2, &candidates(&[""])), None);
        assert_eq!(place("t", 1, 1, &[]), None);
    }

    #[test]
    fn the_ring_is_the_same_in_every_build() {
        let candidates = candidates(&["", "", "", "", ""]);
        let order = |table| ring_order(table, &candidates).iter().map(|one| one.id.0).collect::<Vec<_>>();
        assert_eq!(order("users"), [3, 4, 1, 5, 2]);
        assert_eq!(order("orders"), [4, 2, 1, 3, 5]);
    }
}
