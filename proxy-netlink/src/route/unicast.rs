// SPDX-License-Identifier: Apache-2.0

//! Reads the unicast routes of all routing tables, one family after the other. The callers interpret the routes.

use netlink_packet_core::DecodeError;

use super::address::AddressFamily;
use super::attribute::too_short;
use super::dump::{Error, dump};

// Message types and values of linux/rtnetlink.h.
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTN_UNICAST: u8 = 1;

/// The length of `struct rtmsg`.
const HEADER: usize = 12;

/// One unicast route.
#[derive(Debug, Clone, Copy)]
pub struct Unicast<'a> {
    /// The prefix length of the destination, in bits.
    pub length: u8,
    /// The attributes in the kernel's format, `RTA_*` of linux/rtnetlink.h.
    pub attributes: &'a [u8],
}

/// Passes each unicast route to `take`, with a separate state for each family, and returns the states of IPv4 and IPv6.
///
/// # Errors
///
/// Returns an error if a list could not be read completely or if `take` fails.
pub async fn read<S: Default>(
    take: impl Fn(&mut S, Unicast<'_>) -> Result<(), DecodeError>,
) -> Result<[S; 2], Error> {
    Ok([
        of_family(AddressFamily::V4, &take).await?,
        of_family(AddressFamily::V6, &take).await?,
    ])
}

async fn of_family<S: Default>(
    family: AddressFamily,
    take: &impl Fn(&mut S, Unicast<'_>) -> Result<(), DecodeError>,
) -> Result<S, Error> {
    let number = family.number();
    let mut body = [0; HEADER];
    body[0] = number;
    let what = match family {
        AddressFamily::V4 => "IPv4 routes",
        AddressFamily::V6 => "IPv6 routes",
    };
    dump(
        RTM_GETROUTE,
        RTM_NEWROUTE,
        &body,
        |state, message| match unicast(message, number)? {
            Some(route) => take(state, route),
            None => Ok(()),
        },
    )
    .await
    .map_err(|source| Error { what, source })
}

/// Parses one `RTM_NEWROUTE`: `struct rtmsg`, followed by attributes. Returns `None` if the route is of another kind
/// (local, unreachable, …) or of another family: a kernel without IPv6 responds to the request for IPv6 with IPv4
/// routes.
fn unicast(message: &[u8], family: u8) -> Result<Option<Unicast<'_>>, DecodeError> {
    let (header, attributes) = message
        .split_first_chunk::<HEADER>()
        .ok_or_else(|| too_short("rtmsg"))?;
    let is_wanted = header[0] == family && header[7] == RTN_UNICAST;
    Ok(is_wanted.then_some(Unicast {
        length: header[1],
        attributes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_kinds_and_families_are_left_out() {
        let message = |family, kind| [family, 24, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0, 1, 2];
        let length = |family, kind| {
            let message = message(family, kind);
            let route = unicast(&message, 2).expect("well formed");
            route.map(|route| (route.length, route.attributes.to_vec()))
        };
        assert_eq!(length(2, RTN_UNICAST), Some((24, vec![1, 2])));
        assert_eq!(length(10, RTN_UNICAST), None);
        // A local route and an unreachable route.
        assert_eq!(length(2, 2), None);
        assert_eq!(length(2, 7), None);
        assert!(unicast(&[2; 11], 2).is_err());
    }
}
