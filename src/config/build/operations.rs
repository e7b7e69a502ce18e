//! The catalogue, with what the operator adds to it or knows better.

use crate::answers::Answer;
use crate::answers::AnswerClass;
use crate::config::build::Builder;
use crate::config::build::nearest;
use crate::config::fault::dotted;
use crate::config::layers::At;
use crate::operation::Class;
use crate::operation::OperationName;
use crate::operation::Repeat;
use crate::operations::Catalogue;
use crate::operations::Override;

/// What a lookup must be.
const SHOWS_EFFECT: &str = "name a read that shows whether the write took effect";

impl Builder<'_> {
    pub(super) fn catalogue(&mut self) -> Catalogue {
        let checked = self.checked;
        let mut catalogue = Catalogue::shipped();
        for written in checked.names("operations") {
            let key = |key| ["operations", written, key];
            // Written in any letter case, an operation that's known keeps its canonical name.
            let known = catalogue
                .get(written)
                .map(|operation| Ok(operation.name.clone()));
            let unknown = known.is_none();
            let name = known
                .unwrap_or_else(|| OperationName::new(written).map_err(|error| error.to_string()));
            let name = self.keep(&["operations", written], name);
            // To pause or change a misspelled operation would do nothing; one of that very name says its class.
            if unknown
                && name.is_some()
                && checked.text(&key("class")).is_none()
                && let Some(near) = nearest(written, &catalogue)
            {
                let hint = format!(
                    "did you mean {:?}? If there is one of this name too, write its class",
                    near.as_str()
                );
                self.fault_with_hint(&["operations", written], "isn't in the catalogue", hint);
            }
            let lookup = checked
                .text(&key("lookup"))
                .map(|text| OperationName::new(text).map_err(|error| error.to_string()));
            let changes = Override {
                class: checked.text(&key("class")).and_then(word::<Class>),
                explicit: checked.boolean(&key("explicit")),
                repeat: checked.text(&key("repeat")).and_then(word::<Repeat>),
                lookup: lookup.and_then(|lookup| self.keep(&key("lookup"), lookup)),
                paused: checked.boolean(&key("paused")),
            };
            let Some(name) = name else { continue };
            let trusted = changes.repeat == Some(Repeat::IdenticalBytes);
            let operation = catalogue.set(name, changes);
            if trusted && operation.class != Class::DeduplicatedWrite {
                let message = format!(
                    "its class is {}: KYBIO would take a repeat for a call of its own",
                    operation.class.as_str()
                );
                self.fault_with_hint(
                    &key("repeat"),
                    message,
                    "identical-bytes is for a deduplicated-write alone",
                );
            }
        }
        for written in checked.names("operations") {
            let key = ["operations", written, "lookup"];
            // What can't be a name is a fault already.
            let Some(lookup) = checked
                .text(&key)
                .filter(|lookup| OperationName::new(lookup).is_ok())
            else {
                continue;
            };
            match catalogue.get(lookup) {
                Some(found) if found.class == Class::Read => {}
                Some(found) => {
                    let message = format!("the class of {lookup:?} is {}", found.class.as_str());
                    self.fault_with_hint(&key, message, SHOWS_EFFECT);
                }
                None => {
                    let message = format!("there is no operation {lookup:?}");
                    let hint = nearest(lookup, &catalogue).map_or_else(
                        || SHOWS_EFFECT.to_owned(),
                        |near| format!("did you mean {:?}?", near.as_str()),
                    );
                    self.fault_with_hint(&key, message, hint);
                }
            }
        }
        catalogue.know(self.answers());
        catalogue
    }

    /// Error answers that the operator knows.
    fn answers(&mut self) -> Vec<Answer> {
        let checked = self.checked;
        let mut answers: Vec<(&str, Answer)> = Vec::new();
        for written in checked.names("answers") {
            let key = |key| ["answers", written, key];
            let class = checked.text(&key("class")).and_then(word::<AnswerClass>);
            if checked.is_empty_list(&key("match")) {
                self.fault(&key("match"), "the list is empty: no answer would fit");
            }
            for (item, text) in checked.texts(&key("match")).iter().enumerate() {
                if text.trim().is_empty() {
                    let message = "a blank text says nothing: it may be part of any message";
                    self.report(&key("match"), At::Item(item), message, None);
                }
                let code = text.parse().ok();
                let message = code.is_none().then(|| text.clone());
                let Some(class) = class else { continue };
                let answer = Answer {
                    code,
                    message,
                    class,
                };
                let contradicts = |(_, other): &&(&str, Answer)| {
                    (other.code, &other.message) == (answer.code, &answer.message)
                        && other.class != class
                };
                if let Some((other, _)) = answers.iter().find(contradicts) {
                    let other = dotted(&["answers", other]);
                    let message = format!("{text:?} has another class in [{other}]");
                    self.report(&key("match"), At::Item(item), message, None);
                }
                answers.push((written, answer));
            }
        }
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// A word of a closed set, in the spelling that the catalogue has too.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}
