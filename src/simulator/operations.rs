//! The table of operations: every one that the contract lists (section 3), with what answers it.

use serde_json::Value;

use crate::simulator::call::Call;
use crate::simulator::coupons;
use crate::simulator::members;
use crate::simulator::money;
use crate::simulator::orders;
use crate::simulator::platform;
use crate::simulator::products;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::shop::Shop;
use crate::simulator::stock;
use crate::simulator::table;
use crate::simulator::tickets;

/// One operation of the vendor's.
pub(super) struct Operation {
    /// Its path after `/openapi/v1/`, in the vendor's spelling.
    pub(super) name: &'static str,
    /// Whether its success has the shape that a vendor's page or a live client's source gives it; else the shape is assumed.
    pub(super) documented: bool,
    answer: Answer,
}

/// What answers an operation.
enum Answer {
    /// The shop's state.
    Kept(fn(&mut Shop, &Call<'_>) -> Outcome),
    /// No state: an empty list.
    EmptyList,
    /// No state: an empty page.
    EmptyPage,
    /// No state: a look-up that finds nothing.
    Nothing,
    /// No state: a write that is taken and forgotten.
    Forgotten,
}

impl Operation {
    /// The operation of that name, in any letter case.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        OPERATIONS
            .iter()
            .find(|operation| operation.name.eq_ignore_ascii_case(name))
    }

    /// Answers the call from this account's shop.
    pub(super) fn answer(&self, shop: &mut Shop, call: &Call<'_>) -> Outcome {
        match self.answer {
            Answer::Kept(answer) => answer(shop, call),
            Answer::EmptyList => Ok(Data::Value(Value::Array(Vec::new()))),
            Answer::EmptyPage => Ok(table::empty_page(&call.body)),
            Answer::Nothing => Ok(Data::Absent),
            Answer::Forgotten => Ok(Data::Plain),
        }
    }
}

const fn documented(name: &'static str, answer: fn(&mut Shop, &Call<'_>) -> Outcome) -> Operation {
    Operation {
        name,
        documented: true,
        answer: Answer::Kept(answer),
    }
}

const fn assumed(name: &'static str, answer: fn(&mut Shop, &Call<'_>) -> Outcome) -> Operation {
    Operation {
        name,
        documented: false,
        answer: Answer::Kept(answer),
    }
}

const fn without_state(name: &'static str, answer: Answer) -> Operation {
    Operation {
        name,
        documented: false,
        answer,
    }
}

