//! What hostile peers send, by families. The same seed gives the same cases.

use std::time::Duration;

use super::wire::*;
use super::{Case, Step};

/// Paths of calls, `/package.Service/Method`.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// With one message from the client.
    pub unary: &'static [&'static str],
    /// With many.
    pub streams: &'static [&'static str],
}

/// How long an answer is waited for.
const LOOK: Duration = Duration::from_millis(250);
/// Nested groups and messages of one input.
const DEPTH: usize = 20_000;
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Every case, in the order of families.
pub fn families(seed: u64, calls: Calls) -> Vec<Case> {
    let mut random = Random(seed);
    let all = [
        ("preface", prefaces(&mut random)),
        ("frames", frames(&mut random, calls)),
        ("settings", all_settings()),
        ("headers", header_blocks(&mut random, calls)),
        ("messages", messages(&mut random, calls)),
        ("bodies", bodies(&mut random, calls)),
        ("floods", floods(calls)),
        ("windows", windows(calls)),
        ("slow", slow(calls)),
    ];
    let mut cases = Vec::new();
    for (family, made) in all {
        cases.extend(made.into_iter().map(|(name, steps)| Case { family, name, steps }));
    }
    cases
}

type Made = Vec<(String, Vec<Step>)>;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn sent(name: impl Into<String>, bytes: Vec<u8>) -> (String, Vec<Step>) {
    (name.into(), vec![Step::Send(bytes), Step::Read(LOOK)])
}

/// After a proper opening.
fn opened(name: impl Into<String>, bytes: Vec<u8>) -> (String, Vec<Step>) {
    sent(name, [opening(), bytes].concat())
}

