//! Decodes bodies that a server or gateway compresses although the broker requests `Accept-Encoding: identity`. The
//! unpacked body has the same limit as any body, so a small body that unpacks to gigabytes costs no more memory.

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header::CONTENT_ENCODING};
use zeroize::Zeroizing;

/// Errors of a compressed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The body unpacks to more than the limit.
    TooLarge,
    /// The body is not encoded as its Content-Encoding header says.
    Broken,
}

/// Returns the unpacked body, and removes the Content-Encoding header. A body in another encoding keeps its content and
/// header.
///
/// # Errors
/// If the body is too large or broken.
pub(super) fn decoded(
    headers: &mut HeaderMap,
    body: Zeroizing<Vec<u8>>,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, Flaw> {
    let Some(encoding) = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()) else { return Ok(body) };
    let encoding = encoding.trim().to_ascii_lowercase();
    let packed = body.as_slice();
    let unpacked = match encoding.as_str() {
        // Some servers declare an encoding and send plain JSON.
        "gzip" | "x-gzip" | "deflate" if looks_plain(packed) => return Ok(plain(headers, body)),
        "gzip" | "x-gzip" => unpack(MultiGzDecoder::new(packed), limit)?,
        // RFC 9110 section 8.4.1.2 requires zlib's header; some servers omit it.
        "deflate" if has_zlib_header(packed) => unpack(ZlibDecoder::new(packed), limit)?,
        "deflate" => unpack(DeflateDecoder::new(packed), limit)?,
        _ => return Ok(body),
    };
    Ok(plain(headers, unpacked))
}

fn plain(headers: &mut HeaderMap, body: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    headers.remove(CONTENT_ENCODING);
    body
}

/// Whether the body begins like JSON or HTML. No compressed body does.
fn looks_plain(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), None | Some(b'{' | b'[' | b'<'))
}

/// Whether the body has a zlib header (RFC 1950 section 2.2): the method is deflate, and the first two bytes pass the
/// check.
fn has_zlib_header(body: &[u8]) -> bool {
    matches!(body, [first, second, ..] if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

/// Unpacks up to `limit` bytes. The buffer does not grow, so only the decoder's window keeps a copy of a secret.
fn unpack(mut decoder: impl Read, limit: usize) -> Result<Zeroizing<Vec<u8>>, Flaw> {
    let mut body = Zeroizing::new(vec![0; limit + 1]);
    let mut length = 0;
    while let Some(rest) = body.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match decoder.read(rest).map_err(|_| Flaw::Broken)? {
            0 => {
                body.truncate(length);
                return Ok(body);
            }
            read => length += read,
        }
    }
    Err(Flaw::TooLarge)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };

    use super::*;

    const LIMIT: usize = 256 * 1024;
    const JSON: &[u8] = br#"{"access_token":"t"}"#;

    fn packed(encoding: &str, body: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        match encoding {
            "gzip" => {
                let mut encoder = GzEncoder::new(vec![], level);
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap()
            }
            "zlib" => {
                let mut encoder = ZlibEncoder::new(vec![], level);
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap()
            }
            _ => {
                let mut encoder = DeflateEncoder::new(vec![], level);
                encoder.write_all(body).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    /// Returns the decoded body, and whether the Content-Encoding header remains.
    fn decode(encoding: &str, body: Vec<u8>) -> Result<(Vec<u8>, bool), Flaw> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        let body = decoded(&mut headers, Zeroizing::new(body), LIMIT)?;
        Ok((body.to_vec(), headers.contains_key(CONTENT_ENCODING)))
    }

    #[test]
    fn gzip_and_deflate_are_read_in_all_their_forms() {
        for (encoding, form) in [
            ("gzip", "gzip"),
            ("GZIP", "gzip"),
            ("x-gzip", "gzip"),
            (" gzip ", "gzip"),
            ("deflate", "zlib"),
            ("deflate", "raw"),
        ] {
            assert_eq!(decode(encoding, packed(form, JSON)), Ok((JSON.to_vec(), false)), "{encoding} {form}");
        }
        // Plain JSON with a header, an empty body, and several gzip members.
        assert_eq!(decode("gzip", JSON.to_vec()), Ok((JSON.to_vec(), false)));
        assert_eq!(decode("gzip", vec![]), Ok((vec![], false)));
        let members = [packed("gzip", &JSON[..5]), packed("gzip", &JSON[5..])].concat();
        assert_eq!(decode("gzip", members), Ok((JSON.to_vec(), false)));
    }

    #[test]
    fn another_encoding_stays_under_its_header() {
        for encoding in ["br", "zstd", "gzip, gzip", "identity", "nonsense"] {
            assert_eq!(decode(encoding, b"\x1b\x00".to_vec()), Ok((b"\x1b\x00".to_vec(), true)), "{encoding}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(decoded(&mut headers, Zeroizing::new(JSON.to_vec()), LIMIT).unwrap().as_slice(), JSON);
    }

    #[test]
    fn too_large_and_broken_bodies_are_distinguished() {
        let zeros = |length| vec![0_u8; length];
        for form in ["gzip", "zlib", "raw"] {
            let encoding = if form == "gzip" { "gzip" } else { "deflate" };
            assert_eq!(decode(encoding, packed(form, &zeros(LIMIT))).unwrap().0.len(), LIMIT);
            assert_eq!(decode(encoding, packed(form, &zeros(LIMIT + 1))), Err(Flaw::TooLarge), "{form}");
            assert_eq!(decode(encoding, packed(form, &zeros(64 << 20))), Err(Flaw::TooLarge), "{form}");
        }
        let mut cut = packed("gzip", JSON);
        cut.truncate(cut.len() - 10);
        assert_eq!(decode("gzip", cut), Err(Flaw::Broken));
        assert_eq!(decode("gzip", b"\x1f\x8bnonsense".to_vec()), Err(Flaw::Broken));
        assert_eq!(decode("deflate", b"\xff\xff\xff".to_vec()), Err(Flaw::Broken));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic_and_within_the_limit(body: Vec<u8>, gzip: bool) {
            if let Ok((body, _)) = decode(if gzip { "gzip" } else { "deflate" }, body) {
                proptest::prop_assert!(body.len() <= LIMIT);
            }
        }
    }
}
