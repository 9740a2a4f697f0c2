//! Tensors of a file read on several threads, in any order, given in the order asked for.
//!
//! ```text
//!   names ──▶ chains: what goes on from each other, one after the other, on one thread
//!             the most entries first, as long as those at work have at most MAX_AT_WORK in all
//!         ──▶ what each became, or why not
//! ```
//!
//! Why the most first: a layer may be half a network, and what is begun last ends alone. A decoder
//! of an archive holds up to 3.5 bytes for each entry beside its result, so those at work are
//! counted by entries: two that are larger together follow each other.

use super::reader::{Learning, Reader, Tensor};
use crate::error::Result;
use crate::threads;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Entries of the tensors at work at one time, at most, unless one alone has more.
const MAX_AT_WORK: u64 = 20 << 20;

/// What is read on one thread.
struct Chain {
    /// Entries of the largest one.
    entries: u64,
    /// The numbers of entries of the file, ascending, and the places in what is asked for.
    numbers: Vec<(usize, usize)>,
}

/// Chains that wait, and entries at work.
struct Queue {
    state: Mutex<(Vec<Chain>, u64)>,
    changed: Condvar,
}

/// A chain at work, taken off the queue; it counts until it is dropped, by a panic too.
struct AtWork<'a> {
    queue: &'a Queue,
    chain: Chain,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, (Vec<Chain>, u64)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first chain that may start now, waited for; none where none waits.
    fn next(&self) -> Option<AtWork<'_>> {
        let mut state = self.state();
        loop {
            let (waiting, at_work) = &mut *state;
            if waiting.is_empty() {
                return None;
            }
            let fits = |chain: &Chain| *at_work == 0 || *at_work + chain.entries <= MAX_AT_WORK;
            if let Some(at) = waiting.iter().position(fits) {
                let chain = waiting.remove(at);
                *at_work += chain.entries;
                return Some(AtWork { queue: self, chain });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.queue.state().1 -= self.chain.entries;
        self.queue.changed.notify_all();
    }
}

impl Reader {
    /// Reads and checks tensors on up to `threads` threads, and gives for each of `names` what `make`
    /// makes of its place among them and what it stands for, or what was wrong with it.
    ///
    /// # Errors
    /// `Io` when no thread can be made.
    pub fn get_each<T: Send>(
        &self,
        names: &[&str],
        threads: usize,
        make: impl Fn(usize, Tensor) -> Result<T> + Sync,
    ) -> Result<Vec<Result<T>>> {
        let mut made: Vec<Option<Result<T>>> = names.iter().map(|_| None).collect();
        let mut chains: BTreeMap<usize, Chain> = BTreeMap::new();
        for (place, name) in names.iter().enumerate() {
            match self.target(name) {
                Ok(number) => {
                    let first = self.first_of_chain(number);
                    let new = || Chain { entries: 0, numbers: Vec::new() };
                    let chain = chains.entry(first).or_insert_with(new);
                    chain.entries = chain.entries.max(self.count(number));
                    chain.numbers.push((number, place));
                    self.prepare_codebook(number);
                }
                Err(error) => made[place] = Some(Err(error)),
            }
        }
        let mut chains: Vec<Chain> = chains.into_values().collect();
        chains.iter_mut().for_each(|chain| chain.numbers.sort_unstable());
        chains.sort_by_key(|chain| std::cmp::Reverse(chain.entries));
        let threads = threads.clamp(1, chains.len().max(1));
        let queue = Queue { state: Mutex::new((chains, 0)), changed: Condvar::new() };
        let made = Mutex::new(made);
        threads::for_each(threads, vec![(); threads], |()| {
            while let Some(work) = queue.next() {
                let mut learning = Learning::default();
                for &(number, place) in &work.chain.numbers {
                    let tensor = self.tensor(number, &mut learning);
                    let outcome = tensor.and_then(|tensor| make(place, tensor));
                    made.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(outcome);
                }
            }
            Ok(())
        })?;
        let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(made.into_iter().map(|outcome| outcome.expect("every chain was at work")).collect())
    }
}
