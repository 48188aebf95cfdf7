//! A credential as most tests want it.

use serde_json::json;

use crate::api::MailCredential;

/// `shop/billing` for billing@example.org, without a status.
pub(crate) fn credential() -> MailCredential {
    serde_json::from_value(json!({
        "apiVersion": "mailtoken.dev/v1alpha1",
        "kind": "MailCredential",
        "metadata": {"name": "billing", "namespace": "shop", "uid": "7d5e1b5e-0000-4000-8000-000000000001", "generation": 1},
        "spec": {
            "providerRef": {"name": "idp"},
            "mailbox": {"address": "billing@example.org"},
            "grant": {"clientCredentials": {}},
        },
    }))
    .unwrap()
}
