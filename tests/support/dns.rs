//! A name server that answers differently from time to time.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex},
};

/// Names, with what is answered to the first question, the second and so on; the last answer stays.
type Script = BTreeMap<&'static str, Vec<Vec<Ipv4Addr>>>;

/// It listens at port 53 of an address of the loopback interface, which takes root, and ends with the process.
pub struct Dns {
    /// Its address.
    pub address: Ipv4Addr,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Dns {
    /// Names that are not in the script do not exist.
    pub fn start(script: Script) -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, high, low.clamp(1, 254));
        let socket = UdpSocket::bind((address, 53)).expect("port 53 needs root");
        let asked = Arc::<Mutex<BTreeMap<String, usize>>>::default();
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

    /// How often a name's IPv4 addresses were asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

/// RFC 1035, section 4.
fn answer(question: &[u8], script: &Script, asked: &mut BTreeMap<String, usize>) -> Vec<u8> {
    let (mut labels, mut at) = (vec![], 12);
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
        at = end;
    }
    let name = labels.join(".");
    let is_a = question[at + 1..at + 3] == [0, 1];
    let turns = script.get(name.as_str());
    let addresses = match turns {
        Some(turns) if is_a => {
            let count = asked.entry(name).or_default();
            *count += 1;
            turns.get(*count - 1).or(turns.last()).cloned().unwrap_or_default()
        }
        _ => vec![],
    };
    let code = if turns.is_some() { 0 } else { 3 };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).unwrap(), 0, 0, 0, 0]);
    answer.extend(&question[12..at + 5]);
    for address in addresses {
        // The name of the question, A, IN, no time to live.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}
