//! To which addresses connections may go. What a name resolves to is looked at when a connection is made, and the
//! connection goes to what was looked at: an answer that changes in between changes nothing.

use crescendo_core::reach::{EndpointRule, allows_address};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::SocketAddr;

/// A name leads to no address that the job may use.
#[derive(Debug, thiserror::Error)]
#[error("{host} leads to no address that the tenant may use")]
pub struct OutOfReach {
    host: String,
}

/// Resolves the name in an endpoint's URL to what its job may use of it.
#[derive(Clone, Debug)]
pub struct Guard {
    host: String,
    port: u16,
    rules: Vec<EndpointRule>,
}

impl Guard {
    /// For an endpoint; an error where the URL itself holds an address that is not allowed.
    pub fn of(url: &Url, rules: &[EndpointRule]) -> Result<Guard, String> {
        let host = url.host_str().ok_or_else(|| "it names no host".to_owned())?;
        let port = url.port_or_known_default().ok_or_else(|| "it has no port".to_owned())?;
        // Those are not resolved.
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse()
            && !allows_address(rules, host, ip, port)
        {
            return Err(format!("{ip} is not among the addresses that the tenant may use"));
        }
        Ok(Guard { host: host.to_owned(), port, rules: rules.to_vec() })
    }

    fn allowed(&self, host: &str, found: impl Iterator<Item = SocketAddr>) -> Result<Addrs, OutOfReach> {
        // Another name is that of a proxy, which the operator has set up: it resolves the endpoint's.
        let is_proxy = !host.eq_ignore_ascii_case(&self.host);
        let may = |at: &SocketAddr| is_proxy || allows_address(&self.rules, host, at.ip(), self.port);
        let found: Vec<SocketAddr> = found.filter(may).collect();
        if found.is_empty() {
            return Err(OutOfReach { host: host.to_owned() });
        }
        Ok(Box::new(found.into_iter()))
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(guard.allowed(&host, found)?)
        })
    }
}

/// Whether a connection was not made because of where it would have gone.
pub fn is_out_of_reach(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<OutOfReach>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(url: &str, rules: &[&str]) -> Result<Guard, String> {
        let rules: Vec<_> = rules.iter().map(|rule| EndpointRule::parse(rule).expect("a rule")).collect();
        Guard::of(&url.parse().expect("a URL"), &rules)
    }

    #[test]
    fn a_name_leads_to_what_is_allowed_of_it() {
        let at = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), 0);
        let public = guard("https://api.example.com/v1", &["public"]).expect("good");
        let found = [at("127.0.0.1"), at("8.8.8.8"), at("10.0.0.1")];
        let allowed: Vec<_> = public.allowed("api.example.com", found.into_iter()).expect("some").collect();
        assert_eq!(allowed, [at("8.8.8.8")]);
        for inside in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fe80::1"] {
            assert!(public.allowed("api.example.com", [at(inside)].into_iter()).is_err(), "{inside}");
        }
        assert!(public.allowed("proxy.corp", [at("10.0.0.9")].into_iter()).is_ok(), "the operator's proxy");
    }

    #[test]
    fn an_address_in_the_url_is_held_to_the_rules_however_it_is_written() {
        for url in
            ["http://127.0.0.1/v1", "http://2130706433/v1", "http://0x7f.1/v1", "http://[::ffff:7f00:1]/v1"]
        {
            assert!(guard(url, &["public"]).is_err(), "{url}");
        }
        assert!(guard("http://127.0.0.1:8000/v1", &["127.0.0.0/8:8000"]).is_ok());
    }
}
