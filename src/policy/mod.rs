//! Who may do what with which account. Pure: no IO, no clock. The answer is a [`Grant`], and nothing is forwarded without one.

pub mod path;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Uri;
use http::Version;
use http::header;

use crate::account::Account;
use crate::account::AppId;
use crate::account::AppKey;
use crate::account::KeyFault;
use crate::identity::Caller;
use crate::name::AccountName;
use crate::name::CallerName;
use crate::operation::Operation;
use crate::operation::OperationName;
use crate::operations::Catalogue;
use crate::operations::Unsupported;
use crate::pattern::Pattern;
use crate::policy::path::BadTarget;

/// What a request says of itself before its body.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The request target.
    pub uri: &'a Uri,
    /// HTTP version: HTTP/2 names its host in the target.
    pub version: Version,
    /// All header fields.
    pub headers: &'a HeaderMap,
    /// Nothing is known of the caller but that it's on this machine.
    pub from_loopback: bool,
}

/// Names the account that a request is for.
pub const ACCOUNT_HEADER: HeaderName = HeaderName::from_static("kybio-gateway-account");

/// Header fields of one request. HTTP/1.1's parser stops there too; that of HTTP/2 counts bytes alone.
pub const FIELDS_MAX: usize = 100;

/// The only method that KYBIO has.
pub const METHOD: Method = Method::POST;

/// How a caller's requests name their account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountBy {
    /// By the `Kybio-Gateway-Account` header, or there is only one.
    Header,
    /// By the body's top-level `appId` too.
    AppId,
}

/// What configuration grants one caller.
#[derive(Clone, Debug)]
pub struct CallerRules {
    /// The caller.
    pub name: CallerName,
    /// The accounts it may use.
    pub accounts: Vec<Pattern>,
    /// The one that it means when it names none.
    pub default_account: Option<AccountName>,
    /// How it names one.
    pub account_by: AccountBy,
    /// The operations it may call.
    pub operations: Vec<Pattern>,
    /// Kill switch.
    pub paused: bool,
    /// Its calls under way at a time.
    pub in_flight_max: usize,
}

/// Why a request isn't allowed. Nothing has left, and no body byte was looked at (but for the last two).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error(transparent)]
    BadTarget(#[from] BadTarget),
    #[error("there is no such operation")]
    UnknownOperation { suggestion: Option<OperationName> },
    #[error("this path belongs to another interface of the vendor; call {instead} instead")]
    Unsupported { instead: String },
    #[error("KYBIO's operations are called with POST")]
    Method,
    #[error("the request wants another protocol (Upgrade), which the gateway doesn't change to")]
    Upgrade,
    #[error("the request has more than {FIELDS_MAX} header fields")]
    TooManyFields,
    #[error(
        "the request says in more than one way how long its body is, or in one that isn't `chunked` alone"
    )]
    Framing,
    #[error("{caller} may not call {operation}")]
    OperationNotGranted {
        caller: CallerName,
        operation: OperationName,
        explicit: bool,
    },
    #[error("the Kybio-Gateway-Account header stands twice or isn't an account's name")]
    BadAccountHeader,
    #[error("{caller} may not use that account")]
    AccountNotGranted { caller: CallerName },
    #[error("{caller} has several accounts and no default: the request must name one")]
    AccountMissing { caller: CallerName },
    #[error("{what} {name} is paused by the operator")]
    Paused { what: &'static str, name: Box<str> },
    #[error("the account {account} is disabled: {fault}")]
    Disabled {
        account: AccountName,
        fault: KeyFault,
    },
    #[error("the body's `appId` isn't that of any account that {caller} may use")]
    ForeignAppId { caller: CallerName },
}

/// An operation that there is, with its number in the catalogue. Nothing says yet that the caller may call it.
#[derive(Clone, Debug)]
pub struct Asked {
    number: usize,
    operation: Arc<Operation>,
}

impl Asked {
    /// What is asked for.
    #[must_use]
    pub fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }
}

/// The operation may be called; the account is settled, or waits for the body's `appId`. Only [`Policy::authorize`] makes one.
#[derive(Clone, Debug)]
pub struct Permit {
    caller: CallerName,
    in_flight_max: usize,
    number: usize,
    operation: Arc<Operation>,
    choice: Choice,
}

/// An account, with its number among all that are configured.
#[derive(Clone, Debug)]
struct Numbered {
    number: usize,
    account: Arc<Account>,
}

