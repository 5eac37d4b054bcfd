//! The few parts of JSON Schema that describe the chart's values, because a whole validator would
//! bring forty crates.

use serde_json::Value;

/// Keywords that describe without a requirement.
const COMMENTS: [&str; 3] = ["$schema", "title", "description"];

/// The faults of a value; `at` is its path from the root.
pub fn faults(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let words = schema.as_object().expect("a schema is an object");
    let mut demand = |is_met: bool, word: &str| {
        if !is_met {
            faults.push(format!("{at}: {word} is {}, not {value}", schema[word]));
        }
    };
    for (word, asked) in words {
        match word.as_str() {
            "type" => {
                let kinds = asked
                    .as_array()
                    .map_or(std::slice::from_ref(asked), Vec::as_slice);
                demand(kinds.iter().any(|kind| is_of(kind, value)), word);
            }
            "const" => demand(value == asked, word),
            "enum" => demand(asked.as_array().expect("a list").contains(value), word),
            "minimum" => demand(value.as_f64() >= asked.as_f64(), word),
            "maximum" => demand(value.as_f64() <= asked.as_f64(), word),
            "minLength" => {
                let length = value.as_str().map_or(0, |text| text.chars().count());
                demand(u64::try_from(length).ok() >= asked.as_u64(), word);
            }
            "required" => {
                let names = asked.as_array().expect("a list");
                let has = |name: &Value| value.get(name.as_str().expect("a name")).is_some();
                demand(names.iter().all(has), word);
            }
            "properties" | "additionalProperties" | "items" => {}
            other => assert!(
                COMMENTS.contains(&other),
                "{at}: this test does not know {other}"
            ),
        }
    }
    let known = &schema["properties"];
    for (name, inner) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        match known.get(name) {
            Some(schema) => faults.extend(self::faults(schema, inner, &at)),
            None if schema["additionalProperties"] == false => {
                faults.push(format!("{at} is no value of this chart"));
            }
            None => {}
        }
    }
    for inner in value.as_array().into_iter().flatten() {
        if let Some(schema) = schema.get("items") {
            faults.extend(self::faults(schema, inner, &format!("{at}[]")));
        }
    }
    faults
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a type's name") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        other => panic!("this test does not know the type {other}"),
    }
}
