//! Merchant accounts with their keys.

use std::path::Path;
use std::sync::Arc;

use crate::account::Account;
use crate::account::AppId;
use crate::account::AppKey;
use crate::account::KeyFault;
use crate::config::build::Builder;
use crate::config::build::closest;
use crate::config::fault::Place;
use crate::config::fault::dotted;
use crate::config::files;
use crate::config::layers::At;
use crate::name::AccountName;
use crate::name::UpstreamName;

impl Builder<'_> {
    pub(super) fn accounts(&mut self) -> Vec<Arc<Account>> {
        let checked = self.checked;
        let mut accounts = Vec::new();
        for written in checked.names("accounts") {
            let key = |key| ["accounts", written, key];
            let name = self.keep(
                &["accounts", written],
                AccountName::new(written).map_err(|error| error.to_string()),
            );
            let upstream = checked.text(&key("upstream")).and_then(|upstream| {
                let known = checked.names("upstreams");
                if !known.contains(&upstream) {
                    // A key on the line beside its own isn't repeated.
                    let message = if AppKey::may_be(upstream) {
                        "there is no upstream of that name".to_owned()
                    } else {
                        format!("there is no [{}]", dotted(&["upstreams", upstream]))
                    };
                    let hint = closest(upstream, &known);
                    self.report(&key("upstream"), At::Value, message, hint);
                    return None;
                }
                UpstreamName::new(upstream).ok()
            });
            let app_id = checked
                .text(&key("app_id"))
                .map(|text| AppId::new(text).map_err(|error| error.to_string()));
            let app_id = app_id.and_then(|app_id| self.keep(&key("app_id"), app_id));
            let app_key = checked
                .text(&key("app_key_file"))
                .map(|path| files::app_key(self.reader, Path::new(path)));
            if let (Some(name), Some(Err(fault))) = (&name, &app_key) {
                let path = key("app_key_file");
                let missing = *fault == KeyFault::Missing;
                let mut fault = checked.fault(&path, At::Value, fault.to_string(), None);
                fault.hint = missing.then(|| where_paths_start(&fault.place).to_owned());
                self.bad_keys.push((name.clone(), fault));
            }
            let (Some(name), Some(upstream), Some(app_id), Some(app_key)) =
                (name, upstream, app_id, app_key)
            else {
                continue;
            };
            let paused = checked.boolean(&key("paused")) == Some(true);
            accounts.push(Arc::new(Account {
                name,
                app_id,
                upstream,
                key: app_key,
                paused,
                in_flight_max: checked.integer(&key("in_flight_max")),
            }));
        }
        if checked.names("accounts").is_empty() && !self.is_mistaken("accounts") {
            self.fault_with_hint(
                &["accounts"],
                "there is no account",
                "write a table such as [accounts.main] with upstream, app_id and app_key_file",
            );
        }
        accounts
    }
}

/// What to look at when there's no such file: its name isn't repeated, because it may be a key in the wrong place.
fn where_paths_start(place: &Place) -> &'static str {
    match place {
        Place::File { .. } | Place::Nowhere => "a relative path starts from the file that has it",
        Place::Environment(_) | Place::Flag => "a relative path starts where the process does",
    }
}