#[derive(Clone, Debug)]
enum Choice {
    Settled(Numbered),
    ByAppId {
        accounts: Arc<Accounts>,
        fallback: Option<Numbered>,
    },
}

/// This caller may call this operation with this account, now. Only [`Permit::settle`] makes one.
#[derive(Clone, Debug)]
pub struct Grant {
    caller: CallerName,
    in_flight_max: usize,
    operation: Arc<Operation>,
    account: Numbered,
}

impl Grant {
    /// Who calls.
    #[must_use]
    pub fn caller(&self) -> &CallerName {
        &self.caller
    }

    /// How many calls of the caller may be under way at a time.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        self.in_flight_max
    }

    /// What is called.
    #[must_use]
    pub fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// The account that it's called with.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account.account
    }

    /// The account's number among all that are configured, in their order.
    #[must_use]
    pub fn account_number(&self) -> usize {
        self.account.number
    }

    /// The account's key.
    ///
    /// # Panics
    /// Never: no grant is made for an account without one.
    #[must_use]
    pub fn key(&self) -> &AppKey {
        self.account()
            .key
            .as_ref()
            .expect("settle refuses an account without a key")
    }
}

impl Permit {
    /// What is called.
    #[must_use]
    pub fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// The operation's number in the catalogue.
    #[must_use]
    pub fn operation_number(&self) -> usize {
        self.number
    }

    /// The account's number, if it was settled before the body.
    #[must_use]
    pub fn account_number(&self) -> Option<usize> {
        match &self.choice {
            Choice::Settled(numbered) => Some(numbered.number),
            Choice::ByAppId { .. } => None,
        }
    }

    /// Settles the account by the body's `appId`, where the caller's accounts are chosen that way.
    ///
    /// # Errors
    /// When the `appId` is that of no account of the caller, or there's none and no default; when the account can't be used now.
    pub fn settle(self, app_id: Option<&str>) -> Result<Grant, Error> {
        let account = match self.choice {
            Choice::Settled(account) => account,
            Choice::ByAppId { accounts, fallback } => match app_id {
                None => fallback.ok_or_else(|| Error::AccountMissing {
                    caller: self.caller.clone(),
                })?,
                Some(written) => {
                    let account = accounts.by_app_id.get(written).cloned();
                    account.ok_or_else(|| Error::ForeignAppId {
                        caller: self.caller.clone(),
                    })?
                }
            },
        };
        usable(&account.account)?;
        Ok(Grant {
            caller: self.caller,
            in_flight_max: self.in_flight_max,
            operation: self.operation,
            account,
        })
    }
}

/// Everything that is granted, resolved once, so that a request costs almost the same however much is configured.
#[derive(Debug)]
pub struct Policy {
    /// By their names in small letters.
    operations: BTreeMap<String, Asked>,
    unsupported: Vec<Unsupported>,
    callers: HashMap<CallerName, Granted>,
}

/// The accounts that the same patterns are for. Callers that have them share it: a thousand callers of ten thousand accounts would take
/// hundreds of megabytes otherwise.
#[derive(Debug)]
struct Accounts {
    by_name: HashMap<AccountName, Numbered>,
    by_app_id: HashMap<AppId, Numbered>,
}

#[derive(Debug)]
struct Granted {
    number: usize,
    paused: bool,
    in_flight_max: usize,
    /// By the operation's number.
    operations: Vec<bool>,
    accounts: Arc<Accounts>,
    fallback: Option<Numbered>,
    account_by: AccountBy,
}

impl Policy {
    /// Resolves all patterns.
    #[must_use]
    pub fn new(catalogue: &Catalogue, accounts: &[Arc<Account>], callers: &[CallerRules]) -> Self {
        let numbered = catalogue.iter().enumerate();
        let operations = numbered.map(|(number, operation)| {
            (
                operation.name.as_str().to_ascii_lowercase(),
                Asked {
                    number,
                    operation: Arc::new(operation.clone()),
                },
            )
        });
        let mut shared = HashMap::new();
        let callers = callers.iter().enumerate().map(|(number, rules)| {
            let mine = shared
                .entry(&rules.accounts)
                .or_insert_with(|| Arc::new(Accounts::matching(&rules.accounts, accounts)));
            let granted = Granted::new(number, rules, catalogue, Arc::clone(mine));
            (rules.name.clone(), granted)
        });
        Self {
            operations: operations.collect(),
            unsupported: catalogue.unsupported().to_vec(),
            callers: callers.collect(),
        }
    }

