"""Training without labels: pretext tasks, and what their features are worth on another task.

::

    fit(model, RotatedBatches(batches), …, loss=cross_entropy)      # or InstanceMemory,
    prune_iteratively(model, plan, train=…, rewind=early)           # contrastive_loss
    inputs, classes = features(model, labelled, "head")             # frozen features
    probe = linear_probe(inputs, classes)                           # a linear layer on them
    classifier = with_head(model, "head", probe)                    # evaluate it, or train it on
    copy_masks(model, another)                                      # only the masks, of `pruning`

Source: Caron, Morcos, Bojanowski, Mairal and Joulin 2020, "Pruning convolutional neural networks with
self-supervision" (arXiv 2001.03554); of each task, see its module.
"""

from tersenet.self_supervision.contrasting import contrastive_loss
from tersenet.self_supervision.instances import InstanceMemory
from tersenet.self_supervision.probing import features, linear_probe, with_head
from tersenet.self_supervision.rotating import RotatedBatches, rotated

__all__ = [
    "InstanceMemory",
    "RotatedBatches",
    "contrastive_loss",
    "features",
    "linear_probe",
    "rotated",
    "with_head",
]
