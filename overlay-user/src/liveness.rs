//! Whether the agent's long-lived tasks make progress. A task beats whenever it has finished a
//! step; a task that is silent for longer than any step takes is stuck.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The sign of life of one task. Clones share one pulse.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Mutex<Instant>>);

impl Default for Pulse {
    /// A pulse that has just beaten.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Pulse {
    /// Notes that the task has finished a step.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The time since the task last finished a step.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.elapsed()
    }
}

/// The tasks that are expected to make progress. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Liveness(Arc<Mutex<Vec<Task>>>);

#[derive(Debug)]
struct Task {
    name: &'static str,
    pulse: Pulse,
    patience: Duration,
}

/// A task that makes no progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The task's name.
    pub name: &'static str,
    /// The time since the task last finished a step.
    pub silence: Duration,
    /// The longest silence of a healthy task.
    pub patience: Duration,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (silence, patience) = (self.silence.as_secs_f32(), self.patience.as_secs_f32());
        write!(
            f,
            "{}: no progress for {silence:.1} s (at most {patience:.1} s is normal)",
            self.name
        )
    }
}

impl Liveness {
    /// From now on, expects a beat of the task at least every `patience`.
    pub fn expect(&self, name: &'static str, pulse: Pulse, patience: Duration) {
        pulse.beat();
        let task = Task {
            name,
            pulse,
            patience,
        };
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(task);
    }

    /// The tasks that have been silent for too long.
    #[must_use]
    pub fn stuck(&self) -> Vec<Stuck> {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = tasks.iter().map(|task| Stuck {
            name: task.name,
            silence: task.pulse.silence(),
            patience: task.patience,
        });
        silent.filter(|it| it.silence > it.patience).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_task_is_stuck_until_it_beats_again() {
        let liveness = Liveness::default();
        let (well, silent) = (Pulse::default(), Pulse::default());
        liveness.expect("one", well, Duration::from_secs(3600));
        liveness.expect("other", silent.clone(), Duration::ZERO);
        while silent.silence().is_zero() {}
        let stuck = liveness.stuck();
        assert_eq!(stuck.len(), 1);
        assert!(stuck[0].to_string().starts_with("other: no progress for "));
        // A patience that is longer than any test.
        liveness.0.lock().expect("a list")[1].patience = Duration::from_secs(3600);
        assert_eq!(liveness.stuck(), []);
    }
}
