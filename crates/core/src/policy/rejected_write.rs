//! What the API server's rejection of a write means.

use super::ownership::Ownership;

/// What the status code of a rejected write says about the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// 404: the object is gone.
    Gone,
    /// 409: the object has changed since the broker read it, or already exists. 422: the patch does not fit the object
    /// any more. Admission may answer with both codes too. Only the object's resourceVersion shows the
    /// difference.
    Outdated,
    /// The API server refuses the write itself: quota, admission, permissions, an outage.
    Refused,
}

impl Rejection {
    /// The meaning of an HTTP status code. `None`: there was no response, which counts as a refusal.
    pub const fn of(code: Option<u16>) -> Self {
        match code {
            Some(404) => Self::Gone,
            Some(409 | 422) => Self::Outdated,
            _ => Self::Refused,
        }
    }
}

/// What a rejected write of the grant Secret means, after the broker has read the Secret again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantRejection {
    /// Another writer has changed, created or deleted the Secret. The broker decides again.
    Stale,
    /// The Secret belongs to another object.
    Foreign(String),
    /// The Secret is unchanged: the API server refuses the write itself.
    Refused,
}

/// Classifies a rejected write of the grant Secret. `expected`: the resourceVersion that the write required, empty for
/// a creation. `found`: the Secret's version and owner after the rejection; `None`: the Secret does not exist.
pub fn of_grant_write(expected: &str, found: Option<(&str, Ownership)>) -> GrantRejection {
    let version = match found {
        Some((_, Ownership::Foreign(owner))) => return GrantRejection::Foreign(owner),
        Some((version, Ownership::Own | Ownership::Takeover)) => version,
        None => "",
    };
    if version == expected { GrantRejection::Refused } else { GrantRejection::Stale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_code_says_whether_the_object_is_gone_or_changed() {
        for (code, expected) in [
            (404, Rejection::Gone),
            (409, Rejection::Outdated),
            (422, Rejection::Outdated),
            (400, Rejection::Refused),
            (401, Rejection::Refused),
            (403, Rejection::Refused),
            (429, Rejection::Refused),
            (500, Rejection::Refused),
            (503, Rejection::Refused),
        ] {
            assert_eq!(Rejection::of(Some(code)), expected, "{code}");
        }
        assert_eq!(Rejection::of(None), Rejection::Refused, "no response");
    }

    #[test]
    fn an_unchanged_grant_secret_means_that_the_write_itself_is_refused() {
        let foreign = || Ownership::Foreign("belongs to the Certificate tls".to_owned());
        for (expected, found, meaning) in [
            ("7", Some(("8", Ownership::Own)), GrantRejection::Stale),
            ("7", Some(("7", Ownership::Own)), GrantRejection::Refused),
            ("7", None, GrantRejection::Stale),
            // A creation: another replica was faster, or admission refuses the creation.
            ("", Some(("8", Ownership::Own)), GrantRejection::Stale),
            ("", None, GrantRejection::Refused),
            ("7", Some(("8", foreign())), GrantRejection::Foreign("belongs to the Certificate tls".to_owned())),
            ("7", Some(("7", foreign())), GrantRejection::Foreign("belongs to the Certificate tls".to_owned())),
        ] {
            assert_eq!(of_grant_write(expected, found.clone()), meaning, "{expected:?} {found:?}");
        }
    }
}
