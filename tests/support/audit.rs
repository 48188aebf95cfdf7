//! The API server's audit log.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

/// One answered request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditEvent {
    /// Who asked: `admin`, `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// What of, and what: empty strings where a request has none (`/version`, the core group).
    pub access: Access,
    /// Where: empty for all namespaces or what has none.
    pub namespace: String,
    /// Which object; empty for lists and watches.
    pub name: String,
    /// The status of the answer.
    pub code: u64,
}

/// What RBAC speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    /// The API group; empty for the core group.
    pub group: String,
    /// With the subresource: `mailcredentials/status`.
    pub resource: String,
    /// Such as `list`.
    pub verb: String,
}

/// The complete lines of the log.
pub fn read(log: &Path) -> Vec<AuditEvent> {
    let text = fs::read_to_string(log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    complete.lines().filter_map(|line| parse(&serde_json::from_str(line).unwrap())).collect()
}

/// `None` for what asks for no object (`/version`, discovery).
fn parse(event: &Value) -> Option<AuditEvent> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    event.get("objectRef")?;
    let resource = match text("/objectRef/subresource") {
        subresource if subresource.is_empty() => text("/objectRef/resource"),
        subresource => format!("{}/{subresource}", text("/objectRef/resource")),
    };
    Some(AuditEvent {
        user: text("/user/username"),
        access: Access { group: text("/objectRef/apiGroup"), resource, verb: text("/verb") },
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
        code: event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
    })
}

/// Everything that a user has asked for.
pub fn used(events: &[AuditEvent], user: &str) -> BTreeSet<Access> {
    events.iter().filter(|event| event.user == user).map(|event| event.access.clone()).collect()
}
