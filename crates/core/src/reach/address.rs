//! Addresses of endpoints: the operator's rules, and whether a URL or an address on the network is one of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names that lead into a machine or a cluster, whatever they resolve to; and every name without a dot.
const LOCAL_SUFFIXES: [&str; 8] =
    ["localhost", "local", "internal", "localdomain", "lan", "home.arpa", "svc", "intranet"];

/// Addresses that an operator allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointRule {
    /// Every address of the public internet.
    Public,
    /// A host by its name, or all below it (`*.example.com`), whatever it resolves to.
    Host { name: String, below: bool, port: Option<u16> },
    /// A network, or one address of it.
    Network { address: IpAddr, bits: u8, port: Option<u16> },
}

impl EndpointRule {
    /// `public`, `llm.example.com`, `*.example.com`, `10.0.0.0/8` or `fd00::1`, and a port after any of the last four:
    /// `llm.example.com:8000`, `[fd00::1]:8000`.
    pub fn parse(text: &str) -> Result<EndpointRule, &'static str> {
        const FORM: &str = "must be `public`, a host name, `*.` and a host name, or an address or network such as 10.0.0.0/8, \
                            each but the first with or without `:PORT`";
        if text == "public" {
            return Ok(EndpointRule::Public);
        }
        if let Some((address, bits)) = network(text) {
            return Ok(EndpointRule::Network { address, bits, port: None });
        }
        let (host, port) = split_port(text).ok_or(FORM)?;
        if let Some((address, bits)) = network(host.trim_start_matches('[').trim_end_matches(']')) {
            return Ok(EndpointRule::Network { address, bits, port });
        }
        let (name, below) = host.strip_prefix("*.").map_or((host, false), |name| (name, true));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.is_empty() || !name.chars().all(plain) || looks_numeric(name) {
            return Err(FORM);
        }
        Ok(EndpointRule::Host { name: name.to_ascii_lowercase(), below, port })
    }

    fn covers_name(&self, host: &str, at: u16) -> bool {
        match self {
            EndpointRule::Host { name, below, port } => {
                let same = if *below {
                    host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
                } else {
                    host == name
                };
                same && port.is_none_or(|port| port == at)
            }
            EndpointRule::Public | EndpointRule::Network { .. } => false,
        }
    }

    fn covers_address(&self, ip: IpAddr, at: u16) -> bool {
        match self {
            EndpointRule::Public => is_public(ip),
            EndpointRule::Network { address, bits, port } => {
                is_within(unmapped(ip), *address, *bits) && port.is_none_or(|port| port == at)
            }
            EndpointRule::Host { .. } => false,
        }
    }
}

impl fmt::Display for EndpointRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = match self {
            EndpointRule::Public => return f.write_str("public"),
            EndpointRule::Host { name, below, port } => {
                write!(f, "{}{name}", if *below { "*." } else { "" })?;
                port
            }
            EndpointRule::Network { address, bits, port } => {
                let whole = *bits == if address.is_ipv4() { 32 } else { 128 };
                match (address.is_ipv6() && port.is_some(), whole) {
                    (true, true) => write!(f, "[{address}]")?,
                    (true, false) => write!(f, "[{address}/{bits}]")?,
                    (false, true) => write!(f, "{address}")?,
                    (false, false) => write!(f, "{address}/{bits}")?,
                }
                port
            }
        };
        port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(all), |bits| bits.parse().ok())?;
    (bits <= all).then_some((address, bits))
}

fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            Some((host, Some(port.parse().ok()?)))
        }
        Some(_) | None => Some((text, None)),
    }
}

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// In small letters, without a dot at its end.
    Name(String),
    Address(IpAddr),
}

