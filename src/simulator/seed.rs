//! What every shop has from the start, so that each of the vendor's sample requests finds what it asks for.
//!
//! | what | which |
//! |---|---|
//! | members | 8008010001 (uid 813951242628553689, 张三, phone 17759205640), which may be added once as if it were new; 8008010003 (uid 231607639459718452, balance 400, points 300); and seven more, see `MEMBERS` |
//! | member categories | Gold card 1393920057254848127, 金卡 1511175366406782539, 银卡 1511175307516185345 |
//! | recharges | 2016-10-28 of 677793671220529313, 2017-05-03 of 363700050656122383 |
//! | products | barcode 1001 (uid 1366004607492564649, Jade Cabbage), 000000001, 000000002, 000000003 (uid 102066793346170331), 000000004 (Coffee), all in category 813701230071893827 |
//! | tickets | two sales and one member's sale on 2015-11-12, and a refund of 201511121602084680006 (uid 66663989680866397) on the next day |
//! | order | 16030112000000001, of 2016-03-01 12:00:00 |
//! | stock | request 14726234055 of 2017-09-03, stock taking 8422 of 2017-09-07 |
//! | push url | `https://example.com/pospal/hook` |
//! | quota log | 996 calls on 2017-10-27 and 456 on 2017-10-28, or the daily quota if that is less |

use serde_json::json;

use crate::simulator::members;
use crate::simulator::products;
use crate::simulator::quota::Day;
use crate::simulator::quota::Quota;
use crate::simulator::record::Record;
use crate::simulator::shop::Shop;
use crate::simulator::table::Table;
use crate::simulator::tickets;

/// A shop as it's found at the first call.
pub(super) fn shop() -> Shop {
    let mut shop = Shop::default();
    shop.push_url = "https://example.com/pospal/hook".to_owned();
    seed_members(&mut shop);
    seed_recharges(&mut shop.recharges);
    seed_products(&mut shop);
    seed_tickets(&mut shop.tickets);
    shop.orders.put(
        1,
        Record::object(json!({
            "id": 1, "orderNo": "16030112000000001", "state": 0, "payMethod": "Cash", "totalAmount": 36.24,
            "items": [{"productUid": ORDERED_PRODUCT, "quantity": 1.2}], "prices": [30.2],
            "orderDateTime": "2016-03-01 12:00:00", "customerNumber": "8008010001",
        })),
    );
    let id = 14_726_234_055;
    shop.product_requests.put(
        id,
        Record::object(json!({"id": id, "confirmed": 0, "datetime": "2017-09-03 09:00:00"})),
    );
    shop.takings.put(
        8422,
        Record::object(json!({"id": 8422, "datetime": "2017-09-07 11:47:31"})),
    );
    shop
}

/// The two days that the vendor's sample of the quota log shows.
pub(super) fn remember_days(quota: &mut Quota, app_id: &str) {
    for (date, used) in [("2017-10-27", 996), ("2017-10-28", 456)] {
        let used = used.min(quota.per_day());
        quota.remember(Day {
            app_id: app_id.to_owned(),
            date: date.to_owned(),
            used,
        });
    }
}

fn seed_members(shop: &mut Shop) {
    for (uid, number, name) in MEMBERS {
        shop.members
            .add(members::blank(*uid, number, "2015-09-10 10:00:00", STORE));
        if let Some(member) = shop.members.find_mut("number", number) {
            member.set("name", *name);
        }
    }
    if let Some(member) = shop.members.find_mut("number", "8008010001") {
        let fields = Record::object(json!({
            "categoryName": "金卡", "discount": 60, "phone": "17759205640", "birthday": "2015-09-15 00:00:00", "onAccount": 0,
            "password": "abcdefg", "expiryDate": "2016-09-10 00:00:00", "weixinOpenIds": [{"openId": "o-sample-openid", "openIdType": 1}],
            "extInfo": {
                "sex": 1, "lunarBirthday": "", "totalPoint": 15, "creditLimit": 5000, "creditPeriod": 10, "photoPath": "",
                "nickName": "小灰灰",
            },
            (members::ADD_ONCE): 1,
        }));
        member.take_all(fields);
    }
    if let Some(member) = shop.members.find_mut("number", "8008010003") {
        member.take_all(Record::object(json!({"balance": 400, "point": 300})));
    }
    let categories = [
        ("Gold card", 1_393_920_057_254_848_127_i64, 90),
        ("金卡", 1_511_175_366_406_782_539, 60),
        ("银卡", 1_511_175_307_516_185_345, 95),
    ];
    for (name, uid, discount) in categories {
        let category =
            json!({"name": name, "discount": discount, "uid": uid, "enable": 1, "isPoint": 1});
        shop.member_categories.add(Record::object(category));
    }
}

fn seed_recharges(recharges: &mut Table) {
    let logs = [
        json!({
            "rechargeStoreAppId": "87EB2C555BBF382E7F6C7B275B0C502A", "rechargeStoreAccount": "adasun4",
            "customerUid": 677_793_671_220_529_313_i64, "rechargeMoney": 100, "giftMoney": 0, "datetime": "2016-10-28 11:14:03",
            "uid": "1477624443213525326", "payMethod": "Cash", "customerMoneyAfterRecharge": 100,
        }),
        json!({
            "rechargeStoreAppId": "87EB2C555BBF382E7F6C7B275B0C502A", "rechargeStoreAccount": "mylind1",
            "customerUid": 363_700_050_656_122_383_i64, "rechargeMoney": 200, "giftMoney": 20, "datetime": "2017-05-03 11:40:15",
            "uid": "1477885215213525326", "payMethod": "UnionPay Card", "customerMoneyAfterRecharge": 400,
        }),
    ];
    for log in logs {
        recharges.add(Record::object(log));
    }
}

