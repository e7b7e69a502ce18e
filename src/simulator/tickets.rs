//! Tickets, that is sales and refunds, and ways of paying: `ticketOpenApi`.

use serde_json::Value;
use serde_json::json;

use crate::simulator::amount::Amount;
use crate::simulator::call::Call;
use crate::simulator::record::Record;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;
use crate::simulator::table::Direction;

/// `queryAllPayMethod` and `queryMyPayMethod`.
pub(super) fn query_pay_methods(_: &mut Shop, _: &Call<'_>) -> Outcome {
    Ok(Data::Value(
        json!([{"code": "payCode_1", "name": "现金"}, {"code": FROM_BALANCE_CODE, "name": "储值卡"}]),
    ))
}

/// `queryTicketBySn`.
pub(super) fn query_by_sn(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let sn = call.body.need("sn")?;
    one(shop, |ticket| ticket.is("sn", &sn))
}

/// `queryTicketByUid`. Assumed: the uid is in `uid`.
pub(super) fn query_by_uid(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("uid")?;
    one(shop, |ticket| ticket.is("uid", &uid))
}

/// `queryTicketByOrderNo`.
pub(super) fn query_by_order_no(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let number = call.body.need("orderNo")?;
    one(shop, |ticket| ticket.is("externalOrderNo", &number))
}

/// `queryTicketPages`: a day at most, unless `noLimitTimeRange` says otherwise.
pub(super) fn query_pages(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let days = if call.body.says_yes("noLimitTimeRange") {
        DAYS_UNLIMITED
    } else {
        1
    };
    let window = call.body.need_window("startTime", "endTime", days)?;
    Ok(shop
        .tickets
        .page(&call.body, Direction::Rising, TICKET, |ticket| {
            window.holds(ticket, "datetime")
        }))
}

/// `queryCustomerHistoryTicketsByUid`: newest first, as the `LAST_RESULT_MIN_ID` of the vendor's page suggests.
pub(super) fn query_history(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("customerUid")?;
    let window = call
        .body
        .need_window("startTime", "endTime", DAYS_UNLIMITED)?;
    let wanted =
        |ticket: &Record| ticket.is("customerUid", &uid) && window.holds(ticket, "datetime");
    Ok(shop
        .tickets
        .page(&call.body, Direction::Falling, TICKET, wanted))
}

/// `queryRefunTicketBySellTicketUid` (sic, as is `sellTcketUid`).
pub(super) fn query_refunds_by_uid(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("sellTcketUid")?;
    Ok(shop
        .tickets
        .list(TICKET, |ticket| ticket.is("sellUid", &uid)))
}

/// `queryRefunTicketBySellTicketSn` (sic).
pub(super) fn query_refunds_by_sn(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let sn = call.body.need("sellTcketSn")?;
    Ok(shop.tickets.list(TICKET, |ticket| ticket.is("sellSn", &sn)))
}

/// `querySellTicketByRefunTicketUid` (sic). Assumed: one ticket, not a list.
pub(super) fn query_sale_by_uid(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("refunTcketUid")?;
    sale_of(shop, |refund| refund.is("uid", &uid))
}

/// `querySellTicketByRefunTicketSn` (sic). Assumed: one ticket, not a list.
pub(super) fn query_sale_by_sn(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let sn = call.body.need("refunTcketSn")?;
    sale_of(shop, |refund| refund.is("sn", &sn))
}

/// The sales ticket of a completed order.
pub(super) fn add_of_order(shop: &mut Shop, call: &Call<'_>, order: &Record) {
    let member = order
        .text("customerNumber")
        .and_then(|number| shop.members.find("number", &number));
    let customer_uid = member
        .and_then(|member| member.get("customerUid").cloned())
        .unwrap_or_else(|| 0.into());
    let prices = order.need_list("prices").unwrap_or_default();
    let sold: Vec<Record> = order.need_records("items").unwrap_or_default();
    let items: Vec<Record> = sold
        .iter()
        .zip(prices)
        .map(|(item, price)| item_of(shop, item, price))
        .collect();
    let profit = items.iter().fold(Amount::ZERO, |sum, item| {
        sum.plus(item.amount("totalProfit"))
    });
    let code = if order.is("payMethod", "CustomerBalance") {
        FROM_BALANCE_CODE
    } else {
        "payCode_1"
    };
    let total = order.amount("totalAmount").json();
    let ticket = json!({
        "uid": shop.new_uid(), "cashierUid": CASHIER_UID, "customerUid": customer_uid,
        "sn": format!("{}000{:04}", call.now.digits(), shop.tickets.next_id()), "datetime": call.now.to_string(),
        "totalAmount": total, "totalProfit": profit.json(), "discount": 100,
        "externalOrderNo": order.text("orderNo"), "rounding": 0, "ticketType": "SELL", "invalid": 0,
        "payments": [{"code": code, "amount": total}],
        "items": items.iter().map(|item| item.shown(ITEM)).collect::<Value>(),
    });
    shop.tickets.add(Record::object(ticket));
}

