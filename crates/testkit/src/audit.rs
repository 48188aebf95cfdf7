//! The API server's audit log.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// How the tests' own client calls itself.
pub const TEST: &str = "test";

/// One answered request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditEvent {
    /// Who asked: `admin`, `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// How it calls itself, see RFC 9110 section 10.1.5; empty where it does not.
    pub agent: String,
    /// What of, and what: empty strings where a request has none (`/version`, the core group).
    pub access: Access,
    /// Where: empty for all namespaces or what has none.
    pub namespace: String,
    /// Which object; empty for lists and watches.
    pub name: String,
    /// The label selector of a list or watch; empty where it has none.
    pub selector: String,
    /// The status of the answer.
    pub code: u64,
    /// When it was answered.
    pub at: Timestamp,
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

/// A log that grows, read on from where the last reading has ended.
pub struct AuditLog {
    file: PathBuf,
    /// How many bytes were read.
    offset: u64,
}

impl AuditLog {
    /// The log in this file, from its beginning.
    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), offset: 0 }
    }

    /// The complete lines since the last call.
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
        // The last line may end in the middle of a character.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl AuditEvent {
    /// Whether the broker asked, and not for its lease: as the administrator the tests and kubectl ask, too.
    pub fn is_work_of_the_broker(&self) -> bool {
        let others = [TEST, "kubectl"];
        !others.iter().any(|agent| self.agent.starts_with(agent)) && self.access.resource != "leases"
    }

    /// Whether it asked for one object, or wrote: what may grow with the number of objects without anybody noticing.
    pub fn is_about_one_object(&self) -> bool {
        !["list", "watch"].contains(&self.access.verb.as_str())
    }

    /// Whether it was to change something.
    pub fn is_write(&self) -> bool {
        self.is_about_one_object() && self.access.verb != "get"
    }
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

/// Everything that a user has asked for.
pub fn used(events: &[AuditEvent], user: &str) -> BTreeSet<Access> {
    events.iter().filter(|event| event.user == user).map(|event| event.access.clone()).collect()
}
