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
       sim --mutants --control         the worlds of the known bugs without the bugs
Known bugs need the feature `mutations`.";

#[derive(Default)]
struct Args {
    seeds: Option<u64>,
    start: Option<u64>,
    seed: Option<u64>,
    mutant: Option<String>,
    mutants: bool,
    control: bool,
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
            "--control" => args.control = true,
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
    let (mut events, mut operations, mut backups) = (0, 0, 0);
    let (mut splits, mut merges, mut moves) = (0, 0, 0);
    let (mut heard, mut losses) = (0, 0);
    for seed in start..start.saturating_add(seeds) {
        let report = run(seed, Narration::Silent);
        events += report.events;
        operations += report.operations;
        backups += report.backups;
        splits += report.wishes.splits;
        merges += report.wishes.merges;
        moves += report.wishes.moves;
        heard += report.heard;
        losses += report.losses;
        judge(&report)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = events as f64 / seconds;
    println!(
        "{seeds} seeds, {operations} operations, {splits} splits, {merges} merges, {moves} moves, {backups} backups, {heard} messages heard in rooms, {losses} losses of everything, {events} events in {seconds:.1} s ({rate:.0} events/s): no violation"
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
    use super::{Args, Narration, Report, Result, bail};
    use anyhow::Context;
    use ebla_cluster_tests::sim::run_suited;
    use ebla_kernel::mutation::{Mutation, seed_bug};

    /// Seeds within which every bug must be found.
    const SEEDS_MAX: u64 = 2_000;

    /// Seeds that each world is tried with, without its bug.
    const CONTROL_SEEDS: u64 = 50;

    /// Seeds bug after bug and looks for a seed that finds it; or looks whether the worlds in
    /// which they are found are innocent.
    pub fn hunt(name: Option<&str>, args: &Args) -> Result<()> {
        if args.seed.is_none() {
            // Many of these bugs end in an assertion; one line of each is enough.
            std::panic::set_hook(Box::new(|_| {}));
        }
        println!("{:<24} {:<26} {:>5} {:>8}  what was seen", "seeded bug", "rule", "seed", "steps");
        let mut wrong = Vec::new();
        for mutation in chosen(name)? {
            seed_bug((!args.control).then_some(mutation));
            let found = find(mutation, args);
            let should_be = !args.control && mutation.redundant().is_none();
            if found.is_some() != should_be {
                wrong.push(format!("{mutation:?}"));
            }
            tell(mutation, found, if args.seed.is_some() { usize::MAX } else { 150 });
        }
        seed_bug(None);
        match (wrong.is_empty(), args.control) {
            (true, _) => Ok(()),
            (false, true) => bail!("violations without a bug: {}", wrong.join(", ")),
            (false, false) => bail!("not found, or found although called redundant: {}", wrong.join(", ")),
        }
    }

    fn chosen(name: Option<&str>) -> Result<Vec<Mutation>> {
        let Some(name) = name else { return Ok(Mutation::ALL.to_vec()) };
        let known = Mutation::ALL.into_iter().find(|mutation| format!("{mutation:?}") == name);
        known
            .map(|mutation| vec![mutation])
            .with_context(|| format!("no known bug {name}: {:?}", Mutation::ALL))
    }

    /// The first seed with a violation.
    fn find(mutation: Mutation, args: &Args) -> Option<Report> {
        let most = if args.control { CONTROL_SEEDS } else { SEEDS_MAX };
        let (start, seeds, narration) = match args.seed {
            Some(seed) => (seed, 1, Narration::Told),
            None => (args.start.unwrap_or(1), args.seeds.unwrap_or(most), Narration::Silent),
        };
        (start..start.saturating_add(seeds)).find_map(|seed| {
            let report = run_suited(seed, narration, mutation);
            report.log.iter().for_each(|line| println!("{line}"));
            report.violation.is_some().then_some(report)
        })
    }

    fn tell(mutation: Mutation, found: Option<Report>, length: usize) {
        let (name, rule) = (format!("{mutation:?}"), mutation.rule());
        let Some((Report { seed, events, .. }, violation)) =
            found.and_then(|report| Some((report.clone(), report.violation?)))
        else {
            println!(
                "{name:<24} {rule:<26} {:>5} {:>8}  {}",
                "-",
                "-",
                mutation.redundant().unwrap_or("nothing")
            );
            return;
        };
        let what: String = violation.to_string().replace('\n', " ").chars().take(length).collect();
        println!("{name:<24} {rule:<26} {seed:>5} {events:>8}  {what}");
    }
}
