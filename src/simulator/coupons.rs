//! Coupon codes: the part of `promotionOpenApi` that has state.
//!
//! The field names of these replies are assumed; that a code is unique for a shop and used only once is documented.

use serde_json::json;

use crate::simulator::call::Call;
use crate::simulator::record::Record;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;
use crate::simulator::table::Direction;

/// `promotion/addCouponcode`.
pub(super) fn add(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let code = call.body.need("code")?;
    if code.chars().count() > CODE_LENGTH_MAX {
        return Err(Refusal::FieldWrong("code"));
    }
    if shop.coupons.find("code", &code).is_some() {
        return Err(Refusal::CouponExists);
    }
    let fields = json!({"uid": shop.new_uid(), "code": code, "used": 0, "usedDate": "", "createdDate": call.now.to_string()});
    let mut coupon = Record::object(fields);
    coupon.take_values(&call.body, &["promotionCouponUid", "customerUid"]);
    shop.coupons.add(coupon);
    Ok(Data::Plain)
}

/// `promotioncouponcode/use`.
pub(super) fn spend(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let code = call.body.need("code")?;
    let coupon = shop
        .coupons
        .find_mut("code", &code)
        .ok_or(Refusal::CouponMissing)?;
    if coupon.says_yes("used") {
        return Err(Refusal::CouponUsed);
    }
    coupon.set("used", 1);
    coupon.set("usedDate", call.now.to_string());
    Ok(Data::Plain)
}

/// `queryCustomerCouponCodePage`.
pub(super) fn query_of_member(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("customerUid")?;
    Ok(shop
        .coupons
        .page(&call.body, Direction::Rising, COUPON, |coupon| {
            coupon.is("customerUid", &uid)
        }))
}

/// `queryUsedPromotionCode`.
pub(super) fn query_used(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let window = call
        .body
        .need_window("startTime", "excludeEndTime", USED_DAYS_MAX)?;
    let wanted =
        |coupon: &Record| coupon.says_yes("used") && window.holds_before_end(coupon, "usedDate");
    Ok(shop
        .coupons
        .page(&call.body, Direction::Rising, COUPON, wanted))
}

const COUPON: &[&str] = &[
    "uid",
    "promotionCouponUid",
    "code",
    "customerUid",
    "used",
    "usedDate",
    "createdDate",
];

/// The longest coupon code, in characters (contract, section 3).
const CODE_LENGTH_MAX: usize = 50;

/// The longest window of `queryUsedPromotionCode`, in days.
const USED_DAYS_MAX: u64 = 5;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::simulator::bench::Bench;

    #[test]
    fn a_coupon_code_is_added_once_and_used_once() {
        let bench = Bench::new();
        let body = json!({"code": "C-1", "customerUid": 7});
        let steps = [
            "promotion/addCouponcode",
            "promotion/addCouponcode",
            "promotioncouponcode/use",
            "promotioncouponcode/use",
        ];
        let statuses: Vec<String> = steps
            .iter()
            .map(|step| {
                bench
                    .call(&format!("promotionOpenApi/{step}"), body.clone())
                    .status()
            })
            .collect();
        assert_eq!(statuses, ["success", "error", "success", "error"]);
        let page = bench
            .call(
                "promotionOpenApi/queryCustomerCouponCodePage",
                json!({"customerUid": "7"}),
            )
            .data()
            .unwrap();
        assert_eq!(page["result"][0]["used"], json!(1));
    }
}
