//! What crosses an HTTP/2 connection, frame by frame (RFC 9113, section 4). The library that reads them limits only some kinds, and shows
//! nothing of what it refuses; this sees all of them, both ways. It changes no byte, and keeps nothing but the frame that is passing.

use tokio::time::Instant;

use crate::observe::bucket::Bucket;
use crate::observe::bucket::Rate;

/// The frame types of RFC 9113, section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    Unknown,
}

impl Kind {
    fn of(code: u8) -> Self {
        match code {
            0x0 => Self::Data,
            0x1 => Self::Headers,
            0x2 => Self::Priority,
            0x3 => Self::Reset,
            0x4 => Self::Settings,
            0x5 => Self::PushPromise,
            0x6 => Self::Ping,
            0x7 => Self::GoAway,
            0x8 => Self::WindowUpdate,
            0x9 => Self::Continuation,
            _ => Self::Unknown,
        }
    }

    /// As one of [`FLOODS`](crate::observe::metrics::FLOODS).
    fn label(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Priority => "priority",
            Self::Reset => "reset",
            Self::Settings => "settings",
            Self::Ping => "ping",
            Self::WindowUpdate => "window-update",
            Self::Continuation => "continuation",
            Self::Headers | Self::PushPromise | Self::GoAway | Self::Unknown => "other",
        }
    }
}

/// What every client says first (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

const HEAD_BYTES: usize = 9;

/// As much of a payload as anybody here looks at: that of a GOAWAY has its error code in bytes 4 to 7.
const START_BYTES: usize = 8;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// A frame's head, and where its payload begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: Kind,
    flags: u8,
    length: usize,
    start: [u8; START_BYTES],
}

impl Frame {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn number(&self, at: usize) -> u32 {
        self.start[at..at + 4]
            .iter()
            .fold(0, |number, byte| number << 8 | u32::from(*byte))
    }
}

/// Finds the frames in one direction's bytes, in whatever pieces they come.
#[derive(Debug)]
struct Reader {
    preface_left: usize,
    head: [u8; HEAD_BYTES],
    head_filled: usize,
    start: [u8; START_BYTES],
    start_filled: usize,
    payload_left: usize,
}

impl Reader {
    fn new(preface_left: usize) -> Self {
        Self {
            preface_left,
            head: [0; HEAD_BYTES],
            head_filled: 0,
            start: [0; START_BYTES],
            start_filled: 0,
            payload_left: 0,
        }
    }

    /// Something was begun, and its end hasn't come.
    fn is_amid(&self) -> bool {
        (1..PREFACE_BYTES).contains(&self.preface_left)
            || self.head_filled > 0
            || self.payload_left > 0
    }

    /// Shows each frame once, when its head has come and as much of its payload as is looked at. Returns whether one began here.
    fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) -> bool {
        let mut began = false;
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            began |= !self.is_amid();
            if self.payload_left == 0 {
                let taken = fill(&mut self.head[self.head_filled..], bytes);
                self.head_filled += taken;
                bytes = &bytes[taken..];
                if self.head_filled < HEAD_BYTES {
                    break;
                }
                let [a, b, c, ..] = self.head;
                self.payload_left = [a, b, c]
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte));
                (self.start, self.start_filled) = ([0; START_BYTES], 0);
                if self.payload_left == 0 {
                    each(self.frame(0));
                    self.head_filled = 0;
                }
                continue;
            }
            // The head is kept until its frame has been shown.
            if self.head_filled > 0 {
                let wanted =
                    self.start_filled + self.payload_left.min(START_BYTES - self.start_filled);
                let taken = fill(&mut self.start[self.start_filled..wanted], bytes);
                self.start_filled += taken;
                self.payload_left -= taken;
                bytes = &bytes[taken..];
                if self.start_filled == wanted {
                    each(self.frame(self.start_filled + self.payload_left));
                    self.head_filled = 0;
                }
                continue;
            }
            let skipped = self.payload_left.min(bytes.len());
            self.payload_left -= skipped;
            bytes = &bytes[skipped..];
        }
        began
    }

    fn frame(&self, length: usize) -> Frame {
        Frame {
            kind: Kind::of(self.head[3]),
            flags: self.head[4],
            length,
            start: self.start,
        }
    }
}

