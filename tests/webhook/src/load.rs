// SPDX-License-Identifier: Apache-2.0

//! Many clients at once, and random malformed reviews.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::client::{Client, Tls};

/// The load that clients put on the webhook.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Where the webhook is.
    pub address: SocketAddr,
    /// How to talk to it.
    pub tls: &'a Tls,
    /// How many ask at the same time.
    pub clients: usize,
    /// After how many reviews each connects anew; `None`: never.
    pub reconnect: Option<u64>,
    /// The review that they send.
    pub review: &'a [u8],
}

/// The answers that they got.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Reviews that were answered as the first one was.
    pub reviews: u64,
    /// From the moment all were connected to the end.
    pub time: Duration,
}

impl Load<'_> {
    /// Has reviews answered until `stop`; `started` is called when all clients are connected.
    ///
    /// # Errors
    /// When one single review is not answered, or in another way than the first.
    pub fn run(&self, stop: &AtomicBool, started: impl FnOnce()) -> Result<Served> {
        let mut clients = Vec::new();
        for _ in 0..self.clients {
            clients.push(Client::connect(self.address, self.tls)?);
        }
        let first = clients.first_mut().context("no clients")?;
        let answer = first.review(self.review)?.body;
        started();
        let start = Instant::now();
        let answer = answer.as_slice();
        let reviews = std::thread::scope(|scope| {
            let running: Vec<_> = clients
                .into_iter()
                .map(|client| scope.spawn(move || self.ask(client, answer, stop)))
                .collect();
            let mut reviews = 0;
            for thread in running {
                let done = thread.join().map_err(|_| anyhow!("a client panicked"))?;
                reviews += done.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            }
            anyhow::Ok(reviews)
        })?;
        Ok(Served {
            reviews,
            time: start.elapsed(),
        })
    }

    fn ask(&self, mut client: Client, answer: &[u8], stop: &AtomicBool) -> Result<u64> {
        let mut reviews = 0;
        while !stop.load(Ordering::Relaxed) {
            let got = client.review(self.review)?;
            ensure!(
                got.status == 200 && got.body == answer,
                "another answer: {got:?}"
            );
            reviews += 1;
            if self.reconnect.is_some_and(|every| reviews % every == 0) {
                client = Client::connect(self.address, self.tls)?;
            }
        }
        Ok(reviews)
    }
}

/// Numbers that look random and are the same in each run (xorshift64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A series of its own for each seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit`.
    ///
    /// # Panics
    /// When `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).map_or(0, |number| number % limit)
    }
}

/// A review that is broken somewhere, or a whole other text.
#[must_use]
pub fn mutated(review: &Value, random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0 => (0..random.below(300))
            .map(|_| u8::try_from(random.below(256)).unwrap_or_default())
            .collect(),
        1..=4 => broken(review.to_string().into_bytes(), random),
        _ => {
            let mut review = review.clone();
            for _ in 0..=random.below(3) {
                // Mostly in the pod: around it nearly everything must be as it is.
                let in_pod = random.below(4) > 0;
                match review.pointer_mut("/request/object").filter(|_| in_pod) {
                    Some(pod) => exchange(pod, random),
                    None => exchange(&mut review, random),
                }
            }
            review.to_string().into_bytes()
        }
    }
}

/// Changes some bytes, wherever they are.
fn broken(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    const SYNTAX: &[u8] = b"{}[]\",:\\ 0ntf-.\xff\x00";
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, SYNTAX[random.below(SYNTAX.len())]),
            3 => bytes[at] ^= 1 << random.below(8),
            _ => {
                let end = at + random.below(bytes.len() - at).min(40);
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

/// Exchanges or removes a random value, at any depth.
fn exchange(value: &mut Value, random: &mut Random) {
    let deeper = random.below(8) > 0;
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let nth = random.below(map.len());
            let Some(key) = map.keys().nth(nth).cloned() else {
                return;
            };
            match random.below(12) {
                0 => drop(map.remove(&key)),
                _ => {
                    if let Some(member) = map.get_mut(&key) {
                        exchange(member, random);
                    }
                }
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => exchange(&mut list[at], random),
            }
        }
        other => *other = anything(random),
    }
}

fn anything(random: &mut Random) -> Value {
    match random.below(16) {
        0 | 1 => Value::Null,
        2 => json!(true),
        3 => json!(-1.5),
        4 => json!([]),
        5 => json!({}),
        6 => json!([[]]),
        7 => json!([{"name": "KUBERNETES_SERVICE_HOST"}]),
        8 => json!([{"name": "A", "value": "b"}]),
        9 => json!({"env": null}),
        10 => json!("KUBERNETES_SERVICE_HOST"),
        11 => json!("DELETE"),
        12 => json!("CREATE"),
        13 => json!("admission.k8s.io/v1beta1"),
        14 => json!("ünïcödé \u{1F980} \"\\/\n"),
        _ => json!(""),
    }
}
