//! Destinations to which the broker connects without the egress proxy.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// A destination of `--no-proxy`: the broker connects to it directly, even with an egress proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direct {
    /// The host of exactly this name.
    Host(String),
    /// The hosts below this name, which begins with a dot.
    Suffix(String),
    /// Addresses in this range, and names whose addresses are all in this range.
    Range(IpNet),
}

impl FromStr for Direct {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().to_ascii_lowercase();
        if let Ok(range) = text.parse() {
            return Ok(Self::Range(range));
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self::Range(address.into()));
        }
        let name = text.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(&text);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match name.strip_prefix('.').unwrap_or(name) {
            rest if rest.is_empty() || rest.starts_with('.') || !rest.chars().all(plain) => Err(
                "write a host, a .suffix or a CIDR, without scheme and port: id.example.org, .example.org or 10.20.0.0/16",
            ),
            _ if name.starts_with('.') => Ok(Self::Suffix(name.to_owned())),
            _ => Ok(Self::Host(name.trim_end_matches('.').to_owned())),
        }
    }
}

impl Direct {
    /// Whether the host of a URL matches this rule: a name by its spelling, an address by its range.
    pub fn is_host(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match self {
            Self::Host(name) => host == *name,
            Self::Suffix(suffix) => host.ends_with(suffix),
            Self::Range(range) => host.parse::<IpAddr>().is_ok_and(|address| range.contains(&address)),
        }
    }

    /// Whether `address` is in this rule's range.
    pub fn holds(&self, address: IpAddr) -> bool {
        matches!(self, Self::Range(range) if range.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_no_proxy_are_recognised_by_name_and_by_address() {
        for (rule, host, expected) in [
            ("id.example.org", "id.example.org", true),
            ("id.example.org", "ID.Example.org.", true),
            ("id.example.org", "x.id.example.org", false),
            (".example.org", "id.example.org", true),
            ("*.example.org", "a.id.example.org", true),
            (".example.org", "example.org", false),
            (".example.org", "badexample.org", false),
            ("10.20.0.0/16", "10.20.0.5", true),
            ("10.20.0.0/16", "10.21.0.5", false),
            ("10.20.0.5", "10.20.0.5", true),
            ("fd00::/8", "fd00::1", true),
            ("10.20.0.0/16", "id.example.org", false),
        ] {
            let rule: Direct = rule.parse().unwrap();
            assert_eq!(rule.is_host(host), expected, "{rule:?} {host}");
        }
        assert!("10.20.0.0/16".parse::<Direct>().unwrap().holds("10.20.0.5".parse().unwrap()));
        for wrong in ["", ".", "..a", "https://a", "a:443", "a b", "10.0.0.0/33"] {
            assert!(wrong.parse::<Direct>().is_err(), "{wrong}");
        }
    }
}
