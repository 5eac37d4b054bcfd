//! Frames with their VLAN tags. The kernel removes a tag before a raw socket sees the frame;
//! tcpdump reads the tag and restores it.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Pod, Running, wait_until};
use std::time::Duration;

const STARTED: Duration = Duration::from_secs(10);
/// `pcap` file format: length of the file's header, of each record's header, and position of the
/// captured length in the latter.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const LENGTH: std::ops::Range<usize> = 8..12;
const MAGIC: u32 = 0xa1b2_c3d4;

/// A running tcpdump.
pub struct Tags(Running);

impl Tags {
    /// Watches the tagged frames that a pod gets.
    pub fn watch(pod: Pod) -> Result<Self> {
        let sockets = || {
            pod.run(["cat", "/proc/net/packet"])
                .map(|text| text.lines().count())
        };
        let before = sockets()?;
        let line = "tcpdump -i eth0 -Q in --immediate-mode -U -Z root -w - vlan";
        let running = pod.spawn(line.split(' '))?;
        wait_until("tcpdump to listen", STARTED, || {
            sockets().is_ok_and(|now| now > before)
        })?;
        Ok(Self(running))
    }

    /// Ends tcpdump and returns the frames.
    pub fn frames(self) -> Result<Vec<Vec<u8>>> {
        let output = self.0.stop(Signal::SIGINT)?;
        let file = &output.stdout;
        let complaint = || String::from_utf8_lossy(&output.stderr).into_owned();
        let magic = file.get(..4).and_then(|bytes| bytes.try_into().ok());
        ensure!(
            magic.map(u32::from_ne_bytes) == Some(MAGIC),
            "tcpdump: {}",
            complaint()
        );
        let mut frames = Vec::new();
        let mut rest = file.get(FILE_HEADER..).with_context(complaint)?;
        while let Some(header) = rest.get(..RECORD_HEADER) {
            let length = u32::from_ne_bytes(header[LENGTH].try_into()?);
            let end = RECORD_HEADER + usize::try_from(length)?;
            frames.push(
                rest.get(RECORD_HEADER..end)
                    .with_context(complaint)?
                    .to_vec(),
            );
            rest = &rest[end..];
        }
        Ok(frames)
    }
}