/// Host and port of `http://` and `https://` addresses.
fn target(url: &str) -> Result<(Host, u16), String> {
    let (rest, usual) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (rest, 443),
        (None, Some(rest)) => (rest, 80),
        (None, None) => return Err("must begin with https:// or http://".to_owned()),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) =
        split_port(authority).ok_or_else(|| format!("{authority} has no port that is a number"))?;
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let port = port.unwrap_or(usual);
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| format!("[{address}] is no address"))?;
        return Ok((Host::Address(unmapped(address.into())), port));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok((Host::Address(address.into()), port));
    }
    if looks_numeric(&host) || host.contains('%') || host.is_empty() {
        // Other ways to write 127.0.0.1, of which there are many.
        return Err(format!("{host} is neither a host name nor an address with four parts"));
    }
    Ok((Host::Name(host), port))
}

/// Whether the last part of a host name is a number, which makes all of it one to those who resolve it.
fn looks_numeric(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    last.starts_with(|c: char| c.is_ascii_digit())
        && (last.chars().all(|c| c.is_ascii_digit()) || last.starts_with("0x"))
}

/// Whether a spec may name `url`, as far as that can be told before its name is resolved.
pub fn check_url(rules: &[EndpointRule], url: &str) -> Result<(), String> {
    let (host, port) = target(url)?;
    let allowed = || {
        let list = rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if list.is_empty() { "none".to_owned() } else { list }
    };
    match host {
        Host::Address(ip) if rules.iter().any(|rule| rule.covers_address(ip, port)) => Ok(()),
        Host::Address(ip) => {
            Err(format!("{ip} is not among the addresses that the tenant may use: {}", allowed()))
        }
        Host::Name(name) => {
            let named = rules.iter().any(|rule| rule.covers_name(&name, port));
            // What it resolves to decides, once it does.
            let in_network = rules.iter().any(|rule| matches!(rule, EndpointRule::Network { .. }));
            let public = rules.contains(&EndpointRule::Public) && !is_local(&name);
            if named || in_network || public {
                return Ok(());
            }
            Err(format!("{name} is not among the hosts that the tenant may use: {}", allowed()))
        }
    }
}

/// Whether a connection may go to `ip`, to which `host` of a URL has been resolved.
pub fn allows_address(rules: &[EndpointRule], host: &str, ip: IpAddr, port: u16) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    rules.iter().any(|rule| rule.covers_name(&host, port) || rule.covers_address(ip, port))
}

fn is_local(name: &str) -> bool {
    let below =
        |suffix: &&str| name.strip_suffix(*suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !name.contains('.') || LOCAL_SUFFIXES.iter().any(below)
}

/// An IPv4 address that is written as an IPv6 one is that IPv4 address.
fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => embedded(v6).map_or(ip, IpAddr::V4),
    }
}

/// The IPv4 address that a mapped (`::ffff:0:0/96`), a compatible (`::/96`), a translated (`64:ff9b::/96`) or a 6to4
/// (`2002::/16`) address leads to.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => Some(of(g, h)),
        [0, 0, 0, 0, 0, 0] if g != 0 => Some(of(g, h)),
        [0x2002, ..] => Some(of(b, c)),
        _ => None,
    }
}

fn is_within(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let drop = width - u32::from(bits).min(width);
        a.checked_shr(drop).unwrap_or(0) == b.checked_shr(drop).unwrap_or(0)
    };
    match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Networks that are not part of the public internet (IANA's special-purpose registries).
const NOT_PUBLIC: [&str; 23] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/127",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "fc00::/7",
    "fe80::/9",
    "ff00::/8",
];

