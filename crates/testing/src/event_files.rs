//! Event files of TensorBoard, read by other means than they are written.

use crescendo_node::tfevents::Event;
use prost::Message as _;

/// Reads the framing with a checksum of its own, bit by bit from the polynomial in normal order.
pub fn events(mut file: &[u8]) -> Vec<Event> {
    fn check(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(byte.reverse_bits()) << 24;
            for _ in 0..8 {
                crc = if crc >> 31 == 1 { (crc << 1) ^ 0x1edc_6f41 } else { crc << 1 };
            }
        }
        let crc = (!crc).reverse_bits();
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }
    let mut found = Vec::new();
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    while !file.is_empty() {
        let (head, rest) = file.split_at(12);
        assert_eq!(word(&head[8..]), check(&head[..8]));
        let length = u64::from_le_bytes(head[..8].try_into().expect("eight bytes")) as usize;
        let (content, rest) = rest.split_at(length);
        let (sum, rest) = rest.split_at(4);
        assert_eq!(word(sum), check(content));
        found.push(Event::decode(content).expect("an event"));
        file = rest;
    }
    found
}
