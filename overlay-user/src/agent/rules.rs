//! Upkeep of flannel's packet-filter rules, in a task of its own: `iptables` may wait long for its
//! lock, and nothing else shall wait with it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::health::Report;
use super::settings::Settings;
use crate::kernel::ToolError;
use crate::kernel::rules::{Driver, RuleSet, Witness};

/// The wanted rules, and the state of the rules in the kernel.
pub struct RulesUpkeep {
    wanted: watch::Sender<Option<RuleSet>>,
    /// The rules that are in force.
    done: watch::Receiver<RulesState>,
    task: JoinHandle<()>,
}

/// The state of the wanted rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesState {
    /// The rules that the kernel held at the last look.
    pub in_force: Option<RuleSet>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

impl RulesState {
    /// Reports why `wanted` is not in force, if so.
    pub fn tell(&self, wanted: &RuleSet, report: &mut Report) {
        match &self.error {
            Some(error) => report.problem("rules", error.clone()),
            None if self.in_force.as_ref() != Some(wanted) => {
                report.problem("rules", "not written yet".to_owned());
            }
            None => {}
        }
    }
}

impl RulesUpkeep {
    /// Starts the task; it does nothing before rules are wanted.
    pub fn start(settings: &Settings) -> Self {
        let (wanted, rules) = watch::channel(None);
        let (state, done) = watch::channel(RulesState::default());
        let every = Duration::from_secs(settings.flags.node.iptables_resync.max(1).into());
        let task = tokio::spawn(Task::new(settings.config.nftables).run(rules, state, every));
        Self { wanted, done, task }
    }

    /// Asks for these rules.
    pub fn want(&self, rules: &RuleSet) {
        self.wanted.send_if_modified(|wanted| {
            let is_news = wanted.as_ref() != Some(rules);
            if is_news {
                *wanted = Some(rules.clone());
            }
            is_news
        });
    }

    /// A receiver of the state of the rules, and of every change.
    pub fn state(&self) -> watch::Receiver<RulesState> {
        self.done.clone()
    }
}

impl Drop for RulesUpkeep {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    nftables: bool,
    /// Whether what an agent with other flags has left is gone.
    tidied: bool,
    /// What the packet filter looked like after the last look at its rules.
    witness: Option<Witness>,
}

impl Task {
    fn new(nftables: bool) -> Self {
        Self {
            nftables,
            tidied: false,
            witness: None,
        }
    }

    async fn run(
        mut self,
        mut rules: watch::Receiver<Option<RuleSet>>,
        state: watch::Sender<RulesState>,
        every: Duration,
    ) {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = rules.changed() => if changed.is_err() { return },
                _ = tick.tick() => {}
            }
            let Some(wanted) = rules.borrow_and_update().clone() else {
                continue;
            };
            let witness = Witness::look(self.witness.as_ref()).await;
            let is_untouched = match (&witness, &self.witness) {
                (Some(now), Some(last)) => now.agrees_with(last),
                _ => false,
            };
            if is_untouched && state.borrow().in_force.as_ref() == Some(&wanted) {
                self.witness = witness;
                continue;
            }
            let ensured = self.ensure(&wanted).await;
            // The look from before is as good as the rules that were found: what others did
            // meanwhile shows at the next look. After a write there is none, so that the rules are
            // looked at once more.
            self.witness = match ensured {
                Ok(false) => witness,
                Ok(true) | Err(_) => None,
            };
            let error = ensured.err();
            let now = RulesState {
                in_force: error.is_none().then_some(wanted),
                error: error.map(|error| error.to_string()),
            };
            state.send_if_modified(|last| {
                let is_news = *last != now;
                *last = now;
                is_news
            });
        }
    }

    /// Makes the kernel hold the rules; true if anything had to be written.
    async fn ensure(&mut self, rules: &RuleSet) -> Result<bool, ToolError> {
        let (driver, others) = match (self.nftables, rules.masquerade || rules.forward) {
            (_, false) => (Driver::None, &[Driver::Iptables, Driver::Nftables][..]),
            (true, true) => (Driver::Nftables, &[Driver::Iptables][..]),
            (false, true) => (Driver::Iptables, &[Driver::Nftables][..]),
        };
        if !self.tidied {
            for other in others {
                if let Err(error) = other.remove().await {
                    tracing::debug!("remove the other kind of rules: {error}");
                }
            }
            self.tidied = true;
        }
        let changed = driver.ensure(rules).await?;
        if changed {
            tracing::info!("packet-filter rules written");
        }
        Ok(changed)
    }
}
