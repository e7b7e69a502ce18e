//! Products and their categories: `productOpenApi`.

use serde_json::json;

use crate::simulator::amount::Amount;
use crate::simulator::call::Call;
use crate::simulator::record::Record;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;
use crate::simulator::shop::Shop;
use crate::simulator::table::Direction;

/// `queryProductByUid`.
pub(super) fn query_by_uid(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("productUid")?;
    let product = shop
        .products
        .find("uid", &uid)
        .filter(|product| is_there(product));
    Ok(Data::found(product.map(|product| product.shown(PRODUCT))))
}

/// `queryProductByBarcode`.
pub(super) fn query_by_barcode(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let barcode = call.body.need("barcode")?;
    Ok(Data::found(
        by_barcode(shop, &barcode).map(|product| product.shown(PRODUCT)),
    ))
}

/// `queryProductByBarcodes`: those that there are, in the shop's order.
pub(super) fn query_by_barcodes(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let barcodes = call.body.need_list("barcodes")?;
    let wanted = |product: &Record| {
        product
            .get("barcode")
            .is_some_and(|barcode| barcodes.contains(barcode))
    };
    Ok(shop
        .products
        .list(PRODUCT, |product| is_there(product) && wanted(product)))
}

/// `queryProductPages`, of one category if `categoryUid` is given, without the deleted unless `needAllIncludeDel` says so.
pub(super) fn query_pages(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let category = call.body.text("categoryUid");
    let with_deleted = call.body.says_yes("needAllIncludeDel");
    let wanted = |product: &Record| {
        (with_deleted || is_there(product))
            && category
                .as_ref()
                .is_none_or(|uid| product.is("categoryUid", uid))
    };
    Ok(shop
        .products
        .page(&call.body, Direction::Rising, PRODUCT, wanted))
}

/// `queryProductCategoryPages`.
pub(super) fn query_category_pages(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    Ok(shop.product_categories.page(
        &call.body,
        Direction::Rising,
        &["uid", "parentUid", "name"],
        |_| true,
    ))
}

/// `addProductInfo`. A barcode is taken only once: 5004 (contract, section 4).
pub(super) fn add(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let info = call.body.need_record("productInfo")?;
    let barcode = info.need("barcode")?;
    info.need("name")?;
    info.need_amount("stock")?;
    for price in ["buyPrice", "sellPrice"] {
        if info.need_amount(price)? == Amount::ZERO {
            return Err(Refusal::FieldWrong(price));
        }
    }
    if by_barcode(shop, &barcode).is_some() {
        return Err(Refusal::ProductExists);
    }
    let mut product = blank(shop.new_uid());
    write(&mut product, &info)?;
    if info.get("customerPrice").is_none() {
        product.set("customerPrice", product.amount("sellPrice").json());
    }
    let answer = product.shown(ADDED);
    shop.products.add(product);
    Ok(Data::Value(answer))
}

/// `updateProductInfo`: sets what is given, stock included. A missing product is 5001 (contract, section 4). Assumed: `enable` -1
/// deletes, as it does for members, and what is deleted is missing.
pub(super) fn update(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let info = call.body.need_record("productInfo")?;
    let uid = info.need("uid")?;
    if !shop.products.find("uid", &uid).is_some_and(is_there) {
        return Err(Refusal::ProductMissing);
    }
    let is_taken =
        |barcode: String| by_barcode(shop, &barcode).is_some_and(|other| !other.is("uid", &uid));
    if info.text("barcode").is_some_and(is_taken) {
        return Err(Refusal::ProductExists);
    }
    let product = shop
        .products
        .find_mut("uid", &uid)
        .ok_or(Refusal::ProductMissing)?;
    // In a copy, so that a refused update changes nothing.
    let mut changed = product.clone();
    write(&mut changed, &info)?;
    *product = changed;
    Ok(Data::Plain)
}

/// `updateStockByBarcodeAndIncrement`: no key against double changes, so the same call moves stock each time. Assumed: one
/// unknown barcode refuses the whole call.
pub(super) fn increment_stock(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let mut changes = Vec::new();
    for wish in call.body.need_records("stockIncrements")? {
        let barcode = wish.need("productBarcode")?;
        let uid = by_barcode(shop, &barcode)
            .and_then(|product| product.text("uid"))
            .ok_or(Refusal::ProductMissing)?;
        changes.push((uid, wish.need_amount("stockIncrement")?));
    }
    for (uid, increment) in changes {
        add_stock(shop, &uid, increment);
    }
    Ok(Data::Plain)
}

/// `addCategory`. Assumed: names needn't be unique, and the reply has no `data`.
pub(super) fn add_category(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let name = call.body.need("name")?;
    let category = json!({"uid": shop.new_uid(), "parentUid": 0, "name": name});
    shop.product_categories.add(Record::object(category));
    Ok(Data::Plain)
}

/// Moves a product's stock; without such a product, nothing happens.
pub(super) fn add_stock(shop: &mut Shop, uid: &str, increment: Amount) {
    if let Some(product) = shop.products.find_mut("uid", uid) {
        product.set("stock", product.amount("stock").plus(increment).json());
    }
}

/// A product of which only the uid is known.
pub(super) fn blank(uid: i64) -> Record {
    let fields = json!({
        "id": 0, "uid": uid, "categoryUid": 0, "name": "", "barcode": "", "buyPrice": 0, "sellPrice": 0, "stock": 0, "pinyin": "",
        "customerPrice": 0, "isCustomerDiscount": 1, "description": "", "attribute1": "", "attribute2": "", "attribute3": "",
        "attribute4": "", "enable": 1, "supplierUid": 0,
    });
    Record::object(fields)
}

