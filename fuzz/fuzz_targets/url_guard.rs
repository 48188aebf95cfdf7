//! The guard on URLs: regardless of a URL's spelling, a permitted request uses https, has no user info, and goes to no
//! denied address.
#![no_main]

use std::{net::IpAddr, sync::LazyLock, time::Duration};

use http::Uri;
use libfuzzer_sys::fuzz_target;
use mailtoken_net::{
    clock::Clock,
    egress::EgressPolicy,
    idp::{IdpClient, IdpClients, Settings},
};
use tokio::runtime::{Builder, Runtime};

static CLIENT: LazyLock<(Runtime, IdpClient)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let settings =
        Settings { request_timeout: Duration::from_secs(1), egress: EgressPolicy::default(), proxy: None, no_proxy: vec![] };
    let clients = runtime.block_on(async { IdpClients::new(settings, Clock::system()) }).expect("clients");
    (runtime, clients.for_trust(None).expect("a client"))
});

fuzz_target!(|data: &[u8]| {
    let (_runtime, client) = &*CLIENT;
    if let Ok(octets) = <[u8; 16]>::try_from(data) {
        // An IPv4 address inside an IPv6 address has the same result as the IPv4 address alone.
        let policy = EgressPolicy::default();
        let (v6, v4) = (IpAddr::from(octets), IpAddr::from([octets[12], octets[13], octets[14], octets[15]]));
        if octets[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
            assert_eq!(policy.judge(v6).is_ok(), policy.judge(v4).is_ok());
        }
    }
    let Ok(uri) = Uri::try_from(data) else { return };
    if client.approve(&uri).is_err() {
        return;
    }
    assert_eq!(uri.scheme_str(), Some("https"));
    let user = uri.authority().expect("a host").as_str().rsplit_once('@').map_or("", |(user, _)| user);
    assert!(user.trim_matches(':').is_empty(), "{uri}");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    if let Ok(address) = host.parse::<IpAddr>() {
        assert!(EgressPolicy::default().judge(address).is_ok(), "{uri}");
    }
    // If the URL parser accepts an address in an unusual spelling, the address is permitted.
    let url = url::Url::parse(&uri.to_string()).expect("it was taken");
    let literal = match url.host() {
        Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    };
    assert!(literal.is_none_or(|address| EgressPolicy::default().judge(address).is_ok()), "{uri}");
});
