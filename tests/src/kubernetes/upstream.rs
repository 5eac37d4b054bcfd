//! Kubernetes' own end-to-end tests, run against the cluster: one program, built from the same
//! source as the cluster's programs, and the images that its cases need.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::images::SLEEP;
use super::names::Names;
use super::programs::suite_dir;
use super::{CLUSTER_DOMAIN, Cluster, bin_dir};
use crate::image::{self, Image};
use crate::interrupt;
use crate::process::Process;

/// The program of the tests, and the files in the image of most pods, in one directory.
pub const SUITE: [&str; 4] = ["e2e.test", "agnhost", "localhost.crt", "localhost.key"];
/// The cases that every network of a cluster has to pass, as a regular expression of Go.
pub const CONFORMANCE: &str = r"\[sig-network\].*\[Conformance\]";
/// The images that the cases need, under the names in the cases (`e2e.test --list-images`).
const AGNHOST: &str = "k8s.gcr.io/e2e-test-images/agnhost:2.21";
const DNS_UTILS: &str = "gcr.io/kubernetes-e2e-test-images/jessie-dnsutils:1.0";
const PAUSE: &str = "k8s.gcr.io/pause:3.2";
const PATH: &str = "/usr/sbin:/usr/bin:/bin";

/// A case, and its result.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// The case's full name.
    pub name: String,
    /// The case's result.
    pub outcome: Outcome,
    /// The case's duration.
    pub seconds: f64,
    /// The reason why the case failed or was skipped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// The output of a failed case.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
}

/// The result of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The case passed.
    Passed,
    /// The case failed, or was not reached.
    Failed,
    /// The case itself found that it cannot run here.
    Skipped,
}

/// The program's record of each case (ginkgo 1, `SpecSummary`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    component_texts: Vec<String>,
    captured_output: String,
    state: u8,
    /// Duration in nanoseconds.
    run_time: u64,
    failure: Failure,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
    forwarded_panic: String,
}

impl Summary {
    /// The state of skipped cases, and of cases that were not selected.
    const SKIPPED: u8 = 2;
    const PASSED: u8 = 3;

    /// The first text is that of the whole suite.
    fn name(&self) -> String {
        self.component_texts[1.min(self.component_texts.len())..].join(" ")
    }

    fn outcome(&self) -> Outcome {
        match self.state {
            Self::PASSED => Outcome::Passed,
            Self::SKIPPED => Outcome::Skipped,
            _ => Outcome::Failed,
        }
    }
}

impl Cluster {
    /// Prepares the cluster for [`Cluster::try_upstream`]: images on every node, and a route to
    /// pods for the API server, which is not on a node.
    ///
    /// # Errors
    /// When a program is missing, or a node refuses an image.
    pub fn prepare_upstream(&self) -> Result<()> {
        for (name, file, tree, entrypoint, arguments) in [
            (
                AGNHOST,
                "agnhost.tar",
                image::agnhost(&suite_dir())?,
                &["/agnhost"][..],
                &["pause"][..],
            ),
            (
                DNS_UTILS,
                "dns-utils.tar",
                image::dns_utils()?,
                &["sh"][..],
                &[][..],
            ),
            (PAUSE, "pause.tar", image::probe()?, SLEEP, &[][..]),
        ] {
            let image = Image {
                name,
                tree,
                entrypoint,
                arguments,
                path: PATH,
                compression: 1,
            };
            let archive = self.directory().join(file);
            image.write(&archive)?;
            for node in self.nodes() {
                node.import(&archive)?;
            }
        }
        for node in self.nodes() {
            let object = self.json(["get", "node", &node.name()])?;
            let range = object["spec"]["podCIDR"].as_str().context("no podCIDR")?;
            let way = node.below().underlay_address().to_string();
            self.place()?
                .run(["ip", "route", "replace", range, "via", &way])?;
        }
        Ok(())
    }

    /// Runs the cases whose names match `focus`, one after the other, and passes the result of each
    /// to `say`.
    ///
    /// # Errors
    /// When the program does not run to its end. Failed cases are no error.
    pub fn try_upstream(&self, focus: &str, say: impl FnMut(&str)) -> Result<Vec<Case>> {
        // A dry run gives the names of all cases that match.
        let dry = self.suite(focus, "--ginkgo.dryRun", |_| {})?;
        let mut matching: Vec<String> = dry
            .iter()
            .filter(|it| it.outcome() == Outcome::Passed)
            .map(Summary::name)
            .collect();
        // The order of cases differs every time.
        matching.sort_unstable();
        ensure!(!matching.is_empty(), "no case matches {focus}");
        let mut names = Names::serve(self, 1)?;
        let done = AtomicBool::new(false);
        let summaries = thread::scope(|scope| {
            let names = scope.spawn(|| names.follow(&done));
            let summaries = self.suite(focus, "--ginkgo.noColor", say);
            done.store(true, Ordering::Relaxed);
            let followed = names
                .join()
                .map_err(|_| anyhow::anyhow!("following names panicked"));
            followed?.and(summaries)
        })?;
        Ok(cases(&matching, summaries))
    }
}

