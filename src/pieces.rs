//! Bytes that come in pieces, as one text: as they came if that's one piece, else in one buffer. A list of the pieces would cost many times
//! as much as what comes byte by byte.

use bytes::Bytes;

/// What has come so far.
#[derive(Debug, Default)]
pub struct Pieces {
    /// The only piece, as long as it's the only one.
    first: Bytes,
    /// Behind the room that is left.
    all: Vec<u8>,
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

    /// The next piece. `rest` is how much comes after it, if that's known.
    pub fn push(&mut self, piece: Bytes, rest: Option<usize>) {
        if piece.is_empty() {
            return;
        }
        if self.length() == 0 {
            self.first = piece;
            return;
        }
        let first = std::mem::take(&mut self.first);
        let headroom = if self.all.is_empty() {
            self.headroom
        } else {
            0
        };
        self.make_room(headroom + first.len() + piece.len(), rest);
        self.all.resize(self.all.len() + headroom, 0);
        self.all.extend_from_slice(&first);
        self.all.extend_from_slice(&piece);
    }

    /// Doubles what there is, as vectors do, but takes no more than comes.
    fn make_room(&mut self, more: usize, rest: Option<usize>) {
        if self.all.capacity() - self.all.len() >= more {
            return;
        }
        let here = self.all.len() + more;
        match rest {
            None => self.all.reserve(more),
            Some(rest) if here >= RESERVE_FROM => self.all.reserve_exact(more.saturating_add(rest)),
            Some(rest) => self.all.reserve_exact(more + rest.min(here)),
        }
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
            (self.all.into(), self.headroom)
        }
    }
}

/// Before so much has come, what the other side says of the rest is no reason to set memory aside.
const RESERVE_FROM: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::Pieces;
    use super::RESERVE_FROM;
    use bytes::Bytes;
    use proptest::prelude::*;

    #[test]
    fn one_piece_stays_as_it_came() {
        let piece = Bytes::from_static(b"whole");
        let mut pieces = Pieces::default();
        pieces.push(Bytes::new(), Some(5));
        pieces.push(piece.clone(), None);
        pieces.push(Bytes::new(), None);
        assert_eq!(pieces.whole().as_ptr(), piece.as_ptr());
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_all_bytes_are_there(texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9), rest in proptest::option::of(0usize..1_000), headroom in 0usize..9) {
            let mut pieces = Pieces::behind(headroom);
            for text in &texts {
                pieces.push(Bytes::copy_from_slice(text), rest);
            }
            prop_assert_eq!(pieces.length(), texts.concat().len());
            prop_assert_eq!(pieces.whole(), texts.concat());
        }

        #[test]
        fn of_what_is_announced_no_more_room_is_taken_than_comes(sizes in proptest::collection::vec(1usize..40_000, 2..9), headroom in 0usize..9) {
            let mut rest = sizes.iter().sum::<usize>();
            let all = headroom + rest;
            let mut pieces = Pieces::behind(headroom);
            for size in sizes {
                rest -= size;
                pieces.push(Bytes::from(vec![0; size]), Some(rest));
                let (here, room) = (pieces.all.len(), pieces.all.capacity());
                prop_assert!(room <= all && (here >= RESERVE_FROM || room <= 2 * here));
            }
        }
    }
}
