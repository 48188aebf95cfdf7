//! The limit of open files. A container runtime may start a process with a soft limit of 1,024. Each connection of a
//! program needs two files: its own socket, and the socket to the mail server.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of one connection: the program's socket, the mail server's socket, and one for the resolution of a name.
const EACH: usize = 3;
/// Descriptors of all other parts: listeners, mounted files, the runtime, metrics, refused connections.
const OTHERS: usize = 96;

/// Raises the soft limit of open files to the need of `connections`, as far as the hard limit allows.
///
/// # Errors
///
/// A sentence that says how many connections the limit allows, and how to raise the limit. The relay starts
/// nevertheless.
pub(crate) fn raise(connections: usize) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let plan = plan(limit.current, limit.maximum, connections);
    if let Some(soft) = plan.soft {
        setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..limit })
            .map_err(|error| format!("the limit of open files cannot be raised to {soft}: {error}"))?;
    }
    match plan.suffices_for {
        None => Ok(()),
        Some(fewer) => Err(format!(
            "{connections} connections may need {} open files, and the hard limit allows about {fewer} connections: \
             raise the container's limit (ulimit -n), or lower --max-connections",
            needed(connections)
        )),
    }
}

/// The actions of [`raise`].
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The new soft limit; `None` if the current soft limit is high enough.
    soft: Option<u64>,
    /// The number of connections that the hard limit allows; `None` if it allows all of them.
    suffices_for: Option<usize>,
}

/// Compares the limits with the need. `None` means that there is no limit.
fn plan(soft: Option<u64>, hard: Option<u64>, connections: usize) -> Plan {
    let needed = needed(connections);
    let reachable = hard.map_or(needed, |hard| hard.min(needed));
    Plan {
        soft: soft.is_some_and(|soft| soft < reachable).then_some(reachable),
        suffices_for: (reachable < needed).then(|| {
            let files = usize::try_from(reachable).unwrap_or(usize::MAX);
            files.saturating_sub(OTHERS) / EACH
        }),
    }
}

fn needed(connections: usize) -> u64 {
    u64::try_from(connections.saturating_mul(EACH).saturating_add(OTHERS)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_need_and_never_lowered() {
        for (soft, hard, connections, raised, suffices_for) in [
            (Some(1024), Some(524_288), 256, None, None),
            (Some(1024), Some(524_288), 1024, Some(3168), None),
            (Some(1024), None, 1024, Some(3168), None),
            (None, None, 100_000, None, None),
            (Some(1024), Some(1024), 1024, None, Some(309)),
            (Some(256), Some(1024), 1024, Some(1024), Some(309)),
            (Some(16), Some(64), 256, Some(64), Some(0)),
            (Some(1_048_576), Some(1_048_576), 256, None, None),
        ] {
            let expected = Plan { soft: raised, suffices_for };
            assert_eq!(plan(soft, hard, connections), expected, "{soft:?} {hard:?} {connections}");
        }
        assert_eq!(plan(Some(1), None, usize::MAX).soft, Some(u64::MAX));
    }
}