impl Cluster {
    /// Runs the program to its end, with a separate file of results.
    fn suite(&self, focus: &str, flag: &str, mut say: impl FnMut(&str)) -> Result<Vec<Summary>> {
        let directory = self.directory();
        // The program reads an `e2e.json` in its directory as settings.
        let results = directory.join(format!("upstream{flag}.json"));
        let log = directory.join(format!("upstream{flag}.log"));
        let mut written =
            File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let stderr = written.try_clone().context("duplicate a file handle")?;
        let program = suite_dir().join(SUITE[0]);
        let path = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let mut command = self.place()?.command(&program);
        command
            .arg(format!("--ginkgo.focus={focus}"))
            .arg(flag)
            .arg("--provider=skeleton")
            .arg(path("kubeconfig", &directory.join("admin.conf")))
            .arg(path("kubectl-path", &bin_dir().join("kubectl")))
            .arg(path("spec-dump", &results))
            .arg(format!("--dns-domain={CLUSTER_DOMAIN}"))
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let mut child = self.place()?.start(&mut command)?;
        self.lab().adopt(Process::of(child.id())?)?;
        let output = child.stdout.take().context("the output of the tests")?;
        for line in BufReader::new(output).lines() {
            let line = line.context("read the output of the tests")?;
            writeln!(written, "{line}").with_context(|| format!("write {}", log.display()))?;
            if let Some(news) = progress(&line) {
                say(&news);
            }
        }
        let status = child.wait().context("wait for the tests")?;
        interrupt::check()?;
        // Exit status 1 means that a case has failed.
        ensure!(
            matches!(status.code(), Some(0 | 1)),
            "the tests broke off ({status}): {}",
            fs::read_to_string(&log).unwrap_or_default()
        );
        fs::read_to_string(&results)
            .with_context(|| format!("read {}", results.display()))
            .and_then(|text| summaries(&text))
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())
    }
}

/// The report on a case that has ended, from a line of the program.
fn progress(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let message = line["msg"].as_str()?;
    let count = |key: &str| line[key].as_u64();
    let done = count("completed")? + count("failed")?;
    (done > 0).then(|| {
        format!(
            "{done} of {}: {message}",
            count("total").unwrap_or_default()
        )
    })
}

fn summaries(text: &str) -> Result<Vec<Summary>> {
    let parse = |line| serde_json::from_str(line).with_context(|| format!("understand {line}"));
    text.lines().map(parse).collect()
}

/// The results of the cases with these names.
fn cases(names: &[String], mut summaries: Vec<Summary>) -> Vec<Case> {
    let mut case = |name: &String| {
        let at = summaries.iter().position(|summary| summary.name() == *name);
        let Some(summary) = at.map(|at| summaries.swap_remove(at)) else {
            return Case {
                name: name.clone(),
                outcome: Outcome::Failed,
                seconds: 0.0,
                cause: "the tests ended before it".to_owned(),
                said: String::new(),
            };
        };
        let outcome = summary.outcome();
        let Failure {
            message,
            forwarded_panic,
        } = summary.failure;
        Case {
            name: name.clone(),
            outcome,
            seconds: Duration::from_nanos(summary.run_time).as_secs_f64(),
            cause: [message, forwarded_panic].join("\n").trim().to_owned(),
            said: if outcome == Outcome::Failed {
                summary.captured_output
            } else {
                String::new()
            },
        }
    };
    names.iter().map(&mut case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, state: u8, message: &str) -> String {
        serde_json::json!({
            "ComponentTexts": ["all", "[sig-network] DNS", name],
            "CapturedOutput": "said",
            "State": state,
            "RunTime": 1_500_000_000_u64,
            "Failure": {"Message": message, "ForwardedPanic": ""},
        })
        .to_string()
    }

    #[test]
    fn only_cases_that_were_asked_for_count() {
        let text = [
            line("a", 3, ""),
            line("b", 4, "broken"),
            line("c", 2, "not here"),
            line("d", 2, ""),
        ]
        .join("\n");
        let names = ["a", "b", "c", "e"].map(|name| format!("[sig-network] DNS {name}"));
        let cases = cases(&names, summaries(&text).unwrap());
        let seen: Vec<_> = cases
            .iter()
            .map(|it| (it.outcome, it.cause.as_str(), it.said.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (Outcome::Passed, "", ""),
                (Outcome::Failed, "broken", "said"),
                (Outcome::Skipped, "not here", ""),
                (Outcome::Failed, "the tests ended before it", ""),
            ]
        );
        assert!((cases[0].seconds - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_case_that_has_ended_is_told() {
        let line = "{\"msg\":\"PASSED [sig-network] DNS a\",\
            \"total\":32,\"completed\":2,\"skipped\":9,\"failed\":1}";
        assert_eq!(
            progress(line).unwrap(),
            "3 of 32: PASSED [sig-network] DNS a"
        );
        assert_eq!(
            progress(
                r#"{"msg":"Test Suite starting","total":32,"completed":0,"skipped":0,"failed":0}"#
            ),
            None
        );
        assert_eq!(progress("Running Suite"), None);
    }
}
