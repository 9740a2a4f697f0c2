//! The crate's own thread pools: one for each number of threads, forgotten after a fork.
//!
//! A forked child (a DataLoader worker, say) has none of its parent's threads, so a pool made
//! before the fork would wait for ever. Pools are therefore kept with the process id that made
//! them and left alone (not even dropped) in any other process. A lock that another thread held at
//! the moment of the fork stays locked in the child; it is only ever tried, and a pool that cannot
//! be looked up is made for that one call.

use crate::error::{Error, Result};
use crate::interruption;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

struct Pools {
    process: u32,
    pools: HashMap<usize, Arc<ThreadPool>>,
}

static POOLS: Mutex<Option<Pools>> = Mutex::new(None);

fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    let build = || {
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("tersenet-{i}"))
            .build()
            .map(Arc::new)
            .map_err(|e| Error::io("threads", std::io::Error::other(e)))
    };
    let mut guard = match POOLS.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return build(),
    };
    let process = std::process::id();
    if guard.as_ref().is_some_and(|pools| pools.process != process) {
        std::mem::forget(guard.take());
    }
    let pools = guard.get_or_insert_with(|| Pools { process, pools: HashMap::new() });
    if let Some(pool) = pools.pools.get(&threads) {
        return Ok(pool.clone());
    }
    let pool = build()?;
    pools.pools.insert(threads, pool.clone());
    Ok(pool)
}

/// The number of threads that this process may use.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How long a caller watches for its helpers to finish before it sleeps: waking up takes as long.
const WATCH: Duration = Duration::from_micros(50);

/// Runs `work` on each of `items`, on up to `threads` threads, of which the caller's is one: it starts
/// at once, while others may have to wake up, and whoever is free takes the next item.
///
/// # Errors
/// The error of the first item (in their order) that failed, `Io` when no thread can be made, or
/// `Interrupted`.
pub fn for_each<T: Send>(
    threads: usize,
    items: Vec<T>,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let checked = |item| interruption::check().and_then(|()| work(item));
    if threads <= 1 || items.len() <= 1 {
        return items.into_iter().try_for_each(checked);
    }
    let mut outcomes: Vec<Result<()>> = Vec::new();
    outcomes.resize_with(items.len(), || Ok(()));
    let helpers = threads.min(items.len()) - 1;
    let pool = pool(helpers)?;
    let flag = interruption::flag();
    let queue = Mutex::new(items.into_iter().zip(&mut outcomes));
    // The lock is not held while an item is worked on, so that none of its panics can poison it.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_through = || {
        while let Some((item, outcome)) = next() {
            *outcome = checked(item);
        }
    };
    let finished = AtomicUsize::new(0);
    pool.in_place_scope(|scope| {
        for _ in 0..helpers {
            let (flag, finished) = (flag.clone(), &finished);
            scope.spawn(move |_| {
                interruption::with(flag, work_through);
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        work_through();
        let start = Instant::now();
        while finished.load(Ordering::Relaxed) < helpers && start.elapsed() < WATCH {
            std::hint::spin_loop();
        }
    });
    outcomes.into_iter().collect()
}

/// Runs `work` on `out` cut into parts of whole units of `unit` elements, on up to `threads` threads;
/// `work` takes the number of the part's first unit, and the part.
///
/// Nothing is allocated for one thread.
///
/// # Errors
/// As [`for_each`].
pub fn for_each_chunk<T: Send>(
    threads: usize,
    out: &mut [T],
    unit: usize,
    work: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    let unit = unit.max(1);
    let units = out.len().div_ceil(unit);
    if threads <= 1 || units <= 1 {
        return if out.is_empty() { Ok(()) } else { work(0, out) };
    }
    let each = units.div_ceil(threads);
    let parts = out.chunks_mut(each * unit).enumerate();
    for_each(threads, parts.collect(), |(part, out)| work(part * each, out))
}

/// [`for_each_chunk`] with `each` elements of `scratch` for every part, of which there are at most
/// `threads`.
///
/// # Errors
/// As [`for_each`].
///
/// # Panics
/// When `scratch` has fewer elements than that.
pub fn for_each_chunk_with<T: Send, S: Send>(
    threads: usize,
    out: &mut [T],
    unit: usize,
    scratch: &mut [S],
    each: usize,
    work: impl Fn(usize, &mut [T], &mut [S]) -> Result<()> + Sync,
) -> Result<()> {
    let unit = unit.max(1);
    let units = out.len().div_ceil(unit);
    if threads <= 1 || units <= 1 {
        return if out.is_empty() { Ok(()) } else { work(0, out, &mut scratch[..each]) };
    }
    let share = units.div_ceil(threads);
    assert!(scratch.len() >= each * threads, "scratch: too short for {threads} threads");
    let mut rest = scratch;
    let mut parts = Vec::with_capacity(threads);
    for (part, out) in out.chunks_mut(share * unit).enumerate() {
        let (mine, others) = std::mem::take(&mut rest).split_at_mut(each);
        parts.push((part * share, out, mine));
        rest = others;
    }
    for_each(threads, parts, |(first, out, scratch)| work(first, out, scratch))
}

/// Cuts `0..len` into at most `parts` ranges of about equal length, each but the last a multiple
/// of `unit`.
pub fn split(len: usize, parts: usize, unit: usize) -> Vec<Range<usize>> {
    let step = len.div_ceil(parts.max(1)).next_multiple_of(unit.max(1));
    (0..len).step_by(step.max(1)).map(|start| start..len.min(start + step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_and_the_first_error_wins() {
        let done = Mutex::new(vec![0; 100]);
        for threads in [1, 2, 3, 8] {
            for_each(threads, (0..100).collect(), |i: usize| {
                done.lock().unwrap()[i] += 1;
                Ok(())
            })
            .unwrap();
            let error = for_each(threads, (0..100).collect(), |i: usize| {
                if i >= 40 { Err(Error::invalid(format!("item {i}"))) } else { Ok(()) }
            });
            assert_eq!(error.unwrap_err().to_string(), "item 40");
        }
        assert!(done.into_inner().unwrap().iter().all(|&n| n == 4));
    }

    #[test]
    fn split_covers_everything_in_order() {
        for len in [0, 1, 63, 64, 65, 1000] {
            for parts in [1, 2, 3, 8] {
                let ranges = split(len, parts, 64);
                assert!(ranges.len() <= parts);
                assert_eq!(
                    ranges.iter().flat_map(|r| r.clone()).collect::<Vec<_>>(),
                    (0..len).collect::<Vec<_>>()
                );
            }
        }
    }
}
