//! What a reboot leaves: addresses of pods for which no runtime calls DEL.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{ADDRESSES, Attachment, lab, taken};

#[test]
fn addresses_from_before_the_boot_are_given_out_again() -> Result<()> {
    let lab = lab("cni-boot", 1, "off")?;
    let node = lab.node(1);
    let living = taken(&node)?;
    let subnet = node.subnet()?.network().to_string();
    let prefix = subnet.trim_end_matches('0');
    node.run([
        "sh",
        "-c",
        &format!(
            "for last in $(seq 2 254); do
                 file={ADDRESSES}/{prefix}$last
                 test -e $file || printf 'dead%s\\r\\neth0' $last > $file || exit
             done
             # An old address of an earlier subnet gives a pod of this subnet no room.
             touch -d 2001-01-01 {ADDRESSES}/10.99.0.2"
        ),
    ])?;
    let conf = json!({"name": "cbr0", "type": "flannel", "cniVersion": "1.1.0"});
    let new = Attachment::new(&lab, 1, "new")?;
    // They may be pods of this boot.
    let error = new.error("STATUS", &conf, &[])?;
    ensure!(error["code"] == 50, "{error}");
    let error = new.error("ADD", &conf, &[])?;
    ensure!(error.to_string().contains("no free address"), "{error}");

    // The living pods' files are as old, as if the clock had been set since.
    let age = format!("touch -d 2001-01-01 {ADDRESSES}/{prefix}*");
    node.run(["sh", "-c", &age])?;
    new.answer("STATUS", &conf, &[])?;
    let answer = new.answer("ADD", &conf, &[])?;
    let mut expected = living;
    let address = answer["ips"][0]["address"].as_str().unwrap_or_default();
    expected.push(address.trim_end_matches("/24").to_owned());
    expected.sort();
    let mut left = taken(&node)?;
    left.sort();
    ensure!(left == expected, "{left:?} instead of {expected:?}");
    new.answer("DEL", &conf, &[])?;
    lab.down()
}
