//! What a model has learnt: what it knows beyond its own matrix, and can go on with in the next.

use super::network::Network;
use super::values::ValueModel;
use crate::entropy::mixing::{Predictor, PredictorSize, Slot};

/// Inputs of the mixer of kept or pruned: four slots and the network's logit.
pub(super) const KEPT_INPUTS: usize = 5;
/// First slots of the contexts of kept or pruned; the last one takes the place of the one before in
/// kernels.
pub(super) const KEPT_SLOTS: [usize; 5] = [0, 256, 2304, 2432, 2432 + 32_768];
const KEPT_SLOTS_END: usize = KEPT_SLOTS[4] + 32 * 64 * 8;
/// Bits that a slot counts as told when another matrix begins.
const TOLD_BEFORE: u32 = 60;

/// The state that does not depend on the lines of one matrix.
#[derive(Clone, Debug)]
pub struct Learnt {
    pub(super) kept: Predictor<KEPT_INPUTS>,
    pub(super) values: ValueModel,
    /// Pruned for certain, by logit and density.
    pub(super) certain: Vec<Slot>,
    /// Lines that keep nothing, by whether the one before does.
    pub(super) empty: [Slot; 2],
    /// The network over the positions of the last kernels.
    pub(super) kernels: Option<Network>,
}

impl Learnt {
    /// Nothing yet, of a matrix of `k` values.
    pub(super) fn new(k: usize) -> Self {
        Self {
            kept: Predictor::new(PredictorSize {
                slots: KEPT_SLOTS_END,
                sets: [32 * 9, 32],
                maps: 256,
            }),
            values: ValueModel::new(k),
            certain: vec![Slot::new(1 << 11); 32 * 32],
            empty: [Slot::new(1 << 10), Slot::new(1 << 15)],
            kernels: None,
        }
    }

    /// Makes what one matrix taught a start for the next.
    pub(super) fn calm(&mut self) {
        self.kept.calm(TOLD_BEFORE);
        self.values.calm(TOLD_BEFORE);
        self.certain.iter_mut().chain(&mut self.empty).for_each(|slot| slot.calm(TOLD_BEFORE));
    }
}
