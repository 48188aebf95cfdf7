//! The server's side of a login for any bytes that the client sends.

use mailtoken_mail::{
    protocol::Protocol,
    server::{MAX_COMMANDS, MAX_REFUSALS, Offer, Refusal, Session, Step},
};

/// Plays a client's bytes. The first byte chooses the session's offer and the lengths of the reads. The steps are the
/// same as after a single read, each reply consists of printable lines, and the number of steps is bounded.
pub fn run(protocol: Protocol, data: &[u8]) {
    let Some((options, bytes)) = data.split_first() else { return };
    let offer = || Offer {
        start_tls: options & 1 == 0,
        needs_tls: options & 2 == 0,
        without_auth: options & 4 == 0,
        capabilities: vec![],
    };
    let length = usize::from(options >> 3).max(1);
    let whole = steps(protocol, offer(), bytes, usize::MAX);
    assert_eq!(whole, steps(protocol, offer(), bytes, length));
    // A command causes a reply, a prompt or two and a login.
    assert!(whole.len() <= (MAX_COMMANDS as usize + 2) * 8, "{} steps", whole.len());
    let logins = whole.iter().filter(|(_, step)| matches!(step, Step::LogIn(_))).count();
    assert!(logins <= MAX_REFUSALS as usize);
    for (_, step) in &whole {
        if let Step::Write(written) = step {
            let text = std::str::from_utf8(written).expect("text");
            assert!(text.ends_with("\r\n"));
            assert!(text.split("\r\n").all(|line| line.bytes().all(|byte| (b' '..=b'~').contains(&byte))), "{text:?}");
        }
    }
}

/// The steps for bytes that arrive in reads of `length` bytes, each step with the number of bytes taken so far. Refuses
/// every login.
fn steps(protocol: Protocol, offer: Offer, bytes: &[u8], length: usize) -> Vec<(usize, Step)> {
    let mut session = Session::new(protocol, offer);
    let (mut steps, mut arrived, mut taken) = (vec![], 0, 0);
    loop {
        let (more, step) = session.advance(&bytes[taken..arrived]);
        taken += more;
        match &step {
            Step::Read if arrived == bytes.len() => return steps,
            Step::Read => {
                arrived = bytes.len().min(arrived.saturating_add(length));
                continue;
            }
            Step::Close(_) => {
                steps.push((taken, step));
                return steps;
            }
            Step::StartTls => session.tls_started(),
            Step::LogIn(_) => session.refuse(Refusal::Permanent(None)),
            Step::Write(_) => {}
        }
        steps.push((taken, step));
    }
}