    /// A caller's number among all that are configured, in their order.
    #[must_use]
    pub fn number(&self, caller: &Caller) -> Option<usize> {
        self.callers
            .get(caller.name())
            .map(|granted| granted.number)
    }

    /// What is asked for, by method, target and host alone.
    ///
    /// # Errors
    /// When it's no operation, or not spelled as one.
    pub fn resolve(&self, head: &Head<'_>) -> Result<Asked, Error> {
        // Of these two no server is to have an opinion, whatever the path.
        if head.method == Method::CONNECT || head.method == Method::TRACE {
            return Err(Error::Method);
        }
        // A connection that became something else would no longer be looked at (RFC 9110 section 7.8).
        if head.headers.contains_key(header::UPGRADE) {
            return Err(Error::Upgrade);
        }
        if head.headers.len() > FIELDS_MAX {
            return Err(Error::TooManyFields);
        }
        if !is_framed_once(head.headers) {
            return Err(Error::Framing);
        }
        let elsewhere =
            |elsewhere: &&Unsupported| elsewhere.path.eq_ignore_ascii_case(head.uri.path());
        if let Some(elsewhere) = self.unsupported.iter().find(elsewhere) {
            return Err(Error::Unsupported {
                instead: elsewhere.instead.clone(),
            });
        }
        if head.from_loopback {
            path::check_own_host(head.headers)?;
        }
        let path = path::operation_path(head.uri, head.headers, head.version)?;
        let path = path.ok_or(Error::UnknownOperation { suggestion: None })?;
        let known = self.operation(path).cloned();
        let asked = known.ok_or_else(|| Error::UnknownOperation {
            suggestion: self.nearest(path),
        })?;
        if head.method == METHOD {
            Ok(asked)
        } else {
            Err(Error::Method)
        }
    }

    /// Decides by the head alone, before any byte of the body is looked at.
    ///
    /// # Errors
    /// The first rule that the request breaks.
    pub fn authorize(
        &self,
        caller: &Caller,
        asked: Asked,
        headers: &HeaderMap,
    ) -> Result<Permit, Error> {
        let Asked { number, operation } = asked;
        let not_granted = || Error::OperationNotGranted {
            caller: caller.name().clone(),
            operation: operation.name.clone(),
            explicit: operation.explicit,
        };
        let granted = self.callers.get(caller.name()).ok_or_else(not_granted)?;
        if granted.paused {
            return Err(paused("the caller", caller.name().as_str()));
        }
        if granted.operations.get(number) != Some(&true) {
            return Err(not_granted());
        }
        let choice = granted.choose(caller, headers)?;
        if operation.paused {
            return Err(paused("the operation", operation.name.as_str()));
        }
        if let Choice::Settled(numbered) = &choice {
            usable(&numbered.account)?;
        }
        Ok(Permit {
            caller: caller.name().clone(),
            in_flight_max: granted.in_flight_max,
            number,
            operation,
            choice,
        })
    }

    /// The operation of this name in any letter case.
    fn operation(&self, path: &str) -> Option<&Asked> {
        let mut name = [0; OperationName::LENGTH_MAX];
        // What is longer is no name.
        let name = name.get_mut(..path.len())?;
        name.copy_from_slice(path.as_bytes());
        name.make_ascii_lowercase();
        self.operations.get(str::from_utf8(name).ok()?)
    }

    /// The name that a mistyped one was most likely meant to be: the vendor's names have misspellings that people correct.
    fn nearest(&self, path: &str) -> Option<OperationName> {
        if path.len() > OperationName::LENGTH_MAX {
            return None;
        }
        let path = path.to_ascii_lowercase();
        let near = self
            .operations
            .iter()
            .map(|(name, asked)| (strsim::jaro_winkler(name, &path), &asked.operation));
        let (likeness, operation) = near.max_by(|one, other| one.0.total_cmp(&other.0))?;
        (likeness > 0.9).then(|| operation.name.clone())
    }
}

impl Accounts {
    fn matching(patterns: &[Pattern], accounts: &[Arc<Account>]) -> Self {
        let is_mine = |account: &Account| {
            let name = account.name.as_str();
            patterns.iter().any(|pattern| pattern.matches(name))
        };
        let numbered = accounts.iter().enumerate();
        let mine: Vec<_> = numbered
            .filter(|(_, account)| is_mine(account))
            .map(|(number, account)| Numbered {
                number,
                account: Arc::clone(account),
            })
            .collect();
        let app_id = |each: &Numbered| (each.account.app_id.clone(), each.clone());
        let name = |each: &Numbered| (each.account.name.clone(), each.clone());
        Self {
            by_app_id: mine.iter().map(app_id).collect(),
            by_name: mine.iter().map(name).collect(),
        }
    }
}

