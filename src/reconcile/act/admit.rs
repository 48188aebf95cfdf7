//! Describes requests to the admission: their host, namespace, provider and urgency.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use url::Url;

use crate::{
    admission::{Ask, Limit},
    api::{
        MailCredential,
        provider::RateLimit,
        provider_object::{ProviderKey, ProviderObject},
    },
    oauth::discovery::Endpoints,
    policy::{checks, urgency::Class},
    providers::{self, TokenSource},
    reconcile::context::Context,
    stores::Stores,
};

/// Describes a request of a credential to the admission. `endpoint` selects the endpoint that receives the request. While the
/// broker does not know the endpoints, the host is the issuer's, because the broker has to discover the endpoints first.
pub(in crate::reconcile) fn ask_for_request(
    credential: &MailCredential,
    endpoint: fn(&Endpoints) -> Option<&str>,
    (class, due): (Class, Timestamp),
    context: &Context,
) -> Ask {
    let key = ProviderKey::of(credential);
    let object = context.stores.provider(&key);
    let host = object.as_ref().and_then(|object| {
        let profile = providers::profile(object.spec())?;
        let known = match profile.source {
            TokenSource::Known(endpoints) => endpoints,
            TokenSource::Discovery { issuer } => match context.providers.endpoints(&key) {
                Some(endpoints) => endpoints,
                None => return Some(host(&issuer)),
            },
        };
        endpoint(&known).map(host)
    });
    Ask {
        namespace: checks::namespace(credential).into(),
        name: credential.name_any().into(),
        host: host.unwrap_or_default(),
        provider: identity(&key).into(),
        limit: object.and_then(|object| object.spec().rate_limit).map(limit),
        class,
        due,
    }
}

/// Describes the discovery of a provider's endpoints to the admission. `None`: the provider's endpoints are known without a
/// discovery. A discovery does not count against the provider's `rateLimit`.
pub(in crate::reconcile) fn ask_for_discovery(
    object: &ProviderObject,
    again: bool,
    now: Timestamp,
    stores: &Stores,
) -> Option<Ask> {
    let TokenSource::Discovery { issuer } = providers::profile(object.spec())?.source else { return None };
    let key = object.key();
    Some(Ask {
        namespace: stores.home(&key).into(),
        name: key.name.as_str().into(),
        host: host(&issuer),
        provider: format!("discovery of {}", identity(&key)).into(),
        limit: None,
        class: if again { Class::Retry } else { Class::Person },
        due: now,
    })
}

/// Returns host and port of a URL, in one spelling for all spellings of a host. Empty if `url` is not a URL.
pub(super) fn host(url: &str) -> Arc<str> {
    let host = Url::parse(url).ok().and_then(|url| {
        let host = url.host_str()?.trim_end_matches('.').to_owned();
        Some(format!("{host}:{}", url.port_or_known_default()?))
    });
    host.unwrap_or_default().into()
}

fn identity(key: &ProviderKey) -> String {
    format!("{:?} {}/{}", key.kind, key.namespace, key.name)
}

fn limit(limit: RateLimit) -> Limit {
    let number = |number: i32| u32::try_from(number).unwrap_or_default();
    Limit::new(number(limit.requests_per_minute), number(limit.burst))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_one_budget_however_it_is_spelled() {
        for url in ["https://idp.example/t", "https://IDP.example:443/x?y", "https://idp.example./"] {
            assert_eq!(&*host(url), "idp.example:443", "{url}");
        }
        assert_eq!(&*host("https://[2001:db8::1]:8443/t"), "[2001:db8::1]:8443");
        assert_eq!(&*host("no URL"), "");
    }
}
