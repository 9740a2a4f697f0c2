"""Layer pruning: whole convolutions go, by shortcuts that are fused away afterwards.

::

    report = convert(model)                        # each fitting conv (and its batch norm) a ResConv2d
    fit(model, …, callbacks=[LayerL1(model, 1e-4)])      # factors that are not needed become 0
    remove(model)                                  # their layers become nn.Identity
    fuse(model)                                    # the others plain nn.Conv2d again
    prune, quantize, compress, export              # as for any model

Source: Xu, Cao, Shang, Sun and Li 2020, "Layer pruning via fusible residual convolutional block for
deep neural networks" (arXiv 2011.14356): the block and its factor after the abstract, fusion and
proximal steps in the form that is standard in the literature.
"""

from tersenet.layer_pruning.converting import ConvertedLayer, convert, normalize
from tersenet.layer_pruning.removing import ScaledLayer, fuse, remove
from tersenet.layer_pruning.resconv import ResConv2d, scales
from tersenet.layer_pruning.sparsifying import LayerL1

__all__ = [
    "ConvertedLayer",
    "LayerL1",
    "ResConv2d",
    "ScaledLayer",
    "convert",
    "fuse",
    "normalize",
    "remove",
    "scales",
]
