//! The Helm chart, rendered by what little of Helm's templates it uses: with the default values it
//! is the manifest.

use std::fmt::Write as _;

use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../../deploy/chart/templates/overlay.yml");
const VALUES: &str = include_str!("../../deploy/chart/values.yaml");
const MANIFEST: &str = include_str!("../../deploy/kube-overlay.yml");
/// The manifest's namespace, which Helm is told by `--namespace`.
const NAMESPACE: &str = "kube-overlay";

/// A piece of a template.
#[derive(Debug)]
enum Piece<'t> {
    Text(&'t str),
    Action(&'t str),
}

/// Text and actions in turn. `{{-` and `-}}` take the white space beside them away.
fn pieces(mut template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    while let Some((text, rest)) = template.split_once("{{") {
        let (action, after) = rest.split_once("}}").expect("an action that ends");
        let trims_before = action.starts_with('-');
        let trims_after = action.ends_with('-');
        pieces.push(Piece::Text(if trims_before {
            text.trim_end()
        } else {
            text
        }));
        pieces.push(Piece::Action(action.trim_matches('-').trim()));
        template = if trims_after {
            after.trim_start()
        } else {
            after
        };
    }
    pieces.push(Piece::Text(template));
    pieces
}

/// What `.a.b` is, of the whole or of what a `range` is at.
fn value<'v>(path: &str, root: &'v Value, dot: &'v Value) -> &'v Value {
    if path == "." {
        return dot;
    }
    let names = path.strip_prefix('.').expect("a path");
    let found = names.split('.').try_fold(root, |at, name| at.get(name));
    found.unwrap_or_else(|| panic!("the values have no {path}"))
}

/// As Go's templates have it.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Renders until the end of this block; returns what is left behind it.
fn render<'p, 't>(
    mut pieces: &'p [Piece<'t>],
    root: &Value,
    dot: &Value,
    out: &mut String,
) -> &'p [Piece<'t>] {
    while let Some((piece, rest)) = pieces.split_first() {
        pieces = rest;
        let action = match piece {
            Piece::Text(text) => {
                out.push_str(text);
                continue;
            }
            Piece::Action(action) => *action,
        };
        let (word, operand) = action.split_once(' ').unwrap_or((action, ""));
        match word {
            "end" => return pieces,
            "if" => {
                let mut block = String::new();
                pieces = render(rest, root, dot, &mut block);
                if is_true(value(operand, root, dot)) {
                    out.push_str(&block);
                }
            }
            "range" => {
                let items = value(operand, root, dot).as_array().expect("a list");
                pieces = render(rest, root, dot, &mut String::new());
                for item in items {
                    render(rest, root, item, out);
                }
            }
            "toJson" => {
                // Writing to a string does not fail.
                let _ = write!(out, "{}", value(operand, root, dot));
            }
            "/*" => {}
            path => match value(path, root, dot) {
                Value::String(text) => out.push_str(text),
                other => {
                    let _ = write!(out, "{other}");
                }
            },
        }
    }
    pieces
}

fn parse(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}:\n{yaml}"));
    documents
}

/// The chart with the default values, changed.
fn chart(change: impl FnOnce(&mut Value)) -> Vec<Value> {
    let mut values: Value = serde_saphyr::from_str(VALUES).expect("values");
    change(&mut values);
    let root = json!({"Values": values, "Release": {"Namespace": NAMESPACE}});
    let mut text = String::new();
    let pieces = pieces(TEMPLATE);
    let left = render(&pieces, &root, &root, &mut text);
    assert!(left.is_empty(), "an end too many");
    parse(&text)
}

/// The manifest's objects, with the network configuration as JSON instead of text.
fn readable(mut objects: Vec<Value>) -> Vec<Value> {
    for object in &mut objects {
        if let Some(Value::String(text)) = object.pointer("/data/net-conf.json") {
            let network: Value = serde_json::from_str(text).expect("JSON");
            object["data"]["net-conf.json"] = network;
        }
    }
    objects
}

#[test]
fn with_the_default_values_it_is_the_manifest() {
    let mut wanted = parse(MANIFEST);
    wanted.retain(|object| object["kind"] != "Namespace");
    let (mut wanted, mut rendered) = (readable(wanted), readable(chart(|_| {})));
    assert_eq!(wanted.len(), 5);
    while let (Some(wanted), Some(rendered)) = (wanted.pop(), rendered.pop()) {
        assert_eq!(rendered, wanted);
    }
    assert!(wanted.is_empty() && rendered.is_empty());
}

#[test]
fn values_of_flannels_chart_are_followed() {
    let objects = readable(chart(|values| {
        values["podCidr"] = json!("10.42.0.0/16");
        values["flannel"]["image"] = json!({"repository": "registry.example/o", "tag": "v1"});
        values["flannel"]["args"] = json!(["--ip-masq", "--kube-subnet-mgr", "--iface=eth1"]);
        values["flannel"]["vni"] = json!(4096);
        values["flannel"]["backendPort"] = json!(4789);
        values["flannel"]["mtu"] = json!(1400);
        values["flannel"]["directRouting"] = json!(true);
        values["flannel"]["nodeSelector"] = json!({"pool": "a"});
        values["flannel"]["cniBinDir"] = json!("/usr/libexec/cni");
    }));
    let of = |kind: &str| objects.iter().find(|it| it["kind"] == kind).expect(kind);
    let network = &of("ConfigMap")["data"]["net-conf.json"];
    let backend =
        json!({"Type": "vxlan", "VNI": 4096, "Port": 4789, "MTU": 1400, "DirectRouting": true});
    assert_eq!(
        *network,
        json!({"Network": "10.42.0.0/16", "Backend": backend})
    );
    let pod = &of("DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"], json!({"pool": "a"}));
    let agent = &pod["containers"][0];
    assert_eq!(agent["image"], "registry.example/o:v1");
    assert_eq!(agent["args"][2], "--iface=eth1");
    assert_eq!(agent["args"].as_array().map(Vec::len), Some(5));
    assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/usr/libexec/cni");
}