fn prefaces(random: &mut Random) -> Made {
    let mut made: Made = [1, 3, 14, 16, 23]
        .map(|count| sent(format!("the first {count} bytes of the preface"), PREFACE[..count].to_vec()))
        .to_vec();
    for (name, bytes) in [
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("HTTP/1.1 with an upgrade", b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n".to_vec()),
        ("HTTP/1.1 without an end", b"POST /x HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec()),
        ("HTTP/1.1 with bad chunks", b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n".to_vec()),
        ("a TLS hello", [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 190]].concat()),
        ("zeros", vec![0; 100_000]),
        ("a line without an end", vec![b'A'; 1 << 20]),
        ("the preface twice", [PREFACE, PREFACE].concat()),
        ("a preface with another version", b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("no settings after the preface", [PREFACE, &frame(PING, 0, 0, &[0; 8])[..]].concat()),
        ("nothing", Vec::new()),
    ] {
        made.push(sent(name, bytes));
    }
    for n in 0..8 {
        let count = 1 + random.below(4000);
        made.push(sent(format!("random bytes {n}"), random.bytes(count)));
        let count = 1 + random.below(4000);
        made.push(opened(format!("random bytes {n} after the opening"), random.bytes(count)));
    }
    made
}

fn frames(random: &mut Random, calls: Calls) -> Made {
    let path = calls.unary[0];
    let mut made = Made::new();
    for (name, bytes) in [
        ("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ("DATA on a stream that is not open", frame(DATA, 0, 1, b"x")),
        ("HEADERS on stream 0", headers(0, path, true)),
        ("HEADERS on an even stream", headers(2, path, true)),
        ("a stream number that goes back", [headers(9, path, true), headers(3, path, true)].concat()),
        (
            "the largest stream number, then another",
            [headers(0x7fff_ffff, path, true), headers(1, path, true)].concat(),
        ),
        ("a set reserved bit", headers(0x8000_0001, path, true)),
        ("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4])),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 77, &[0; 4])),
        ("RST_STREAM of a wrong length", frame(RST_STREAM, 0, 1, &[0; 3])),
        ("PING of a wrong length", frame(PING, 0, 0, &[0; 7])),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8])),
        ("PUSH_PROMISE from a client", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("GOAWAY, then a call", [frame(GOAWAY, 0, 0, &[0; 8]), call(1, path, &message(&[]))].concat()),
        ("GOAWAY that is too short", frame(GOAWAY, 0, 0, &[0; 3])),
        ("GOAWAY with much to say", frame(GOAWAY, 0, 0, &[7; 16_000])),
        ("WINDOW_UPDATE of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("WINDOW_UPDATE past the most", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes()).repeat(2)),
        ("WINDOW_UPDATE of a wrong length", frame(WINDOW_UPDATE, 0, 0, &[1; 5])),
        ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 99, &[0, 0, 0, 1])),
        ("PRIORITY on itself", frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 16])),
        ("PRIORITY of a wrong length", frame(PRIORITY, 0, 1, &[0; 4])),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &fields(path))),
        (
            "CONTINUATION of another stream",
            [frame(HEADERS, 0, 1, &fields(path)), frame(CONTINUATION, END_HEADERS, 3, &fields(path))]
                .concat(),
        ),
        ("DATA amid HEADERS", [frame(HEADERS, 0, 1, &fields(path)), frame(DATA, 0, 1, b"x")].concat()),
        ("padding longer than its frame", frame(DATA, PADDED, 1, &[255, 0, 0])),
        (
            "only padding",
            [
                headers(1, path, false),
                frame(DATA, PADDED | END_STREAM, 1, &[10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ]
            .concat(),
        ),
        ("padded HEADERS without room", frame(HEADERS, PADDED | END_HEADERS, 1, &[])),
        ("a frame of the largest length", frame_claiming(0xff_ffff, DATA, 0, 1, &[0; 20_000])),
        ("a frame longer than allowed", [headers(1, path, false), frame(DATA, 0, 1, &[0; 20_000])].concat()),
        ("HEADERS cut short", headers(1, path, true)[..20].to_vec()),
        ("a frame's head cut short", vec![0, 0, 5, 0]),
        ("DATA after the end", [call(1, path, &message(&[])), frame(DATA, 0, 1, b"more")].concat()),
        ("HEADERS after the end", [call(1, path, &message(&[])), headers(1, path, true)].concat()),
        ("trailers with a pseudo field", [headers(1, path, false), headers(1, path, true)].concat()),
    ] {
        made.push(opened(name, bytes));
    }
    for n in 0..10 {
        let count = random.below(300);
        let (kind, flags, stream) = (random.next() as u8, random.next() as u8, random.next() as u32 % 8);
        let one = frame(kind, flags, stream, &random.bytes(count));
        made.push(opened(format!("a random frame {n}: kind {kind}, flags {flags:#x}, stream {stream}"), one));
    }
    made
}

fn all_settings() -> Made {
    let mut made = Made::new();
    for (name, bytes) in [
        ("a window past the most", settings(&[(INITIAL_WINDOW_SIZE, u32::MAX)])),
        ("frames that are too small", settings(&[(5, 1)])),
        ("frames that are too large", settings(&[(5, u32::MAX)])),
        ("push that is neither on nor off", settings(&[(2, 9)])),
        ("a header table of 4 GiB", settings(&[(1, u32::MAX)])),
        ("no streams", settings(&[(3, 0)])),
        ("unknown ones", settings(&[(0xffff, 1), (0, 0), (0x4242, u32::MAX)])),
        ("the same a thousand times", settings(&[(1, 4096); 1000])),
        ("a length that is no multiple of six", frame(SETTINGS, 0, 0, &[0; 5])),
        ("on a stream", frame(SETTINGS, 0, 1, &[])),
        ("an acknowledgement with content", frame(SETTINGS, ACK, 0, &[0; 6])),
        ("acknowledgements of nothing", frame(SETTINGS, ACK, 0, &[]).repeat(100)),
    ] {
        made.push(opened(format!("settings: {name}"), bytes));
    }
    made
}

