//! Online orders: `orderOpenApi`. There is no key against double orders: each `addOnLineOrder` makes another one.

use serde_json::Value;
use serde_json::json;

use crate::simulator::amount::Amount;
use crate::simulator::call::Call;
use crate::simulator::products;
use crate::simulator::record::Record;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;
use crate::simulator::table::Direction;
use crate::simulator::tickets;

/// `addOnLineOrder`. The number is the order time's digits and five or more of our own, like the vendor's sample. Assumed: stock
/// is taken at once, and checked line by line unless `skipProductStockValidation` says not to; unknown members and products are
/// refused.
pub(super) fn add(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let body = &call.body;
    let ordered = body.need_moment("orderDateTime")?;
    for field in ["contactAddress", "contactName", "contactTel"] {
        body.need(field)?;
    }
    let lines = lines(shop, body)?;
    let sum = lines.iter().fold(Amount::ZERO, |sum, line| {
        sum.plus(line.quantity.times(line.price))
    });
    let fees = body.amount("shippingFee").plus(body.amount("packageFee"));
    let total = body
        .amount_given("totalAmount")?
        .unwrap_or_else(|| sum.plus(fees));
    let pay_method = body.text("payMethod").unwrap_or_else(|| "Cash".to_owned());
    debit(shop, body, &pay_method, total)?;
    for line in &lines {
        products::add_stock(shop, &line.uid, Amount::ZERO.minus(line.quantity));
    }
    let id = shop.orders.next_id();
    let number = format!("{}{id:05}", ordered.digits().split_off(2));
    let items = lines
        .iter()
        .map(|line| json!({"productUid": line.written_uid, "quantity": line.quantity.json()}));
    let prices = lines.iter().map(|line| line.price.json());
    let order = json!({
        "id": id, "orderNo": number, "state": State::New.number(), "payMethod": pay_method, "totalAmount": total.json(),
        "items": items.collect::<Value>(), "prices": prices.collect::<Value>(), "orderDateTime": ordered.to_string(),
        "customerNumber": body.text("customerNumber"),
    });
    shop.orders.add(Record::object(order));
    Ok(Data::Value(json!({"orderNo": number})))
}

/// `queryOrderByNo`.
pub(super) fn query_by_no(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let number = call.body.need("orderNo")?;
    Ok(Data::found(
        shop.orders
            .find("orderNo", &number)
            .map(|order| order.shown(ORDER)),
    ))
}

/// `queryOrderById`. Assumed: the id is in `orderId`, and it's the row number of `queryOrderPages`.
pub(super) fn query_by_id(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let id = call.body.need("orderId")?;
    Ok(Data::found(
        shop.orders.find("id", &id).map(|order| order.shown(ORDER)),
    ))
}

/// `queryOrderPages`.
pub(super) fn query_pages(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let window = call.body.need_window("startTime", "endTime", 1)?;
    Ok(shop
        .orders
        .page(&call.body, Direction::Rising, ORDER, |order| {
            window.holds(order, "orderDateTime")
        }))
}

/// `cancleOrder` (sic). Assumed: every order that isn't cancelled yet can be, also a completed one; stock and balance come back,
/// and the ticket of a completed one becomes invalid.
pub(super) fn cancel(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let order = step(
        shop,
        call,
        &[State::New, State::Shipped, State::Completed],
        State::Cancelled,
    )?;
    for item in order.need_records("items").unwrap_or_default() {
        let uid = item.text("productUid").unwrap_or_default();
        products::add_stock(shop, &uid, item.amount("quantity"));
    }
    if order.is("payMethod", FROM_BALANCE)
        && let Some(number) = order.text("customerNumber")
        && let Some(member) = shop.members.find_mut("number", &number)
    {
        member.set(
            "balance",
            member
                .amount("balance")
                .plus(order.amount("totalAmount"))
                .json(),
        );
    }
    let number = order.text("orderNo").unwrap_or_default();
    if let Some(ticket) = shop.tickets.find_mut("externalOrderNo", &number) {
        ticket.set("invalid", 1);
    }
    Ok(Data::Plain)
}

/// `shipOrder`.
pub(super) fn ship(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    step(shop, call, &[State::New], State::Shipped)?;
    Ok(Data::Plain)
}

/// `completeOrder`. With `shouldAddTicket` there is a sales ticket afterwards.
pub(super) fn complete(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let order = step(shop, call, &[State::New, State::Shipped], State::Completed)?;
    if call.body.says_yes("shouldAddTicket") {
        tickets::add_of_order(shop, call, &order);
    }
    Ok(Data::Plain)
}

fn step(shop: &mut Shop, call: &Call<'_>, from: &[State], to: State) -> Result<Record, Refusal> {
    let number = call.body.need("orderNo")?;
    let order = shop
        .orders
        .find_mut("orderNo", &number)
        .ok_or(Refusal::OrderMissing)?;
    if !from
        .iter()
        .any(|state| order.is("state", &state.number().to_string()))
    {
        return Err(Refusal::OrderState);
    }
    order.set("state", to.number());
    Ok(order.clone())
}

/// One line of a new order.
struct Line {
    uid: String,
    written_uid: Value,
    quantity: Amount,
    price: Amount,
}

