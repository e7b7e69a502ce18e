//! Who may be who, and do what.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use crate::account::Account;
use crate::account::AppId;
use crate::config::build::Builder;
use crate::config::build::closest;
use crate::config::build::nearest;
use crate::config::layers::At;
use crate::config::value::shown;
use crate::identity::Identity;
use crate::name::AccountName;
use crate::name::CallerName;
use crate::operations::Catalogue;
use crate::pattern::Pattern;
use crate::policy::AccountBy;
use crate::policy::CallerRules;

impl Builder<'_> {
    pub(super) fn callers(
        &mut self,
        accounts: &[Arc<Account>],
        catalogue: &Catalogue,
    ) -> (Vec<CallerRules>, Vec<(Identity, CallerName)>) {
        let checked = self.checked;
        let known_by = self.known_by();
        let mut callers = Vec::new();
        let mut owners: BTreeMap<Identity, &str> = BTreeMap::new();
        let mut identities = Vec::new();
        let mut nobodys = Vec::new();
        for written in checked.names("callers") {
            let name = self.keep(
                &["callers", written],
                CallerName::new(written).map_err(|error| error.to_string()),
            );
            let path = ["callers", written, "identities"];
            for (item, text) in checked.texts(&path).iter().enumerate() {
                let identity =
                    Identity::parse(text).map_err(|error| format!("{}: {error}", shown(text)));
                let Some(identity) = self.keep_at(&path, At::Item(item), identity) else {
                    continue;
                };
                if let Some(known_by) = known_by.filter(|known_by| !known_by.fits(&identity)) {
                    let (here, example) = known_by.words();
                    let message = format!("{} can't be anybody's: {here}", shown(text));
                    let hint = Some(format!("for example: {example}"));
                    nobodys.push(checked.fault(&path, At::Item(item), message, hint));
                }
                match owners.insert(identity.clone(), written) {
                    Some(owner) if owner == written => {
                        let message = format!("{text:?} stands twice");
                        self.report(&path, At::Item(item), message, None);
                    }
                    Some(owner) => {
                        let message = format!("{text:?} is also an identity of the caller {owner}");
                        self.report(&path, At::Item(item), message, None);
                    }
                    None => identities.extend(name.clone().map(|name| (identity, name))),
                }
            }
            callers.extend(self.rules(written, name, accounts, catalogue));
        }
        if checked.names("callers").is_empty() && !self.is_mistaken("callers") {
            let hint =
                "write a table such as [callers.orders] with identities, accounts and operations";
            self.fault_with_hint(&["callers"], "there is no caller", hint);
        }
        // A caller that can't come is no reason to keep the others out, and two listeners may share a file of callers; but a gateway that
        // nobody can call isn't what was meant.
        if nobodys.len() == owners.len() {
            self.faults.append(&mut nobodys);
        } else {
            self.notices.append(&mut nobodys);
        }
        (callers, identities)
    }

    fn rules(
        &mut self,
        written: &str,
        name: Option<CallerName>,
        accounts: &[Arc<Account>],
        catalogue: &Catalogue,
    ) -> Option<CallerRules> {
        let checked = self.checked;
        let key = |key| ["callers", written, key];
        let patterns = |name| {
            checked
                .texts(&key(name))
                .iter()
                .map(|text| Pattern::new(text))
                .collect::<Vec<_>>()
        };
        let (account_patterns, operations) = (patterns("accounts"), patterns("operations"));
        let texts = checked.texts(&key("accounts"));
        for (item, (pattern, text)) in account_patterns.iter().zip(texts).enumerate() {
            // An account whose table has faults is known by name all the same; that there is none at all is told once.
            let known = checked.names("accounts");
            if !known.is_empty() && !known.iter().any(|name| pattern.matches(name)) {
                let message = format!("{} matches no account", shown(text));
                let hint = closest(text, &known);
                self.report(&key("accounts"), At::Item(item), message, hint);
            }
        }
        let texts = checked.texts(&key("operations"));
        for (item, (pattern, text)) in operations.iter().zip(texts).enumerate() {
            let path = key("operations");
            let mut matching = catalogue
                .iter()
                .filter(|operation| pattern.matches(operation.name.as_str()))
                .peekable();
            if matching.peek().is_none() {
                let near = nearest(text, catalogue).map_or_else(
                    || "an operation outside the catalogue needs its own [operations.\"module/method\"]".to_owned(),
                    |near| format!("did you mean {:?}?", near.as_str()),
                );
                let message = format!("{} matches no operation", shown(text));
                self.report(&path, At::Item(item), message, Some(near));
            } else if !pattern.is_exact() && matching.all(|operation| operation.explicit) {
                let message = format!("{text:?} grants nothing");
                let hint = "what it matches is granted by its exact name alone".to_owned();
                self.report(&path, At::Item(item), message, Some(hint));
            }
        }
        let mine: Vec<_> = accounts
            .iter()
            .filter(|account| {
                account_patterns
                    .iter()
                    .any(|pattern| pattern.matches(account.name.as_str()))
            })
            .collect();
        let account_by = if checked.text(&key("account_by")) == Some("app-id") {
            AccountBy::AppId
        } else {
            AccountBy::Header
        };
        if account_by == AccountBy::AppId {
            self.refuse_shared_app_ids(&key("account_by"), &mine);
        }
        let default_account = match checked.text(&key("default_account")) {
            None => None,
            Some(default)
                if checked.names("accounts").contains(&default)
                    && account_patterns
                        .iter()
                        .any(|pattern| pattern.matches(default)) =>
            {
                AccountName::new(default).ok()
            }
            Some(default) => {
                let message = format!("{} isn't one of this caller's accounts", shown(default));
                let mut mine = checked.names("accounts");
                mine.retain(|name| account_patterns.iter().any(|pattern| pattern.matches(name)));
                let hint = closest(default, &mine);
                self.report(&key("default_account"), At::Value, message, hint);
                None
            }
        };
        for list in ["identities", "accounts", "operations"] {
            if checked.is_empty_list(&key(list)) {
                self.fault(
                    &key(list),
                    "the list is empty: this caller could do nothing",
                );
            }
        }
        let paused = checked.boolean(&key("paused")) == Some(true);
        Some(CallerRules {
            name: name?,
            accounts: account_patterns,
            default_account,
            account_by,
            operations,
            paused,
            in_flight_max: checked.integer(&key("in_flight_max")),
        })
    }

    /// Where the body's appId chooses, it must choose one.
    fn refuse_shared_app_ids(&mut self, path: &[&str], accounts: &[&Arc<Account>]) {
        let mut seen: HashMap<&AppId, &AccountName> = HashMap::new();
        for account in accounts {
            if let Some(other) = seen.insert(&account.app_id, &account.name) {
                self.fault(path, format!("the accounts {other} and {} have the same app_id, so that it can't choose between them", account.name));
            }
        }
    }
}
