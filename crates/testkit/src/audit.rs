//! Reads the API server's audit log.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// The User-Agent of the tests' own client.
pub const TEST: &str = "test";

/// One request that the API server has answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditEvent {
    /// The user of the request: `admin`, or `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// The User-Agent (RFC 9110 section 10.1.5); empty if absent.
    pub agent: String,
    /// The group, resource and verb. A string is empty if the request has none (`/version`, the core group).
    pub access: Access,
    /// The namespace; empty for all namespaces and for cluster-scoped objects.
    pub namespace: String,
    /// The name of the object; empty for lists and watches.
    pub name: String,
    /// The label selector of a list or watch; empty if absent.
    pub selector: String,
    /// The status code of the response.
    pub code: u64,
    /// The time of the response.
    pub at: Timestamp,
}

/// A permission as RBAC describes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource with the subresource, such as `mailcredentials/status`.
    pub resource: String,
    /// The verb, such as `list`.
    pub verb: String,
}

/// Reads a growing log file, from the end of the previous read.
pub struct AuditLog {
    file: PathBuf,
    /// Number of bytes read so far.
    offset: u64,
}

impl AuditLog {
    /// Opens the log in this file at its beginning.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), offset: 0 }
    }

    /// Returns the events in the complete lines since the last call.
    pub fn more(&mut self) -> Vec<AuditEvent> {
        let text = self.text().unwrap_or_else(|error| panic!("{}: {error}", self.file.display()));
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        self.offset += u64::try_from(complete).unwrap();
        text[..complete].lines().filter_map(|line| parse(&serde_json::from_str(line).unwrap())).collect()
    }

    fn text(&self) -> std::io::Result<String> {
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes)?;
        // The last line may end inside a character.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl AuditEvent {
    /// Whether the broker sent the request, except for its lease. The tests and kubectl also send requests as the
    /// administrator.
    pub fn is_work_of_the_broker(&self) -> bool {
        let others = [TEST, "kubectl"];
        !others.iter().any(|agent| self.agent.starts_with(agent)) && self.access.resource != "leases"
    }

    /// Whether the request is for one object, or is a write. The number of such requests may grow with the number of
    /// objects.
    pub fn is_about_one_object(&self) -> bool {
        !["list", "watch"].contains(&self.access.verb.as_str())
    }

    /// Whether the request changes an object.
    pub fn is_write(&self) -> bool {
        self.is_about_one_object() && self.access.verb != "get"
    }
}

/// Parses an event; `None` for a request without an object (`/version`, discovery).
fn parse(event: &Value) -> Option<AuditEvent> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    event.get("objectRef")?;
    let resource = match text("/objectRef/subresource") {
        subresource if subresource.is_empty() => text("/objectRef/resource"),
        subresource => format!("{}/{subresource}", text("/objectRef/resource")),
    };
    Some(AuditEvent {
        user: text("/user/username"),
        agent: text("/userAgent"),
        access: Access { group: text("/objectRef/apiGroup"), resource, verb: text("/verb") },
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        selector: selector(&text("/requestURI")).unwrap_or_default(),
        code: event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
        at: text("/stageTimestamp").parse().unwrap_or_default(),
    })
}

fn selector(uri: &str) -> Option<String> {
    let (_, query) = uri.split_once('?')?;
    let mut fields = url::form_urlencoded::parse(query.as_bytes());
    fields.find(|(name, _)| name == "labelSelector").map(|(_, value)| value.into_owned())
}

/// Returns all permissions that a user has used.
pub fn used(events: &[AuditEvent], user: &str) -> BTreeSet<Access> {
    events.iter().filter(|event| event.user == user).map(|event| event.access.clone()).collect()
}
