//! Each probe has the result that is known for the kernel.

use anyhow::{Result, ensure};
use overlay_user::datapath::probe::{Answer, Probes};

use crate::kernel::{Version, expected_mechanism};

#[test]
#[ignore = "runs in a kernel VM: cargo xtask vmtest"]
fn probes_tell_the_truth() -> Result<()> {
    let probes = Probes::all();
    let version = Version::running();
    for probe in &probes.0 {
        println!(
            "{} (since {}): {:?}",
            probe.feature, probe.since, probe.answer
        );
    }
    println!("verdict on Linux {version}: {:?}", probes.verdict());
    for probe in &probes.0 {
        let (major, minor) = probe.since.split_once('.').expect("a version");
        let has = version >= Version(major.parse()?, minor.parse()?);
        let answered = match &probe.answer {
            Answer::Yes => true,
            Answer::No(_) => false,
            Answer::Error(why) => anyhow::bail!("{}: {why}", probe.feature),
        };
        ensure!(
            has == answered,
            "{} on Linux {version}: {:?}, but it is there since {}",
            probe.feature,
            probe.answer,
            probe.since
        );
    }
    ensure!(
        probes.verdict().ok() == expected_mechanism(),
        "{:?}",
        probes.verdict()
    );
    Ok(())
}