/// Whether the product isn't deleted.
pub(super) fn is_there(product: &Record) -> bool {
    !product.is("enable", "-1")
}

fn by_barcode<'a>(shop: &'a Shop, barcode: &str) -> Option<&'a Record> {
    shop.products
        .first(|product| is_there(product) && product.is("barcode", barcode))
}

/// Takes over what a request says of a product.
pub(super) fn write(product: &mut Record, info: &Record) -> Result<(), Refusal> {
    if info
        .text("description")
        .is_some_and(|text| text.chars().count() > DESCRIPTION_LENGTH_MAX)
    {
        return Err(Refusal::FieldWrong("description"));
    }
    product.take_amounts(
        info,
        &[
            "buyPrice",
            "sellPrice",
            "stock",
            "customerPrice",
            "isCustomerDiscount",
            "enable",
        ],
    )?;
    product.take_texts(
        info,
        &[
            "name",
            "barcode",
            "pinyin",
            "description",
            "attribute1",
            "attribute2",
            "attribute3",
            "attribute4",
        ],
    );
    product.take_values(info, &["categoryUid", "supplierUid"]);
    Ok(())
}

/// A product as the look-ups print it.
const PRODUCT: &[&str] = &[
    "uid",
    "categoryUid",
    "name",
    "barcode",
    "buyPrice",
    "sellPrice",
    "stock",
    "pinyin",
    "customerPrice",
    "isCustomerDiscount",
    "description",
    "attribute1",
    "attribute2",
    "attribute3",
    "attribute4",
];

/// A product as `addProductInfo` prints it.
const ADDED: &[&str] = &[
    "id",
    "uid",
    "name",
    "barcode",
    "buyPrice",
    "sellPrice",
    "stock",
    "pinyin",
    "enable",
    "description",
];

/// The longest description, in characters (contract, section 3).
const DESCRIPTION_LENGTH_MAX: usize = 6000;

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use crate::simulator::bench::Bench;

    const JADE: i64 = 1_366_004_607_492_564_649;

    fn stock(bench: &Bench) -> Value {
        bench
            .call(
                "productOpenApi/queryProductByUid",
                json!({"productUid": JADE}),
            )
            .data()
            .unwrap()["stock"]
            .clone()
    }

    #[test]
    fn stock_is_set_by_update_and_moved_by_increment_each_time() {
        let bench = Bench::new();
        bench.call(
            "productOpenApi/updateProductInfo",
            json!({"productInfo": {"uid": JADE, "stock": 10}}),
        );
        assert_eq!(stock(&bench), json!(10));
        for expected in [json!(8.5), json!(7)] {
            let increments = json!([{"productBarcode": "1001", "stockIncrement": -1.5}]);
            bench.call(
                "productOpenApi/updateStockByBarcodeAndIncrement",
                json!({"stockIncrements": increments}),
            );
            assert_eq!(stock(&bench), expected);
        }
    }

    #[test]
    fn one_unknown_barcode_leaves_all_stock_alone() {
        let bench = Bench::new();
        let before = stock(&bench);
        let increments = json!([{"productBarcode": "1001", "stockIncrement": 1}, {"productBarcode": "none", "stockIncrement": 1}]);
        let reply = bench.call(
            "productOpenApi/updateStockByBarcodeAndIncrement",
            json!({"stockIncrements": increments}),
        );
        assert_eq!(reply.code(), json!(5001));
        assert_eq!(stock(&bench), before);
    }

    #[test]
    fn a_barcode_is_taken_once_and_free_again_after_deletion() {
        let bench = Bench::new();
        let product = json!({"productInfo": {"name": "Tea", "barcode": "T1", "buyPrice": 1, "sellPrice": 2.5, "stock": 3}});
        let added = bench
            .call("productOpenApi/addProductInfo", product.clone())
            .data()
            .unwrap();
        assert_eq!(added["sellPrice"], json!(2.5));
        assert_eq!(
            bench
                .call("productOpenApi/addProductInfo", product.clone())
                .code(),
            json!(5004)
        );
        let deletion = json!({"productInfo": {"uid": added["uid"], "enable": -1}});
        assert_eq!(
            bench
                .call("productOpenApi/updateProductInfo", deletion.clone())
                .status(),
            "success"
        );
        assert_eq!(
            bench
                .call("productOpenApi/updateProductInfo", deletion)
                .code(),
            json!(5001)
        );
        assert_eq!(
            bench
                .call("productOpenApi/addProductInfo", product)
                .status(),
            "success"
        );
    }

    #[test]
    fn a_refused_update_changes_nothing() {
        let bench = Bench::new();
        let before = stock(&bench);
        let info = json!({"uid": JADE, "stock": 5, "customerPrice": "cheap"});
        let refused = bench.call(
            "productOpenApi/updateProductInfo",
            json!({"productInfo": info}),
        );
        assert_eq!(refused.message(), "customerPrice is not valid");
        assert_eq!(stock(&bench), before);
    }

    #[test]
    fn a_product_for_nothing_is_refused() {
        let product = json!({"productInfo": {"name": "Tea", "barcode": "T1", "buyPrice": 0, "sellPrice": 2, "stock": 3}});
        assert_eq!(
            Bench::new()
                .call("productOpenApi/addProductInfo", product)
                .message(),
            "buyPrice is not valid"
        );
    }
}
