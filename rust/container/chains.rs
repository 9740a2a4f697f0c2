//! Chains: archives of one file that go on from each other, with what the model has learnt.
//!
//! ```text
//!   entry:    conv1 ◀── conv2 ◀── conv3     fc       last
//!   apart:      0         1         1       0  ◀── 1        how many entries before it is the one
//! ```
//!
//! Layers of a few thousand weights end before a model knows them, and are much alike: of ResNets a
//! chain takes 1.4 % off. What it costs: a matrix is decoded after those that it goes on from, so
//! these hold [`MAX_CHAIN_ENTRIES`] in all at most, and large matrices, which gain nothing, stand alone.
//! A reader that asks in the order of the file decodes each once.

use super::header::MAX_CHAIN_ENTRIES;
use crate::error::Result;
use crate::layout::archive;
use crate::matrix::CompressedMatrix;
use crate::threads;
use std::borrow::Cow;

/// Entries of a matrix that is written in a chain, at most.
const MAX_LINK_ENTRIES: u64 = 1 << 20;

/// An archive that is to be written, and the number of its entry.
pub type Numbered<'a> = (usize, &'a CompressedMatrix);

/// The archives as they are written, each alone, whatever they were read from.
///
/// # Errors
/// `LimitExceeded` when the memory cannot be had.
pub fn alone<'a>(archives: &[Numbered<'a>]) -> Result<Vec<Cow<'a, CompressedMatrix>>> {
    let alone = archives.iter().map(|&(_, matrix)| {
        let goes_on = matrix.layout.archive().is_some_and(|archive| archive.goes_on());
        Ok(if goes_on { Cow::Owned(matrix.archived_after(None)?.0) } else { Cow::Borrowed(matrix) })
    });
    alone.collect()
}

/// The archives as they are written, each going on from the one before where that is smaller.
///
/// # Errors
/// As [`alone`].
pub fn chained<'a>(archives: &[Numbered<'a>]) -> Result<Vec<Cow<'a, CompressedMatrix>>> {
    let mut chained = alone(archives)?;
    let mut items: Vec<(Vec<usize>, Vec<_>)> =
        chains(archives).into_iter().map(|chain| (chain, Vec::new())).collect();
    threads::for_each(threads::available(), items.iter_mut().collect(), |(chain, coded)| {
        let mut before: Option<(archive::Learnt, usize)> = None;
        for &at in chain.iter() {
            let (number, stands) = (archives[at].0, &chained[at]);
            let start = before.as_ref().map(|(learnt, last)| (learnt, (number - last) as u64));
            let (mut matrix, mut learnt) = stands.archived_after(start)?;
            if start.is_some() && matrix.nbytes() >= stands.nbytes() {
                (matrix, learnt) = stands.archived_after(None)?;
            }
            before = learnt.map(|learnt| (learnt, number));
            coded.push((at, matrix));
        }
        Ok(())
    })?;
    for (at, matrix) in items.into_iter().flat_map(|(_, coded)| coded) {
        chained[at] = Cow::Owned(matrix);
    }
    Ok(chained)
}

/// The archives that are to go on from each other, as places in `archives`: chains of two or more.
fn chains(archives: &[Numbered<'_>]) -> Vec<Vec<usize>> {
    let (mut chains, mut entries) = (vec![Vec::new()], 0);
    for (at, (_, matrix)) in archives.iter().enumerate() {
        let here = matrix.shape().entries() as u64;
        let k = matrix.codebook().map_or(0, |codebook| codebook.k());
        if matrix.nnz() == 0 || here > MAX_LINK_ENTRIES || k > archive::MAX_MIXED {
            continue;
        }
        if entries + here > MAX_CHAIN_ENTRIES {
            chains.push(Vec::new());
            entries = 0;
        }
        entries += here;
        chains.last_mut().expect("a chain").push(at);
    }
    chains.retain(|chain| chain.len() > 1);
    chains
}
