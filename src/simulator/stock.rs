//! Goods between shops and the counting of stock: `stockFlowOpenApi` and `stockTakingOpenApi`.
//!
//! A flow is kept by the shop that created it, and accepted or rejected there too: the stand-in moves no goods between shops.

use serde_json::json;

use crate::simulator::call::Call;
use crate::simulator::record::Record;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;
use crate::simulator::table::Direction;

/// `queryProductRequestPages`.
pub(super) fn query_request_pages(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let window = call
        .body
        .need_window("startTime", "excludeEndTime", REQUEST_DAYS_MAX)?;
    let wanted = |request: &Record| window.holds_before_end(request, "datetime");
    Ok(shop
        .product_requests
        .page(&call.body, Direction::Rising, REQUEST, wanted))
}

/// `queryProductRequestById`, by `productReuestId` (sic).
pub(super) fn query_request(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let id = call.body.need("productReuestId")?;
    Ok(Data::found(
        shop.product_requests
            .find("id", &id)
            .map(|request| request.shown(REQUEST)),
    ))
}

/// `queryStockFlowPages`. Assumed: no window is needed.
pub(super) fn query_flow_pages(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    Ok(shop
        .flows
        .page(&call.body, Direction::Rising, FLOW, |_| true))
}

/// `queryStockFlowDetailById`.
pub(super) fn query_flow(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let id = call.body.need("stockFlowId")?;
    Ok(Data::found(
        shop.flows.find("id", &id).map(|flow| flow.shown(FLOW)),
    ))
}

/// `createStockFlow`: no key against double flows. `toUserAppId` names another shop; it isn't the account that signs.
pub(super) fn create_flow(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let mut flow = call.body.need_record("stockFlow")?;
    flow.need("toUserAppId")?;
    flow.need_moment("createdDateTime")?;
    flow.need_list("items")?;
    if !matches!(
        flow.need("stockflowTypeNumber")?.as_str(),
        "12" | "13" | "14"
    ) {
        return Err(Refusal::FieldWrong("stockflowTypeNumber"));
    }
    let id = shop.flows.next_id();
    flow.set("id", id);
    flow.set("confirmed", OPEN);
    shop.flows.add(flow);
    Ok(Data::Value(json!({"stockFlowId": id})))
}

/// `acceptStockFlowOut` and `acceptStockFlowIn`. Assumed: the flow is in `stockFlowId`.
pub(super) fn accept_flow(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    close(shop, call, ACCEPTED)
}

/// `rejectStockFlowOut` and `rejectStockFlowIn`. Assumed: the flow is in `stockFlowId`.
pub(super) fn reject_flow(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    close(shop, call, REJECTED)
}

/// `queryStockTakingHistories`.
pub(super) fn query_takings(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let window = call
        .body
        .need_window("startTime", "endTime", TAKING_DAYS_MAX)?;
    Ok(shop.takings.list(&["id", "datetime"], |taking| {
        window.holds(taking, "datetime")
    }))
}

fn close(shop: &mut Shop, call: &Call<'_>, end: u8) -> Outcome {
    let id = call.body.need("stockFlowId")?;
    let flow = shop.flows.find_mut("id", &id).ok_or(Refusal::FlowMissing)?;
    if !flow.is("confirmed", &OPEN.to_string()) {
        return Err(Refusal::FlowState);
    }
    flow.set("confirmed", end);
    Ok(Data::Plain)
}

/// A request for goods; the vendor's page has more fields, of which no sample is known.
const REQUEST: &[&str] = &["id", "confirmed"];

/// A flow; assumed: the fields it was created with, its id and what became of it.
const FLOW: &[&str] = &[
    "id",
    "toUserAppId",
    "stockflowTypeNumber",
    "createdDateTime",
    "remarks",
    "paid",
    "confirmed",
    "items",
];

const OPEN: u8 = 0;
const ACCEPTED: u8 = 1;
const REJECTED: u8 = 2;

/// The longest window of `queryProductRequestPages`, in days.
const REQUEST_DAYS_MAX: u64 = 5;

/// The longest window of `queryStockTakingHistories`, in days.
const TAKING_DAYS_MAX: u64 = 90;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::simulator::bench::Bench;

    #[test]
    fn a_flow_is_created_listed_and_closed_once() {
        let bench = Bench::new();
        let flow = json!({
            "toUserAppId": "other", "paid": 0, "createdDateTime": "2026-01-01 10:00:00", "stockflowTypeNumber": 12, "items": [],
        });
        let created = bench
            .call(
                "stockFlowOpenApi/createStockFlow",
                json!({"stockFlow": flow}),
            )
            .data()
            .unwrap();
        let by_id = json!({"stockFlowId": created["stockFlowId"]});
        assert_eq!(
            bench
                .call("stockFlowOpenApi/acceptStockFlowIn", by_id.clone())
                .status(),
            "success"
        );
        assert_eq!(
            bench
                .call("stockFlowOpenApi/rejectStockFlowIn", by_id.clone())
                .status(),
            "error"
        );
        let found = bench
            .call("stockFlowOpenApi/queryStockFlowDetailById", by_id)
            .data()
            .unwrap();
        assert_eq!(
            (&found["confirmed"], &found["toUserAppId"]),
            (&json!(1), &json!("other"))
        );
    }

    #[test]
    fn a_window_that_excludes_its_end_does() {
        let bench = Bench::new();
        let count = |end: &str| {
            let body = json!({"startTime": "2017-09-01 00:00:00", "excludeEndTime": end});
            let page = bench
                .call("stockFlowOpenApi/queryProductRequestPages", body)
                .data()
                .unwrap();
            page["result"].as_array().unwrap().len()
        };
        assert_eq!(
            (count("2017-09-03 09:00:00"), count("2017-09-03 09:00:01")),
            (0, 1)
        );
    }
}