fn item_of(shop: &Shop, item: &Record, price: &Value) -> Record {
    let uid = item.text("productUid").unwrap_or_default();
    let product = shop.products.find("uid", &uid).cloned().unwrap_or_default();
    let quantity = item.amount("quantity");
    let price = Amount::read(price).unwrap_or(Amount::ZERO);
    let margin = price.minus(product.amount("buyPrice"));
    let mut line = product;
    line.set("sellPrice", price.json());
    line.set("quantity", quantity.json());
    line.set("discount", 100);
    line.set("customerDiscount", 100);
    line.set("totalAmount", quantity.times(price).json());
    line.set("totalProfit", quantity.times(margin).json());
    line.set(
        "productUid",
        item.get("productUid").cloned().unwrap_or_default(),
    );
    line.set("ticketitemattributes", Value::Array(Vec::new()));
    line
}

fn one(shop: &Shop, wanted: impl Fn(&Record) -> bool) -> Outcome {
    Ok(Data::found(
        shop.tickets
            .first(wanted)
            .map(|ticket| ticket.shown(TICKET)),
    ))
}

fn sale_of(shop: &Shop, is_refund: impl Fn(&Record) -> bool) -> Result<Data, Refusal> {
    let uid = shop
        .tickets
        .first(is_refund)
        .and_then(|refund| refund.text("sellUid"));
    uid.map_or(Ok(Data::Absent), |uid| {
        one(shop, |ticket| ticket.is("uid", &uid))
    })
}

/// A ticket as the look-ups print it.
const TICKET: &[&str] = &[
    "cashierUid",
    "customerUid",
    "sn",
    "datetime",
    "totalAmount",
    "totalProfit",
    "discount",
    "externalOrderNo",
    "rounding",
    "ticketType",
    "invalid",
    "payments",
    "items",
];

const ITEM: &[&str] = &[
    "name",
    "buyPrice",
    "sellPrice",
    "customerPrice",
    "quantity",
    "discount",
    "customerDiscount",
    "totalAmount",
    "totalProfit",
    "isCustomerDiscount",
    "productUid",
    "ticketitemattributes",
];

/// The cashier of every ticket.
pub(super) const CASHIER_UID: i64 = 832_101_480_292_933_201;

const FROM_BALANCE_CODE: &str = "payCode_2";

/// As good as no limit, and no overflow: a century.
const DAYS_UNLIMITED: u64 = 36_525;

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use crate::simulator::bench::Bench;

    #[test]
    fn a_refund_and_its_sale_lead_to_each_other() {
        let bench = Bench::new();
        let refunds = bench.call(
            "ticketOpenApi/queryRefunTicketBySellTicketSn",
            json!({"sellTcketSn": "201511121602084680006"}),
        );
        let refund = refunds.data().unwrap()[0].clone();
        assert_eq!(refund["ticketType"], json!("SELL_RETURN"));
        let sale = bench.call(
            "ticketOpenApi/querySellTicketByRefunTicketSn",
            json!({"refunTcketSn": refund["sn"]}),
        );
        assert_eq!(sale.data().unwrap()["sn"], json!("201511121602084680006"));
    }

    #[test]
    fn a_window_of_more_than_a_day_needs_its_flag() {
        let bench = Bench::new();
        let mut body =
            json!({"startTime": "2015-11-01 00:00:00", "endTime": "2015-11-30 00:00:00"});
        assert_eq!(
            bench
                .call("ticketOpenApi/queryTicketPages", body.clone())
                .status(),
            "error"
        );
        body["noLimitTimeRange"] = json!(1);
        let page = bench
            .call("ticketOpenApi/queryTicketPages", body)
            .data()
            .unwrap();
        assert_eq!(page["result"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn a_window_in_the_future_is_an_empty_success() {
        let body = json!({"startTime": "2099-01-01 00:00:00", "endTime": "2099-01-01 23:59:59"});
        let page = Bench::new()
            .call("ticketOpenApi/queryTicketPages", body)
            .data()
            .unwrap();
        assert_eq!(page["result"], Value::Array(Vec::new()));
    }
}
