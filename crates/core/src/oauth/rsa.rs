//! Reads the length of an RSA private key from its DER, before a cryptography library sees the key.

use rustls::pki_types::PrivateKeyDer;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// Object identifier of PKCS #1 (RFC 8017 appendix C), without the last arc: 1 is rsaEncryption, 10 is RSASSA-PSS.
const PKCS_1: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];

/// The number of bits in the modulus of an RSA key. `None`: the key is of another kind, or the content is not DER.
pub(super) fn modulus_bits(key: &PrivateKeyDer<'_>) -> Option<usize> {
    let pkcs_1 = match key {
        PrivateKeyDer::Pkcs1(der) => der.secret_pkcs1_der(),
        PrivateKeyDer::Pkcs8(der) => inside_pkcs_8(der.secret_pkcs8_der())?,
        _ => return None,
    };
    // RFC 8017 appendix A.1.2: version, modulus, and the rest.
    let (key, _) = element(pkcs_1, SEQUENCE)?;
    let (_, rest) = element(key, INTEGER)?;
    let (modulus, _) = element(rest, INTEGER)?;
    let significant = modulus.iter().position(|byte| *byte != 0).and_then(|first| modulus.get(first..))?;
    let leading = significant.first().map_or(0, |byte| byte.leading_zeros() as usize);
    Some(significant.len() * 8 - leading)
}

/// Returns the key inside PKCS #8. RFC 5958 section 2: version, algorithm, and the key as an octet string.
fn inside_pkcs_8(der: &[u8]) -> Option<&[u8]> {
    let (info, _) = element(der, SEQUENCE)?;
    let (_, rest) = element(info, INTEGER)?;
    let (algorithm, rest) = element(rest, SEQUENCE)?;
    let (identifier, _) = element(algorithm, OBJECT_IDENTIFIER)?;
    let (key, _) = element(rest, OCTET_STRING)?;
    (identifier.starts_with(&PKCS_1) && matches!(identifier.get(PKCS_1.len()..), Some([1 | 10]))).then_some(key)
}

/// Returns the content of the element with the tag `tag` at the beginning of `der`, and the bytes after the element.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        short @ 0..=0x7f => (usize::from(*short), rest),
        // In PEM of 32 KiB, no element has a length of more than two bytes.
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?), rest.get(2..)?),
        _ => return None,
    };
    (*found == tag).then_some(rest.split_at_checked(length)?)
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
    use rustls::pki_types::PrivatePkcs1KeyDer;

    use super::*;

    /// The beginning of an RSA private key of `bits` bits in PKCS #1, which is enough to read the key's length.
    pub(in crate::oauth) fn pkcs_1(bits: usize) -> Vec<u8> {
        let bytes = bits.div_ceil(8);
        let mut modulus = vec![0xff; bytes];
        modulus[0] = 0xff >> (bytes * 8 - bits);
        modulus.insert(0, 0);
        let integer = |content: &[u8]| wrapped(INTEGER, content);
        wrapped(SEQUENCE, &[integer(&[0]), integer(&modulus), integer(&[1, 0, 1])].concat())
    }

    fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    }

    #[test]
    fn the_length_is_that_of_the_modulus_in_either_form() {
        for bits in [512, 1024, 2047, 2048, 3072, 4096, 4097, 8192, 16384] {
            let key = PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(pkcs_1(bits)));
            assert_eq!(modulus_bits(&key), Some(bits));
        }
        let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        assert_eq!(modulus_bits(&PrivateKeyDer::try_from(rsa.serialize_der()).unwrap()), Some(2048));
    }

    #[test]
    fn other_keys_and_junk_have_no_such_length() {
        let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        assert_eq!(modulus_bits(&PrivateKeyDer::try_from(ec.serialize_der()).unwrap()), None);
        let whole = pkcs_1(2048);
        for cut in 0..whole.len() - 5 {
            let key = PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(&whole[..cut]));
            assert_eq!(modulus_bits(&key), None, "{cut}");
        }
    }
}
