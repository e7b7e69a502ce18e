//! Members: `customerOpenApi` but for money and categories' own lists.

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

/// `add`. The number is unique, the phone isn't. The documented reply has no `data`; for the seeded member that may be added
/// once (see `seed`) the other form is given, which some accounts answer with.
pub(super) fn add(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let info = call.body.need_record("customerInfo")?;
    let number = info.need("number")?;
    if let Some(known) = shop.members.find_mut("number", &number) {
        if !known.says_yes(ADD_ONCE) {
            return Err(Refusal::MemberExists);
        }
        write(known, &info)?;
        known.set(ADD_ONCE, 0);
        return Ok(Data::Value(known.shown(&["customerUid", "number"])));
    }
    let mut member = blank(0, &number, &call.now.to_string(), call.app_id);
    write(&mut member, &info)?;
    member.take_amounts(&info, &["point", "balance"])?;
    member.set("customerUid", shop.new_uid());
    shop.members.add(member);
    Ok(Data::Plain)
}

/// `updateBaseInfo`. What is blank stays as it was; balance and points aren't base information.
pub(super) fn update_base_info(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let info = call.body.need_record("customerInfo")?;
    let uid = info.need("customerUid")?;
    let member = shop
        .members
        .find_mut("customerUid", &uid)
        .ok_or(Refusal::MemberMissing)?;
    write(member, &info)?;
    Ok(Data::Plain)
}

/// `queryByNumber`.
pub(super) fn query_by_number(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let number = call.body.need("customerNum")?;
    Ok(Data::found(
        shop.members
            .find("number", &number)
            .map(|member| member.shown(MEMBER)),
    ))
}

/// `queryByUid`.
pub(super) fn query_by_uid(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("customerUid")?;
    Ok(Data::found(
        shop.members
            .find("customerUid", &uid)
            .map(|member| member.shown(MEMBER)),
    ))
}

/// `queryBytel`: a list, because several members may have one phone.
pub(super) fn query_by_tel(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let tel = call.body.need("customerTel")?;
    Ok(shop.members.list(MEMBER, |member| member.is("phone", &tel)))
}

/// `queryCustomerPages`. `startCreateDateTime` leaves out who was created before it.
pub(super) fn query_pages(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let start = call.body.text("startCreateDateTime").unwrap_or_default();
    // The vendor's dates sort as they read.
    let wanted = |member: &Record| {
        member
            .text("createdDate")
            .is_some_and(|created| created >= start)
    };
    Ok(shop
        .members
        .page(&call.body, Direction::Rising, MEMBER, wanted))
}

/// `queryAllCustomerCategory`.
pub(super) fn query_categories(shop: &mut Shop, _: &Call<'_>) -> Outcome {
    Ok(shop
        .member_categories
        .list(&["name", "discount", "uid", "enable", "isPoint"], |_| true))
}

/// `batchUpdateCategory`, all or nothing. Assumed: an unknown member or category is refused.
pub(super) fn batch_update_category(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let wishes = call.body.need_records("customerCategories")?;
    if wishes.len() > CATEGORIES_MAX {
        return Err(Refusal::ListLong("customerCategories"));
    }
    let mut changes = Vec::new();
    for wish in &wishes {
        let uid = wish.need("customerUid")?;
        let category = wish.need("customerCategoryUid")?;
        let category = shop
            .member_categories
            .find("uid", &category)
            .ok_or(Refusal::FieldWrong("customerCategoryUid"))?;
        shop.members
            .find("customerUid", &uid)
            .ok_or(Refusal::MemberMissing)?;
        changes.push((uid, category.text("name").unwrap_or_default()));
    }
    for (uid, name) in changes {
        if let Some(member) = shop.members.find_mut("customerUid", &uid) {
            member.set("categoryName", name);
        }
    }
    Ok(Data::Short)
}

/// `updateCustomerPassword`.
pub(super) fn update_password(shop: &mut Shop, call: &Call<'_>) -> Outcome {
    let uid = call.body.need("customerUid")?;
    let password = call.body.need("customerPassword")?;
    if password.chars().count() > PASSWORD_LENGTH_MAX {
        return Err(Refusal::FieldWrong("customerPassword"));
    }
    let member = shop
        .members
        .find_mut("customerUid", &uid)
        .ok_or(Refusal::MemberMissing)?;
    member.set("password", password);
    Ok(Data::Plain)
}

/// A member of whom only uid and number are known.
pub(super) fn blank(uid: i64, number: &str, created: &str, store: &str) -> Record {
    let fields = json!({
        "customerUid": uid, "categoryName": "", "number": number, "name": "", "point": 0, "discount": 0, "balance": 0,
        "phone": "", "birthday": "", "qq": "", "email": "", "address": "", "remarks": "",
        "createdDate": created, "onAccount": 1, "enable": 1, "password": "", "expiryDate": "",
        "createStoreAppIdOrAccount": store, "weixinOpenIds": [], "extInfo": ext_info(),
    });
    Record::object(fields)
}

fn ext_info() -> Value {
    json!({
        "sex": 0, "lunarBirthday": "", "totalPoint": 0, "creditLimit": 0, "creditPeriod": 0, "photoPath": "", "nickName": "",
    })
}