fn fill(room: &mut [u8], bytes: &[u8]) -> usize {
    let count = room.len().min(bytes.len());
    room[..count].copy_from_slice(&bytes[..count]);
    count
}

/// Frames that carry nothing of a call, for each connection. A lively client needs a few for each request; whoever has a thousand to
/// say at once, or two hundred a second for nothing, only wants us to work. (Envoy ends a connection at 1,000 answers to such frames
/// that wait to be sent: its `max_outbound_control_frames`.)
const RATE: Rate = Rate {
    burst: 1_000,
    per_second: 200,
};

/// What a request may bring along: window updates, a priority, a ping.
const EARNED_BY_REQUEST: u32 = 8;

/// To take a request back costs what it has earned, and one more.
const COST_OF_RESET: u32 = EARNED_BY_REQUEST + 1;

/// So much of an answer earns a frame: the windows of stream and connection are opened again for each piece by the liveliest clients.
const BYTES_EARNING: usize = 4 * 1024;

/// A caller sends frames that nobody needs: of which kind, as one of [`FLOODS`](crate::observe::metrics::FLOODS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flood(pub(super) &'static str);

/// What the library told the caller with an error code: the code's name (RFC 9113, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) &'static str);

/// Both directions of one connection.
#[derive(Debug)]
pub(super) struct Meter {
    came: Reader,
    went: Reader,
    budget: Bucket,
    /// A block of header fields was begun, and its end hasn't come.
    header_block: bool,
    amid_since: Option<Instant>,
}

impl Meter {
    /// A connection that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            came: Reader::new(PREFACE_BYTES),
            went: Reader::new(0),
            budget: Bucket::new(RATE, now),
            header_block: false,
            amid_since: None,
        }
    }

    /// These bytes came from the caller.
    ///
    /// # Errors
    /// When it's more than the budget has room for.
    pub(super) fn came(&mut self, bytes: &[u8], now: Instant) -> Result<(), Flood> {
        let Self {
            came,
            budget,
            header_block,
            amid_since,
            ..
        } = self;
        let mut flood = None;
        let mut in_same_block = *header_block;
        let began = came.read(bytes, |frame| {
            let cost = match frame.kind {
                Kind::Headers => {
                    *header_block = !frame.has(END_HEADERS);
                    budget.earn(EARNED_BY_REQUEST);
                    0
                }
                Kind::Continuation => {
                    *header_block = !frame.has(END_HEADERS);
                    1
                }
                Kind::Data if frame.length > 0 || frame.has(END_STREAM) => 0,
                Kind::Reset => COST_OF_RESET,
                Kind::Data
                | Kind::Priority
                | Kind::Settings
                | Kind::PushPromise
                | Kind::Ping
                | Kind::GoAway
                | Kind::WindowUpdate
                | Kind::Unknown => 1,
            };
            in_same_block &= *header_block;
            if cost > 0 && !budget.take(cost, now) {
                flood.get_or_insert_with(|| Flood(frame.kind.label()));
            }
        });
        let is_amid = *header_block || came.is_amid();
        let since = amid_since.filter(|_| in_same_block || !began);
        *amid_since = is_amid.then_some(since.unwrap_or(now));
        flood.map_or(Ok(()), Err)
    }

    /// These bytes went to the caller. Returns how often it was told that it did wrong, and with which code the last time.
    pub(super) fn went(&mut self, bytes: &[u8]) -> Option<(u64, Refusal)> {
        let Self { went, budget, .. } = self;
        let mut refusals = None;
        went.read(bytes, |frame| {
            let code = match frame.kind {
                Kind::Data => {
                    let pieces = frame.length.div_ceil(BYTES_EARNING);
                    budget.earn(u32::try_from(pieces).unwrap_or(u32::MAX));
                    return;
                }
                // Ours is to be answered. An answer to the caller's own earns nothing, or pings would pay for pings.
                Kind::Ping if !frame.has(ACK) => return budget.earn(1),
                Kind::Reset => frame.number(0),
                Kind::GoAway => frame.number(4),
                _ => return,
            };
            if let Some(name) = wrong(code) {
                let count = refusals.map_or(0, |(count, _)| count);
                refusals = Some((count + 1, Refusal(name)));
            }
        });
        refusals
    }

    /// Since when the caller has been amid something whose end hasn't come: a frame, a block of header fields, the preface.
    pub(super) fn amid_since(&self) -> Option<Instant> {
        self.amid_since
    }
}