fn lines(shop: &Shop, body: &Record) -> Result<Vec<Line>, Refusal> {
    let mut lines = Vec::new();
    for item in body.need_records("items")? {
        let uid = item.need("productUid")?;
        let product = shop
            .products
            .find("uid", &uid)
            .filter(|product| products::is_there(product));
        let product = product.ok_or(Refusal::ProductMissing)?;
        let quantity = item.need_amount("quantity")?;
        if quantity <= Amount::ZERO {
            return Err(Refusal::FieldWrong("quantity"));
        }
        if product.amount("stock") < quantity && !body.says_yes("skipProductStockValidation") {
            return Err(Refusal::StockShort);
        }
        let price = item
            .amount_given("manualSellPrice")?
            .unwrap_or_else(|| product.amount("sellPrice"));
        lines.push(Line {
            uid,
            written_uid: product.get("uid").cloned().unwrap_or_default(),
            quantity,
            price,
        });
    }
    if lines.is_empty() {
        Err(Refusal::FieldMissing("items"))
    } else {
        Ok(lines)
    }
}

fn debit(shop: &mut Shop, body: &Record, pay_method: &str, total: Amount) -> Result<(), Refusal> {
    let Some(number) = body.text("customerNumber") else {
        return if pay_method == FROM_BALANCE {
            Err(Refusal::FieldMissing("customerNumber"))
        } else {
            Ok(())
        };
    };
    let member = shop
        .members
        .find_mut("number", &number)
        .ok_or(Refusal::MemberMissing)?;
    if pay_method == FROM_BALANCE {
        let balance = member.amount("balance");
        if balance < total {
            return Err(Refusal::BalanceShort);
        }
        member.set("balance", balance.minus(total).json());
    }
    Ok(())
}

/// What has become of an order. Assumed: of the vendor's numbers only 0 is known.
#[derive(Clone, Copy)]
enum State {
    New,
    Shipped,
    Cancelled,
    Completed,
}

impl State {
    fn number(self) -> u8 {
        match self {
            Self::New => 0,
            Self::Shipped => 2,
            Self::Cancelled => 3,
            Self::Completed => 4,
        }
    }
}

/// An order as the look-ups print it.
const ORDER: &[&str] = &["orderNo", "state", "payMethod", "totalAmount", "items"];

/// The `payMethod` that debits the member.
const FROM_BALANCE: &str = "CustomerBalance";

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use crate::simulator::bench::Bench;

    fn order(pay_method: &str, quantity: i64) -> Value {
        json!({
            "payMethod": pay_method, "customerNumber": "8008010003", "orderDateTime": "2026-01-02 03:04:05",
            "contactAddress": "a", "contactName": "b", "contactTel": "c",
            "items": [{"productUid": 102_066_793_346_170_331_i64, "quantity": quantity, "manualSellPrice": 30.2}],
        })
    }

    fn add(bench: &Bench, body: Value) -> String {
        let data = bench
            .call("orderOpenApi/addOnLineOrder", body)
            .data()
            .unwrap();
        data["orderNo"].as_str().unwrap().to_owned()
    }

    fn balance(bench: &Bench) -> Value {
        let member = bench.call(
            "customerOpenApi/queryByNumber",
            json!({"customerNum": "8008010003"}),
        );
        member.data().unwrap()["balance"].clone()
    }

    #[test]
    fn the_same_order_sent_twice_is_two_orders() {
        let bench = Bench::new();
        let numbers = [add(&bench, order("Cash", 1)), add(&bench, order("Cash", 1))];
        assert_eq!(numbers, ["26010203040500002", "26010203040500003"]);
    }

    #[test]
    fn an_order_from_the_balance_debits_the_member_until_it_is_cancelled() {
        let bench = Bench::new();
        assert_eq!(balance(&bench), json!(400));
        let number = add(&bench, order("CustomerBalance", 2));
        assert_eq!(balance(&bench), json!(339.6));
        assert_eq!(
            bench
                .call("orderOpenApi/cancleOrder", json!({"orderNo": number}))
                .status(),
            "success"
        );
        assert_eq!(balance(&bench), json!(400));
        let refused = bench.call("orderOpenApi/addOnLineOrder", order("CustomerBalance", 100));
        assert_eq!(refused.message(), "balance is not enough");
    }

    #[test]
    fn a_completed_order_has_a_ticket_and_can_only_be_cancelled() {
        let bench = Bench::new();
        let number = add(&bench, order("Cash", 2));
        let by_no = |operation: &str| {
            bench
                .call(
                    &format!("orderOpenApi/{operation}"),
                    json!({"orderNo": number, "shouldAddTicket": true}),
                )
                .status()
        };
        let steps = [
            "shipOrder",
            "shipOrder",
            "completeOrder",
            "completeOrder",
            "cancleOrder",
            "cancleOrder",
            "completeOrder",
        ];
        let statuses: Vec<String> = steps.iter().map(|step| by_no(step)).collect();
        assert_eq!(
            statuses,
            [
                "success", "error", "success", "error", "success", "error", "error"
            ]
        );
        let ticket = bench
            .call(
                "ticketOpenApi/queryTicketByOrderNo",
                json!({"orderNo": number}),
            )
            .data()
            .unwrap();
        assert_eq!(
            (&ticket["totalAmount"], &ticket["invalid"]),
            (&json!(60.4), &json!(1))
        );
    }

    #[test]
    fn stock_is_checked_unless_the_order_says_not_to() {
        let bench = Bench::new();
        let mut body = order("Cash", 2_000_000);
        assert_eq!(
            bench
                .call("orderOpenApi/addOnLineOrder", body.clone())
                .message(),
            "stock is not enough"
        );
        body["skipProductStockValidation"] = json!(true);
        assert_eq!(
            bench.call("orderOpenApi/addOnLineOrder", body).status(),
            "success"
        );
    }
}
