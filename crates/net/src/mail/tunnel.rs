//! A tunnel through the egress proxy (RFC 9110 section 9.3.6).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use url::Url;
use zeroize::Zeroizing;

use super::error::io_problem;

/// Maximum size of the proxy's response in bytes.
const HEAD: usize = 8192;

/// Requests a tunnel to `host` and `port` from the proxy, and reads exactly the proxy's response: the next bytes may
/// already be the mail server's greeting.
///
/// # Errors
///
/// A clause in fixed words.
pub(super) async fn open<S>(stream: &mut S, proxy: &Url, host: &str, port: u16) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(proxy, host, port);
    let failed = |error: std::io::Error| io_problem(&error);
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD {
            return Err("its response is too long".to_owned());
        }
        let mut byte = [0];
        match stream.read(&mut byte).await.map_err(failed)? {
            0 => return Err("it closed the connection".to_owned()),
            _ => head.push(byte[0]),
        }
    }
    match status(&head) {
        Some(200..=299) => Ok(()),
        Some(407) => Err("it requires other credentials".to_owned()),
        Some(status) => Err(format!("HTTP status {status}")),
        None => Err("its response is not HTTP".to_owned()),
    }
}

fn request(proxy: &Url, host: &str, port: u16) -> Zeroizing<String> {
    let authority = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let mut request = Zeroizing::new(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"));
    if !proxy.username().is_empty() || proxy.password().is_some() {
        let decoded = |text: &str| Zeroizing::new(percent_decode_str(text).collect::<Vec<u8>>());
        let (user, password) = (decoded(proxy.username()), decoded(proxy.password().unwrap_or_default()));
        let credentials = Zeroizing::new([user.as_slice(), b":", password.as_slice()].concat());
        let credentials = Zeroizing::new(BASE64_STANDARD.encode(credentials.as_slice()));
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(&credentials);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    request
}

/// Parses the status of an HTTP/1 response.
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..))?.strip_prefix(b" ")?;
    let digits = rest.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_proxys_credentials_decoded() {
        for (proxy, host, expected) in [
            ("http://proxy.test:3128", "mail.test", "CONNECT mail.test:993 HTTP/1.1\r\nHost: mail.test:993\r\n\r\n"),
            (
                "http://proxy.test",
                "2001:db8::1",
                "CONNECT [2001:db8::1]:993 HTTP/1.1\r\nHost: [2001:db8::1]:993\r\n\r\n",
            ),
            (
                "http://user:p%40ss%@proxy.test",
                "mail.test",
                "CONNECT mail.test:993 HTTP/1.1\r\nHost: mail.test:993\r\nProxy-Authorization: Basic dXNlcjpwQHNzJQ==\r\n\r\n",
            ),
        ] {
            assert_eq!(request(&proxy.parse().unwrap(), host, 993).as_str(), expected);
        }
    }

    #[test]
    fn only_a_status_of_three_digits_is_read() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Some(200)),
            ("HTTP/1.0 407 Proxy Authentication Required\r\n\r\n", Some(407)),
            ("HTTP/1.1 200\r\n\r\n", Some(200)),
            ("HTTP/1.1 20x\r\n\r\n", None),
            ("HTTP/1.1 999 \r\n\r\n", None),
            ("HTTP/2 200 OK\r\n\r\n", None),
            ("220 mail.test\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(head.as_bytes()), expected, "{head}");
        }
    }
}