fn header_blocks(random: &mut Random, calls: Calls) -> Made {
    let path = calls.unary[0];
    let block =
        |extra: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&fields(path)[..], extra].concat());
    let alone = |fields: Vec<u8>| frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields);
    let in_pieces = |fields: &[u8]| {
        let mut bytes = frame(HEADERS, END_STREAM, 1, &[]);
        for piece in fields.chunks(16_000) {
            bytes.extend(frame(CONTINUATION, 0, 1, piece));
        }
        [bytes, frame(CONTINUATION, END_HEADERS, 1, &[])].concat()
    };
    let pair = |name: &str, value: &str| field(name.as_bytes(), value.as_bytes());
    let with_path = |path: &[u8]| {
        alone(
            [
                pair(":method", "POST"),
                pair(":scheme", "http"),
                field(b":path", path),
                pair("content-type", "application/grpc"),
            ]
            .concat(),
        )
    };
    let unary = |extra: Vec<u8>| {
        let fields = [fields(path), extra].concat();
        [frame(HEADERS, END_HEADERS, 1, &fields), frame(DATA, END_STREAM, 1, &message(&[]))].concat()
    };
    let mut made = Made::new();
    for (name, bytes) in [
        ("an index that there is not", alone(vec![0xff, 0x80, 0x80, 0x01])),
        ("index 0", alone(vec![0x80])),
        ("an integer without an end", alone([&[0xff][..], &[0xff; 200]].concat())),
        ("a table size past the most", alone(integer(5, 0x20, 1 << 30))),
        ("table sizes, a thousand", alone(integer(5, 0x20, 0).repeat(1000))),
        ("a length past the block", alone([&[0][..], &integer(7, 0, 1 << 20)].concat())),
        ("bad Huffman", alone(vec![0, 0x84, 0xff, 0xff, 0xff, 0xff, 0x84, 0xff, 0xff, 0xff, 0xff])),
        ("no fields", alone(Vec::new())),
        ("no path", alone([pair(":method", "POST"), pair(":scheme", "http")].concat())),
        ("an empty path", with_path(b"")),
        ("a path without a slash", with_path(b"x")),
        ("a path of bytes", with_path(&[0xff, 0xfe, b'/'])),
        (
            "a path of 60,000 characters",
            in_pieces(
                &[pair(":method", "POST"), pair(":scheme", "http"), field(b":path", &[b'/'; 60_000])]
                    .concat(),
            ),
        ),
        ("a path that leads out", with_path(b"/../../etc/passwd")),
        ("an unknown service", with_path(b"/no.Service/Call")),
        ("an unknown method", with_path(b"/crescendo.v1.JobService/Nothing")),
        ("two methods", alone([pair(":method", "POST"), fields(path)].concat())),
        ("an unknown pseudo field", block(&pair(":nothing", "x"))),
        ("a pseudo field after others", block(&pair(":path", "/x"))),
        ("a name in capitals", block(&pair("Content-Length", "1"))),
        ("an empty name", block(&pair("", "x"))),
        ("a name with a line break", block(&pair("a\r\nb", "x"))),
        ("a value with a line break", block(&pair("a", "x\r\nb: c"))),
        ("a value with a zero byte", block(&field(b"a", &[0]))),
        ("a connection field", block(&pair("connection", "keep-alive"))),
        ("a transfer encoding", block(&pair("transfer-encoding", "chunked"))),
        ("a wrong content length", unary(pair("content-length", "999"))),
        ("two content lengths", unary([pair("content-length", "5"), pair("content-length", "6")].concat())),
        ("a content length that is none", unary(pair("content-length", "-1"))),
        (
            "another content type",
            alone(
                [
                    pair(":method", "POST"),
                    pair(":scheme", "http"),
                    pair(":path", path),
                    pair("content-type", "text/html"),
                ]
                .concat(),
            ),
        ),
        ("a timeout that is none", unary(pair("grpc-timeout", "soon"))),
        ("a timeout of ages", unary(pair("grpc-timeout", "99999999H"))),
        ("a timeout of nothing", unary(pair("grpc-timeout", "0n"))),
        ("an unknown encoding", unary(pair("grpc-encoding", "snappy"))),
        ("an encoding that was not agreed", unary(pair("grpc-encoding", "gzip"))),
        ("binary metadata that is not base64", unary(pair("x-bin", "%%%"))),
        ("an authorization of junk", unary(field(b"authorization", &[0xff; 300]))),
        ("an authorization of 8,000 characters", unary(field(b"authorization", &[b'x'; 8000]))),
        ("1 MiB of one field", in_pieces(&[fields(path), field(b"a", &vec![b'x'; 1 << 20])].concat())),
        ("10,000 fields", in_pieces(&[fields(path), pair("a", "b").repeat(10_000)].concat())),
        ("fields that name one of the table a hundred thousand times", {
            let large = indexed_field(b"a", &[b'x'; 4000]);
            in_pieces(&[fields(path), large, vec![0xbe; 100_000]].concat())
        }),
        ("4,000 cookies", in_pieces(&[fields(path), pair("cookie", "a=b").repeat(4000)].concat())),
    ] {
        made.push(opened(format!("headers: {name}"), bytes));
    }
    for n in 0..8 {
        let count = random.below(400);
        made.push(opened(format!("headers: random block {n}"), alone(random.bytes(count))));
    }
    made
}

