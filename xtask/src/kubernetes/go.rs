//! Go for a tree from before modules.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Go, with its environment.
pub(super) struct Go {
    root: PathBuf,
    path: PathBuf,
    cache: PathBuf,
}

impl Go {
    /// The compiler at `root`; the tree to build, and the compiler's cache, are below `work`.
    pub(super) fn new(root: PathBuf, work: &Path) -> Self {
        Self {
            root,
            path: work.join("path"),
            cache: work.join("cache"),
        }
    }

    /// A command of Go in the tree. Nothing is fetched.
    pub(super) fn command(&self, name: &str, tree: &Path) -> Command {
        let mut command = Command::new(self.root.join("bin/go"));
        self.environment(&mut command);
        command.current_dir(tree).arg(name);
        command
    }

    /// Sets the environment variables of Go's tools for a program.
    pub(super) fn environment(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let with_go = [self.root.join("bin").as_os_str(), &path].join(OsStr::new(":"));
        command
            .env("PATH", with_go)
            .env("GOROOT", &self.root)
            .env("GOPATH", &self.path)
            .env("GOCACHE", &self.cache)
            .env("GO111MODULE", "off")
            .env("GOPROXY", "off")
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-trimpath -p=2 -tags=providerless,dockerless");
    }
}
