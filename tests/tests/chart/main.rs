//! The Helm chart, rendered by the few functions of Helm's templates that it uses: with the default
//! values the result is the manifest. The schema judges the chart's values, as in Helm.

mod schema;
mod template;

use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../../../deploy/chart/templates/overlay.yml");
const VALUES: &str = include_str!("../../../deploy/chart/values.yaml");
const SCHEMA: &str = include_str!("../../../deploy/chart/values.schema.json");
const MANIFEST: &str = include_str!("../../../deploy/kube-overlay.yml");
/// The manifest's namespace, which Helm gets by `--namespace`.
const NAMESPACE: &str = "kube-overlay";

fn parse(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}:\n{yaml}"));
    documents
}

fn values() -> Value {
    serde_saphyr::from_str(VALUES).expect("values")
}

/// The chart with the default values, changed as the schema allows.
fn chart(change: impl FnOnce(&mut Value)) -> Vec<Value> {
    let mut values = values();
    change(&mut values);
    let faults = faults(&values);
    assert!(faults.is_empty(), "{faults:#?}");
    let root = json!({"Values": values, "Release": {"Namespace": NAMESPACE}});
    parse(&template::rendered(TEMPLATE, &root))
}

/// The schema's objections to values.
fn faults(values: &Value) -> Vec<String> {
    let schema = serde_json::from_str(SCHEMA).expect("JSON");
    schema::faults(&schema, values, "")
}

fn of<'o>(kind: &str, objects: &'o [Value]) -> &'o Value {
    objects.iter().find(|it| it["kind"] == kind).expect(kind)
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
        values["global"]["imagePullSecrets"] = json!([{"name": "registry"}]);
        values["podCidr"] = json!("10.42.0.0/16");
        values["podCidrv6"] = json!("fd00:10:42::/56");
        values["flannel"]["image"] = json!({"repository": "registry.example/o", "tag": "v1"});
        values["flannel"]["flannel_cni"] = json!({"image": {"repository": "x", "tag": "y"}});
        values["flannel"]["args"] = json!(["--ip-masq", "--kube-subnet-mgr", "--iface=eth1"]);
        values["flannel"]["enableNFTables"] = json!(true);
        values["flannel"]["vni"] = json!(16_777_215);
        values["flannel"]["backendPort"] = json!(4789);
        values["flannel"]["mtu"] = json!(1400);
        values["flannel"]["directRouting"] = json!(true);
        values["flannel"]["nodeSelector"] = json!({"pool": "a"});
        values["flannel"]["cniBinDir"] = json!("/usr/libexec/cni");
        values["flannel"]["cniConfDir"] = json!("/etc/other/net.d");
        values["flannel"]["cniConf"] = json!("{\n}\n");
        values["flannel"]["resources"] = json!({"limits": {"memory": "128Mi"}});
        values["flannel"]["tolerations"] = json!([{"key": "a", "effect": "NoSchedule"}]);
        let slow = json!({"initialDelaySeconds": 7, "periodSeconds": 9});
        values["flannel"]["healthz"] =
            json!({"port": 8081, "livenessProbe": slow, "readinessProbe": slow});
    }));
    let backend = json!({
        "Type": "vxlan", "VNI": 16_777_215, "Port": 4789, "MTU": 1400, "DirectRouting": true,
    });
    let data = &of("ConfigMap", &objects)["data"];
    assert_eq!(
        data["net-conf.json"],
        json!({
            "Network": "10.42.0.0/16",
            "IPv6Network": "fd00:10:42::/56",
            "EnableIPv6": true,
            "EnableNFTables": true,
            "Backend": backend,
        })
    );
    assert_eq!(data["cni-conf.json"], "{\n}\n");
    let pod = &of("DaemonSet", &objects)["spec"]["template"]["spec"];
    assert_eq!(pod["nodeSelector"], json!({"pool": "a"}));
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(
        pod["tolerations"],
        json!([{"key": "a", "effect": "NoSchedule"}])
    );
    let agent = &pod["containers"][0];
    assert_eq!(agent["image"], "registry.example/o:v1");
    assert_eq!(agent["resources"], json!({"limits": {"memory": "128Mi"}}));
    assert_eq!(agent["args"][2], "--iface=eth1");
    assert_eq!(agent["args"].as_array().map(Vec::len), Some(5));
    assert_eq!(agent["args"][4], "--healthz-port=8081");
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let get = json!({"host": "127.0.0.1", "path": path, "port": 8081});
        assert_eq!(
            agent[probe],
            json!({"httpGet": get, "initialDelaySeconds": 7, "periodSeconds": 9})
        );
    }
    assert_eq!(pod["volumes"][1]["hostPath"]["path"], "/usr/libexec/cni");
    assert_eq!(pod["volumes"][2]["hostPath"]["path"], "/etc/other/net.d");
}