/// Well-formed requests with protobuf that is not, or that says what cannot be.
fn messages(random: &mut Random, calls: Calls) -> Made {
    let invalid_text = bytes_field(1, &[0xff, 0xfe, 0xc0, 0x80]);
    let mut nested = Vec::new();
    for _ in 0..2000 {
        nested = bytes_field(1, &nested);
    }
    let contents: Vec<(&str, Vec<u8>)> = vec![
        ("invalid UTF-8", invalid_text.clone()),
        ("invalid UTF-8 in a message", bytes_field(1, &invalid_text)),
        ("a text with zero bytes", bytes_field(1, &[0; 64])),
        ("a text of 3 MB", bytes_field(1, &vec![b'a'; 3_000_000])),
        ("an unknown enum", [bytes_field(1, b"x"), number_field(3, 9999)].concat()),
        (
            "numbers of another sign",
            [number_field(1, u64::MAX), number_field(3, u64::MAX), number_field(4, u64::MAX)].concat(),
        ),
        ("groups in groups", vec![0x0b; DEPTH]),
        ("unknown groups in groups", tag(500, 3).repeat(DEPTH)),
        ("a group that is closed only", tag(1, 4)),
        ("messages in messages", nested),
        ("a length past the end", [tag(1, 2), varint(1 << 40), vec![1, 2, 3]].concat()),
        ("a length past all", [tag(1, 2), varint(u64::MAX)].concat()),
        (
            "a number without an end",
            vec![0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ),
        ("field 0", tag(0, 0)),
        ("a wire type that there is not", vec![0x0f, 0]),
        ("a wrong wire type for a field", number_field(1, 5)),
        ("a field 100,000 times", bytes_field(1, b"y").repeat(100_000)),
        ("unknown fields, many", number_field(900, 1).repeat(100_000)),
    ];
    let mut made = Made::new();
    for path in calls.unary.iter().chain(calls.streams) {
        let method = path.rsplit('/').next().unwrap_or_default();
        for (name, content) in &contents {
            made.push(opened(format!("{method}: {name}"), call(1, path, &message(content))));
        }
        for n in 0..3 {
            let count = random.below(200);
            made.push(opened(
                format!("{method}: random bytes {n}"),
                call(1, path, &message(&random.bytes(count))),
            ));
        }
    }
    made
}

/// Bodies that are no messages.
fn bodies(random: &mut Random, calls: Calls) -> Made {
    let mut made = Made::new();
    let count = random.below(40);
    let junk = random.bytes(4 + count);
    for path in calls.unary.iter().take(3).chain(calls.streams.iter().take(2)).chain([&REFLECTION]) {
        let method = path.rsplit('/').next().unwrap_or_default();
        for (name, body) in [
            ("nothing", Vec::new()),
            ("half of a message's head", vec![0, 0]),
            ("a message of 4 GiB", message_claiming(0, u32::MAX, &[1; 100])),
            ("a message that is cut short", message_claiming(0, 1000, &[1; 10])),
            ("a flag that there is not", message_claiming(7, 0, &[])),
            ("a compressed message without an encoding", message_claiming(1, 20, &[0x1f; 20])),
            ("two messages", [message(&[]), message(&[])].concat()),
            ("ten thousand messages", message(&[]).repeat(10_000)),
            ("more after the message", [message(&[]), vec![9; 3]].concat()),
            ("junk", junk.clone()),
        ] {
            made.push(opened(format!("{method}: {name}"), call(1, path, &body)));
        }
    }
    made
}

fn floods(calls: Calls) -> Made {
    let path = calls.unary[0];
    let flood = |name: &str, one: Vec<u8>, times: usize| {
        // In pieces of some size, so that the peer does not spend its time in calls of the system.
        let batch = (16_384 / one.len().max(1)).max(1);
        let steps =
            vec![Step::Send(opening()), Step::Repeat(one.repeat(batch), times / batch + 1), Step::Read(LOOK)];
        (format!("flood: {name}"), steps)
    };
    let numbered = |name: &str, make: &dyn Fn(u32) -> Vec<u8>, times: u32| {
        let bytes: Vec<u8> = (0..times).flat_map(|n| make(2 * n + 1)).collect();
        let steps = vec![Step::Send(opening()), Step::Send(bytes), Step::Read(LOOK)];
        (format!("flood: {name}"), steps)
    };
    let reset = |stream: u32| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    let mut long_headers = opening();
    long_headers.extend(frame(HEADERS, 0, 1, &fields(path)));
    vec![
        flood("pings", frame(PING, 0, 0, &[1; 8]), 200_000),
        flood("answered pings", frame(PING, ACK, 0, &[1; 8]), 200_000),
        flood("settings", settings(&[(INITIAL_WINDOW_SIZE, 1000)]), 50_000),
        flood("empty settings", settings(&[]), 50_000),
        flood("windows", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), 200_000),
        flood("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]), 200_000),
        flood("unknown frames", frame(0x42, 0, 0, &[0; 100]), 50_000),
        flood("goodbyes", frame(GOAWAY, 0, 0, &[0; 8]), 50_000),
        numbered("rapid resets", &|n| [headers(n, path, false), reset(n)].concat(), 20_000),
        numbered(
            "rapid resets of whole calls",
            &|n| [call(n, path, &message(&[])), reset(n)].concat(),
            5_000,
        ),
        numbered("streams without an end", &|n| headers(n, path, false), 20_000),
        numbered("whole calls, unread", &|n| call(n, path, &message(&[])), 5_000),
        numbered("calls to nowhere", &|n| call(n, "/no.Where/Call", &message(&[])), 5_000),
        numbered(
            "windows that are wrong, each on a new stream",
            &|n| [headers(n, path, false), frame(WINDOW_UPDATE, 0, n, &[0; 4])].concat(),
            5_000,
        ),
        (
            "flood: empty data".into(),
            vec![
                Step::Send([opening(), headers(1, path, false)].concat()),
                Step::Repeat(frame(DATA, 0, 1, &[]).repeat(1000), 200),
                Step::Read(LOOK),
            ],
        ),
        (
            "flood: continuations".into(),
            vec![
                Step::Send(long_headers.clone()),
                Step::Repeat(frame(CONTINUATION, 0, 1, &field(b"a", &[b'x'; 1000])).repeat(16), 2000),
                Step::Read(LOOK),
            ],
        ),
        (
            "flood: empty continuations".into(),
            vec![
                Step::Send(long_headers),
                Step::Repeat(frame(CONTINUATION, 0, 1, &[]).repeat(1000), 200),
                Step::Read(LOOK),
            ],
        ),
        (
            "flood: data without windows".into(),
            vec![
                Step::Send([opening(), headers(1, path, false)].concat()),
                Step::Repeat(frame(DATA, 0, 1, &[0; 16_384]), 2000),
                Step::Read(LOOK),
            ],
        ),
    ]
}

fn windows(calls: Calls) -> Made {
    let path = calls.unary[0];
    let with = |values: &[(u16, u32)]| [PREFACE, &settings(values)[..]].concat();
    let many_calls =
        |path: &str| (0..200u32).flat_map(|n| call(2 * n + 1, path, &message(&[]))).collect::<Vec<u8>>();
    let change = |size: u32| settings(&[(INITIAL_WINDOW_SIZE, size)]);
    vec![
        (
            "no window for answers".into(),
            vec![
                Step::Send([with(&[(INITIAL_WINDOW_SIZE, 0)]), many_calls(path)].concat()),
                Step::Hold(Duration::from_secs(2)),
            ],
        ),
        (
            "no window for reflection".into(),
            vec![
                Step::Send([with(&[(INITIAL_WINDOW_SIZE, 0)]), many_calls(REFLECTION)].concat()),
                Step::Hold(Duration::from_secs(2)),
            ],
        ),
        (
            "a window of one byte".into(),
            vec![
                Step::Send([with(&[(INITIAL_WINDOW_SIZE, 1)]), many_calls(path)].concat()),
                Step::Read(Duration::from_secs(1)),
            ],
        ),
        (
            "answers that no one reads".into(),
            vec![
                Step::Send(with(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)])),
                Step::Send(many_calls(path)),
                Step::Hold(Duration::from_secs(3)),
            ],
        ),
        (
            "windows that grow and shrink".into(),
            vec![
                Step::Send([opening(), many_calls(path)].concat()),
                Step::Repeat([change(0x7fff_ffff), change(0)].concat(), 2000),
                Step::Read(LOOK),
            ],
        ),
        (
            "a stream's window past the most, by settings".into(),
            vec![
                Step::Send(
                    [
                        opening(),
                        headers(1, path, false),
                        frame(WINDOW_UPDATE, 0, 1, &0x7fff_0000u32.to_be_bytes()),
                        change(0x7fff_ffff),
                    ]
                    .concat(),
                ),
                Step::Read(LOOK),
            ],
        ),
    ]
}

