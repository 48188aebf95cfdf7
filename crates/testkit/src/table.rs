//! Tables of objects that the API server rejects or accepts.

use serde_json::Value;

use super::{Cluster, Manifest};

/// Checks that the API server rejects each object with this part of the message, in any letter case. The panic names
/// all other objects.
pub async fn refused<'a>(cases: impl IntoIterator<Item = (&'a str, Manifest, &'a str)>) {
    let ns = Cluster::shared().namespace().await;
    let mut wrong = vec![];
    for (case, manifest, why) in cases {
        match ns.try_apply(manifest.clone()).await {
            Ok(_) => wrong.push(format!("{case:?} was taken")),
            Err(error) if !error.to_string().to_lowercase().contains(&why.to_lowercase()) => {
                wrong.push(format!("{case:?} was refused with other words than {why:?}: {error}"));
            }
            Err(_) => {}
        }
        ns.remove(&manifest).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Checks that the API server accepts each object. The panic names all other objects.
pub async fn accepted<'a>(cases: impl IntoIterator<Item = (&'a str, Manifest)>) {
    let ns = Cluster::shared().namespace().await;
    let mut wrong = vec![];
    for (case, manifest) in cases {
        if let Err(error) = ns.try_apply(manifest.clone()).await {
            wrong.push(format!("{case:?}: {error}"));
        }
        ns.remove(&manifest).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns `number` different texts that begin with `text`.
pub fn many(text: &str, number: usize) -> Vec<Value> {
    (0..number).map(|n| format!("{text}{n}").into()).collect()
}
