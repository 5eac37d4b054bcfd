//! The fuzzer: tables and packets made up and compared, until time is over or something differs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use overlay_tests::interrupt;

use crate::batch::{Batch, Failure};
use crate::corpus::{Corpus, Entry};
use crate::kernel::Kernel;
use crate::minimise::minimise;
use crate::mutate::{Mutator, Pool};
use crate::report::Report;
use crate::{in_kernel, path};
use overlay_cases::cases;
use overlay_cases::world::{World, world};
use overlay_common::visit::Visit;

/// Packets over the same tables: enough that changing those costs little.
const BATCH: usize = 512;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After this long.
    Time(Duration),
    /// After so many packets, for each job.
    Packets(u64),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// When to stop.
    pub limit: Limit,
    /// Where chance starts: the same seed makes the same packets, as long as the corpus is the
    /// same.
    pub seed: u64,
    /// How many threads, each with its own namespace, programs and maps.
    pub jobs: usize,
    /// Where the corpus is kept between runs.
    pub corpus: Option<PathBuf>,
    /// Whether to tell of progress on stderr.
    pub verbose: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was reached.
    pub report: Report,
    /// What differs, minimised.
    pub failure: Option<Failure>,
}

/// What the jobs share.
struct Shared {
    stop: AtomicBool,
    so_far: Mutex<Report>,
    corpus: Mutex<Corpus>,
}

/// Whether a made-up socket buffer can be like this packet's.
pub fn is_expressible(visit: &Visit) -> bool {
    /// More than that does not fit the page that the kernel makes them in.
    const LONGEST: usize = 3000;
    visit.vlan.is_none() && visit.handed_over == 0 && visit.frame.len() <= LONGEST
}

/// Runs the fuzzer.
///
/// # Errors
/// When the programs cannot be loaded or run, or the corpus cannot be read or written.
pub fn run(options: &Options) -> Result<Outcome> {
    ensure!(options.jobs > 0, "at least one job is needed");
    let start = Instant::now();
    let mut corpus = Corpus::default();
    for case in cases::all() {
        if is_expressible(&case.visit) {
            corpus.add_written(Entry {
                world: Arc::new(case.world),
                visit: case.visit,
            });
        }
    }
    if let Some(file) = &options.corpus {
        let foreign = corpus.load(file)?;
        if foreign > 0 {
            eprintln!(
                "{foreign} lines of {} are of another version and left out",
                file.display()
            );
        }
    }
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        so_far: Mutex::default(),
        corpus: Mutex::new(corpus),
    });
    let jobs: Vec<_> = (0..options.jobs)
        .map(|number| {
            let (options, shared) = (options.clone(), Arc::clone(&shared));
            thread::spawn(move || {
                let done = Arc::clone(&shared);
                let found = in_kernel(move |kernel| job(kernel, &options, number, start, &shared));
                // One failure is enough, whatever it is.
                if !matches!(found, Ok(None)) {
                    done.stop.store(true, Ordering::SeqCst);
                }
                found
            })
        })
        .collect();
    let mut told = Instant::now();
    while jobs.iter().any(|job| !job.is_finished()) {
        thread::sleep(Duration::from_millis(50));
        if options.verbose && told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(&lock(&shared.so_far), start.elapsed());
        }
        if interrupt::requested() {
            shared.stop.store(true, Ordering::SeqCst);
        }
    }
    let mut failure = None;
    for job in jobs {
        let found = job
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        failure = failure.or(found);
    }
    let corpus = lock(&shared.corpus);
    if let Some(file) = &options.corpus {
        corpus.save(file)?;
    }
    let mut report = lock(&shared.so_far).clone();
    report.paths = corpus.entries().len();
    report.took = start.elapsed();
    report.differences = u64::from(failure.is_some());
    Ok(Outcome { report, failure })
}

/// A mutex that a panic of another job leaves as it was is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(so_far: &Report, took: Duration) {
    let report = Report {
        took,
        ..so_far.clone()
    };
    eprintln!(
        "{:>6.0} s: {} packets ({:.0} a second), {} ways through the decision",
        took.as_secs_f64(),
        report.packets,
        report.rate(),
        report.paths
    );
}

fn job(
    kernel: &mut Kernel,
    options: &Options,
    number: usize,
    start: Instant,
    shared: &Shared,
) -> Result<Option<Failure>> {
    let mut mutator = Mutator::new(options.seed.wrapping_add(number as u64));
    let mut sent = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        let over = match options.limit {
            Limit::Time(limit) => start.elapsed() >= limit,
            Limit::Packets(limit) => sent >= limit,
        };
        if over {
            break;
        }
        let (report, failure) = batch(kernel, &mut mutator, &shared.corpus)?;
        sent += report.packets;
        let mut so_far = lock(&shared.so_far);
        so_far.add(&report);
        so_far.paths = lock(&shared.corpus).entries().len();
        drop(so_far);
        if let Some(failure) = failure {
            if options.verbose {
                eprintln!("a difference; cutting it down");
            }
            return minimise(kernel, failure).map(Some);
        }
    }
    Ok(None)
}

impl Mutator {
    /// What to make something new from. What is found becomes odder with time; half stays near what
    /// is common.
    fn seed<'c>(&mut self, corpus: &'c Corpus) -> Option<&'c Entry> {
        let from = if self.chance(1, 2) {
            corpus.written()
        } else {
            corpus.entries()
        };
        self.pick(from)
    }
}

/// Makes up tables and packets for them, and compares.
fn batch(
    kernel: &mut Kernel,
    mutator: &mut Mutator,
    corpus: &Mutex<Corpus>,
) -> Result<(Report, Option<Failure>)> {
    let mut seeds: Vec<Visit> = Vec::with_capacity(BATCH);
    let mut world = world();
    {
        let corpus = lock(corpus);
        if let Some(entry) = mutator.seed(&corpus) {
            world = World::clone(&entry.world);
        }
        seeds.extend((0..BATCH).filter_map(|_| Some(mutator.seed(&corpus)?.visit.clone())));
    }
    mutator.world(&mut world);
    let pool = Pool::of(&world);
    let mut batch = Batch::begin(kernel, world)?;
    let mut report = Report {
        tables: 1,
        ..Report::default()
    };
    for mut visit in seeds {
        mutator.visit(&mut visit, batch.world(), &pool);
        let (want, path) = path::decide(&visit, batch.world());
        let entry = || Entry {
            world: Arc::new(batch.world().clone()),
            visit: visit.clone(),
        };
        lock(corpus).keep(path, entry);
        let hook = visit.hook;
        match batch.send(kernel, visit, want)? {
            Some(verdict) => {
                report.packets += 1;
                *report.ends.entry((hook, verdict as u32)).or_default() += 1;
            }
            None => report.left_out += 1,
        }
        if batch.is_over() {
            break;
        }
    }
    Ok((report, batch.end(kernel)?))
}
