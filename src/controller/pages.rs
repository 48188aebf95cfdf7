//! How many objects a page of a list has. The API server needs the longer for a page the more objects there are, so a start
//! with many credentials reads larger pages.

use futures::{StreamExt as _, stream};
use kube::{Api, api::ListParams};

use crate::api::MailCredential;

/// Objects in a page of a list. A watch holds each page as text and as a tree at one time. The sizes grow with the number of
/// credentials as the memory does that docs/performance.md recommends for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    /// In a list of anything but Secrets.
    pub(super) objects: u32,
    /// In a list of Secrets, of which tenants may write more than a megabyte of labels and annotations each.
    pub(super) secrets: u32,
}

/// Namespaces whose credentials are counted at the same time.
const COUNTED_AT_ONCE: usize = 8;

impl Pages {
    /// The sizes for this number of credentials.
    fn new(credentials: u64) -> Self {
        let one_of =
            |share: u64, least: u32, most: u32| u32::try_from(credentials / share).unwrap_or(most).clamp(least, most);
        Self { objects: one_of(400, 50, 125), secrets: one_of(1000, 20, 50) }
    }

    /// The sizes for the credentials that exist now. Credentials that the API server refuses to count are not counted: the watch
    /// of them gets the same refusal, and logs it.
    pub(super) async fn for_existing(credentials: impl Iterator<Item = Api<MailCredential>>) -> Self {
        let counts = credentials.map(|credentials| async move {
            let page = credentials.list_metadata(&ListParams::default().limit(1)).await;
            page.map_or(0, |page| {
                let further = page.metadata.remaining_item_count.and_then(|count| u64::try_from(count).ok());
                page.items.len() as u64 + further.unwrap_or_default()
            })
        });
        Self::new(stream::iter(counts).buffer_unordered(COUNTED_AT_ONCE).fold(0, async |sum, count| sum + count).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_the_number_of_credentials_within_bounds() {
        for (credentials, objects, secrets) in
            [(0, 50, 20), (20_000, 50, 20), (30_000, 75, 30), (50_000, 125, 50), (u64::MAX, 125, 50)]
        {
            assert_eq!(Pages::new(credentials), Pages { objects, secrets }, "{credentials}");
        }
    }
}
