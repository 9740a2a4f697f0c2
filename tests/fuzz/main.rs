//! Fuzzing on stable Rust: bytes that are nearly right, thousands a second, none of which may panic.
//!
//! ```text
//!   cargo test                                              the seeds and whatever failed before, once
//!   cargo test --test fuzz -- --seconds 5                   five seconds of each target
//!   cargo test --test fuzz -- tans --executions 10000000 --seed 3
//!
//!   seeds (golden files, corpus/TARGET) ──mutation.rs──▶ bytes ──targets.rs──▶ what came of them
//!      ▲                                                                            │
//!      └──────────────── bytes of which something new came join them ◀──────────────┘
//! ```
//!
//! Words among the arguments choose targets, as they choose tests. What fails is a panic, more than
//! [`MAX_NBYTES`] bytes allocated for one execution, or one of more than [`MAX_TIME`]; the bytes go
//! to `corpus/TARGET`, where they stay after the fix. `--record FILE` writes what was done as JSON.
//!
//! The profile of tests is optimised and checks every overflow. Checksums stand in no one's way:
//! targets compute them anew, or begin below the container.
//!
//! Why not libFuzzer: that needs a nightly compiler or a C++ runtime that is built along. What stands
//! in for coverage is the outcome: a message of an error without its numbers, or the kind of what was
//! read. Nearly every check here has a message of its own, so new bytes are kept where they get past
//! one more check.

#[path = "../rust/allocations.rs"]
mod allocations;
#[path = "../rust/bound.rs"]
mod bound;
mod matrices;
mod mutation;
mod networks;
#[path = "../rust/stored.rs"]
mod stored;
mod targets;

use mutation::Random;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use targets::{Outcome, TARGETS, Target};

/// Bytes that one execution may allocate in all.
const MAX_NBYTES: usize = 256 << 20;
/// What one execution may take, on a machine that is busy with other things.
const MAX_TIME: Duration = Duration::from_secs(20);
/// Inputs that are kept of a target, at most.
const MAX_POOL: usize = 8192;
/// Executions after which it begins anew with the seeds: what is kept grows, and with it what an
/// execution takes, while what it leads to lies ever closer to what was seen.
const RESTART: u64 = 1_000_000;

/// What the arguments ask for.
struct Asked {
    seconds: f64,
    executions: u64,
    seed: u64,
    record: Option<PathBuf>,
    words: Vec<String>,
}

/// What was done to one target.
struct Done {
    name: &'static str,
    executions: u64,
    seconds: f64,
    seeds: usize,
    outcomes: usize,
    slowest: Duration,
    most_nbytes: usize,
    failed: bool,
}

fn asked() -> Result<Asked, String> {
    let mut asked = Asked { seconds: 0.0, executions: 0, seed: 1, record: None, words: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument}: no value, expected one"));
        let number = |text: String| text.parse().map_err(|e| format!("{text}: {e}"));
        match argument.as_str() {
            "--seconds" => {
                asked.seconds = value()?.parse().map_err(|e| format!("--seconds: {e}"))?
            }
            "--executions" => asked.executions = number(value()?)?,
            "--seed" => asked.seed = number(value()?)?,
            "--record" => asked.record = Some(PathBuf::from(value()?)),
            // What `cargo test` passes on to every test program.
            option if option.starts_with('-') => {}
            word => asked.words.push(word.to_owned()),
        }
    }
    Ok(asked)
}

