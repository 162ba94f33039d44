// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The maps and constants that the guard uses. Except for the links, the agent fills them before it attaches the
//! programs, and does not change them afterwards.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use proxy_common::guard::{Knowledge, Link};
use proxy_common::limits::{MAX_ALLOWED, MAX_GUARD_LINKS, MAX_SERVICES, MAX_VIPS, address_bit};
use proxy_common::{Address, Endpoint};

/// The VIPs with each of the proxy's ports; empty if nothing is guarded.
#[map]
static ENDPOINTS: HashMap<Endpoint, u32> = HashMap::with_max_entries(MAX_VIPS, 0);

/// The VIPs, each with the endpoint of the counters for packets without a port; empty if nothing is guarded.
#[map]
static VIPS: HashMap<Address, Endpoint> = HashMap::with_max_entries(MAX_VIPS, 0);

/// The addresses for which this node replies to neighbours' requests, but must not on guarded links: VIPs and Services.
/// Each has the endpoint of the counters for these requests.
#[map]
static ASKED: HashMap<Address, Endpoint> = HashMap::with_max_entries(MAX_VIPS + MAX_SERVICES, 0);

/// The networks whose packets are permitted from outside, with IPv4 mapped into IPv6.
#[map]
static ALLOWED: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);

/// The roles of links by ifindex; links that are not in this map carry packets of this node's pods. The agent updates
/// it with the node's routes. It is pinned so that the programs of the next agent use it at once.
#[map]
static GUARD_LINKS: HashMap<u32, Link> = HashMap::pinned(MAX_GUARD_LINKS, BPF_F_NO_PREALLOC);

/// The set of the VIPs' addresses, one bit for each; zero if nothing is guarded, in which case the verifier removes
/// code that depends on it.
#[unsafe(no_mangle)]
static ADDRESSES: Global<u64> = Global::new(0);

/// Whether any network is permitted from outside.
#[unsafe(no_mangle)]
static ALLOWS: Global<u8> = Global::new(0);

/// The length of a whole address, in bits.
const ADDRESS_BITS: u32 = 128;

/// The facts about a packet that arrived on the link with this ifindex.
pub struct Here(pub u32);

/// Returns whether anything is guarded.
#[inline(always)]
pub fn is_on() -> bool {
    ADDRESSES.load() != 0
}

impl Here {
    /// Returns the ifindex that routes and policy rules use for the packet: for a port of a bridge, that of the bridge.
    #[inline(always)]
    pub fn routed_by(&self) -> u32 {
        match self.link().master() {
            0 => self.0,
            master => master,
        }
    }
}

impl Knowledge for Here {
    #[inline(always)]
    fn may_be_vip(&self, address: &Address) -> bool {
        ADDRESSES.load() & address_bit(address) != 0
    }

    #[inline(always)]
    fn vip(&self, address: &Address) -> Option<Endpoint> {
        // SAFETY: the verifier has seen the null check; entries do not change.
        VIPS.get_ptr(address).map(|counted| unsafe { *counted })
    }

    #[inline(always)]
    fn asked(&self, address: &Address) -> Option<Endpoint> {
        // SAFETY: the verifier has seen the null check; entries do not change.
        ASKED.get_ptr(address).map(|counted| unsafe { *counted })
    }

    #[inline(always)]
    fn is_proxy(&self, endpoint: &Endpoint) -> bool {
        ENDPOINTS.get_ptr(endpoint).is_some()
    }

    #[inline(always)]
    fn is_allowed(&self, source: &Address) -> bool {
        if ALLOWS.load() == 0 {
            return false;
        }
        let [a, b, c, d] = source.words();
        // This has the layout of aya's key, but is aligned: LLVM 22 crashes on a copy into a packed structure.
        let key = [ADDRESS_BITS, a, b, c, d];
        // SAFETY: the bytes are the same, and the packed type requires no alignment.
        let key = unsafe { &*(&raw const key).cast::<Key<[u32; 4]>>() };
        ALLOWED.get(key).is_some()
    }

    #[inline(always)]
    fn link(&self) -> Link {
        match GUARD_LINKS.get_ptr(self.0) {
            // SAFETY: the verifier has seen the null check; the value is one word.
            Some(link) => unsafe { *link },
            None => Link::default(),
        }
    }
}
