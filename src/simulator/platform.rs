//! What belongs to the account and its chain, not to the shop's trade: stores, quota, call-back address.

use serde_json::Value;
use serde_json::json;

use crate::simulator::call::Call;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;

/// `queryAllUser`: for the head office only, which here is the first configured account.
pub(super) fn query_stores(_: &mut Shop, call: &Call<'_>) -> Outcome {
    let app_ids = &call.chain.app_ids;
    if app_ids.first().is_none_or(|head| head != call.app_id) {
        return Err(Refusal::HeadOfficeOnly);
    }
    let stores = app_ids.iter().enumerate().map(|(index, app_id)| {
        json!({
            "id": index + 1, "account": format!("store{}", index + 1), "email": "", "address": "", "tel": "",
            "company": "Stand-in Shops", "industry": "", "appId": app_id, "number": format!("{:03}", index + 1),
        })
    });
    Ok(Data::Value(stores.collect()))
}

/// `queryAccessTimes`: the account's own limit, which in the stand-in never runs out.
pub(super) fn query_access_times(_: &mut Shop, call: &Call<'_>) -> Outcome {
    let limit = call.chain.quota().per_day();
    let since = "2017-10-27 00:00:00";
    let until = "2099-12-31 00:00:00";
    Ok(Data::Value(
        json!([{"appId": call.app_id, "limitTimes": limit, "startDate": since, "endDate": until}]),
    ))
}

/// `queryDailyAccessTimesLog`: every account of the chain, from the real counters; this very call is in them. Assumed: days
/// without calls are left out.
pub(super) fn query_daily_log(_: &mut Shop, call: &Call<'_>) -> Outcome {
    let window = call
        .body
        .need_window("beginDate", "endDate", LOG_DAYS_MAX)?;
    let quota = call.chain.quota();
    let days = quota.days(&window.start.day(), &window.end.day());
    let log = days.into_iter().map(|day| {
        // "Acess" is the vendor's spelling.
        json!({"appId": day.app_id, "accessDate": day.date, "limitTimes": quota.per_day(), "haveAcessTimes": day.used})
    });
    Ok(Data::Value(log.collect::<Value>()))
}

/// `queryPushUrl`.
pub(super) fn query_push_url(shop: &mut Shop, _: &Call<'_>) -> Outcome {
    Ok(Data::Value(json!({"sendUrl": shop.push_url})))
}

/// `updatePushUrl`. The stand-in remembers the address and never calls it.
pub(super) fn update_push_url(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    shop.push_url = call.body.need("pushUrl")?;
    Ok(Data::Plain)
}

/// The longest window of `queryDailyAccessTimesLog`, in days.
const LOG_DAYS_MAX: u64 = 7;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::simulator::bench::Bench;
    use crate::simulator::bench::TODAY;

    #[test]
    fn the_quota_log_counts_every_call_of_the_day_and_itself() {
        let bench = Bench::new();
        bench.call("customerOpenApi/queryAllCustomerCategory", json!({}));
        bench.call("customerOpenApi/add", json!({}));
        let today = json!({"beginDate": TODAY, "endDate": TODAY});
        let log = bench
            .call("openApiLimitAccess/queryDailyAccessTimesLog", today)
            .data()
            .unwrap();
        assert_eq!(log[0]["haveAcessTimes"], json!(3));
    }

    #[test]
    fn a_push_url_is_remembered() {
        let bench = Bench::new();
        bench.call(
            "openNotificationOpenApi/updatePushUrl",
            json!({"pushUrl": "https://example.org/hook"}),
        );
        let url = bench
            .call("openNotificationOpenApi/queryPushUrl", json!({}))
            .data()
            .unwrap();
        assert_eq!(url["sendUrl"], json!("https://example.org/hook"));
    }

    #[test]
    fn only_the_first_account_may_list_the_stores() {
        let bench = Bench::new();
        let stores = bench
            .call("userOpenApi/queryAllUser", json!({}))
            .data()
            .unwrap();
        assert_eq!(stores.as_array().map(Vec::len), Some(2));
        assert_eq!(
            bench
                .second()
                .call("userOpenApi/queryAllUser", json!({}))
                .message(),
            "only the head office may ask this"
        );
    }
}