/// Every operation. The coupon paths of the first version have a prefix of their own; `protocol` maps them to the names here.
pub(super) const OPERATIONS: &[Operation] = &[
    documented("userOpenApi/queryAllUser", platform::query_stores),
    // Members.
    documented("customerOpenApi/add", members::add),
    documented("customerOpenApi/updateBaseInfo", members::update_base_info),
    documented(
        "customerOpenApi/updateBalancePointByIncrement",
        money::increment,
    ),
    documented("customerOpenApi/queryByNumber", members::query_by_number),
    documented("customerOpenApi/queryByUid", members::query_by_uid),
    documented("customerOpenApi/queryBytel", members::query_by_tel),
    documented("customerOpenApi/queryCustomerPages", members::query_pages),
    documented(
        "customerOpenApi/queryAllCustomerCategory",
        members::query_categories,
    ),
    documented(
        "customerOpenApi/batchUpdateCategory",
        members::batch_update_category,
    ),
    documented(
        "customerOpenApi/updateCustomerPassword",
        members::update_password,
    ),
    documented(
        "customerOpenApi/queryCustomerRechargeLog",
        money::query_recharges,
    ),
    documented(
        "customerOpenApi/queryAllRechargeLogs",
        money::query_all_recharges,
    ),
    without_state(
        "customerOpenApi/querySubsidyChangeLogPages",
        Answer::EmptyPage,
    ),
    // Products.
    documented("productOpenApi/queryProductByUid", products::query_by_uid),
    documented(
        "productOpenApi/queryProductByBarcode",
        products::query_by_barcode,
    ),
    documented(
        "productOpenApi/queryProductByBarcodes",
        products::query_by_barcodes,
    ),
    documented("productOpenApi/queryProductPages", products::query_pages),
    documented(
        "productOpenApi/queryProductCategoryPages",
        products::query_category_pages,
    ),
    without_state("productOpenApi/queryProductImagePages", Answer::EmptyPage),
    without_state(
        "productOpenApi/queryProductImagesByBarcode",
        Answer::EmptyList,
    ),
    without_state(
        "productOpenApi/queryProductImagesByProductUid",
        Answer::EmptyList,
    ),
    without_state("productOpenApi/queryAllProductUnitDef", Answer::EmptyList),
    without_state("productOpenApi/queryUnitExchangePages", Answer::EmptyPage),
    without_state(
        "productOpenApi/queryUnitExchangeByProductUid",
        Answer::EmptyList,
    ),
    without_state("productOpenApi/queryProductBrandPages", Answer::EmptyPage),
    without_state(
        "productOpenApi/queryAllProductAttributePackage",
        Answer::EmptyList,
    ),
    without_state("productOpenApi/queryAllProductattribute", Answer::EmptyList),
    without_state(
        "productOpenApi/queryProducOtherInfotByUids",
        Answer::EmptyList,
    ),
    without_state("productOpenApi/queryDiscardInventories", Answer::EmptyList),
    without_state("productOpenApi/queryDiscardReasons", Answer::EmptyList),
    documented("productOpenApi/addProductInfo", products::add),
    documented("productOpenApi/updateProductInfo", products::update),
    without_state(
        "productOpenApi/updateProductCustomerPrice",
        Answer::Forgotten,
    ),
    without_state("productOpenApi/updateCategory", Answer::Forgotten),
    documented(
        "productOpenApi/updateStockByBarcodeAndIncrement",
        products::increment_stock,
    ),
    assumed("productOpenApi/addCategory", products::add_category),
    // Tickets.
    documented(
        "ticketOpenApi/queryAllPayMethod",
        tickets::query_pay_methods,
    ),
    documented("ticketOpenApi/queryMyPayMethod", tickets::query_pay_methods),
    documented("ticketOpenApi/queryTicketBySn", tickets::query_by_sn),
    assumed("ticketOpenApi/queryTicketByUid", tickets::query_by_uid),
    documented("ticketOpenApi/queryTicketPages", tickets::query_pages),
    documented(
        "ticketOpenApi/queryCustomerHistoryTicketsByUid",
        tickets::query_history,
    ),
    documented(
        "ticketOpenApi/queryRefunTicketBySellTicketUid",
        tickets::query_refunds_by_uid,
    ),
    documented(
        "ticketOpenApi/queryRefunTicketBySellTicketSn",
        tickets::query_refunds_by_sn,
    ),
    assumed(
        "ticketOpenApi/querySellTicketByRefunTicketUid",
        tickets::query_sale_by_uid,
    ),
    assumed(
        "ticketOpenApi/querySellTicketByRefunTicketSn",
        tickets::query_sale_by_sn,
    ),
    assumed(
        "ticketOpenApi/queryTicketByOrderNo",
        tickets::query_by_order_no,
    ),
    // Orders.
    assumed("orderOpenApi/addOnLineOrder", orders::add),
    documented("orderOpenApi/cancleOrder", orders::cancel),
    documented("orderOpenApi/shipOrder", orders::ship),
    documented("orderOpenApi/completeOrder", orders::complete),
    assumed("orderOpenApi/queryOrderByNo", orders::query_by_no),
    assumed("orderOpenApi/queryOrderById", orders::query_by_id),
    assumed("orderOpenApi/queryOrderPages", orders::query_pages),
    // Coupons and prepaid cards.
    without_state(
        "promotionOpenApi/queryCouponPromotionByUid",
        Answer::Nothing,
    ),
    without_state("promotionOpenApi/queryCouponPromotions", Answer::EmptyList),
    assumed(
        "promotionOpenApi/queryCustomerCouponCodePage",
        coupons::query_of_member,
    ),
    assumed(
        "promotionOpenApi/queryUsedPromotionCode",
        coupons::query_used,
    ),
    without_state("promotionOpenApi/queryPromotionPages", Answer::EmptyPage),
    assumed("promotionOpenApi/promotion/addCouponcode", coupons::add),
    assumed("promotionOpenApi/promotioncouponcode/use", coupons::spend),
    without_state(
        "PrepaidCardOpenApi/queryPrepaidCardRulePages",
        Answer::EmptyPage,
    ),
    without_state(
        "PrepaidCardOpenApi/queryPrepaidCardPages",
        Answer::EmptyPage,
    ),
    without_state(
        "PrepaidCardOpenApi/queryPrepaidCardSalePages",
        Answer::EmptyPage,
    ),
    // Stock.
    documented(
        "stockFlowOpenApi/queryProductRequestPages",
        stock::query_request_pages,
    ),
    assumed(
        "stockFlowOpenApi/queryProductRequestById",
        stock::query_request,
    ),
    assumed(
        "stockFlowOpenApi/queryStockFlowPages",
        stock::query_flow_pages,
    ),
    without_state(
        "stockFlowOpenApi/queryStockFlowDetailByProductReuqestId",
        Answer::Nothing,
    ),
    assumed(
        "stockFlowOpenApi/queryStockFlowDetailById",
        stock::query_flow,
    ),
    without_state(
        "stockFlowOpenApi/queryProductPurchasePages",
        Answer::EmptyPage,
    ),
    assumed("stockFlowOpenApi/createStockFlow", stock::create_flow),
    assumed("stockFlowOpenApi/acceptStockFlowOut", stock::accept_flow),
    assumed("stockFlowOpenApi/acceptStockFlowIn", stock::accept_flow),
    assumed("stockFlowOpenApi/rejectStockFlowOut", stock::reject_flow),
    assumed("stockFlowOpenApi/rejectStockFlowIn", stock::reject_flow),
    documented(
        "stockTakingOpenApi/queryStockTakingHistories",
        stock::query_takings,
    ),
    without_state(
        "stockTakingOpenApi/queryStockTakingDetailsById",
        Answer::Nothing,
    ),
    without_state(
        "stockTakingOpenApi/queryStockTakingItems",
        Answer::EmptyList,
    ),
    without_state("supplierOpenApi/querySupplierPages", Answer::EmptyPage),
    without_state("cashierOpenApi/queryAllCashier", Answer::EmptyList),
    // The account.
    documented(
        "openNotificationOpenApi/queryPushUrl",
        platform::query_push_url,
    ),
    documented(
        "openNotificationOpenApi/updatePushUrl",
        platform::update_push_url,
    ),
    documented(
        "openApiLimitAccess/queryAccessTimes",
        platform::query_access_times,
    ),
    documented(
        "openApiLimitAccess/queryDailyAccessTimesLog",
        platform::query_daily_log,
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use crate::simulator::bench::Bench;
    use crate::simulator::operations::Answer;
    use crate::simulator::operations::OPERATIONS;
    use crate::simulator::operations::Operation;

    #[test]
    fn every_operation_is_listed_once_and_answered() {
        assert_eq!(OPERATIONS.len(), 85);
        let bench = Bench::new();
        let mut names = BTreeSet::new();
        for Operation { name, answer, .. } in OPERATIONS {
            assert!(
                names.insert(name.to_ascii_lowercase()),
                "{name} is listed twice"
            );
            let answered = bench.call(name, json!({}));
            assert_eq!(answered.http_status(), 200, "{name}");
            assert!(
                matches!(answer, Answer::Kept(_)) || answered.status() == "success",
                "{name}"
            );
        }
    }
}
