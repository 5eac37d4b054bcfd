//! The one generated file that the source package lacks: descriptions of all types of the API.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::create;
use super::go::Go;
use crate::shell;

/// The mark of packages whose types have to be described.
const MARK: &str = "+k8s:openapi-gen=";
/// The directories of packages in the tree, and the prefixes of their import paths.
const PLACES: [(&str, &str); 2] = [("pkg", "k8s.io/kubernetes/pkg"), ("staging/src", "")];
/// Packages with that mark that no program here is built from.
const OTHERS: [&str; 4] = [
    "code-generator",
    "sample-apiserver",
    "kube-openapi",
    "gengo",
];
const GENERATOR: &str = "./vendor/k8s.io/kube-openapi/cmd/openapi-gen";
const TARGET: &str = "k8s.io/kubernetes/pkg/generated/openapi";

/// Builds the generator and runs it.
pub(super) fn generate(go: &Go, tree: &Path, work: &Path) -> Result<()> {
    let generator = work.join("openapi-gen");
    let mut build = go.command("build", tree);
    shell::run(build.arg("-o").arg(&generator).arg(GENERATOR))?;
    let mut packages = Vec::new();
    for (place, import) in PLACES {
        marked(&tree.join(place), import, &mut packages)?;
    }
    packages.sort_unstable();
    create(&tree.join("pkg/generated/openapi"))?;
    let mut run = Command::new(&generator);
    go.environment(&mut run);
    run.current_dir(tree)
        .args(["-O", "zz_generated.openapi", "-p", TARGET, "-i"])
        .arg(packages.join(","))
        .args(["-h", "hack/boilerplate/boilerplate.generatego.txt"])
        .arg("-r")
        .arg(work.join("violations"))
        .arg("--output-base")
        .arg(work.join("path/src"));
    shell::run(&mut run)
}

/// Adds the marked packages below a directory, by the paths that they are imported as.
fn marked(directory: &Path, import: &str, found: &mut Vec<String>) -> Result<()> {
    let context = || format!("read {}", directory.display());
    let mut is_marked = false;
    for entry in fs::read_dir(directory).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().with_context(context)?;
        if kind.is_dir() && name != "test" && !OTHERS.contains(&name.as_str()) {
            let below = format!("{import}/{name}");
            marked(&entry.path(), below.trim_start_matches('/'), found)?;
        } else if kind.is_file() && is_source(&name) && !is_marked {
            let path = entry.path();
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            is_marked = text.contains(MARK);
        }
    }
    if is_marked {
        found.push(import.to_owned());
    }
    Ok(())
}

fn is_source(name: &str) -> bool {
    name.ends_with(".go") && !name.ends_with("_test.go") && !name.starts_with("zz_generated")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_packages_are_found() {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in [
            (
                "k8s.io/api/core/v1/doc.go",
                "// +k8s:openapi-gen=true\npackage v1\n",
            ),
            ("k8s.io/api/core/v2/doc.go", "package v2\n"),
            (
                "k8s.io/api/core/v3/doc_test.go",
                "// +k8s:openapi-gen=true\n",
            ),
            ("k8s.io/code-generator/doc.go", "// +k8s:openapi-gen=true\n"),
        ] {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut found = Vec::new();
        marked(directory.path(), "", &mut found).unwrap();
        assert_eq!(found, ["k8s.io/api/core/v1"]);
    }
}