impl Granted {
    fn new(
        number: usize,
        rules: &CallerRules,
        catalogue: &Catalogue,
        accounts: Arc<Accounts>,
    ) -> Self {
        let operations = catalogue.iter().map(|operation| {
            let matches = |pattern: &Pattern| {
                pattern.matches(operation.name.as_str())
                    && (pattern.is_exact() || !operation.explicit)
            };
            rules.operations.iter().any(matches)
        });
        let all = &accounts.by_name;
        let only = || all.values().next().filter(|_| all.len() == 1);
        let default = rules.default_account.as_ref();
        let fallback = default.map_or_else(only, |name| all.get(name)).cloned();
        Self {
            number,
            paused: rules.paused,
            in_flight_max: rules.in_flight_max,
            operations: operations.collect(),
            accounts,
            fallback,
            account_by: rules.account_by,
        }
    }

    fn choose(&self, caller: &Caller, headers: &HeaderMap) -> Result<Choice, Error> {
        let mut named = headers.get_all(ACCOUNT_HEADER).iter();
        match (named.next(), named.next(), self.account_by) {
            (Some(_), Some(_), _) => Err(Error::BadAccountHeader),
            (Some(name), None, _) => {
                let name = name.to_str().map_err(|_| Error::BadAccountHeader)?;
                let account = self.accounts.by_name.get(name).cloned();
                account.map(Choice::Settled).ok_or_else(|| {
                    AccountName::new(name).map_or(Error::BadAccountHeader, |_| {
                        Error::AccountNotGranted {
                            caller: caller.name().clone(),
                        }
                    })
                })
            }
            (None, _, AccountBy::AppId) => Ok(Choice::ByAppId {
                accounts: Arc::clone(&self.accounts),
                fallback: self.fallback.clone(),
            }),
            (None, _, AccountBy::Header) => {
                let account = self
                    .fallback
                    .as_ref()
                    .ok_or_else(|| Error::AccountMissing {
                        caller: caller.name().clone(),
                    })?;
                Ok(Choice::Settled(account.clone()))
            }
        }
    }
}

/// One length, or `chunked` once and nothing else: what the library takes besides, another server on the way may read otherwise (RFC 9112
/// section 6.3).
fn is_framed_once(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let codings = (codings.next(), codings.next());
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    match codings {
        (None, _) => lengths <= 1,
        (Some(coding), None) => lengths == 0 && is_chunked(coding),
        (Some(_), Some(_)) => false,
    }
}

fn paused(what: &'static str, name: &str) -> Error {
    Error::Paused {
        what,
        name: name.into(),
    }
}

