//! JSON keys without regard to case, as Go's `encoding/json` reads them.

use serde_json::{Map, Value};

/// Lower-cases the keys of one JSON object (not of the objects inside it). Of keys that differ only
/// in case the last one has precedence; values that are not objects are returned unchanged.
pub(crate) fn fold_keys(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| (key.to_lowercase(), value))
                .collect::<Map<String, Value>>(),
        ),
        other => other,
    }
}
