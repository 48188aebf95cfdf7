//! Signs assertions without blocking the event loop: an RSA signature takes milliseconds of CPU.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
};

use crate::oauth::ClientAuth;

/// Maximum number of signatures at the same time. More signatures would take CPU from the event loop and the lease.
const AT_ONCE: usize = 2;

static SIGNING: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs `make`, which signs if `auth` has a key. During the signature, another thread runs the event loop.
pub(super) async fn signed<T>(auth: &ClientAuth, make: impl FnOnce() -> T) -> T {
    if !auth.signs() {
        return make();
    }
    // No code closes the semaphore, so this cannot fail.
    let _permit = SIGNING.acquire().await;
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => make(),
        _ => tokio::task::block_in_place(make),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use crate::{api::authentication::SigningAlgorithm, oauth::assertion::SigningKey};

    use super::*;

    fn auth() -> ClientAuth {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        ClientAuth::PrivateKeyJwt(SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::EdDSA, None).unwrap())
    }

    /// Signatures that block their thread until the test allows them to end.
    #[derive(Default)]
    struct Signatures {
        begun: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
        may_end: (Mutex<bool>, Condvar),
    }

    impl Signatures {
        fn make(&self) {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let (may_end, changed) = &self.may_end;
            drop(changed.wait_while(may_end.lock().unwrap(), |may_end| !*may_end).unwrap());
            self.running.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_only_worker_thread_continues_while_signatures_are_made() {
        let signatures = Arc::new(Signatures::default());
        let tasks: Vec<_> = (0..2 * AT_ONCE)
            .map(|_| {
                let signatures = signatures.clone();
                tokio::spawn(async move { signed(&auth(), || signatures.make()).await })
            })
            .collect();
        while signatures.begun.load(Ordering::SeqCst) < AT_ONCE {
            // Each turn is a task of the worker thread. It ends although signatures block threads.
            tokio::spawn(tokio::task::yield_now()).await.unwrap();
        }
        tokio::spawn(tokio::task::yield_now()).await.unwrap();
        *signatures.may_end.0.lock().unwrap() = true;
        signatures.may_end.1.notify_all();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(signatures.begun.load(Ordering::SeqCst), 2 * AT_ONCE);
        assert_eq!(signatures.most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test]
    async fn a_single_thread_signs_itself() {
        assert_eq!(signed(&auth(), || 7).await, 7);
    }
}
