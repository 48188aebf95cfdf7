//! References from one object to another.

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

/// A reference to a key of a Secret in the same namespace (for a ClusterMailProvider: the broker's namespace). The Secret
/// must have the label `mailtoken.dev/source: "true"`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub struct KeyRef {
    /// name is the name of the Secret or ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
    /// key is the key in the object's data.
    #[schemars(length(min = 1, max = 253), regex(pattern = DATA_KEY))]
    pub key: String,
}
