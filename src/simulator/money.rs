//! Members' money: balance and point changes with the vendor's rule against double changes, and the recharge logs.

use serde_json::json;

use crate::simulator::amount::Amount;
use crate::simulator::call::Call;
use crate::simulator::record::Record;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;
use crate::simulator::table::Direction;

/// `updateBalancePointByIncrement`. A second change with the same `customerUid` and `dataChangeTime` is refused, whatever its
/// amounts (contract, section 3, "The dedup rule"). Assumed: a refused change leaves its `dataChangeTime` free, and money paid
/// in appears in the recharge log.
pub(super) fn increment(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let body = &call.body;
    let uid = body.need("customerUid")?;
    let changed = body.need_moment("dataChangeTime")?.to_string();
    let balance = body
        .amount_given("balanceIncrement")?
        .unwrap_or(Amount::ZERO);
    let point = body.amount_given("pointIncrement")?.unwrap_or(Amount::ZERO);
    let member = shop
        .members
        .find_mut("customerUid", &uid)
        .ok_or(Refusal::MemberMissing)?;
    let changes = shop.changes.entry(uid.clone()).or_default();
    if changes.contains(&changed) {
        return Err(Refusal::Resubmitted);
    }
    let (balance_before, point_before) = (member.amount("balance"), member.amount("point"));
    let (balance_after, point_after) = (balance_before.plus(balance), point_before.plus(point));
    if body.says_yes("validateBalance") && balance_after < Amount::ZERO {
        return Err(Refusal::BalanceShort);
    }
    if body.says_yes("validatePoint") && point_after < Amount::ZERO {
        return Err(Refusal::PointShort);
    }
    changes.insert(changed.clone());
    if changes.len() > CHANGES_MAX {
        changes.pop_first();
    }
    member.set("balance", balance_after.json());
    member.set("point", point_after.json());
    let customer_uid = member.get("customerUid").cloned().unwrap_or_default();
    if balance > Amount::ZERO {
        let paid = json!({
            "rechargeStoreAppId": call.app_id, "rechargeStoreAccount": STORE_ACCOUNT, "customerUid": customer_uid,
            "rechargeMoney": balance.json(), "giftMoney": 0, "datetime": call.now.to_string(), "payMethod": "Cash",
            "customerMoneyAfterRecharge": balance_after.json(), "uid": shop.new_uid().to_string(),
        });
        shop.recharges.add(Record::object(paid));
    }
    Ok(Data::Value(json!({
        "customerUid": customer_uid,
        "balanceBeforeUpdate": balance_before.json(),
        "balanceAfterUpdate": balance_after.json(),
        "balanceIncrement": balance.json(),
        "pointBeforeUpdate": point_before.json(),
        "pointAfterUpdate": point_after.json(),
        "pointIncrement": point.json(),
        "dataChangeTime": changed,
        "updateCustomerTime": call.now.to_string(),
    })))
}

/// `queryCustomerRechargeLog`. This page, unlike the other, prints uid and money as strings.
pub(super) fn query_recharges(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("customerUid")?;
    let Data::Value(mut logs) = shop.recharges.list(LOG, |log| log.is("customerUid", &uid)) else {
        return Ok(Data::Absent);
    };
    for log in logs.as_array_mut().into_iter().flatten() {
        for field in ["customerUid", "rechargeMoney"] {
            log[field] = log[field].to_string().into();
        }
    }
    Ok(Data::Value(logs))
}

/// `queryAllRechargeLogs`. The start really is spelt `stateDate`, and it's exclusive.
pub(super) fn query_all_recharges(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let window = call
        .body
        .need_window("stateDate", "endDate", LOG_DAYS_MAX)?;
    let start = window.start.to_string();
    let wanted = |log: &Record| window.holds(log, "datetime") && !log.is("datetime", &start);
    Ok(shop
        .recharges
        .page(&call.body, Direction::Rising, LOG_OF_ALL, wanted))
}

const LOG: &[&str] = &[
    "rechargeStoreAppId",
    "rechargeStoreAccount",
    "customerUid",
    "rechargeMoney",
    "giftMoney",
    "datetime",
    "payMethod",
    "customerMoneyAfterRecharge",
];

const LOG_OF_ALL: &[&str] = &[
    "rechargeStoreAccount",
    "customerUid",
    "rechargeMoney",
    "giftMoney",
    "datetime",
    "uid",
    "payMethod",
    "customerMoneyAfterRecharge",
];

/// The account name that the stand-in signs recharges with.
const STORE_ACCOUNT: &str = "stand-in";

/// The longest window of `queryAllRechargeLogs`, in days.
const LOG_DAYS_MAX: u64 = 31;

/// The most change times that are remembered of one member; the oldest go first.
const CHANGES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use crate::simulator::bench::Bench;

    const INCREMENT: &str = "customerOpenApi/updateBalancePointByIncrement";

    fn change(increment: Value, time: &str) -> Value {
        json!({"customerUid": 231_607_639_459_718_452_i64, "balanceIncrement": increment, "dataChangeTime": time})
    }

    #[test]
    fn a_change_with_a_known_time_is_refused_whatever_its_amount() {
        let bench = Bench::new();
        let first = bench.call(INCREMENT, change(json!(0.1), "2015-12-16 13:26:23"));
        assert_eq!(first.data().unwrap()["balanceAfterUpdate"], json!(400.1));
        let second = bench.call(INCREMENT, change(json!(7), "2015-12-16 13:26:23"));
        assert_eq!(
            (second.message(), second.code()),
            ("重复提交修改".to_owned(), json!(null))
        );
        let third = bench.call(INCREMENT, change(json!("-0.1"), "2015-12-16 13:26:24"));
        assert_eq!(
            third.data().unwrap()["balanceAfterUpdate"].to_string(),
            "400"
        );
    }

    #[test]
    fn a_balance_is_checked_only_when_asked() {
        let bench = Bench::new();
        let mut body = change(json!(-1000), "2015-12-16 13:26:23");
        body["validateBalance"] = json!(1);
        assert_eq!(
            bench.call(INCREMENT, body.clone()).message(),
            "balance is not enough"
        );
        body["validateBalance"] = json!(0);
        assert_eq!(
            bench.call(INCREMENT, body).data().unwrap()["balanceAfterUpdate"],
            json!(-600)
        );
    }

    #[test]
    fn money_paid_in_appears_in_the_recharge_log() {
        let bench = Bench::new();
        bench.call(INCREMENT, change(json!(50), "2015-12-16 13:26:23"));
        let logs = bench.call(
            "customerOpenApi/queryCustomerRechargeLog",
            json!({"customerUid": 231_607_639_459_718_452_i64}),
        );
        assert_eq!(logs.data().unwrap()[0]["rechargeMoney"], json!("50"));
    }

    #[test]
    fn a_log_window_is_open_at_its_start_and_a_month_at_most() {
        let bench = Bench::new();
        let count = |start: &str, end: &str| {
            let reply = bench.call(
                "customerOpenApi/queryAllRechargeLogs",
                json!({"stateDate": start, "endDate": end}),
            );
            reply
                .data()
                .map(|page| page["result"].as_array().unwrap().len())
        };
        assert_eq!(count("2017-05-03 11:40:14", "2017-05-03 11:40:15"), Some(1));
        assert_eq!(count("2017-05-03 11:40:15", "2017-05-04 00:00:00"), Some(0));
        assert_eq!(count("2017-05-01 00:00:00", "2017-06-01 00:00:01"), None);
    }
}
