//! The checked-in seeds of the fuzz targets (`tests/fuzz`), through the functions that libFuzzer
//! calls.

#[path = "../fuzz/src/lib.rs"]
mod inputs;

use std::path::Path;
use std::{fs, panic};

use anyhow::{Context as _, Result, ensure};

#[test]
fn every_seed_of_every_fuzz_target_holds() -> Result<()> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut failed = Vec::new();
    for (name, _) in inputs::TARGETS {
        ensure!(
            fuzz.join(format!("fuzz_targets/{name}.rs")).exists(),
            "target {name} has no file for libFuzzer"
        );
        let seeds = fuzz.join("seeds").join(name);
        let listing = fs::read_dir(&seeds).with_context(|| format!("list {}", seeds.display()))?;
        let files: Vec<_> = listing.collect::<Result<_, _>>()?;
        ensure!(!files.is_empty(), "{} has no seeds", seeds.display());
        for file in files {
            let data = fs::read(file.path())?;
            if panic::catch_unwind(|| inputs::run(name, &data)).is_err() {
                failed.push(file.path().display().to_string());
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