#[test]
fn what_is_switched_off_is_not_there() {
    let objects = readable(chart(|values| {
        values["podCidr"] = json!("");
        values["podCidrv6"] = json!("fd00:10:42::/56");
        values["flannel"]["backend"] = json!("host-gw");
        values["flannel"]["skipCNIConfigInstallation"] = json!(true);
        values["flannel"]["healthz"]["port"] = json!(0);
    }));
    assert_eq!(
        of("ConfigMap", &objects)["data"]["net-conf.json"],
        json!({
            "EnableIPv4": false,
            "IPv6Network": "fd00:10:42::/56",
            "EnableIPv6": true,
            "Backend": {"Type": "host-gw"},
        })
    );
    let pod = &of("DaemonSet", &objects)["spec"]["template"]["spec"];
    let command = &pod["initContainers"][1]["command"];
    let flags = command.as_array().expect("a list");
    assert_eq!(flags[2], "--plugin-only");
    assert!(!command.to_string().contains("--list"), "{command}");
    let agent = &pod["containers"][0];
    assert_eq!(
        (agent.get("livenessProbe"), agent.get("readinessProbe")),
        (None, None)
    );
}

#[test]
fn values_that_this_chart_does_not_follow_are_refused() {
    for (path, value) in [
        ("/flannel/backend", json!("wireguard")),
        ("/flannel/backend", Value::Null),
        ("/flannel/psk", json!("secret")),
        ("/flannel/GBP", json!(true)),
        ("/flannel/vni", json!(16_777_216)),
        ("/flannel/mtu", json!("1400")),
        ("/flannel/args", json!("--ip-masq")),
        ("/flannel/image/tag", json!("")),
        ("/flannel/skipCNIConfigInstallation", json!("no")),
        ("/flannel/healthz/port", json!(65_536)),
        ("/flannel/healthz/readinessProbe/periodSeconds", json!(0)),
        ("/global/imagePullSecrets", json!([{}])),
        ("/netpol", json!({"enabled": true})),
        ("/podCIDR", json!("10.42.0.0/16")),
    ] {
        let mut values = values();
        let (parent, name) = path.rsplit_once('/').expect("a path");
        values.pointer_mut(parent).expect(path)[name] = value.clone();
        let faults = faults(&values);
        let dotted = path.replace('/', ".");
        assert!(
            !faults.is_empty() && faults.iter().all(|it| it.starts_with(&dotted)),
            "{path} = {value}: {faults:?}"
        );
    }
}

/// The template, the values and the schema name the same settings.
#[test]
fn template_values_and_schema_name_the_same() {
    let (values, schema): (_, Value) = (values(), serde_json::from_str(SCHEMA).expect("JSON"));
    for path in template::paths(TEMPLATE) {
        let pointer = path.trim_start_matches(".Values").replace('.', "/");
        assert!(
            values.pointer(&pointer).is_some(),
            "values.yaml has no {path}"
        );
        let described = format!("/properties{}", pointer.replace('/', "/properties/"));
        let described = described.replacen("/properties/properties", "/properties", 1);
        assert!(
            schema.pointer(&described).is_some(),
            "the schema has no {path}"
        );
    }
}
