//! flannel's chains, in iptables.

use std::collections::BTreeMap;
use std::fmt::Write;

use ipnet::IpNet;

use super::RuleSet;
use crate::kernel::ToolError;
use crate::kernel::tool::run;

/// A chain of ours and the built-in chain that jumps to it.
struct Chain {
    table: &'static str,
    hook: &'static str,
    name: &'static str,
    comment: &'static str,
}

const POSTROUTING: Chain = Chain {
    table: "nat",
    hook: "POSTROUTING",
    name: "FLANNEL-POSTRTG",
    comment: "flanneld masq",
};
const FORWARD: Chain = Chain {
    table: "filter",
    hook: "FORWARD",
    name: "FLANNEL-FWD",
    comment: "flanneld forward",
};

/// The names of `iptables` and the related programs for one address family.
struct IptablesTools {
    save: &'static str,
    restore: &'static str,
    multicast: &'static str,
}

const IPV4: IptablesTools = IptablesTools {
    save: "iptables-save",
    restore: "iptables-restore",
    multicast: "224.0.0.0/4",
};
const IPV6: IptablesTools = IptablesTools {
    save: "ip6tables-save",
    restore: "ip6tables-restore",
    multicast: "ff00::/8",
};

pub(super) async fn ensure(rules: &RuleSet) -> Result<bool, ToolError> {
    let tools = match rules.network {
        IpNet::V4(_) => &IPV4,
        IpNet::V6(_) => &IPV6,
    };
    reach(tools, wanted(rules, tools.multicast)).await
}

pub(super) async fn remove() -> Result<(), ToolError> {
    for tools in [&IPV4, &IPV6] {
        reach(tools, [None, None]).await?;
    }
    Ok(())
}

/// Makes the two chains hold `wanted`, by one batch. Returns whether a change was needed.
async fn reach(tools: &IptablesTools, wanted: [Option<Vec<String>>; 2]) -> Result<bool, ToolError> {
    let saved = Saved::parse(&run(tools.save, &[], "").await?);
    let mut input = String::new();
    for (chain, bodies) in [&POSTROUTING, &FORWARD].into_iter().zip(wanted) {
        if !saved.matches(chain, bodies.as_deref()) {
            input += &batch(chain, bodies.as_deref(), &saved);
        }
    }
    if input.is_empty() {
        return Ok(false);
    }
    run(tools.restore, &["--noflush", "--wait"], &input).await?;
    Ok(true)
}

/// The rules of our two chains, without the leading `-A CHAIN`; `None` for a chain that is not
/// wanted. The text has the form of `iptables-save`, so that both can be compared.
fn wanted(rules: &RuleSet, multicast: &str) -> [Option<Vec<String>>; 2] {
    let (n, p) = (rules.network.trunc(), rules.subnet.trunc());
    let masq = format!("-m comment --comment \"{}\"", POSTROUTING.comment);
    let forward = format!("-m comment --comment \"{}\"", FORWARD.comment);
    let random = if rules.random_fully {
        " --random-fully"
    } else {
        ""
    };
    let postrouting = [
        // kube-proxy masquerades packets with its mark; a second masquerade breaks checksum
        // offload.
        format!("-m mark --mark 0x4000/0x4000 {masq} -j RETURN"),
        format!("-s {p} -d {n} {masq} -j RETURN"),
        format!("-s {n} -d {p} {masq} -j RETURN"),
        format!("! -s {n} -d {p} {masq} -j RETURN"),
        format!("-s {n} ! -d {multicast} {masq} -j MASQUERADE{random}"),
        format!("! -s {n} -d {n} {masq} -j MASQUERADE{random}"),
    ];
    let accept = [
        format!("-s {n} {forward} -j ACCEPT"),
        format!("-d {n} {forward} -j ACCEPT"),
    ];
    [
        rules.masquerade.then(|| postrouting.to_vec()),
        rules.forward.then(|| accept.to_vec()),
    ]
}

/// Text for `iptables-restore` that makes one chain hold `bodies`, or removes the chain.
fn batch(chain: &Chain, bodies: Option<&[String]>, saved: &Saved) -> String {
    let Chain {
        table, hook, name, ..
    } = chain;
    let jump = jump(chain);
    // Declaring a chain creates or flushes it.
    let mut input = format!("*{table}\n:{name} - [0:0]\n");
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(input, "{text}"); // Writing to a String cannot fail.
    };
    for body in bodies.unwrap_or_default() {
        line(format_args!("-A {name} {body}"));
    }
    let (present, wanted) = (saved.jumps(chain), usize::from(bodies.is_some()));
    for _ in present..wanted {
        line(format_args!("-A {hook} {jump}"));
    }
    for _ in wanted..present {
        line(format_args!("-D {hook} {jump}"));
    }
    if bodies.is_none() {
        line(format_args!("-X {name}"));
    }
    input.push_str("COMMIT\n");
    input
}