fn seed_products(shop: &mut Shop) {
    let category = 813_701_230_071_893_827_i64;
    shop.product_categories.put(
        51,
        Record::object(json!({"uid": category, "parentUid": 0, "name": "工艺品"})),
    );
    let jade =
        "Dimensions: Length 18.7 centimeters, width 9.1 centimeters, thickness 5.07 centimeters";
    let products = [
        (
            1001,
            json!({
                "uid": 1_366_004_607_492_564_649_i64, "name": "Jade Cabbage", "barcode": "1001", "buyPrice": 10000,
                "sellPrice": 15000, "customerPrice": 15000, "pinyin": "CYBC", "description": jade, "attribute1": "y",
            }),
        ),
        (
            1002,
            json!({
                "uid": 287_518_801_523_242_321_i64, "name": "Oolong Tea", "barcode": "000000001", "buyPrice": 10, "sellPrice": 15,
                "customerPrice": 14.5, "stock": 100, "pinyin": "WLC",
            }),
        ),
        (
            1003,
            json!({
                "uid": 287_518_801_523_242_322_i64, "name": "Jasmine Tea", "barcode": "000000002", "buyPrice": 8, "sellPrice": 12.8,
                "customerPrice": 12, "stock": 100, "pinyin": "MLHC",
            }),
        ),
        (
            1004,
            json!({
                "uid": ORDERED_PRODUCT, "name": "Beef Noodles", "barcode": "000000003", "buyPrice": 12, "sellPrice": 30.2,
                "customerPrice": 30.2, "stock": 1_000_000, "pinyin": "NRM",
            }),
        ),
        (
            1005,
            json!({
                "uid": COFFEE, "name": "Coffee", "barcode": "000000004", "buyPrice": 10, "sellPrice": 24, "customerPrice": 22,
                "stock": 100, "pinyin": "KF",
            }),
        ),
    ];
    for (row, fields) in products {
        let mut product = products::blank(0);
        product.set("categoryUid", category);
        product.take_all(Record::object(fields));
        shop.products.put(row, product);
    }
}

fn seed_tickets(seeded: &mut Table) {
    let rows = [
        (
            3,
            66_663_989_680_866_393_i64,
            "201511120912044680003",
            "2015-11-12 09:12:04",
            886_263_699_231_969_848_i64,
        ),
        (
            5,
            66_663_989_680_866_395,
            "201511121549168880001",
            "2015-11-12 15:49:16",
            0,
        ),
        (
            7,
            SOLD_TICKET,
            "201511121602084680006",
            "2015-11-12 16:02:12",
            0,
        ),
        (
            8,
            66_663_989_680_866_398,
            "201511131002084680001",
            "2015-11-13 10:02:08",
            0,
        ),
    ];
    for (row, uid, sn, datetime, customer_uid) in rows {
        let mut ticket = Record::object(json!({
            "uid": uid, "cashierUid": tickets::CASHIER_UID, "customerUid": customer_uid, "sn": sn, "datetime": datetime,
            "totalAmount": 72, "totalProfit": 42, "discount": 100, "externalOrderNo": format!("20171215210010044602195768{row:02}"),
            "rounding": 0, "ticketType": "SELL", "invalid": 0, "payments": [{"code": "payCode_1", "amount": 72}],
            "items": [{
                "name": "Coffee", "buyPrice": 10, "sellPrice": 24, "customerPrice": 22, "quantity": 3, "discount": 100,
                "customerDiscount": 100, "totalAmount": 72, "totalProfit": 42, "isCustomerDiscount": 1, "productUid": COFFEE,
                "ticketitemattributes": [{"attributeName": "extra", "attributeValue": "one spoon"}],
            }],
        }));
        if row == 8 {
            let refund = json!({"ticketType": "SELL_RETURN", "sellUid": SOLD_TICKET, "sellSn": "201511121602084680006"});
            ticket.take_all(Record::object(refund));
        }
        seeded.put(row, ticket);
    }
}

const MEMBERS: &[(i64, &str, &str)] = &[
    (813_951_242_628_553_689, "8008010001", "张三"),
    (612_470_307_777_855_407, "8008010002", "李四"),
    (231_607_639_459_718_452, "8008010003", "王五"),
    (360_135_572_336_007_987, "8008010004", "Kybio"),
    (677_793_671_220_529_313, "8008010005", "赵六"),
    (363_700_050_656_122_383, "8008010006", "孙七"),
    (827_105_591_581_632_288, "8008010007", "周八"),
    (488_330_886_805_077_735, "8008010008", "吴九"),
    (886_263_699_231_969_848, "8008010009", "郑十"),
];

const STORE: &str = "mylin0";
const ORDERED_PRODUCT: i64 = 102_066_793_346_170_331;
const COFFEE: i64 = 379_659_791_803_681_560;
const SOLD_TICKET: i64 = 66_663_989_680_866_397;
