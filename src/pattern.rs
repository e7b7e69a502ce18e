//! Patterns in grants: a name, or a name with `*` for any run of characters.

/// One pattern, compared without regard to letter case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// Any text is a pattern; one without `*` matches itself alone.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_ascii_lowercase().into())
    }

    /// The pattern names one thing alone.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Whether the whole of `name` matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let Some((first, rest)) = self.0.split_once('*') else {
            return *self.0 == *name;
        };
        let Some(mut left) = name.strip_prefix(first) else {
            return false;
        };
        // Between two stars the earliest match is as good as any; the last piece must end the name.
        let mut pieces = rest.split('*').peekable();
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                return left.ends_with(piece);
            }
            let Some((_, after)) = left.split_once(piece) else {
                return false;
            };
            left = after;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn stars_match_any_run() {
        let cases = [
            ("customerOpenApi/add", "customerOpenApi/add", true),
            ("customeropenapi/ADD", "customerOpenApi/add", true),
            ("customerOpenApi/add", "customerOpenApi/addX", false),
            ("customerOpenApi/*", "customerOpenApi/add", true),
            ("customerOpenApi/*", "customerOpenApiX/add", false),
            (
                "productOpenApi/query*",
                "productOpenApi/queryProductPages",
                true,
            ),
            (
                "productOpenApi/query*",
                "productOpenApi/addProductInfo",
                false,
            ),
            ("*", "promotionOpenApi/promotion/addCouponcode", true),
            ("*/query*Pages", "productOpenApi/queryProductPages", true),
            ("*/query*Pages", "productOpenApi/queryProductByUid", false),
            ("store-*", "store-1", true),
            ("store-*", "main", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                Pattern::new(pattern).matches(name),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
