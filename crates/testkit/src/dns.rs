//! A name server whose answers change from question to question.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex},
};

/// Names, with the addresses of the first answer for one address family, of the second and so on. The last answer
/// repeats.
type Script = BTreeMap<&'static str, Vec<Vec<IpAddr>>>;

/// A name server at port 53 of a loopback address, which requires root. It stops when the process ends.
pub struct Dns {
    /// The address of the name server.
    pub address: Ipv4Addr,
    asked: Arc<Mutex<Asked>>,
}

/// Number of questions for each name, by the type of the address record.
type Asked = BTreeMap<(String, u8), usize>;

/// Types of address records: A (RFC 1035 section 3.2.2), AAAA (RFC 3596 section 2.1).
const TYPES: [u8; 2] = [1, 28];

impl Dns {
    /// Starts a name server. Names that are not in `script` do not exist.
    pub fn start(script: Script) -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, high, low.clamp(1, 254));
        let socket = UdpSocket::bind((address, 53)).expect("port 53 needs root");
        let asked = Arc::<Mutex<Asked>>::default();
        let counts = asked.clone();
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let answer = answer(&question[..length], &script, &mut counts.lock().unwrap());
                socket.send_to(&answer, from).unwrap();
            }
        });
        Self { address, asked }
    }

    /// Returns how many questions for a name's IPv4 addresses arrived.
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(&(name.to_owned(), TYPES[0])).copied().unwrap_or_default()
    }
}

/// Returns the answer to a question (RFC 1035, section 4).
fn answer(question: &[u8], script: &Script, asked: &mut Asked) -> Vec<u8> {
    let (mut labels, mut at) = (vec![], 12);
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
        at = end;
    }
    let name = labels.join(".");
    let kind = question[at + 2];
    let turns = script.get(name.as_str());
    let addresses: Vec<_> = match turns {
        Some(turns) if TYPES.contains(&kind) => {
            let count = asked.entry((name, kind)).or_default();
            *count += 1;
            let answer = turns.get(*count - 1).or(turns.last()).into_iter().flatten();
            answer.filter(|address| TYPES[usize::from(address.is_ipv6())] == kind).collect()
        }
        _ => vec![],
    };
    let code = if turns.is_some() { 0 } else { 3 };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).unwrap(), 0, 0, 0, 0]);
    answer.extend(&question[12..at + 5]);
    for address in addresses {
        // The record has the name of the question, the type, class IN, a TTL of zero, and the length of the address.
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, u8::try_from(octets.len()).unwrap()]);
        answer.extend(octets);
    }
    answer
}
