//! Error answers that are known, by code or by a fragment of a message, and what each means. Data alone: the vendor's table was never
//! found (contract, section 4), so no code is known to the program itself.

use serde::Deserialize;

/// A business answer that is known by its code or by a fragment of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `errorCode`.
    pub code: Option<i64>,
    /// A fragment of one of the `messages`.
    pub message: Option<String>,
    /// What it means for the caller.
    pub class: AnswerClass,
}

/// What a known answer means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerClass {
    /// Refused.
    Rejected,
    /// Already there, put by an earlier try or by another.
    Duplicate,
    /// No calls left today.
    QuotaExhausted,
    /// appId or signature not accepted.
    Credential,
    /// May pass later.
    Transient,
}

impl AnswerClass {
    /// As the catalogue and the logs write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Duplicate => "duplicate",
            Self::QuotaExhausted => "quota-exhausted",
            Self::Credential => "credential",
            Self::Transient => "transient",
        }
    }
}

/// All that are known, the operator's first.
#[derive(Clone, Debug, Default)]
pub struct Answers(Vec<Answer>);

impl Answers {
    /// Of two that fit the earlier counts.
    #[must_use]
    pub fn new(answers: Vec<Answer>) -> Self {
        Self(answers)
    }

    /// More of them, which count before those that are there.
    pub fn put_first(&mut self, answers: Vec<Answer>) {
        self.0.splice(0..0, answers);
    }

    /// What an error answer means. One that isn't known is an ordinary rejection.
    #[must_use]
    pub fn classify<T: AsRef<str>>(&self, code: Option<i64>, messages: &[T]) -> AnswerClass {
        let fits = |answer: &&Answer| {
            let by_code = answer.code.is_none_or(|known| code == Some(known));
            let by_message = answer.message.as_ref().is_none_or(|fragment| {
                messages
                    .iter()
                    .any(|message| message.as_ref().contains(&**fragment))
            });
            by_code && by_message
        };
        let known = self.0.iter().find(fits);
        known.map_or(AnswerClass::Rejected, |answer| answer.class)
    }

    /// The codes that are known, which are counted by themselves.
    pub fn codes(&self) -> impl Iterator<Item = i64> {
        self.0.iter().filter_map(|answer| answer.code)
    }
}

#[cfg(test)]
mod tests {
    use super::Answer;
    use super::AnswerClass;
    use super::Answers;

    fn answer(code: Option<i64>, message: Option<&str>, class: AnswerClass) -> Answer {
        Answer {
            code,
            message: message.map(ToOwned::to_owned),
            class,
        }
    }

    #[test]
    fn an_answer_is_known_by_code_and_fragment_and_the_first_that_fits_counts() {
        let answers = Answers::new(vec![
            answer(Some(7), Some("busy"), AnswerClass::Transient),
            answer(Some(7), None, AnswerClass::Credential),
            answer(None, Some("重复"), AnswerClass::Duplicate),
        ]);
        let cases = [
            (Some(7), vec!["too busy now"], AnswerClass::Transient),
            (Some(7), vec!["other"], AnswerClass::Credential),
            (Some(7), vec![], AnswerClass::Credential),
            (None, vec!["x", "重复提交修改"], AnswerClass::Duplicate),
            (Some(8), vec!["重复提交修改"], AnswerClass::Duplicate),
            (Some(8), vec!["busy"], AnswerClass::Rejected),
            (None, vec![], AnswerClass::Rejected),
        ];
        for (code, messages, expected) in cases {
            assert_eq!(
                answers.classify(code, &messages),
                expected,
                "{code:?} {messages:?}"
            );
        }
        assert_eq!(answers.codes().collect::<Vec<_>>(), [7, 7]);
    }
}
