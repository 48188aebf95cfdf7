//! `spec.probe` and `status.probe` of a MailCredential: the check that the mailbox accepts the token.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{KubeSchema, core::Duration};
use mailtoken_mail::protocol::Protocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::*;

/// Settings of the check that the mailbox accepts the token.
#[derive(Clone, Debug, Deserialize, Serialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// protocols are the protocols with which the broker logs in. Defaults to SMTP and IMAP, as far as `spec.protocols` has
    /// them. POP3 must be named, because its login locks the mailbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 3))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic, validation = Rule::new(UNIQUE_RULE).message(UNIQUE_MESSAGE))]
    pub protocols: Option<Vec<Protocol>>,
    /// interval is the time between two probes, up to a tenth more or less. Defaults to 6h.
    #[serde(default = "default_interval")]
    #[schemars(schema_with = "duration_schema")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('15m') && duration(self) <= duration('168h')")
        .message("must be at least 15m and at most 168h"))]
    pub interval: Duration,
}

fn default_interval() -> Duration {
    std::time::Duration::from_secs(6 * 3600).into()
}

/// The result of the last probe.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStatus {
    /// lastTime is the time of the last probe.
    pub last_time: Time,
    /// nextTime is the time of the next probe, if nothing changes before.
    pub next_time: Time,
    /// results are the results by protocol.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub results: Vec<ProbeResult>,
    /// failures is the number of consecutive probes that ended like the last one. Absent if the last probe was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<i32>,
    /// probedWith is a hash of the inputs of the last probe. A change of the inputs starts a probe.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub probed_with: String,
    /// fingerprint is the fingerprint of the token of the last probe, as in `status.token`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub fingerprint: String,
}

/// The result of the login with one protocol.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProbeResult {
    /// protocol is the protocol of the login.
    pub protocol: Protocol,
    /// outcome is the outcome of the login.
    pub outcome: ProbeOutcome,
    /// reason is the reason of the outcome. The condition `MailboxAuthorized` has the same reasons.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// code is the code of the server's answer, such as `535 5.7.139`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub code: Option<String>,
}

/// Outcomes of a login.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum ProbeOutcome {
    /// The server accepted the token.
    Accepted,
    /// The server refused the login. A person must act.
    Refused,
    /// The login showed nothing about the token.
    Unknown,
}

impl ProbeOutcome {
    /// The outcome's name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Refused => "Refused",
            Self::Unknown => "Unknown",
        }
    }
}
