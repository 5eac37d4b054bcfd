//! Foreign queueing disciplines and filters on devices beside our programs.

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use super::super::attributes::link_name;
use super::super::{Error, Kernel};

/// A filter of a `clsact` qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Whether it is on the egress side.
    pub egress: bool,
    /// Place among the filters.
    pub priority: u16,
    /// The kernel's id of its program, if it is one of eBPF (`TCA_BPF_ID`).
    pub program: Option<u32>,
    /// The program's name as given to the filter (`TCA_BPF_NAME`).
    pub name: Option<String>,
}

impl Kernel {
    /// The filters of a device's `clsact` qdisc; a missing device has none.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn filters(&self, ifindex: u32) -> Result<Vec<Filter>, Error> {
        let object = format!("filters of ifindex {ifindex}");
        let get = || self.handle.traffic_filter(ifindex.cast_signed()).get();
        // One after the other: `execute` sends at once, and a socket has one dump at a time
        // (EBUSY).
        let ingress = self
            .dump("RTM_GETTFILTER", &object, get().ingress().execute())
            .await?;
        let egress = self
            .dump("RTM_GETTFILTER", &object, get().egress().execute())
            .await?;
        let of = |egress| {
            move |message: TcMessage| Filter {
                egress,
                // The upper half of tcm_info; the lower is the protocol.
                priority: (message.header.info >> 16) as u16,
                program: bpf(&message, |option| match option {
                    TcFilterBpfOption::ProgId(id) => Some(*id),
                    _ => None,
                }),
                name: bpf(&message, |option| match option {
                    TcFilterBpfOption::ProgName(name) => Some(name.clone()),
                    _ => None,
                }),
            }
        };
        let ingress = ingress.into_iter().map(of(false));
        Ok(ingress.chain(egress.into_iter().map(of(true))).collect())
    }

    /// Name and index of every device that has a `clsact` qdisc.
    ///
    /// # Errors
    /// The error from netlink.
    pub async fn clsact_devices(&self) -> Result<BTreeMap<u32, String>, Error> {
        let qdiscs = self.qdiscs().await?;
        let clsact: BTreeSet<u32> = qdiscs
            .iter()
            .filter(|qdisc| kind(qdisc) == Some("clsact"))
            .map(|qdisc| qdisc.header.index.cast_unsigned())
            .collect();
        let links = self.links().await?;
        let devices = links
            .iter()
            .filter(|link| clsact.contains(&link.header.index));
        Ok(devices
            .filter_map(|link| Some((link.header.index, link_name(link)?.to_owned())))
            .collect())
    }

    pub(super) async fn qdiscs(&self) -> Result<Vec<TcMessage>, Error> {
        let all = self.handle.qdisc().get().execute();
        self.dump("RTM_GETQDISC", "all devices", all).await
    }
}

/// The value that `find` picks from the options of an eBPF filter; `None` for another filter.
fn bpf<T>(filter: &TcMessage, find: impl Fn(&TcFilterBpfOption) -> Option<T>) -> Option<T> {
    let options = filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(option) => find(option),
        _ => None,
    })
}

/// What the queueing disciplines of a device amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Qdiscs {
    Plain,
    /// Only its filters matter.
    Clsact,
    Foreign,
}

pub(super) fn judge(qdiscs: &[&TcMessage]) -> Qdiscs {
    let mut verdict = Qdiscs::Plain;
    for qdisc in qdiscs {
        match kind(qdisc) {
            Some("noqueue") if qdisc.header.parent == TcHandle::ROOT => {}
            Some("clsact") => verdict = Qdiscs::Clsact,
            _ => return Qdiscs::Foreign,
        }
    }
    verdict
}

/// The kind of a queueing discipline.
fn kind(qdisc: &TcMessage) -> Option<&str> {
    let mut attributes = qdisc.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qdisc(kind: &str, parent: TcHandle) -> TcMessage {
        let mut message = TcMessage::default();
        message.header.parent = parent;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        message
    }

    #[test]
    fn only_the_defaults_are_plain() {
        let noqueue = qdisc("noqueue", TcHandle::ROOT);
        let clsact = qdisc("clsact", TcHandle::CLSACT);
        assert_eq!(judge(&[]), Qdiscs::Plain);
        assert_eq!(judge(&[&noqueue]), Qdiscs::Plain);
        assert_eq!(judge(&[&noqueue, &clsact]), Qdiscs::Clsact);
        assert_eq!(judge(&[&qdisc("tbf", TcHandle::ROOT)]), Qdiscs::Foreign);
        assert_eq!(
            judge(&[&noqueue, &qdisc("ingress", TcHandle::INGRESS)]),
            Qdiscs::Foreign
        );
        assert_eq!(
            judge(&[&clsact, &qdisc("fq_codel", TcHandle::ROOT)]),
            Qdiscs::Foreign
        );
    }
}
