//! What a container runtime says to the CNI plugin.

use std::sync::LazyLock;

use overlay_user::cni::Error;
use overlay_user::cni::asked::Asked;
use overlay_user::cni::config::NetConf;
use overlay_user::cni::request::Request;
use tempfile::NamedTempFile;

use super::explained;

/// What an agent might have written.
static SUBNET_ENV: LazyLock<NamedTempFile> = LazyLock::new(|| {
    let file = NamedTempFile::new().expect("a file");
    let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
                FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    std::fs::write(&file, text).expect("write a file");
    file
});

/// The configuration on standard input, with the result of the plugins before.
pub fn config(data: &[u8]) {
    let mut conf = match NetConf::read(data) {
        Ok(conf) => conf,
        Err(error) => return answered(&error),
    };
    // The name is joined to directories.
    assert!(!conf.name.is_empty() && !conf.name.contains('/') && !conf.name.starts_with('.'));
    assert!(conf.ipam_dir().ends_with(&conf.name));
    for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        let command = command.parse().expect("a command");
        if let Err(error) = conf.version(command) {
            answered(&error);
        }
    }
    match conf.previous() {
        Ok(Some(result)) => {
            let json = serde_json::to_value(&result).expect("JSON");
            conf.prev_result = Some(json);
            conf.previous().expect("what we write we can read");
        }
        Ok(None) => {}
        Err(error) => answered(&error),
    }
    match Asked::new(&conf.cni_version, &conf) {
        Ok(asked) => assert!(asked.mac.is_none_or(|mac| mac.is_unicast())),
        Err(error) => answered(&error),
    }
    conf.subnet_file = SUBNET_ENV.path().to_owned();
    match conf.network() {
        Ok(network) => {
            assert!(network.mtu > 0);
            assert!(!network.routes.is_empty());
        }
        Err(error) => answered(&error),
    }
}

/// The variables of the environment: lines of `NAME=value`.
pub fn request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let variable = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(str::to_owned)
    };
    match Request::new(variable) {
        Ok(Some(
            Request::Add(attachment, ..)
            | Request::Del(attachment, _)
            | Request::Check(attachment, _),
        )) => {
            // Container and interface name files and devices.
            for name in [&attachment.container, &attachment.interface] {
                assert!(
                    !name.is_empty() && !name.contains('/') && name != "." && name != "..",
                    "{name:?}"
                );
                assert!(
                    !name.chars().any(|c| c.is_whitespace() || c.is_control()),
                    "{name:?}"
                );
            }
            assert!(
                attachment.interface.len() <= 15,
                "longer than a device's name"
            );
        }
        Ok(_) => {}
        Err(error) => answered(&error),
    }
}

/// An error has a number, and is JSON that a runtime can read.
fn answered(error: &Error) {
    explained(error);
    let json = error.to_json("1.0.0");
    assert!(json["code"].as_u64().is_some_and(|code| code > 0), "{json}");
    assert!(
        json["msg"].as_str().is_some_and(|text| !text.is_empty()),
        "{json}"
    );
}