fn write(member: &mut Record, info: &Record) -> Result<(), Refusal> {
    let between = |field, least: i64, most: i64| match info.amount_given(field)? {
        Some(amount) if amount < Amount::whole(least) || Amount::whole(most) < amount => {
            Err(Refusal::FieldWrong(field))
        }
        _ => Ok(()),
    };
    between("discount", 0, 100)?;
    between("enable", -1, 1)?;
    between("onAccount", 0, 1)?;
    member.take_texts(info, TEXTS);
    member.take_amounts(info, &["discount", "enable", "onAccount"])?;
    member.take_values(info, &["extInfo"]);
    Ok(())
}

/// A member as the look-ups print it.
const MEMBER: &[&str] = &[
    "customerUid",
    "categoryName",
    "number",
    "name",
    "point",
    "discount",
    "balance",
    "phone",
    "birthday",
    "qq",
    "email",
    "address",
    "remarks",
    "createdDate",
    "onAccount",
    "enable",
    "password",
    "expiryDate",
    "createStoreAppIdOrAccount",
    "weixinOpenIds",
    "extInfo",
];

const TEXTS: &[&str] = &[
    "categoryName",
    "name",
    "phone",
    "birthday",
    "qq",
    "email",
    "address",
    "remarks",
    "password",
    "expiryDate",
];

/// Hidden: this seeded member may be added once more.
pub(super) const ADD_ONCE: &str = "addOnce";

/// The most entries of one `batchUpdateCategory` (contract, section 3).
const CATEGORIES_MAX: usize = 100;

/// The most characters of a member's password (contract, section 3).
const PASSWORD_LENGTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::simulator::bench::Bench;

    #[test]
    fn an_added_member_is_found_by_number_uid_and_tel() {
        let bench = Bench::new();
        let info = json!({"number": "M-1", "name": "李四", "phone": "555", "balance": "12.50", "discount": 90});
        assert_eq!(
            bench
                .call("customerOpenApi/add", json!({"customerInfo": info}))
                .data(),
            None
        );
        let member = bench
            .call(
                "customerOpenApi/queryByNumber",
                json!({"customerNum": "M-1"}),
            )
            .data()
            .unwrap();
        assert_eq!(
            (&member["name"], &member["balance"], &member["discount"]),
            (&json!("李四"), &json!(12.5), &json!(90))
        );
        let by_uid = bench.call(
            "customerOpenApi/queryByUid",
            json!({"customerUid": member["customerUid"]}),
        );
        assert_eq!(by_uid.data().unwrap(), member);
        let by_tel = bench.call("customerOpenApi/queryBytel", json!({"customerTel": "555"}));
        assert_eq!(by_tel.data().unwrap(), json!([member]));
    }

    #[test]
    fn a_member_number_is_taken_only_once() {
        let bench = Bench::new();
        let body = json!({"customerInfo": {"number": "M-1"}});
        assert_eq!(
            bench.call("customerOpenApi/add", body.clone()).status(),
            "success"
        );
        assert_eq!(
            bench.call("customerOpenApi/add", body).message(),
            "member number already exists"
        );
    }

    #[test]
    fn the_seeded_member_may_be_added_once() {
        let bench = Bench::new();
        let body = json!({"customerInfo": {"number": "8008010001"}});
        let added = bench.call("customerOpenApi/add", body.clone());
        assert_eq!(
            added.data().unwrap()["customerUid"],
            json!(813_951_242_628_553_689_i64)
        );
        assert_eq!(bench.call("customerOpenApi/add", body).status(), "error");
    }

    #[test]
    fn an_update_leaves_blank_fields_alone() {
        let bench = Bench::new();
        let info =
            json!({"customerUid": 813_951_242_628_553_689_i64, "name": "", "remarks": "seen"});
        assert_eq!(
            bench
                .call(
                    "customerOpenApi/updateBaseInfo",
                    json!({"customerInfo": info})
                )
                .status(),
            "success"
        );
        let member = bench
            .call(
                "customerOpenApi/queryByNumber",
                json!({"customerNum": "8008010001"}),
            )
            .data()
            .unwrap();
        assert_eq!(
            (&member["name"], &member["remarks"]),
            (&json!("张三"), &json!("seen"))
        );
    }

    #[test]
    fn a_batch_of_a_hundred_is_taken_and_one_more_refused() {
        let bench = Bench::new();
        let wish = json!({"customerUid": 827_105_591_581_632_288_i64, "customerCategoryUid": 1_511_175_366_406_782_539_i64});
        let batch = |size: usize| json!({"customerCategories": vec![wish.clone(); size]});
        assert_eq!(
            bench
                .call("customerOpenApi/batchUpdateCategory", batch(100))
                .status(),
            "success"
        );
        assert_eq!(
            bench
                .call("customerOpenApi/batchUpdateCategory", batch(101))
                .status(),
            "error"
        );
    }

    #[test]
    fn a_discount_above_a_hundred_is_refused() {
        let added = Bench::new().call(
            "customerOpenApi/add",
            json!({"customerInfo": {"number": "M-1", "discount": 101}}),
        );
        assert_eq!(added.message(), "discount is not valid");
    }
}