fn usable(account: &Account) -> Result<(), Error> {
    if account.paused {
        return Err(paused("the account", account.name.as_str()));
    }
    match &account.key {
        Ok(_) => Ok(()),
        Err(fault) => Err(Error::Disabled {
            account: account.name.clone(),
            fault: *fault,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::ACCOUNT_HEADER;
    use super::AccountBy;
    use super::CallerRules;
    use super::Error;
    use super::Head;
    use super::Policy;
    use crate::account::Account;
    use crate::account::AppId;
    use crate::account::AppKey;
    use crate::account::KeyFault;
    use crate::identity::Callers;
    use crate::identity::Identity;
    use crate::identity::Names;
    use crate::identity::Presented;
    use crate::name::AccountName;
    use crate::name::CallerName;
    use crate::name::UpstreamName;
    use crate::operations::Catalogue;
    use crate::pattern::Pattern;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::Method;
    use http::Version;
    use http::header;
    use std::sync::Arc;
    use zeroize::Zeroizing;

    fn account(name: &str, app_id: &str, key: Result<&str, KeyFault>) -> Arc<Account> {
        Arc::new(Account {
            name: AccountName::new(name).expect("a name"),
            app_id: AppId::new(app_id).expect("an appId"),
            upstream: UpstreamName::new("kybio").expect("a name"),
            key: key.and_then(|key| AppKey::new(&Zeroizing::new(key.into()))),
            paused: name == "closed",
            in_flight_max: 1,
        })
    }

    #[derive(Clone, Copy)]
    struct Try {
        accounts: &'static [&'static str],
        default: Option<&'static str>,
        by: AccountBy,
        operations: &'static [&'static str],
        method: &'static str,
        path: &'static str,
        header: Option<&'static str>,
        app_id: Option<&'static str>,
    }

    const PLAIN: Try = Try {
        accounts: &["main"],
        default: None,
        by: AccountBy::Header,
        operations: &["*"],
        method: "POST",
        path: "/openapi/v1/customerOpenApi/add",
        header: None,
        app_id: None,
    };

    /// The operation and account that were granted.
    fn decide(case: &Try) -> Result<(String, String), Error> {
        let accounts = [
            account("main", "APP1", Ok("k1")),
            account("store-1", "APP2", Ok("k2")),
            account("closed", "APP3", Ok("k3")),
            account("keyless", "APP4", Err(KeyFault::Empty)),
        ];
        let name = CallerName::new("orders").expect("a name");
        let rules = CallerRules {
            name: name.clone(),
            accounts: case
                .accounts
                .iter()
                .map(|text| Pattern::new(text))
                .collect(),
            default_account: case
                .default
                .map(|name| AccountName::new(name).expect("a name")),
            account_by: case.by,
            operations: case
                .operations
                .iter()
                .map(|text| Pattern::new(text))
                .collect(),
            paused: false,
            in_flight_max: 1,
        };
        let identity = Identity::parse("dns:orders").expect("an identity");
        let names = Names {
            uris: Vec::new(),
            dns: vec!["orders".to_owned()],
        };
        let caller = Callers::new([(identity, name)])
            .identify(&Presented::Certificate(names))
            .expect("known");
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("gateway"));
        if let Some(account) = case.header {
            headers.insert(ACCOUNT_HEADER, HeaderValue::from_static(account));
        }
        let uri = case.path.parse().expect("a path");
        let method = case.method.parse::<Method>().expect("a method");
        let head = Head {
            method: &method,
            uri: &uri,
            version: Version::HTTP_11,
            headers: &headers,
            from_loopback: false,
        };
        let policy = Policy::new(&Catalogue::shipped(), &accounts, &[rules]);
        let grant = policy
            .authorize(&caller, policy.resolve(&head)?, &headers)?
            .settle(case.app_id)?;
        Ok((
            grant.operation().name.to_string(),
            grant.account().name.to_string(),
        ))
    }

    fn granted(case: &Try) -> String {
        let (operation, account) = decide(case).expect("granted");
        format!("{operation} {account}")
    }

    #[test]
    fn the_canonical_spelling_is_what_is_granted() {
        assert_eq!(
            granted(&Try {
                path: "/OPENAPI/v1/CUSTOMEROPENAPI/ADD",
                ..PLAIN
            }),
            "customerOpenApi/add main"
        );
        assert_eq!(
            granted(&Try {
                path: "/pospal-api2/openapi/v1/customerOpenapi/queryBytel",
                ..PLAIN
            }),
            "customerOpenApi/queryBytel main"
        );
    }

    #[test]
    fn operations_are_granted_by_pattern_and_explicit_ones_by_name_alone() {
        let push = "/openapi/v1/openNotificationOpenApi/updatePushUrl";
        assert_eq!(
            granted(&Try {
                operations: &["customerOpenApi/*"],
                ..PLAIN
            }),
            "customerOpenApi/add main"
        );
        for operations in [&["customerOpenApi/query*"][..], &["productOpenApi/*"], &[]] {
            assert!(
                matches!(
                    decide(&Try {
                        operations,
                        ..PLAIN
                    }),
                    Err(Error::OperationNotGranted { .. })
                ),
                "{operations:?}"
            );
        }
        for operations in [
            &["*"][..],
            &["openNotificationOpenApi/*"],
            &["openNotificationOpenApi/updatePushUr*"],
        ] {
            assert!(
                matches!(
                    decide(&Try {
                        operations,
                        path: push,
                        ..PLAIN
                    }),
                    Err(Error::OperationNotGranted { .. })
                ),
                "{operations:?}"
            );
        }
        let by_name = &["opennotificationopenapi/updatepushurl"];
        assert_eq!(
            granted(&Try {
                operations: by_name,
                path: push,
                ..PLAIN
            }),
            "openNotificationOpenApi/updatePushUrl main"
        );
    }

    #[test]
    fn the_account_is_the_only_one_the_default_or_the_named_one() {
        let both = &["main", "store-*"];
        assert_eq!(
            granted(&Try {
                accounts: &["store-*"],
                ..PLAIN
            }),
            "customerOpenApi/add store-1"
        );
        assert!(matches!(
            decide(&Try {
                accounts: both,
                ..PLAIN
            }),
            Err(Error::AccountMissing { .. })
        ));
        assert_eq!(
            granted(&Try {
                accounts: both,
                default: Some("store-1"),
                ..PLAIN
            }),
            "customerOpenApi/add store-1"
        );
        assert_eq!(
            granted(&Try {
                accounts: both,
                default: Some("store-1"),
                header: Some("main"),
                ..PLAIN
            }),
            "customerOpenApi/add main"
        );
        assert!(matches!(
            decide(&Try {
                header: Some("store-1"),
                ..PLAIN
            }),
            Err(Error::AccountNotGranted { .. })
        ));
        assert!(matches!(
            decide(&Try {
                header: Some("nowhere"),
                ..PLAIN
            }),
            Err(Error::AccountNotGranted { .. })
        ));
        assert_eq!(
            decide(&Try {
                header: Some("Main"),
                ..PLAIN
            }),
            Err(Error::BadAccountHeader)
        );
    }

    #[test]
    fn the_bodys_app_id_chooses_where_configured() {
        let case = Try {
            accounts: &["main", "store-1"],
            by: AccountBy::AppId,
            ..PLAIN
        };
        assert_eq!(
            granted(&Try {
                app_id: Some("APP2"),
                ..case
            }),
            "customerOpenApi/add store-1"
        );
        assert!(matches!(
            decide(&Try {
                app_id: Some("APP3"),
                ..case
            }),
            Err(Error::ForeignAppId { .. })
        ));
        assert!(matches!(
            decide(&Try {
                app_id: Some("\u{1f363}"),
                ..case
            }),
            Err(Error::ForeignAppId { .. })
        ));
        assert!(matches!(
            decide(&Try {
                app_id: None,
                ..case
            }),
            Err(Error::AccountMissing { .. })
        ));
        assert_eq!(
            granted(&Try {
                app_id: None,
                default: Some("main"),
                ..case
            }),
            "customerOpenApi/add main"
        );
        assert_eq!(
            granted(&Try {
                header: Some("main"),
                app_id: Some("APP2"),
                ..case
            }),
            "customerOpenApi/add main"
        );
        let keyless = Try {
            accounts: &["keyless"],
            by: AccountBy::AppId,
            ..PLAIN
        };
        assert!(matches!(decide(&keyless), Err(Error::Disabled { .. })));
        assert!(matches!(
            decide(&Try {
                app_id: Some("APP4"),
                ..keyless
            }),
            Err(Error::Disabled { .. })
        ));
    }

    #[test]
    fn an_account_without_a_key_or_paused_is_refused_alone() {
        assert_eq!(
            decide(&Try {
                accounts: &["closed"],
                ..PLAIN
            }),
            Err(super::paused("the account", "closed"))
        );
        assert!(matches!(
            decide(&Try {
                accounts: &["keyless"],
                ..PLAIN
            }),
            Err(Error::Disabled {
                fault: KeyFault::Empty,
                ..
            })
        ));
        assert!(
            decide(&Try {
                accounts: &["*"],
                header: Some("main"),
                ..PLAIN
            })
            .is_ok()
        );
    }

    #[test]
    fn what_is_no_operation_is_told_apart() {
        let path = |path| decide(&Try { path, ..PLAIN });
        let meant = |text: &str| Some(crate::operation::OperationName::new(text).expect("a name"));
        assert_eq!(
            path("/openapi/v1/nope/nope"),
            Err(Error::UnknownOperation { suggestion: None })
        );
        assert_eq!(path("/"), Err(Error::UnknownOperation { suggestion: None }));
        for length in [100, 101] {
            let name = format!("/openapi/v1/a/{}", "b".repeat(length - 2));
            let path = Box::leak(name.into_boxed_str());
            assert_eq!(
                decide(&Try { path, ..PLAIN }),
                Err(Error::UnknownOperation { suggestion: None }),
                "{length}"
            );
        }
        assert_eq!(
            path("/openapi/v1/orderOpenApi/cancelOrder"),
            Err(Error::UnknownOperation {
                suggestion: meant("orderOpenApi/cancleOrder")
            })
        );
        assert!(matches!(
            path("/pospal-api/api/auth/openapi/promotion/addCouponcode/"),
            Err(Error::Unsupported { .. })
        ));
        assert_eq!(
            decide(&Try {
                method: "GET",
                ..PLAIN
            }),
            Err(Error::Method)
        );
        assert_eq!(
            decide(&Try {
                method: "TRACE",
                ..PLAIN
            }),
            Err(Error::Method)
        );
    }
}
