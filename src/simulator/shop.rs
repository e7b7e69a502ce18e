//! One account's shop: everything that the stand-in remembers of it between calls.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::simulator::table::Table;

/// What one shop keeps, in memory only. Records have the vendor's field names, plus hidden ones that no answer shows.
#[derive(Debug, Default)]
pub(super) struct Shop {
    /// Members (customers).
    pub(super) members: Table,
    /// Their categories.
    pub(super) member_categories: Table,
    /// For each customerUid the `dataChangeTime`s of its balance and point changes: the vendor's rule against double changes.
    pub(super) changes: BTreeMap<String, BTreeSet<String>>,
    /// Money that members paid in.
    pub(super) recharges: Table,
    /// Products.
    pub(super) products: Table,
    /// Their categories.
    pub(super) product_categories: Table,
    /// Online orders.
    pub(super) orders: Table,
    /// Sales and refunds. Hidden: `uid`, and `sellUid` and `sellSn` of a refund.
    pub(super) tickets: Table,
    /// Coupon codes.
    pub(super) coupons: Table,
    /// Requests for goods by other shops.
    pub(super) product_requests: Table,
    /// Movements of goods between shops.
    pub(super) flows: Table,
    /// Stock takings.
    pub(super) takings: Table,
    /// Where the platform would send its call-backs. The stand-in sends none.
    pub(super) push_url: String,
    uids: i64,
}

impl Shop {
    /// A uid that nothing in this shop has: 19 digits like the vendor's, so that a client that reads it as a float is found out.
    pub(super) fn new_uid(&mut self) -> i64 {
        self.uids += 1;
        UID_FIRST + self.uids * UID_STEP
    }
}

const UID_FIRST: i64 = 1_700_000_000_000_000_001;
const UID_STEP: i64 = 1_000_003;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::simulator::bench::Bench;
    use crate::simulator::shop::Shop;

    #[test]
    fn a_new_uid_is_beyond_what_a_float_can_hold() {
        let uid = Shop::default().new_uid();
        assert_ne!(uid as f64 as i64, uid);
    }

    #[test]
    fn shops_are_kept_apart() {
        let bench = Bench::new();
        bench.call(
            "customerOpenApi/add",
            json!({"customerInfo": {"number": "M-1"}}),
        );
        let by_number = json!({"customerNum": "M-1"});
        assert!(
            bench
                .call("customerOpenApi/queryByNumber", by_number.clone())
                .data()
                .is_some()
        );
        assert_eq!(
            bench
                .second()
                .call("customerOpenApi/queryByNumber", by_number)
                .data(),
            None
        );
    }
}
