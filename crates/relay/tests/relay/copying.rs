//! Bytes after the login: the relay copies them unchanged in both directions until both sides have closed.

use super::support::{Client, Folder, Relay, Server, Trust, secret};

const USER: &str = "billing@shop.example";

async fn relay() -> (Server, Folder, Relay) {
    let trust = Trust::new();
    let server = Server::start("imap", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let (ca_file, (cert, key)) = (trust.ca_file(), trust.files("relay.test"));
    let arguments = [
        ("--ca-file", ca_file.to_str().unwrap()),
        ("--tls-cert", cert.to_str().unwrap()),
        ("--tls-key", key.to_str().unwrap()),
        ("--admin", "127.0.0.1:0"),
    ];
    let arguments: Vec<_> = arguments.into_iter().flat_map(|(flag, value)| [flag, value]).collect();
    let relay = Relay::start(folder.path(), &arguments);
    (server, folder, relay)
}

async fn logged_in(relay: &Relay) -> Client {
    let mut client = Client::connect(relay.port("IMAP")).await;
    client.line().await;
    client.ask(&format!("a LOGIN {USER} x"), "a OK").await;
    client
}

/// Returns bytes without a pattern, so that no two chunks are equal.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

#[tokio::test]
async fn large_messages_pass_both_ways_together_and_the_end_of_one_side_leaves_the_other_open() {
    let (_server, _folder, relay) = relay().await;
    let client = logged_in(&relay).await;
    let sent = noise(25_000_000);
    let received = client.exchange(sent.clone()).await;
    // The server sends its last line after the client has closed its side.
    assert!(received == [&sent[..], b"the end\r\n"].concat(), "{} bytes of {}", received.len(), sent.len());
    let ended = relay.line("session ended").await;
    assert_eq!((ended["to_server"].as_u64(), ended["to_client"].as_u64()), (Some(25_000_000), Some(25_000_009)));
    let metrics = relay.admin("/metrics");
    assert!(
        metrics.contains("mailtoken_relay_bytes_total{protocol=\"IMAP\",direction=\"to_server\"} 25000000"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_server_instead_of_filling_memory() {
    let (_server, _folder, relay) = relay().await;
    let mut clients = vec![];
    for _ in 0..4 {
        clients.push(logged_in(&relay).await);
    }
    let before = relay.memory("VmRSS");
    // More bytes than fit into the kernel's buffers of all four sockets.
    let sent = std::sync::Arc::new(noise(100_000_000));
    // Each client writes until the relay accepts no more bytes, and reads nothing.
    let mut tasks = vec![];
    for mut client in clients {
        let sent = sent.clone();
        tasks.push(tokio::spawn(async move {
            let stuck = tokio::time::timeout(std::time::Duration::from_secs(1), client.send_bytes(&sent)).await;
            assert!(stuck.is_err(), "100 MB were taken");
            client
        }));
    }
    let mut clients = vec![];
    for task in tasks {
        clients.push(task.await.unwrap());
    }
    let grown = relay.memory("VmRSS").saturating_sub(before);
    assert!(grown < 4 * 512, "{grown} KiB for 4 stalled sessions");
    // The sessions continue when their clients read.
    for client in &mut clients {
        assert!(client.bytes(1_000_000).await == sent[..1_000_000]);
    }
}

#[tokio::test]
async fn the_servers_end_reaches_the_client() {
    let trust = Trust::new();
    let server = Server::start("smtp", trust.server("localhost"), &["good"]).await;
    let folder = Folder::new();
    folder.publish("mailbox", &secret(USER, "good", &[&server]));
    let relay = Relay::start(folder.path(), &["--ca-file", trust.ca_file().to_str().unwrap()]);
    let mut client = Client::connect(relay.port("SMTP")).await;
    client.line().await;
    client.ask(&format!("AUTH PLAIN {}", super::support::plain(USER, "x")), "235").await;
    // The server closes the connection without a reply.
    client.send("RESET").await;
    assert_eq!(client.rest().await, b"");
}
