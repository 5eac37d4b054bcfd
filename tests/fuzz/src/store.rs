//! A directory of leases, where anybody who may write there can put anything.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use overlay_user::backend::{Backend as _, Vxlan};
use overlay_user::lease::Attributes;
use overlay_user::mac::MacAddr;
use overlay_user::per_family::PerFamily;
use overlay_user::store::{Error, Location, Store};

use super::{explained, shown};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1));
const TTL: Duration = Duration::from_secs(3600);
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
/// More than a lease can have.
const LARGE: usize = 100_000;

/// Records that end with a zero byte: a letter for what it is, a name up to the end of the line,
/// content. What has no name that a file can have is left out.
pub fn store_dir(data: &[u8]) {
    let home = tempfile::tempdir().expect("a directory");
    let root = home.path().join("store");
    for directory in ["subnets", "static"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::write(root.join("config"), CONFIG).expect("a file");
    for record in data.split(|byte| *byte == 0).take(50) {
        // A file that cannot be made, such as a second one of the same name, is left out.
        let _ = make(&root, record);
    }
    let before = files(&root);

    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let open = || Store::open(Location::Dir(root.clone()), TTL, TTL / 2).expect("a store");
        let store = open();
        let config = store.network_config().await.expect("a configuration");
        let attributes =
            Vxlan::default().attributes(&PerFamily::V4((ADDRESS, MacAddr([2, 0, 0, 0, 0, 1]))));
        let own = match store.acquire(&config, attributes.clone(), None).await {
            Ok(lease) => lease,
            Err(error) => {
                explained(&error);
                assert!(
                    matches!(error, Error::Allocate(_)),
                    "what lies there keeps a node from its lease: {error}"
                );
                return;
            }
        };
        let state = store.subscribe().borrow().clone();
        for rejection in state.rejected.values() {
            shown(&rejection.reason);
            shown(&rejection.subject);
        }
        // What is under this node's address is its own, to be taken up, rewritten or removed.
        let (mine, others): (Vec<_>, Vec<_>) =
            before.iter().partition(|(_, content)| is_own(content));
        for lease in state.leases.values().filter(|_| mine.is_empty()) {
            assert!(!lease.key().overlaps(&own.key()), "{own:?} is in {lease:?}");
        }
        for (path, content) in others {
            let now = fs::read(path).ok();
            assert_eq!(now.as_ref(), Some(content), "{path:?} was changed");
        }
        let again = open().acquire(&config, attributes.clone(), None).await;
        assert_eq!(
            again.expect("a lease").subnets,
            own.subnets,
            "what we wrote we find"
        );
        let released = store
            .release(&own.subnets, &attributes)
            .await
            .expect("a release");
        assert_eq!(released, !own.reserved);
    });
}

fn is_own(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    Attributes::parse(text.trim_end())
        .is_ok_and(|attributes| attributes.public_ip == PerFamily::V4(ADDRESS))
}

fn make(root: &Path, record: &[u8]) -> std::io::Result<()> {
    let Some((kind, rest)) = record.split_first() else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(rest);
    let (name, content) = text.split_once('\n').unwrap_or((&text, ""));
    if name.is_empty() || name.contains('/') || [".", ".."].contains(&name) {
        return Ok(());
    }
    let directory = if kind.is_ascii_uppercase() {
        "static"
    } else {
        "subnets"
    };
    let path = root.join(directory).join(name);
    match kind.to_ascii_lowercase() {
        // One whose term has ended.
        b'e' => {
            fs::write(&path, content)?;
            let ended = SystemTime::now() - 2 * TTL;
            fs::File::options()
                .write(true)
                .open(&path)?
                .set_modified(ended)
        }
        b'b' => fs::write(&path, content.repeat(LARGE / content.len().max(1))),
        b'd' => fs::create_dir(&path),
        b'l' => symlink(content, &path),
        b's' => UnixListener::bind(&path).map(drop),
        b'p' => Ok(mkfifo(&path, Mode::S_IRWXU)?),
        _ => fs::write(&path, content),
    }
}

/// What the plain files there hold whose term has not ended: whose has, gives its name up.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for directory in ["subnets", "static"] {
        for entry in fs::read_dir(root.join(directory)).expect("a directory") {
            let entry = entry.expect("an entry");
            let is_current = |metadata: fs::Metadata| {
                let age = metadata.modified().ok().and_then(|at| at.elapsed().ok());
                metadata.is_file() && age.is_none_or(|age| age < TTL)
            };
            if entry.metadata().is_ok_and(is_current) {
                files.insert(entry.path(), fs::read(entry.path()).expect("a file"));
            }
        }
    }
    files
}
