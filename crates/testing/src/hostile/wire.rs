//! HTTP/2, HPACK, gRPC and protobuf by hand, so that each can be got wrong.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame whose length is what it says.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame_claiming(payload.len() as u32, kind, flags, stream, payload)
}

/// A frame that says `length`, whatever it has.
pub fn frame_claiming(length: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in values {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// What a connection begins with.
pub fn opening() -> Vec<u8> {
    [PREFACE, &settings(&[]), &frame(SETTINGS, ACK, 0, &[])].concat()
}

/// An HPACK integer after `first`, whose last `prefix_bits` bits it begins in.
pub fn integer(prefix_bits: u8, first: u8, value: usize) -> Vec<u8> {
    let most = (1usize << prefix_bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let mut bytes = vec![first | most as u8];
    let mut left = value - most;
    while left >= 128 {
        bytes.push((left % 128) as u8 | 128);
        left /= 128;
    }
    bytes.push(left as u8);
    bytes
}

/// A header field that no table is changed by.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    field_as(0, name, value)
}

/// A header field that enters the dynamic table.
pub fn indexed_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    field_as(0x40, name, value)
}

fn field_as(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    bytes.extend(integer(7, 0, name.len()));
    bytes.extend(name);
    bytes.extend(integer(7, 0, value.len()));
    bytes.extend(value);
    bytes
}

/// The fields of a well-formed gRPC request.
pub fn fields(path: &str) -> Vec<u8> {
    [
        field(b":method", b"POST"),
        field(b":scheme", b"http"),
        field(b":path", path.as_bytes()),
        field(b":authority", b"localhost"),
        field(b"content-type", b"application/grpc"),
        field(b"te", b"trailers"),
    ]
    .concat()
}

/// A well-formed HEADERS frame.
pub fn headers(stream: u32, path: &str, end: bool) -> Vec<u8> {
    let flags = END_HEADERS | if end { END_STREAM } else { 0 };
    frame(HEADERS, flags, stream, &fields(path))
}

/// A gRPC message.
pub fn message(content: &[u8]) -> Vec<u8> {
    message_claiming(0, content.len() as u32, content)
}

pub fn message_claiming(compressed: u8, length: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![compressed];
    bytes.extend(length.to_be_bytes());
    bytes.extend(content);
    bytes
}

/// A whole call with this body, which need not be a message.
pub fn call(stream: u32, path: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = headers(stream, path, false);
    let mut chunks = body.chunks(16_384).peekable();
    if chunks.peek().is_none() {
        bytes.extend(frame(DATA, END_STREAM, stream, &[]));
    }
    while let Some(chunk) = chunks.next() {
        let flags = if chunks.peek().is_none() { END_STREAM } else { 0 };
        bytes.extend(frame(DATA, flags, stream, chunk));
    }
    bytes
}

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 128 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
    bytes
}

pub fn tag(number: u64, wire_type: u64) -> Vec<u8> {
    varint((number << 3) | wire_type)
}

/// A field of bytes, text or a message.
pub fn bytes_field(number: u64, content: &[u8]) -> Vec<u8> {
    [tag(number, 2), varint(content.len() as u64), content.to_vec()].concat()
}

pub fn number_field(number: u64, value: u64) -> Vec<u8> {
    [tag(number, 0), varint(value)].concat()
}
