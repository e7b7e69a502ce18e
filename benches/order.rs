//! Bodies of exact sizes for the benchmarks: orders in the shape of the vendor's own example, without `appId`.

/// An order of exactly `size` bytes, of 200 or more. What is left over after whole items is in the remark.
pub(crate) fn order(size: usize) -> String {
    let order = |remark: &str, items: &str| {
        format!(
            r#"{{"payMethod":"Cash","customerNumber":"8008010001","shippingFee":0,"orderRemark":"{remark}","orderDateTime":"2016-03-01 12:00:00","contactName":"张三","items":[{items}]}}"#
        )
    };
    let left = size - order("", "").len();
    // With one item there is one comma less than items.
    let count = (left + 1) / (ITEM.len() + 1);
    let items = vec![ITEM; count].join(",");
    let remark = "no onions ".chars().cycle().take(left - items.len());
    order(&remark.collect::<String>(), &items)
}

/// An id of 19 digits, decimals, and text that takes three bytes a character.
const ITEM: &str = r#"{"productUid":1020667933461703312,"comment":"少放洋葱","quantity":1.2,"manualSellPrice":30.2}"#;