/// Where what failed is kept: `corpus/TARGET`.
fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// What is kept of a target: seeds, and whatever failed before.
fn read_corpus(target: &str) -> Vec<Vec<u8>> {
    let Ok(folder) = std::fs::read_dir(corpus(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file of the corpus")).collect()
}

/// One execution: what came of it, or nothing where it failed, which is then kept.
fn execute(target: &Target, bytes: &[u8], done: &mut Done) -> Option<Outcome> {
    let (start, mut outcome) = (Instant::now(), None);
    let (_, nbytes) = allocations::allocated(|| {
        outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).ok();
    });
    let time = start.elapsed();
    done.executions += 1;
    done.slowest = done.slowest.max(time);
    done.most_nbytes = done.most_nbytes.max(nbytes);
    let failure = match outcome {
        None => "panic",
        _ if nbytes > MAX_NBYTES => "memory",
        _ if time > MAX_TIME => "time",
        _ => return outcome,
    };
    let path = corpus(target.name).join(format!("{failure}-{:08x}", crc32fast::hash(bytes)));
    std::fs::create_dir_all(corpus(target.name)).expect("a folder");
    std::fs::write(&path, bytes).expect("a file");
    eprintln!("{}: {failure}: {nbytes} bytes allocated, {time:?}: {path:?}", target.name);
    done.failed = true;
    None
}

fn fuzz(target: &Target, asked: &Asked) -> Done {
    let mut pool = (target.seeds)();
    pool.extend(read_corpus(target.name));
    assert!(!pool.is_empty(), "{}: no seeds", target.name);
    let mut done = Done {
        name: target.name,
        executions: 0,
        seconds: 0.0,
        seeds: pool.len(),
        outcomes: 0,
        slowest: Duration::ZERO,
        most_nbytes: 0,
        failed: false,
    };
    let (mut all, mut known, start) = (HashSet::new(), HashSet::new(), Instant::now());
    for seed in &pool {
        all.extend(execute(target, seed, &mut done));
    }
    let mut random = Random::new(asked.seed);
    let is_over = |done: &Done| {
        let enough = done.executions >= asked.executions;
        let long = start.elapsed().as_secs_f64() >= asked.seconds;
        if asked.executions == 0 { long } else { enough || (asked.seconds > 0.0 && long) }
    };
    while !is_over(&done) {
        if done.executions.is_multiple_of(RESTART) {
            pool.truncate(done.seeds);
            known.clear();
        }
        let at = random.under(pool.len());
        let other = random.under(pool.len());
        let bytes = mutation::mutated(&pool[at], &pool[other], &mut random);
        let Some(outcome) = execute(target, &bytes, &mut done) else { break };
        all.insert(outcome);
        if known.insert(outcome) && pool.len() < MAX_POOL {
            pool.push(bytes);
        }
    }
    done.seconds = start.elapsed().as_secs_f64();
    done.outcomes = all.len();
    done
}

/// What was done as JSON, with the commit and the compiler that it was done with.
fn json(asked: &Asked, done: &[Done]) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output();
        output.map_or(String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    };
    let sets: Vec<String> =
        tersenet::simd::available().iter().map(|set| format!("{:?}", set.name())).collect();
    let targets: Vec<String> = done
        .iter()
        .map(|d| {
            format!(
                "    {{\"target\": {:?}, \"executions\": {}, \"seconds\": {:.1}, \"seeds\": {}, \
                 \"outcomes\": {}, \"slowest_ms\": {:.1}, \"most_nbytes\": {}, \"failed\": {}}}",
                d.name,
                d.executions,
                d.seconds,
                d.seeds,
                d.outcomes,
                d.slowest.as_secs_f64() * 1e3,
                d.most_nbytes,
                d.failed
            )
        })
        .collect();
    format!(
        "{{\n  \"commit\": {:?},\n  \"rustc\": {:?},\n  \"simd\": [{}],\n  \"seed\": {},\n  \
         \"targets\": [\n{}\n  ]\n}}\n",
        said("git", &["rev-parse", "HEAD"]),
        said("rustc", &["--version"]),
        sets.join(", "),
        asked.seed,
        targets.join(",\n")
    )
}

fn main() -> ExitCode {
    let asked = match asked() {
        Ok(asked) => asked,
        Err(message) => {
            eprintln!("fuzz: {message}");
            return ExitCode::FAILURE;
        }
    };
    let chosen = TARGETS.iter().filter(|target| {
        asked.words.is_empty() || asked.words.iter().any(|word| target.name.contains(word.as_str()))
    });
    let mut all = Vec::new();
    for target in chosen {
        let done = fuzz(target, &asked);
        println!(
            "fuzz {:<12} {:>10} executions in {:>6.1} s, {:>4} seeds, {:>4} outcomes, slowest \
             {:>6.1} ms, most {:>5.1} MiB{}",
            done.name,
            done.executions,
            done.seconds,
            done.seeds,
            done.outcomes,
            done.slowest.as_secs_f64() * 1e3,
            done.most_nbytes as f64 / f64::from(1 << 20),
            if done.failed { ", FAILED" } else { "" }
        );
        all.push(done);
        // After each, so that what was done is there whenever it ends.
        if let Some(path) = &asked.record {
            std::fs::write(path, json(&asked, &all)).expect("the record");
        }
    }
    if all.iter().any(|done| done.failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
