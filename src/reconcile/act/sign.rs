//! Signs assertions without holding up the event loop: an RSA signature takes milliseconds of CPU.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
};

use crate::oauth::ClientAuth;

/// Signatures that the broker makes at the same time. More would take CPU from the event loop and the lease.
const AT_ONCE: usize = 2;

static SIGNING: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs `make`, which signs if `auth` has a key. The event loop then goes on in another thread meanwhile.
pub(super) async fn signed<T>(auth: &ClientAuth, make: impl FnOnce() -> T) -> T {
    if !auth.signs() {
        return make();
    }
    // The semaphore is never closed.
    let _permit = SIGNING.acquire().await;
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => make(),
        _ => tokio::task::block_in_place(make),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test measures how long real threads are held")]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use crate::{api::authentication::SigningAlgorithm, oauth::assertion::SigningKey};

    use super::*;

    fn auth() -> ClientAuth {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        ClientAuth::PrivateKeyJwt(SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::EdDSA, None).unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_only_worker_thread_goes_on_while_signatures_are_made() {
        let signature = Duration::from_millis(200);
        let signing: Vec<_> = (0..2 * AT_ONCE)
            .map(|_| tokio::spawn(async move { signed(&auth(), || thread::sleep(signature)).await }))
            .collect();
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        while !signing.iter().all(tokio::task::JoinHandle::is_finished) {
            let before = Instant::now();
            tokio::spawn(tokio::time::sleep(Duration::from_millis(5))).await.unwrap();
            longest = longest.max(before.elapsed());
        }
        assert!(began.elapsed() >= 2 * signature, "no more than {AT_ONCE} at once");
        assert!(longest < signature / 2, "another task waited for {longest:?}");
    }

    #[tokio::test]
    async fn a_single_thread_signs_itself() {
        assert_eq!(signed(&auth(), || 7).await, 7);
    }
}