fn is_public(ip: IpAddr) -> bool {
    let ip = unmapped(ip);
    !NOT_PUBLIC.iter().filter_map(|text| network(text)).any(|(address, bits)| is_within(ip, address, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<EndpointRule> {
        texts.iter().map(|text| EndpointRule::parse(text).expect(text)).collect()
    }

    #[test]
    fn rules_are_read_and_written() {
        for text in [
            "public",
            "llm.example.com",
            "*.example.com:8000",
            "10.0.0.0/8",
            "10.0.0.5:8000",
            "fd00::/8",
            "[fd00::1]:8000",
            "[fd00::/8]:8000",
        ] {
            assert_eq!(rules(&[text])[0].to_string(), text);
        }
        for bad in
            ["", "*.", "http://host", "host:port", "10.0.0.0/33", "127.1", "0x7f000001", "a b", "host/v1"]
        {
            assert!(EndpointRule::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn public_means_neither_machine_nor_cluster() {
        let public = rules(&["public"]);
        for url in ["https://api.example.com/v1", "https://8.8.8.8/v1", "http://[2606:4700::1111]:8000/v1"] {
            assert_eq!(check_url(&public, url), Ok(()), "{url}");
        }
        for url in [
            "http://localhost:8000/v1",
            "http://LOCALHOST./v1",
            "http://vllm:8000/v1",
            "http://vllm.team.svc.cluster.local/v1",
            "http://vllm.team.svc/v1",
            "http://metadata.google.internal/v1",
            "http://127.0.0.1:8000/v1",
            "http://127.1/v1",
            "http://2130706433/v1",
            "http://0x7f000001/v1",
            "http://0177.0.0.1/v1",
            "http://[::1]/v1",
            "http://[::ffff:10.0.0.1]/v1",
            "http://[64:ff9b::a9fe:a9fe]/v1",
            "http://[2002:7f00:1::]/v1",
            "http://169.254.169.254/latest",
            "http://10.0.0.1/v1",
            "http://172.31.0.1/v1",
            "http://192.168.1.1/v1",
            "http://100.64.0.1/v1",
            "http://[fe80::1]/v1",
            "http://[fd00::1]/v1",
            "http://0.0.0.0/v1",
            "ftp://api.example.com",
        ] {
            assert!(check_url(&public, url).is_err(), "{url}");
        }
        let told = check_url(&public, "http://127.0.0.1:8000/v1").expect_err("loopback");
        assert_eq!(told, "127.0.0.1 is not among the addresses that the tenant may use: public");
    }

    #[test]
    fn what_a_name_resolves_to_decides() {
        let ip = |text: &str| text.parse::<IpAddr>().expect(text);
        let public = rules(&["public"]);
        assert!(allows_address(&public, "api.example.com", ip("93.184.216.34"), 443));
        for inside in ["127.0.0.1", "10.2.3.4", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00::1"] {
            assert!(!allows_address(&public, "api.example.com", ip(inside), 443), "{inside}");
        }
        let listed = rules(&["vllm.team.svc:8000", "10.1.0.0/16:8000", "*.corp.example"]);
        assert!(allows_address(&listed, "vllm.team.svc", ip("10.9.9.9"), 8000));
        assert!(!allows_address(&listed, "vllm.team.svc", ip("10.9.9.9"), 22));
        assert!(allows_address(&listed, "other", ip("10.1.2.3"), 8000));
        assert!(!allows_address(&listed, "other", ip("10.1.2.3"), 8001));
        assert!(allows_address(&listed, "a.corp.example", ip("10.9.9.9"), 1));
        assert!(!allows_address(&listed, "corp.example", ip("10.9.9.9"), 1));
        assert!(!allows_address(&listed, "evilcorp.example", ip("8.8.8.8"), 1));
    }

    #[test]
    fn a_list_without_public_is_all_there_is() {
        let listed = rules(&["vllm.team.svc:8000"]);
        assert_eq!(check_url(&listed, "http://vllm.team.svc:8000/v1"), Ok(()));
        assert!(check_url(&listed, "http://vllm.team.svc:9000/v1").is_err());
        assert!(check_url(&listed, "https://api.example.com/v1").is_err());
        assert!(
            check_url(&[], "https://api.example.com/v1").is_err_and(|told| told.ends_with("may use: none"))
        );
        // A name may lead into a network that is allowed.
        assert_eq!(check_url(&rules(&["10.0.0.0/8"]), "http://vllm:8000/v1"), Ok(()));
    }
}
