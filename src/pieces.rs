//! Bytes that come in pieces, as one text: as they came if that's one piece, else in one buffer. A list of the pieces would cost many times
//! as much as what comes byte by byte.

use bytes::Bytes;
use bytes::BytesMut;

/// What has come so far.
#[derive(Debug, Default)]
pub struct Pieces {
    /// The only piece, as long as it's the only one.
    first: Bytes,
    /// Behind the room that is left.
    all: BytesMut,
    headroom: usize,
}

impl Pieces {
    /// With room for so many bytes before the text, if it comes in more than one piece: who puts something there needn't copy the rest.
    #[must_use]
    pub fn behind(headroom: usize) -> Self {
        Self {
            headroom,
            ..Self::default()
        }
    }

    /// Bytes so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.first.len() + self.all.len().saturating_sub(self.headroom)
    }

    /// The next piece. `rest` is how much is known to come after it.
    pub fn push(&mut self, piece: Bytes, rest: usize) {
        if piece.is_empty() {
            return;
        }
        if self.length() == 0 {
            self.first = piece;
            return;
        }
        if self.all.is_empty() {
            self.all.resize(self.headroom, 0);
        }
        let first = std::mem::take(&mut self.first);
        self.all.extend_from_slice(&first);
        if self.all.len() >= RESERVE_FROM && self.all.capacity() - self.all.len() < piece.len() {
            self.all.reserve(piece.len().saturating_add(rest));
        }
        self.all.extend_from_slice(&piece);
    }

    /// All of it.
    #[must_use]
    pub fn whole(self) -> Bytes {
        let (mut bytes, headroom) = self.with_headroom();
        bytes.split_off(headroom)
    }

    /// All of it behind the room before it, and how much that is: none, if it came in one piece.
    #[must_use]
    pub fn with_headroom(self) -> (Bytes, usize) {
        if self.all.is_empty() {
            (self.first, 0)
        } else {
            (self.all.freeze(), self.headroom)
        }
    }
}

/// Before so much has come, what the other side says of the rest is no reason to set memory aside.
const RESERVE_FROM: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::Pieces;
    use bytes::Bytes;
    use proptest::prelude::*;

    #[test]
    fn one_piece_stays_as_it_came() {
        let piece = Bytes::from_static(b"whole");
        let mut pieces = Pieces::default();
        pieces.push(Bytes::new(), 5);
        pieces.push(piece.clone(), 0);
        pieces.push(Bytes::new(), 0);
        assert_eq!(pieces.whole().as_ptr(), piece.as_ptr());
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_all_bytes_are_there(texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9), rest in 0usize..1_000, headroom in 0usize..9) {
            let mut pieces = Pieces::behind(headroom);
            for text in &texts {
                pieces.push(Bytes::copy_from_slice(text), rest);
            }
            prop_assert_eq!(pieces.length(), texts.concat().len());
            prop_assert_eq!(pieces.whole(), texts.concat());
        }
    }
}
