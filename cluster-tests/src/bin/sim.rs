//! `sim`: many seeds of the simulated cluster, or one of them in words.

use anyhow::{Context, Result, bail};
use ebla_cluster_tests::sim::{Narration, Report, run};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "\
usage: sim [--seeds N] [--start S]     runs seeds S to S+N-1 (default 500 from 1)
       sim --seed X                    runs one seed and tells every step
       sim --mutants [--seeds N]       seeds every known bug; each must be found
       sim --mutant NAME [--seed X]    one known bug
Known bugs need the feature `mutations`.";

#[derive(Default)]
struct Args {
    seeds: Option<u64>,
    start: Option<u64>,
    seed: Option<u64>,
    mutant: Option<String>,
    mutants: bool,
}

fn main() -> ExitCode {
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<()> {
    let args = parse(std::env::args().skip(1))?;
    match (&args.mutant, args.mutants, args.seed) {
        (None, false, Some(seed)) => one(seed),
        (None, false, None) => many(&args),
        (mutant, _, _) => mutants::hunt(mutant.as_deref(), &args),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--seeds" => args.seeds = Some(value()?.parse()?),
            "--start" => args.start = Some(value()?.parse()?),
            "--seed" => args.seed = Some(value()?.parse()?),
            "--mutant" => args.mutant = Some(value()?),
            "--mutants" => args.mutants = true,
            _ => bail!("unknown flag {word}\n{USAGE}"),
        }
    }
    Ok(args)
}

/// One seed, every step in words.
fn one(seed: u64) -> Result<()> {
    let report = run(seed, Narration::Told);
    report.log.iter().for_each(|line| println!("{line}"));
    println!("seed {seed}: {} events, trace {:016x}", report.events, report.trace);
    judge(&report)
}

fn many(args: &Args) -> Result<()> {
    let start = args.start.unwrap_or(1);
    let seeds = args.seeds.unwrap_or(500);
    let began = Instant::now();
    let (mut events, mut operations) = (0, 0);
    for seed in start..start.saturating_add(seeds) {
        let report = run(seed, Narration::Silent);
        events += report.events;
        operations += report.operations;
        judge(&report)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = events as f64 / seconds;
    println!(
        "{seeds} seeds, {operations} operations, {events} events in {seconds:.1} s ({rate:.0} events/s): no violation"
    );
    Ok(())
}

fn judge(report: &Report) -> Result<()> {
    match &report.violation {
        None => Ok(()),
        Some(violation) => bail!(
            "seed {} after {} events: {violation}\nrun it again: make sim SEED={}\nthen add it to cluster-tests/regressions.txt",
            report.seed,
            report.events,
            report.seed
        ),
    }
}

#[cfg(not(feature = "mutations"))]
mod mutants {
    use super::{Args, Result, bail};

    pub fn hunt(_: Option<&str>, _: &Args) -> Result<()> {
        bail!("known bugs are not built in: use make sim-mutants")
    }
}

#[cfg(feature = "mutations")]
mod mutants {
    use super::{Args, Narration, Result, bail, run};
    use anyhow::Context;
    use ebla_kernel::mutation::{Mutation, seed_bug};

    const SEEDS_MAX: u64 = 2_000;

    /// Seeds bug after bug and looks for a seed that finds it.
    pub fn hunt(name: Option<&str>, args: &Args) -> Result<()> {
        if args.seed.is_none() {
            // Many of these bugs end in an assertion; one line of each is enough.
            std::panic::set_hook(Box::new(|_| {}));
        }
        let mut missed = Vec::new();
        for mutation in chosen(name)? {
            seed_bug(Some(mutation));
            if !find(mutation, args) {
                missed.push(format!("{mutation:?}"));
            }
        }
        seed_bug(None);
        match missed.is_empty() {
            true => Ok(()),
            false => bail!("not found: {}", missed.join(", ")),
        }
    }

    fn chosen(name: Option<&str>) -> Result<Vec<Mutation>> {
        let Some(name) = name else { return Ok(Mutation::ALL.to_vec()) };
        let known = Mutation::ALL.into_iter().find(|mutation| format!("{mutation:?}") == name);
        known
            .map(|mutation| vec![mutation])
            .with_context(|| format!("no known bug {name}: {:?}", Mutation::ALL))
    }

    fn find(mutation: Mutation, args: &Args) -> bool {
        let (start, seeds, narration) = match args.seed {
            Some(seed) => (seed, 1, Narration::Told),
            None => (args.start.unwrap_or(1), args.seeds.unwrap_or(SEEDS_MAX), Narration::Silent),
        };
        let name = format!("{mutation:?}");
        let mut events = 0;
        for seed in start..start.saturating_add(seeds) {
            let report = run(seed, narration);
            events += report.events;
            report.log.iter().for_each(|line| println!("{line}"));
            if let Some(violation) = report.violation {
                let what: String = violation.to_string().chars().take(150).collect();
                println!("{name:<24} {:<20} seed {seed:<5} {events:>9} events  {what}", mutation.rule());
                return true;
            }
        }
        println!("{name:<24} {:<20} NOT FOUND in {seeds} seeds, {events} events", mutation.rule());
        false
    }
}
