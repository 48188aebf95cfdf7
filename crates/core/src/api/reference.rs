//! References to other objects.

use kube::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::*;

/// Namespace and name of an object; the namespace of a cluster-scoped object is empty.
pub type ObjectKey = (String, String);

/// The key of an object.
pub fn key(object: &impl Resource) -> ObjectKey {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// A key of a Secret in the same namespace (of a ClusterMailProvider: the broker's). The Secret must carry the label
/// `mailtoken.dev/source: "true"`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub struct KeyRef {
    /// The object's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = DATA_KEY))]
    pub key: String,
}
