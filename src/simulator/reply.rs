//! What an operation answers, and the one table of refusals: which texts the vendor is known to send, and which are made up here.

use serde_json::Value;

/// What an operation gives back: data, or the refusal that becomes a business error.
pub(super) type Outcome = Result<Data, Refusal>;

/// The success half of an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Data {
    /// The envelope with a `data` field.
    Value(Value),
    /// The envelope alone, as writes answer.
    Plain,
    /// The envelope without `errorCode`, as one page prints it (`batchUpdateCategory`).
    Short,
    /// A look-up that found nothing. Assumed: what the vendor sends isn't published; here it's a success without `data`.
    Absent,
}

impl Data {
    /// The record that was found, or `Absent`.
    pub(super) fn found(value: Option<Value>) -> Self {
        value.map_or(Self::Absent, Self::Value)
    }
}

/// Why a call is refused. Each is answered as HTTP 200 with `"status":"error"` (contract, section 4).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The day's calls are used up.
    QuotaUsedUp,
    /// This member already has a change with this `dataChangeTime`.
    Resubmitted,
    /// The barcode is taken.
    ProductExists,
    /// There is no such product.
    ProductMissing,
    /// `data-signature` is absent.
    SignatureMissing,
    /// `data-signature` isn't the signature of these bytes under this account's key.
    SignatureWrong,
    /// `time-stamp` is absent.
    StampMissing,
    /// `Content-Type` isn't JSON.
    TypeWrong,
    /// The body isn't a JSON object.
    BodyWrong,
    /// `appId` is absent or none of the accounts'.
    AccountMissing,
    /// The operation is for the chain's head office.
    HeadOfficeOnly,
    /// A required field is absent or blank.
    FieldMissing(&'static str),
    /// A field has a value of the wrong kind or range.
    FieldWrong(&'static str),
    /// A list has more entries than the operation takes.
    ListLong(&'static str),
    /// The time window is backwards or too long.
    WindowWrong,
    /// The member number is taken.
    MemberExists,
    /// There is no such member.
    MemberMissing,
    /// The member's balance doesn't cover the change.
    BalanceShort,
    /// The member's points don't cover the change.
    PointShort,
    /// A product's stock doesn't cover the order.
    StockShort,
    /// There is no such order.
    OrderMissing,
    /// The order's state doesn't allow the step.
    OrderState,
    /// The coupon code is taken.
    CouponExists,
    /// There is no such coupon code.
    CouponMissing,
    /// The coupon code was used before.
    CouponUsed,
    /// There is no such stock flow.
    FlowMissing,
    /// The stock flow was accepted or rejected before.
    FlowState,
}

/// A refusal as it goes out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    /// The only entry of `messages`.
    pub(super) message: String,
    /// `errorCode`; null where no code is known.
    pub(super) code: Option<i64>,
    /// Whether the text is the vendor's, known from a page or from a client that matches it. All others are assumed.
    pub(super) documented: bool,
}

impl Refusal {
    /// The refusal's text and code. This is the one place where such texts are written.
    pub(super) fn words(&self) -> Words {
        const DOCUMENTED: bool = true;
        const ASSUMED: bool = false;
        let (message, code, documented) = match self {
            Self::QuotaUsedUp => ("您已用完当日请求量", None, DOCUMENTED),
            Self::Resubmitted => ("重复提交修改", None, DOCUMENTED),
            // The two codes are known from a client that branches on them; their texts aren't.
            Self::ProductExists => ("barcode already exists", Some(5004), ASSUMED),
            Self::ProductMissing => ("product does not exist", Some(5001), ASSUMED),
            Self::SignatureMissing => ("data-signature is missing", None, ASSUMED),
            Self::SignatureWrong => ("data-signature is wrong", None, ASSUMED),
            Self::StampMissing => ("time-stamp is missing", None, ASSUMED),
            Self::TypeWrong => ("Content-Type is not application/json", None, ASSUMED),
            Self::BodyWrong => ("body is not a JSON object", None, ASSUMED),
            Self::AccountMissing => ("appId does not exist", None, ASSUMED),
            Self::HeadOfficeOnly => ("only the head office may ask this", None, ASSUMED),
            Self::FieldMissing(field) => return assumed(format!("{field} is required")),
            Self::FieldWrong(field) => return assumed(format!("{field} is not valid")),
            Self::ListLong(field) => return assumed(format!("{field} has too many entries")),
            Self::WindowWrong => ("the time window is not valid or too long", None, ASSUMED),
            Self::MemberExists => ("member number already exists", None, ASSUMED),
            Self::MemberMissing => ("member does not exist", None, ASSUMED),
            Self::BalanceShort => ("balance is not enough", None, ASSUMED),
            Self::PointShort => ("points are not enough", None, ASSUMED),
            Self::StockShort => ("stock is not enough", None, ASSUMED),
            Self::OrderMissing => ("order does not exist", None, ASSUMED),
            Self::OrderState => ("the order's state does not allow this", None, ASSUMED),
            Self::CouponExists => ("coupon code already exists", None, ASSUMED),
            Self::CouponMissing => ("coupon code does not exist", None, ASSUMED),
            Self::CouponUsed => ("coupon code has been used", None, ASSUMED),
            Self::FlowMissing => ("stock flow does not exist", None, ASSUMED),
            Self::FlowState => ("the stock flow's state does not allow this", None, ASSUMED),
        };
        Words {
            message: message.to_owned(),
            code,
            documented,
        }
    }
}

fn assumed(message: String) -> Words {
    Words {
        message,
        code: None,
        documented: false,
    }
}

#[cfg(test)]
mod tests {
    use crate::simulator::reply::Refusal;

    #[test]
    fn only_the_vendors_own_texts_count_as_documented() {
        assert!(Refusal::QuotaUsedUp.words().documented);
        assert!(Refusal::Resubmitted.words().documented);
        assert!(!Refusal::ProductExists.words().documented);
        assert!(!Refusal::SignatureWrong.words().documented);
        assert_eq!(
            Refusal::FieldMissing("number").words().message,
            "number is required"
        );
    }
}
