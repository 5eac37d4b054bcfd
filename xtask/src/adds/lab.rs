//! The plugins alone, in a lab: namespaces without containers and without a kubelet.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use overlay_tests::kubernetes::{CallTimes, reference_list};
use overlay_tests::{Lab, Node, Options, command, status};
use serde_json::Value;

use super::{OURS, REFERENCE, Times};
use crate::shell;

/// The pods of one plugin.
struct Side {
    node: Node,
    plugin: &'static str,
    /// The plugin's configuration besides the node's own.
    configuration: Vec<(String, Value)>,
    namespaces: Vec<PathBuf>,
    adds: Vec<Duration>,
    dels: Vec<Duration>,
}

/// Adds and removes `pods` pods by each plugin, `at_a_time`, the plugins in turn.
pub fn measure(pods: usize, at_a_time: usize) -> Result<Vec<Times>> {
    let lab = Lab::up(Options {
        nodes: 2,
        pods: 0,
        ..super::options()
    })?;
    let mut sides = [ours(&lab, at_a_time)?, reference(&lab, at_a_time)?];
    let batches = pods.div_ceil(at_a_time);
    shell::progress(&format!("{batches} times {at_a_time} pods by each plugin"));
    for _ in 0..batches {
        for side in &mut sides {
            for (took, answer) in side.call("ADD")? {
                side.adds.push(took);
                side.wait_served(&answer)?;
            }
            let dels = side.call("DEL")?;
            side.dels.extend(dels.into_iter().map(|(took, _)| took));
        }
    }
    lab.down()?;
    sides
        .into_iter()
        .map(|side| {
            Ok(Times {
                plugin: side.plugin,
                add: CallTimes::of(side.adds)?,
                del: CallTimes::of(side.dels)?,
            })
        })
        .collect()
}

fn ours(lab: &Lab, at_a_time: usize) -> Result<Side> {
    let configuration = vec![(
        "cniVersion".to_owned(),
        reference_list("")["cniVersion"].clone(),
    )];
    Side::new(lab, OURS, "overlay-cni", configuration, at_a_time)
}

/// The agent is stopped, because it serves every pod of its node, whichever plugin made the pod.
fn reference(lab: &Lab, at_a_time: usize) -> Result<Side> {
    let node = lab.node(REFERENCE);
    let mut list = reference_list(&node.subnet()?.to_string());
    let Value::Object(mut bridge) = list["plugins"][0].take() else {
        bail!("the reference plugins' list names none");
    };
    for key in ["name", "cniVersion"] {
        bridge.insert(key.to_owned(), list[key].take());
    }
    node.stop_agent(Signal::SIGTERM)?;
    node.run(["overlayd", "cleanup", "--store=dir:/run/nowhere"])?;
    let configuration = bridge.into_iter().collect();
    Side::new(
        lab,
        REFERENCE,
        "bridge, host-local",
        configuration,
        at_a_time,
    )
}

impl Side {
    fn new(
        lab: &Lab,
        node: usize,
        plugin: &'static str,
        configuration: Vec<(String, Value)>,
        at_a_time: usize,
    ) -> Result<Self> {
        let namespaces = (1..=at_a_time)
            .map(|number| Ok(lab.add_namespace(&format!("n{node}timed{number}"))?.path()));
        Ok(Self {
            node: lab.node(node),
            plugin,
            configuration,
            namespaces: namespaces.collect::<Result<_>>()?,
            adds: Vec::new(),
            dels: Vec::new(),
        })
    }

    /// Waits until a new pod has its programs, because a pod has usually had its programs for a
    /// long time when it is removed.
    fn wait_served(&self, answer: &Output) -> Result<()> {
        if self.node.number() == REFERENCE {
            return Ok(());
        }
        let answer: Value = serde_json::from_slice(&answer.stdout)?;
        let address = answer["ips"][0]["address"].as_str();
        let address = address.and_then(|it| it.split_once('/'));
        let (address, _) = address.context("ADD gave no address")?;
        status::wait_for_path(&self.node, address, "fast")
    }

    /// Calls the plugin for all namespaces at the same time; returns the duration and the output of
    /// each call.
    fn call(&self, verb: &str) -> Result<Vec<(Duration, Output)>> {
        thread::scope(|scope| {
            let calls: Vec<_> = (1..)
                .zip(&self.namespaces)
                .map(|(number, path)| scope.spawn(move || self.call_one(verb, number, path)))
                .collect();
            let took = |call: ScopedJoinHandle<'_, _>| match call.join() {
                Ok(took) => took,
                Err(_) => bail!("a thread that called {} panicked", self.plugin),
            };
            calls.into_iter().map(took).collect()
        })
    }

    fn call_one(&self, verb: &str, number: usize, namespace: &Path) -> Result<(Duration, Output)> {
        let extra: Vec<_> = self
            .configuration
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        let container = format!("timed{number}");
        let begin = Instant::now();
        let output = self.node.cni(verb, Some((&container, namespace)), &extra)?;
        let took = begin.elapsed();
        let what = format!("{verb} by {}", self.plugin);
        Ok((took, command::require_success(&what, output)?))
    }
}
