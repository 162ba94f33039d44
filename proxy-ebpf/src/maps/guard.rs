// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The maps and constants by which the guard decides. All but the links are filled before the
//! programs are attached and not changed afterwards.

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

/// The VIPs, each with the endpoint under which packets without a port are counted; empty if nothing
/// is guarded.
#[map]
static VIPS: HashMap<Address, Endpoint> = HashMap::with_max_entries(MAX_VIPS, 0);

/// The addresses that this node answers neighbours' questions for and should not on guarded links: VIPs
/// and Services. Each with the endpoint under which the questions are counted.
#[map]
static ASKED: HashMap<Address, Endpoint> = HashMap::with_max_entries(MAX_VIPS + MAX_SERVICES, 0);

/// Networks that may come from outside, IPv4 mapped into IPv6.
#[map]
static ALLOWED: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);

/// The roles of links, by ifindex; links that are not in it carry packets of this node's pods. It
/// follows the node's routes, and is pinned so that the programs of the next agent know at once.
#[map]
static GUARD_LINKS: HashMap<u32, Link> = HashMap::pinned(MAX_GUARD_LINKS, BPF_F_NO_PREALLOC);

/// The addresses of the VIPs, a bit for each; zero if nothing is guarded, and then the verifier
/// removes code that depends on it.
#[unsafe(no_mangle)]
static ADDRESSES: Global<u64> = Global::new(0);

/// Whether any network may come from outside.
#[unsafe(no_mangle)]
static ALLOWS: Global<u8> = Global::new(0);

/// Length of a whole address in bits.
const ADDRESS_BITS: u32 = 128;

/// The facts about a packet that came by the link of this ifindex.
pub struct Here(pub u32);

/// False if nothing is guarded.
#[inline(always)]
pub fn is_on() -> bool {
    ADDRESSES.load() != 0
}

impl Here {
    /// The ifindex that routes and policy rules know the packet by: that of the bridge, for a port.
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
        // As aya's key has it, but aligned: LLVM 22 dies of a copy into a packed structure.
        let key = [ADDRESS_BITS, a, b, c, d];
        // SAFETY: the same bytes, and no alignment is asked for.
        let key = unsafe { &*(&raw const key).cast::<Key<[u32; 4]>>() };
        ALLOWED.get(key).is_some()
    }

    #[inline(always)]
    fn link(&self) -> Link {
        match GUARD_LINKS.get_ptr(self.0) {
            // SAFETY: the verifier has seen the null check; it is one word.
            Some(link) => unsafe { *link },
            None => Link::default(),
        }
    }
}
