//! Names of Services and EndpointSlices.

use std::fmt;
use std::sync::Arc;

use crate::lease::excerpt;

/// Kubernetes' namespace for whatever is in none.
const DEFAULT: &str = "default";

/// The kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    Slice,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Service, Self::Slice];

    /// The plural as the Kubernetes API writes it, which is also where stores keep such objects.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Slice => "endpointslices",
        }
    }
}

/// The name of an object with its namespace, `default/web`. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// The name in the namespace.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// From the key of a store: `NAMESPACE.NAME`, or `NAME` in the namespace `default`. No
    /// namespace has a dot in its name.
    #[must_use]
    pub fn from_key(key: &str) -> Self {
        let (namespace, name) = key.split_once('.').unwrap_or((DEFAULT, key));
        Self::new(namespace, name)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or((DEFAULT, &self.0))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&excerpt(&self.0))
    }
}

/// An object that refusals are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Service => "Service",
            Kind::Slice => "EndpointSlice",
        };
        write!(f, "{kind} {}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_called_as_by_the_api() {
        assert_eq!(Kind::ALL.map(Kind::plural), ["services", "endpointslices"]);
    }

    #[test]
    fn a_key_names_a_namespace_or_means_the_default_one() {
        for (key, name) in [
            ("web", "default/web"),
            ("shop.web", "shop/web"),
            ("shop.web.1", "shop/web.1"),
        ] {
            assert_eq!(ObjectName::from_key(key).to_string(), name);
        }
        let odd = ObjectName::from_key("a\n.b");
        assert_eq!((odd.namespace(), odd.name()), ("a\n", "b"));
        assert_eq!(odd.to_string(), "a\\n/b");
    }
}
