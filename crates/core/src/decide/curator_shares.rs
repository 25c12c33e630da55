//! How curators are divided among tenants whose stages lack pairs.

use std::collections::BTreeMap;

/// Curators of each tenant. `tenants` has each once with the most that it may have, if there is a limit: shares are as
/// even as limits allow, the first ones get what is over, and what limits leave is nobody's.
pub(super) fn divide<'a>(tenants: &[(&'a str, Option<usize>)], curators: usize) -> BTreeMap<&'a str, usize> {
    let mut shares: BTreeMap<&str, usize> = tenants.iter().map(|(tenant, _)| (*tenant, 0)).collect();
    for _ in 0..curators {
        let share = |tenant: &str| shares.get(tenant).copied().unwrap_or(0);
        let open = tenants.iter().filter(|(tenant, most)| most.is_none_or(|most| share(tenant) < most));
        let Some((tenant, _)) = open.min_by_key(|(tenant, _)| share(tenant)) else { break };
        *shares.entry(tenant).or_insert(0) += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(wants: &[(&'static str, Option<usize>)], curators: usize) -> Vec<usize> {
        let shares = divide(wants, curators);
        wants.iter().map(|(tenant, _)| shares[tenant]).collect()
    }

    #[test]
    fn shares_are_even_and_keep_to_limits() {
        assert_eq!(shares(&[("b", None), ("a", None)], 5), [3, 2]);
        assert_eq!(shares(&[("b", Some(1)), ("a", None)], 5), [1, 4]);
        assert_eq!(shares(&[("b", Some(1)), ("a", Some(2))], 5), [1, 2]);
        assert_eq!(shares(&[("b", None), ("a", None)], 1), [1, 0]);
        assert_eq!(shares(&[("b", None)], 7), [7]);
        assert_eq!(shares(&[], 7), [0; 0]);
    }
}
