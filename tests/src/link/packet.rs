//! What the link reads of a packet: IPv4 and TCP headers, nothing else. Pure functions.

/// A TCP segment inside an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub ports: (u16, u16),
    pub payload: usize,
    pub sequence: u32,
    pub acknowledged: u32,
    pub has_ack: bool,
    pub is_reset: bool,
    header: usize,
}

/// The TCP segment in an IPv4 packet; none for anything else.
pub fn segment(packet: &[u8]) -> Option<Segment> {
    if packet.len() < 40 || packet[0] >> 4 != 4 || packet[9] != 6 {
        return None;
    }
    let header = usize::from(packet[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]])).min(packet.len());
    let tcp = packet.get(header..total)?;
    if header < 20 || tcp.len() < 20 {
        return None;
    }
    let data = usize::from(tcp[12] >> 4) * 4;
    Some(Segment {
        ports: (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]])),
        payload: tcp.len().checked_sub(data)?,
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        acknowledged: u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]),
        has_ack: tcp[13] & 0x10 != 0,
        is_reset: tcp[13] & 0x04 != 0,
        header,
    })
}

/// The reset that `packet`'s sender accepts: it comes from the other end, at exactly the sequence
/// number the sender expects next (RFC 5961). None for what must not be answered.
pub fn reset_for(packet: &[u8], segment: &Segment) -> Option<[u8; 40]> {
    if segment.is_reset {
        return None;
    }
    let mut reset = [0u8; 40];
    reset[0] = 0x45;
    reset[3] = 40;
    reset[8] = 64;
    reset[9] = 6;
    reset[12..16].copy_from_slice(&packet[16..20]);
    reset[16..20].copy_from_slice(&packet[12..16]);
    let sum = checksum(&reset[..20], 0);
    reset[10..12].copy_from_slice(&sum.to_be_bytes());
    reset[20..22].copy_from_slice(&segment.ports.1.to_be_bytes());
    reset[22..24].copy_from_slice(&segment.ports.0.to_be_bytes());
    if segment.has_ack {
        reset[24..28].copy_from_slice(&segment.acknowledged.to_be_bytes());
        reset[33] = 0x04;
    } else {
        // A SYN: refused, as a closed port does.
        let next = segment.sequence.wrapping_add(1);
        reset[28..32].copy_from_slice(&next.to_be_bytes());
        reset[33] = 0x14;
    }
    reset[32] = 0x50;
    let pseudo =
        reset[12..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = checksum(&reset[20..40], pseudo + 6 + 20);
    reset[36..38].copy_from_slice(&sum.to_be_bytes());
    debug_assert_eq!(segment.header % 4, 0);
    Some(reset)
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: usize) -> Vec<u8> {
        let mut p = vec![0u8; 40 + payload];
        p[0] = 0x45;
        let total = (40 + payload) as u16;
        p[2..4].copy_from_slice(&total.to_be_bytes());
        p[9] = 6;
        p[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        p[20..24].copy_from_slice(&[0x1c, 0x84, 0, 80]);
        p[28..32].copy_from_slice(&77u32.to_be_bytes());
        p[32] = 0x50;
        p[33] = 0x10;
        p
    }

    #[test]
    fn headers_are_read_and_short_packets_refused() {
        let whole = packet(100);
        let found = segment(&whole).unwrap();
        assert_eq!((found.ports, found.payload, found.acknowledged), ((7300, 80), 100, 77));
        for len in 0..40 {
            assert_eq!(segment(&whole[..len]), None);
        }
        assert_eq!(segment(&whole[..60]).map(|s| s.payload), Some(20));
    }

    #[test]
    fn resets_carry_the_expected_sequence_and_valid_sums() {
        let original = packet(10);
        let reset = reset_for(&original, &segment(&original).unwrap()).unwrap();
        let read = segment(&reset).unwrap();
        assert_eq!((read.ports, read.sequence, read.is_reset, read.payload), ((80, 7300), 77, true, 0));
        assert_eq!(checksum(&reset[..20], 0), 0);
        assert!(reset_for(&reset, &read).is_none());
    }
}
