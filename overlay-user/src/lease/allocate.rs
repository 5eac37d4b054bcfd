//! The choice of a node's subnet.

use ipnet::IpNet;
use rand::Rng;
use rand::seq::IndexedRandom as _;

use super::{Lease, SubnetKey};
use crate::config::SubnetPool;
use crate::per_family::PerFamily;

/// Number of free subnets that are collected before one is drawn, as flannel does. The draw makes
/// it rare that nodes which start together choose the same subnet; the bound limits the cost of a
/// large pool.
const CANDIDATES: usize = 100;

/// Why no subnet can be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// All subnets between the bounds are taken.
    #[error(
        "out of subnets: every /{} from {} to {} overlaps a lease; widen SubnetMin and SubnetMax \
        or remove stale leases",
        pool.subnet_len(), pool.min(), pool.max()
    )]
    OutOfSubnets {
        /// The range that was searched.
        pool: SubnetPool,
    },
}

/// Picks a subnet for a node that has none: the node's previous one if that is still free and
/// allowed, else a random one of the first hundred free ones. `taken` are the keys of all entries,
/// also of entries with malformed values; a subnet that overlaps any of them is not free.
///
/// # Errors
/// [`AllocateError::OutOfSubnets`].
pub fn allocate(
    pool: &SubnetPool,
    taken: &[SubnetKey],
    previous: Option<IpNet>,
    rng: &mut impl Rng,
) -> Result<IpNet, AllocateError> {
    let free = |subnet: &IpNet| !taken.iter().any(|key| key.overlaps(&(*subnet).into()));
    if let Some(previous) = previous
        .map(|net| net.trunc())
        .filter(|net| pool.allows(net))
        && free(&previous)
    {
        return Ok(previous);
    }
    let candidates: Vec<IpNet> = pool.subnets().filter(free).take(CANDIDATES).collect();
    candidates
        .choose(rng)
        .copied()
        .ok_or(AllocateError::OutOfSubnets { pool: *pool })
}

/// The lease among `own`, all of this node's public IP, that the node continues to use: its
/// previous one, else a reservation, else the lowest. Leases that the pools do not allow are left
/// out.
#[must_use]
pub fn reusable<'a>(
    pools: &PerFamily<SubnetPool>,
    own: impl IntoIterator<Item = &'a Lease>,
    previous: Option<PerFamily<IpNet>>,
) -> Option<&'a Lease> {
    let previous = previous.map(|subnets| subnets.map(IpNet::trunc));
    own.into_iter()
        .filter(|lease| are_allowed(pools, &lease.subnets))
        .min_by_key(|lease| {
            (
                Some(lease.subnets) != previous,
                !lease.reserved,
                lease.subnets,
            )
        })
}

/// Whether a node may hold these subnets: one from each pool.
#[must_use]
pub fn are_allowed(pools: &PerFamily<SubnetPool>, subnets: &PerFamily<IpNet>) -> bool {
    let of = |pool: &SubnetPool| subnets.like(pool.network().addr());
    (pools.iter()).all(|pool| of(pool).is_some_and(|subnet| pool.allows(subnet)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::lease::Attributes;

    fn pool(network: &str) -> SubnetPool {
        SubnetPool::new(network.parse().expect("a network"), None, None, None).expect("a pool")
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a subnet")
    }

    fn key(text: &str) -> SubnetKey {
        text.parse().expect("a key")
    }

    #[test]
    fn the_previous_subnet_is_kept_if_it_may_be() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut draw = |taken: &[SubnetKey], previous: &str| {
            allocate(&pool("10.3.0.0/16"), taken, Some(net(previous)), &mut rng).expect("a subnet")
        };
        assert_eq!(draw(&[], "10.3.6.0/24"), net("10.3.6.0/24"));
        assert_eq!(
            draw(&[], "10.3.6.1/24"),
            net("10.3.6.0/24"),
            "the gateway of subnet.env"
        );
        assert_ne!(
            draw(&[key("10.3.6.0-24")], "10.3.6.0/24"),
            net("10.3.6.0/24")
        );
        assert_ne!(
            draw(&[key("10.3.6.128-25")], "10.3.6.0/24"),
            net("10.3.6.0/24")
        );
        for useless in ["10.4.1.0/24", "10.3.0.0/24", "10.3.6.0/25"] {
            assert!(pool("10.3.0.0/16").allows(&draw(&[], useless)), "{useless}");
        }
    }

    #[test]
    fn draws_are_free_varied_and_among_the_first_hundred() {
        let pool = pool("10.3.0.0/16");
        let taken = [key("10.3.0.0-21"), key("10.3.20.64-26")];
        let mut rng = StdRng::seed_from_u64(7);
        let drawn: BTreeSet<IpNet> = (0..2000)
            .map(|_| allocate(&pool, &taken, None, &mut rng).expect("a subnet"))
            .collect();
        assert_eq!(drawn.len(), CANDIDATES);
        assert_eq!(drawn.first(), Some(&net("10.3.8.0/24")));
        assert_eq!(drawn.last(), Some(&net("10.3.108.0/24")));
        assert!(
            drawn
                .iter()
                .all(|subnet| !taken.iter().any(|key| key.overlaps(&(*subnet).into())))
        );
    }

    #[test]
    fn a_full_pool_is_an_error() {
        let pool = pool("10.3.4.0/22");
        let taken: Vec<SubnetKey> = pool.subnets().map(SubnetKey::from).collect();
        let error = allocate(&pool, &taken, None, &mut StdRng::seed_from_u64(1));
        assert_eq!(error, Err(AllocateError::OutOfSubnets { pool }));
    }

    #[test]
    fn a_nodes_own_lease_is_found_again() {
        let lease = |subnet, reserved| Lease {
            subnets: net(subnet).into(),
            attributes: Attributes::parse(r#"{"PublicIP":"1.2.3.4"}"#).expect("attributes"),
            node: None,
            reserved,
            expires: None,
        };
        let own = [
            lease("10.4.1.0/24", true),
            lease("10.3.5.0/24", false),
            lease("10.3.9.0/24", true),
        ];
        let found = |previous: Option<&str>| {
            let pools = PerFamily::V4(pool("10.3.0.0/16"));
            let previous = previous.map(|subnet| net(subnet).into());
            reusable(&pools, &own, previous).map(|it| it.subnets)
        };
        assert_eq!(found(Some("10.3.5.1/24")), Some(net("10.3.5.0/24").into()));
        assert_eq!(found(None), Some(net("10.3.9.0/24").into()));
        let elsewhere = PerFamily::V4(pool("10.9.0.0/16"));
        assert_eq!(reusable(&elsewhere, &own, None), None);
    }
}
