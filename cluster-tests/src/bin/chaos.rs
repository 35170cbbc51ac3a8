//! `chaos`: cases of the crash matrix, and the storm.

use anyhow::{Context as _, Result, bail, ensure};
use ebla_cluster_tests::binary;
use ebla_cluster_tests::chaos::cases::{self, Case};
use ebla_cluster_tests::chaos::matrix;
use ebla_cluster_tests::chaos::rig::Rig;
use ebla_cluster_tests::chaos::storm::{self, Plan};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: chaos matrix [--cases N] [--seed S] [--only TEXT]   N cases of the crash matrix, all without N
       chaos matrix --case CASE                            one case, as the matrix prints it
       chaos storm [--seconds N] [--seed S] [--clients N]  everything at once for a time
The program under test is EBLA_BIN; the matrix needs a chaos build, see `make chaos-bin`.";

#[derive(Default)]
struct Args {
    cases: Option<usize>,
    seed: u64,
    only: Option<String>,
    case: Option<Case>,
    seconds: Option<u64>,
    clients: Option<u64>,
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
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("matrix") => run_matrix(&parse(words)?),
        Some("storm") => run_storm(&parse(words)?),
        Some(_) | None => bail!("{USAGE}"),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args> {
    let mut args = Args { seed: 1, ..Args::default() };
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--cases" => args.cases = Some(value()?.parse()?),
            "--seed" => args.seed = value()?.parse()?,
            "--only" => args.only = Some(value()?),
            "--seconds" => args.seconds = Some(value()?.parse()?),
            "--clients" => args.clients = Some(value()?.parse()?),
            "--case" => args.case = Some(value()?.parse()?),
            _ => bail!("unknown flag {word}\n{USAGE}"),
        }
    }
    Ok(args)
}

fn run_storm(args: &Args) -> Result<()> {
    let time = Duration::from_secs(args.seconds.unwrap_or(600));
    let began = Instant::now();
    storm::run(Plan { time, seed: args.seed, writers: args.clients.unwrap_or(16) })?;
    println!("the storm is over after {:.0?}, and nobody noticed", began.elapsed());
    Ok(())
}

fn run_matrix(args: &Args) -> Result<()> {
    ensure!(binary::is_chaos_build(), "{} has no failpoints: run `make chaos-bin`", binary::ebla().display());
    let mut cases = args.case.map_or_else(|| cases::all(args.seed), |case| vec![case]);
    if let Some(only) = &args.only {
        cases.retain(|case| case.to_string().contains(only.as_str()));
    }
    cases.truncate(args.cases.unwrap_or(cases.len()));
    let (mut rig, mut failed) = (None, Vec::new());
    for (number, case) in (1_u64..).zip(&cases) {
        let began = Instant::now();
        let mut running = match rig.take() {
            Some(rig) => rig,
            None => Rig::start()?,
        };
        match matrix::run(&mut running, case, number) {
            Ok(report) => {
                println!("ok {number}/{} {case} in {:.1?}: {report:?}", cases.len(), began.elapsed());
                rig = Some(running);
            }
            Err(error) => {
                println!("FAILED {number}/{} {case} in {:.1?}: {error:#}", cases.len(), began.elapsed());
                println!("  logs in {}", running.cluster.keep_logs(&case.to_string())?.display());
                println!("  again: make matrix CASE={case}");
                failed.push(case.to_string());
            }
        }
    }
    ensure!(
        failed.is_empty(),
        "{} of {} cases failed:\n  {}",
        failed.len(),
        cases.len(),
        failed.join("\n  ")
    );
    println!("{} cases of the crash matrix passed", cases.len());
    Ok(())
}