/// The name of an error code (RFC 9113, section 7), if it says that the other side did something wrong.
fn wrong(code: u32) -> Option<&'static str> {
    match code {
        0x1 => Some("PROTOCOL_ERROR"),
        0x3 => Some("FLOW_CONTROL_ERROR"),
        0x4 => Some("SETTINGS_TIMEOUT"),
        0x5 => Some("STREAM_CLOSED"),
        0x6 => Some("FRAME_SIZE_ERROR"),
        0x9 => Some("COMPRESSION_ERROR"),
        0xb => Some("ENHANCE_YOUR_CALM"),
        0xc => Some("INADEQUATE_SECURITY"),
        // All is well, it's our own doing, or it may be asked again.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::ACK;
    use super::Flood;
    use super::Meter;
    use super::PREFACE_BYTES;
    use super::Reader;
    use super::Refusal;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::Instant;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const PRIORITY: u8 = 2;
    const RESET: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const WINDOW_UPDATE: u8 = 8;
    const CONTINUATION: u8 = 9;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn begun() -> (Meter, Instant) {
        let now = Instant::now();
        let mut meter = Meter::new(now);
        meter.came(&[0; PREFACE_BYTES], now).expect("the preface");
        (meter, now)
    }

    /// How many of these one after another are taken at once.
    fn taken(frames: &[&[u8]]) -> usize {
        let (mut meter, now) = begun();
        let bytes = frames.concat();
        (0..20_000)
            .find(|_| meter.came(&bytes, now).is_err())
            .unwrap_or(usize::MAX)
    }

    #[test]
    fn whoever_floods_is_told_by_what() {
        let cases = [
            (DATA, 0, "data", 1_000),
            (PRIORITY, 0, "priority", 1_000),
            (RESET, 0, "reset", 111),
            (SETTINGS, 0, "settings", 1_000),
            (SETTINGS, 1, "settings", 1_000),
            (5, 0, "other", 1_000),
            (PING, 0, "ping", 1_000),
            (GOAWAY, 0, "other", 1_000),
            (WINDOW_UPDATE, 0, "window-update", 1_000),
            (CONTINUATION, 0, "continuation", 1_000),
            (0x10, 0, "other", 1_000),
        ];
        for (kind, flags, label, count) in cases {
            let payload: &[u8] = if kind == DATA { b"" } else { b"12345678" };
            let frame = frame(kind, flags, payload);
            assert_eq!(taken(&[&frame]), count, "{label}");
            let (mut meter, now) = begun();
            let all = frame.repeat(count + 1);
            assert_eq!(meter.came(&all, now), Err(Flood(label)), "at once");
        }
    }

    #[test]
    fn what_a_call_needs_is_free() {
        let request = frame(HEADERS, 4, b"fields");
        let body = frame(DATA, 0, b"{}");
        let end = frame(DATA, 1, b"");
        let update = frame(WINDOW_UPDATE, 0, b"0000");
        let ping = frame(PING, 0, b"00000000");
        let lively: &[&[u8]] = &[&request, &body, &update, &update, &ping, &end];
        assert_eq!(taken(lively), usize::MAX);
        // A request that's taken back costs one more than it earns: about a thousand at once, and two hundred a second.
        let reset = frame(RESET, 0, b"0008");
        assert_eq!(taken(&[&request, &reset]), 992);
    }

    #[test]
    fn time_and_answers_earn_frames() {
        let (mut meter, now) = begun();
        let ping = frame(PING, 0, b"00000000");
        assert_eq!(meter.came(&ping.repeat(1_000), now), Ok(()));
        let later = now + Duration::from_millis(500);
        assert_eq!(meter.came(&ping.repeat(100), later), Ok(()));
        let update = frame(WINDOW_UPDATE, 0, b"0000");
        assert_eq!(meter.came(&update, later), Err(Flood("window-update")));
        assert_eq!(meter.went(&frame(DATA, 0, &[0; 16 * 1024])), None);
        assert_eq!(meter.came(&update.repeat(4), later), Ok(()));
        assert_eq!(meter.came(&update, later), Err(Flood("window-update")));
        assert_eq!(meter.went(&ping), None);
        assert_eq!(meter.came(&ping, later), Ok(()), "it answers ours");
        assert_eq!(meter.went(&frame(PING, ACK, b"00000000")), None);
        assert_eq!(meter.came(&ping, later), Err(Flood("ping")), "we answer");
    }

    #[test]
    fn what_the_library_refuses_shows_in_what_it_says() {
        let (mut meter, _) = begun();
        let code = |code: u8| [0, 0, 0, code];
        let goaway = |last: u8| [[0, 0, 0, 9], code(last)].concat();
        for (sent, expected) in [
            (
                frame(RESET, 0, &code(1)),
                Some((1, Refusal("PROTOCOL_ERROR"))),
            ),
            (frame(RESET, 0, &code(0)), None),
            (frame(RESET, 0, &code(7)), None),
            (frame(RESET, 0, &code(8)), None),
            (frame(GOAWAY, 0, &goaway(0)), None),
            (
                frame(GOAWAY, 0, &[&goaway(11)[..], b"too_many_resets"].concat()),
                Some((1, Refusal("ENHANCE_YOUR_CALM"))),
            ),
            (
                [frame(RESET, 0, &code(1)), frame(RESET, 0, &code(5))].concat(),
                Some((2, Refusal("STREAM_CLOSED"))),
            ),
        ] {
            assert_eq!(meter.went(&sent), expected, "{sent:?}");
        }
    }

    #[test]
    fn what_was_begun_is_known_until_it_ends() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        assert_eq!(meter.amid_since(), None, "nothing came yet");
        let headers = frame(HEADERS, 0, b"some");
        let [none, rest] = [0, 4].map(|flags| frame(CONTINUATION, flags, b"fields"));
        let [data, ping] = [frame(DATA, 0, &[7; 100]), frame(PING, 0, b"12345678")];
        // Each a second after the one before; since which second.
        let steps: [(&[u8], Option<u64>); 16] = [
            (&[0; 20], Some(0)),
            (&[0; 4], None),
            (&headers[..5], Some(2)),
            (&headers[5..], Some(2)),
            (&none, Some(2)),
            (&[&none[..], &rest[..5]].concat(), Some(2)),
            (&rest[5..], None),
            (&ping, None),
            (&data[..50], Some(8)),
            (&data[50..60], Some(8)),
            (&[&data[60..], &data[..2]].concat(), Some(10)),
            (&[&data[2..], &ping].concat(), None),
            (&headers, Some(12)),
            (&[&rest[..], &headers].concat(), Some(13)),
            (&[&rest[..], &data[..50]].concat(), Some(14)),
            (&data[50..], None),
        ];
        for (second, (bytes, since)) in (0..).zip(steps) {
            let at = |second| start + Duration::from_secs(second);
            meter.came(bytes, at(second)).expect("few");
            assert_eq!(meter.amid_since(), since.map(at), "second {second}");
        }
    }

    proptest! {
        /// In whatever pieces bytes come, the same frames are found, and nothing panics on any.
        #[test]
        fn pieces_make_no_difference(bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(0), Just(0), Just(3), any::<u8>()], 0..400), cuts in proptest::collection::vec(0usize..400, 0..20)) {
            let read = |pieces: &[&[u8]]| {
                let (mut reader, mut frames) = (Reader::new(PREFACE_BYTES), Vec::new());
                for piece in pieces {
                    reader.read(piece, |frame| frames.push(frame));
                }
                (frames, reader.is_amid())
            };
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut < bytes.len()).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            let mut pieces = Vec::new();
            for to in cuts {
                pieces.push(&bytes[from..to]);
                from = to;
            }
            prop_assert_eq!(read(&pieces), read(&[&bytes]));
        }
    }
}