fn jump(chain: &Chain) -> String {
    format!(
        "-m comment --comment \"{}\" -j {}",
        chain.comment, chain.name
    )
}

/// The output of `iptables-save`, by table and chain: rules without `-A CHAIN`, in order.
#[derive(Default)]
struct Saved(BTreeMap<(String, String), Vec<String>>);

impl Saved {
    fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':').and_then(|l| l.split(' ').next()) {
                saved
                    .0
                    .entry((table.to_owned(), chain.to_owned()))
                    .or_default();
            } else if let Some((chain, body)) = line
                .strip_prefix("-A ")
                .and_then(|rule| rule.split_once(' '))
            {
                let rules = saved
                    .0
                    .entry((table.to_owned(), chain.to_owned()))
                    .or_default();
                rules.push(body.to_owned());
            }
        }
        saved
    }

    fn rules(&self, chain: &Chain, name: &str) -> Option<&[String]> {
        self.0
            .get(&(chain.table.to_owned(), name.to_owned()))
            .map(Vec::as_slice)
    }

    /// Number of jumps from the built-in chain to ours.
    fn jumps(&self, chain: &Chain) -> usize {
        let jump = jump(chain);
        let rules = self.rules(chain, chain.hook).unwrap_or_default();
        rules.iter().filter(|rule| **rule == jump).count()
    }

    /// Whether the kernel holds exactly `bodies`, reached by one jump; or, for `None`, neither
    /// chain nor jump.
    fn matches(&self, chain: &Chain, bodies: Option<&[String]>) -> bool {
        self.rules(chain, chain.name) == bodies
            && self.jumps(chain) == usize::from(bodies.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> [Option<Vec<String>>; 2] {
        let rules = RuleSet {
            network: "10.244.0.0/16".parse().expect("a network"),
            subnet: "10.244.1.0/24".parse().expect("a network"),
            masquerade: true,
            forward: true,
            random_fully: true,
        };
        super::wanted(&rules, IPV4.multicast)
    }

    #[test]
    fn an_empty_kernel_gets_flannels_rules_and_then_matches() {
        let (saved, [masquerade, _]) = (Saved::default(), wanted());
        let input = batch(&POSTROUTING, masquerade.as_deref(), &saved);
        let comment = "-m comment --comment \"flanneld masq\"";
        assert_eq!(
            input.lines().collect::<Vec<_>>(),
            [
                "*nat",
                ":FLANNEL-POSTRTG - [0:0]",
                &format!("-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {comment} -j RETURN"),
                &format!(
                    "-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 {comment} -j RETURN"
                ),
                &format!(
                    "-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 {comment} -j RETURN"
                ),
                &format!(
                    "-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 {comment} -j RETURN"
                ),
                &format!(
                    "-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 {comment} \
                     -j MASQUERADE --random-fully"
                ),
                &format!(
                    "-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 {comment} \
                     -j MASQUERADE --random-fully"
                ),
                &format!("-A POSTROUTING {comment} -j FLANNEL-POSTRTG"),
                "COMMIT",
            ]
        );
        assert!(Saved::parse(&input).matches(&POSTROUTING, masquerade.as_deref()));
        assert!(!saved.matches(&POSTROUTING, masquerade.as_deref()));
        assert!(saved.matches(&FORWARD, None));
    }

    #[test]
    fn a_missing_rule_or_jump_is_seen() {
        let [_, forward] = wanted();
        let input = batch(&FORWARD, forward.as_deref(), &Saved::default());
        for missing in ["-A FORWARD", "-A FLANNEL-FWD -s", "-A FLANNEL-FWD -d"] {
            let kept: Vec<_> = input
                .lines()
                .filter(|line| !line.starts_with(missing))
                .collect();
            let saved = Saved::parse(&kept.join("\n"));
            assert!(!saved.matches(&FORWARD, forward.as_deref()), "{missing}");
        }
    }

    #[test]
    fn removal_takes_every_jump_before_the_chain() {
        let jump = "FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n";
        let text =
            format!("*filter\n:FLANNEL-FWD - [0:0]\n-A {jump}-A FORWARD -j DOCKER\n-A {jump}");
        assert_eq!(
            batch(&FORWARD, None, &Saved::parse(&text)),
            format!("*filter\n:FLANNEL-FWD - [0:0]\n-D {jump}-D {jump}-X FLANNEL-FWD\nCOMMIT\n")
        );
    }
}
