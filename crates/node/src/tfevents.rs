//! Event files of TensorBoard: what it draws curves and shows pictures of.
//!
//! Records of (length, checksum of the length, an `Event` in protobuf, its checksum), all little-endian. The checksums are
//! CRC-32C, masked: a file that holds checksums of itself would otherwise be its own check.

use prost::Message as _;

/// Version of the format, the first record of every file.
pub const VERSION: &str = "brain.Event:2";

/// Part of TensorFlow's `event.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// Seconds since the Unix epoch.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(string, optional, tag = "3")]
    pub file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub summary: Option<Summary>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    pub image: Option<Picture>,
    #[prost(message, optional, tag = "9")]
    pub metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub plugin: Option<Plugin>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Plugin {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", tag = "2")]
    pub content: Vec<u8>,
}

/// An encoded picture.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Picture {
    #[prost(int32, tag = "1")]
    pub height: i32,
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// Channels.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    /// PNG, JPEG or GIF.
    #[prost(bytes = "vec", tag = "4")]
    pub encoded: Vec<u8>,
}

impl Value {
    pub fn scalar(tag: &str, value: f64) -> Self {
        Self { tag: tag.to_owned(), simple_value: Some(value as f32), ..Self::default() }
    }

    /// An RGB picture of `width` × `height` pixels, as PNG.
    pub fn picture(tag: &str, (width, height): (u32, u32), png: Vec<u8>) -> Self {
        let whole = |side: u32| i32::try_from(side).unwrap_or(i32::MAX);
        let image = Picture { height: whole(height), width: whole(width), colorspace: 3, encoded: png };
        Self { tag: tag.to_owned(), image: Some(image), ..Self::default() }
    }
}

impl Event {
    /// Values of a step.
    pub fn of_step(wall_time: f64, step: u64, value: Vec<Value>) -> Self {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        Self { wall_time, step, file_version: None, summary: Some(Summary { value }) }
    }
}

/// Begins a file. `wall_time` is in seconds since the Unix epoch.
pub fn begin(file: &mut Vec<u8>, wall_time: f64) {
    push(file, &Event { wall_time, file_version: Some(VERSION.into()), ..Event::default() });
}

/// Adds an event to a file.
pub fn push(file: &mut Vec<u8>, event: &Event) {
    let content = event.encode_to_vec();
    let length = (content.len() as u64).to_le_bytes();
    file.extend_from_slice(&length);
    file.extend_from_slice(&masked(crc32c(&length)).to_le_bytes());
    file.extend_from_slice(&content);
    file.extend_from_slice(&masked(crc32c(&content)).to_le_bytes());
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected) a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};