fn slow(calls: Calls) -> Made {
    let path = calls.unary[0];
    let pause = Duration::from_millis(15);
    let mut made: Made = vec![
        ("slow: the preface".into(), vec![Step::Drip(opening(), pause), Step::Read(LOOK)]),
        ("slow: headers".into(), vec![Step::Send(opening()), Step::Drip(headers(1, path, true), pause)]),
        (
            "slow: a frame of one byte of 16,000".into(),
            vec![
                Step::Send([opening(), headers(1, path, false)].concat()),
                Step::Drip(frame_claiming(16_000, DATA, 0, 1, &[0; 150]), pause),
            ],
        ),
        (
            "slow: a message".into(),
            vec![
                Step::Send([opening(), headers(1, path, false)].concat()),
                Step::Drip(
                    [0u8, 0, 0, 0, 100, 10, 98].iter().flat_map(|byte| frame(DATA, 0, 1, &[*byte])).collect(),
                    pause,
                ),
            ],
        ),
    ];
    for path in calls.unary.iter().chain(calls.streams) {
        let method = path.rsplit('/').next().unwrap_or_default();
        made.push((
            format!("slow: {method} without a message"),
            vec![
                Step::Send([opening(), headers(1, path, false)].concat()),
                Step::Hold(Duration::from_secs(2)),
            ],
        ));
        made.push((
            format!("slow: {method} left after its headers"),
            vec![Step::Send([opening(), headers(1, path, false)].concat())],
        ));
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_table_of_cases() {
        let calls = Calls { unary: &["/a.B/C"], streams: &["/a.B/D"] };
        let (first, again, other) = (families(1, calls), families(1, calls), families(2, calls));
        assert!(first.len() >= 200, "{}", first.len());
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
        assert_ne!(format!("{first:?}"), format!("{other:?}"));
        let mut names: Vec<&str> = first.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), first.len(), "two cases have one name");
    }
}
