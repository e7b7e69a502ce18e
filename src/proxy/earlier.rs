//! What several attempts of one call come to. Pure: it's told what each of them met, and says what the caller hears.

use crate::answers::AnswerClass;
use crate::outcome::Outcome;
use crate::proxy::error::Error;
use crate::proxy::forward::Verdict;
use crate::reply::Reply;
use crate::upstream;

/// What attempts before the last one met: each in a box, because mostly there were none.
#[derive(Default)]
pub(super) struct Earlier {
    /// The latest that may have left and got no trustworthy answer.
    lost: Option<Box<Error>>,
    /// The latest that was answered, with a no for now.
    answered: Option<Box<Verdict>>,
    /// The latest of which nothing left.
    unsent: Option<Box<Error>>,
}

impl Earlier {
    pub(super) fn keep(&mut self, verdict: Verdict) {
        match verdict {
            Err(error) => match error.outcome() {
                Outcome::NotSent => self.unsent = Some(error.into()),
                Outcome::Unknown => self.lost = Some(error.into()),
                Outcome::Done | Outcome::Rejected => self.answered = Some(Err(error).into()),
            },
            Ok(reply) => self.answered = Some(Ok(reply).into()),
        }
    }

    /// One of them may have left, and nobody knows what became of it.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Something may have reached the host.
    pub(super) fn has_left(&self) -> bool {
        self.lost.is_some() || self.answered.is_some()
    }

    /// The verdict on the whole call. What the last attempt met says nothing of one that was lost before it, but for two cases: a
    /// success, and the vendor's word that it has taken these very bytes already. And a call of which one attempt reached the host
    /// wasn't unsent because the last one was.
    pub(super) fn settle(self, last: Verdict, read: bool) -> Verdict {
        let (explains, unsent) = match &last {
            Ok(reply) => (
                read || reply.verdict().success || is_duplicate(reply),
                false,
            ),
            Err(error) => match error.outcome() {
                Outcome::Unknown => (true, false),
                Outcome::Rejected | Outcome::Done => (read, false),
                Outcome::NotSent => (false, true),
            },
        };
        let refused = matches!(last, Err(Error::Upstream(upstream::Error::Down)));
        match (self.lost, self.answered, self.unsent) {
            (Some(lost), _, _) if !explains => Err(*lost),
            (None, Some(answered), _) if unsent => *answered,
            // It has fallen meanwhile; what the attempt before met is the real error.
            (None, None, Some(error)) if refused => Err(*error),
            _ => last,
        }
    }
}

/// The vendor says that it has it already.
pub(super) fn is_duplicate(reply: &Reply) -> bool {
    reply.verdict().class == Some(AnswerClass::Duplicate)
}

#[cfg(test)]
mod tests {
    use super::Earlier;
    use crate::answers::Answer;
    use crate::answers::AnswerClass;
    use crate::answers::Answers;
    use crate::outcome::Left;
    use crate::outcome::Outcome;
    use crate::proxy::error::Error;
    use crate::proxy::forward::Verdict;
    use crate::reply;
    use crate::upstream;
    use bytes::Bytes;
    use http::HeaderMap;
    use http::StatusCode;

    fn answered(status: u16, body: &'static str) -> Verdict {
        let answers = Answers::new(vec![Answer {
            code: Some(1),
            message: None,
            class: AnswerClass::Duplicate,
        }]);
        let status = StatusCode::from_u16(status).expect("a status");
        let body = Bytes::from_static(body.as_bytes());
        reply::read(status, &HeaderMap::new(), body, 999, &answers).map_err(Error::Reply)
    }

    /// What the last of several attempts met, and what is told if an earlier one of a write, or of a read, was lost.
    #[test]
    fn a_lost_attempt_of_a_write_is_explained_by_nothing_but_success_and_duplicate() {
        const LOST: &str = "no whole reply in time";
        type Met = fn() -> Verdict;
        let cases: [(Met, &str, &str); 7] = [
            (|| answered(200, r#"{"status":"success"}"#), "", ""),
            (
                || answered(200, r#"{"status":"error","errorCode":1}"#),
                "",
                "",
            ),
            (
                || answered(200, r#"{"status":"error","errorCode":2}"#),
                LOST,
                "",
            ),
            (
                || answered(403, ""),
                LOST,
                "the upstream refused with HTTP status 403 Forbidden",
            ),
            (
                || answered(200, "<html>"),
                "the reply isn't a KYBIO answer",
                "the reply isn't a KYBIO answer",
            ),
            (
                || Err(Error::Upstream(upstream::Error::ConnectTimeout)),
                LOST,
                LOST,
            ),
            (|| Err(Error::Upstream(upstream::Error::Down)), LOST, LOST),
        ];
        for (met, write, read) in cases {
            for (is_read, expected) in [(false, write), (true, read)] {
                let lost = || Error::Upstream(upstream::Error::Timeout(Left::Perhaps));
                let mut earlier = Earlier::default();
                earlier.keep(Err(lost()));
                assert!(earlier.has_left());
                let told = earlier.settle(met(), is_read);
                let text = told.as_ref().err().map(ToString::to_string);
                assert_eq!(text.unwrap_or_default(), expected);
                if expected == LOST {
                    assert_eq!(
                        told.map_err(|error| error.outcome()).err(),
                        Some(Outcome::Unknown)
                    );
                }
                // Nothing was lost: the last word counts.
                let told = Earlier::default().settle(met(), is_read);
                let last = met().err().map(|error| error.to_string());
                assert_eq!(told.err().map(|error| error.to_string()), last);
            }
        }
    }

    #[test]
    fn a_call_that_was_answered_once_was_not_unsent() {
        type Met = fn() -> Verdict;
        let unsent: Met = || Err(Error::Upstream(upstream::Error::ConnectTimeout));
        let down: Met = || Err(Error::Upstream(upstream::Error::Down));
        let refused: Met = || answered(429, "");
        let transient: Met = || answered(200, r#"{"status":"error"}"#);
        let cases: [(&[Met], Met, &str); 6] = [
            (
                &[refused],
                unsent,
                "the upstream refused with HTTP status 429 Too Many Requests",
            ),
            (
                &[refused],
                down,
                "the upstream refused with HTTP status 429 Too Many Requests",
            ),
            (&[transient], unsent, ""),
            (&[transient, unsent], down, ""),
            (&[unsent], down, "no connection within the connect timeout"),
            (
                &[],
                down,
                "the host is down: too many calls to it have failed",
            ),
        ];
        for (earlier, last, expected) in cases {
            let mut kept = Earlier::default();
            earlier.iter().for_each(|met| kept.keep(met()));
            let told = kept.settle(last(), true).err();
            assert_eq!(
                told.map(|error| error.to_string()).unwrap_or_default(),
                expected
            );
        }
    }
}
