//! Counters of other programs, in the text format of Prometheus.

/// The sum of all samples of `counter` whose labels `counts` accepts.
pub fn total(metrics: &str, counter: &str, counts: impl Fn(&str) -> bool) -> u64 {
    let samples = metrics.lines().filter_map(|line| {
        let sample = line.strip_prefix(counter)?.strip_prefix('{')?;
        sample.split_once("} ")
    });
    samples
        .filter(|(labels, _)| counts(labels))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum::<f64>() as u64
}
