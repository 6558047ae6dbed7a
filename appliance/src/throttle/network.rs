//! Networks as rules name them: `10.1.0.0/16`, `2001:db8::/32`, or one address. Sans-IO.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// True where the address lies in it. An IPv4 address inside an IPv6 one counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                shifted(own.to_bits().into(), 32, self.bits) == shifted(other.to_bits().into(), 32, self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                shifted(own.to_bits(), 128, self.bits) == shifted(other.to_bits(), 128, self.bits)
            }
            _ => false,
        }
    }
}

/// The first `bits` of an address of `width` bits.
fn shifted(address: u128, width: u8, bits: u8) -> u128 {
    address.checked_shr(u32::from(width - bits)).unwrap_or(0)
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no network; for example 10.1.0.0/16, 2001:db8::/32 or 192.0.2.7");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let digits = |bits: &str| !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let bits = match bits {
            None => width,
            Some(bits) if digits(bits) => bits.parse().ok().filter(|n| *n <= width).ok_or_else(wrong)?,
            Some(_) => return Err(wrong()),
        };
        let network = Self { address, bits };
        if network.first() != address {
            return Err(format!(
                "'{text}' has bits beyond its /{bits}; the network is {}/{bits}",
                network.first()
            ));
        }
        Ok(network)
    }
}

impl Network {
    /// Its lowest address.
    fn first(&self) -> IpAddr {
        let cut = |address: u128, width: u8| {
            let rest = u32::from(width - self.bits);
            shifted(address, width, self.bits).checked_shl(rest).unwrap_or(0)
        };
        match self.address {
            IpAddr::V4(own) => std::net::Ipv4Addr::from_bits(cut(own.to_bits().into(), 32) as u32).into(),
            IpAddr::V6(own) => Ipv6Addr::from_bits(cut(own.to_bits(), 128)).into(),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_network() {
        let has = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(has("10.1.0.0/16", "10.1.255.7") && !has("10.1.0.0/16", "10.2.0.1"));
        assert!(has("10.77.0.2", "10.77.0.2") && !has("10.77.0.2", "10.77.0.3"));
        assert!(has("0.0.0.0/0", "192.0.2.1") && !has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("2001:db8::/32", "2001:db8:1::9") && !has("2001:db8::/32", "2001:db9::1"));
        assert!(has("::/0", "fe80::1") && has("10.0.0.0/8", "::ffff:10.3.4.5"));
    }

    #[test]
    fn what_is_no_network() {
        for wrong in
            ["", "10.1.0.0/33", "10.1.0.0/", "10.1.0.0/+8", "10.1.0.0/16/1", "office", "::/129", "10.1"]
        {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
        let why = "10.1.2.3/16".parse::<Network>().unwrap_err();
        assert!(why.contains("10.1.0.0/16"), "{why}");
        assert_eq!("10.1.0.0/16".parse::<Network>().unwrap().to_string(), "10.1.0.0/16");
    }
}
