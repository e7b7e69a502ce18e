//! What happened to a call, in the one word that callers, logs and dashboards share, and what of it may have left.

/// The `Kybio-Gateway-Outcome` header's value, and the label of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// KYBIO answered success.
    Done,
    /// KYBIO answered with an error; whether anything changed is its word in that body.
    Rejected,
    /// No byte left: every refusal by the gateway, and every attempt that provably didn't leave.
    NotSent,
    /// It left and no trustworthy answer came. For a read that costs only a call.
    Unknown,
}

impl Outcome {
    /// All of them, for metrics that exist from zero.
    pub const ALL: [Self; 4] = [Self::Done, Self::Rejected, Self::NotSent, Self::Unknown];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Rejected => "rejected",
            Self::NotSent => "not-sent",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether the vendor may have seen an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It provably didn't: no connection, the request was handed back, or not one byte was accepted since it was handed over.
    Nothing,
    /// It may have. Nothing else proves anything.
    Perhaps,
}
