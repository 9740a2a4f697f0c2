"""Training: a small loop, and the methods that join it by callbacks."""

from tersenet.training.batches import TensorBatches
from tersenet.training.callback import Callback, State
from tersenet.training.loop import Batch, Loss, accuracy, evaluate, fit
from tersenet.training.norms import recalibrate

__all__ = [
    "Batch",
    "Callback",
    "Loss",
    "State",
    "TensorBatches",
    "accuracy",
    "evaluate",
    "fit",
    "recalibrate",
]
