"""Layer pruning: whole convolutions go, by shortcuts that are fused away afterwards.

::

    report = convert(model)                        # each fitting conv (and its batch norm) a ResConv2d
    fit(model, …, callbacks=[LayerL1(model, 1e-4)])      # factors that are not needed become 0
    remove(model)                                  # their layers become nn.Identity
    fuse(model)                                    # the others plain nn.Conv2d again
    prune, quantize, compress, export              # as for any model

A state_dict holds tensors and no layers, so in a fresh process the model gets its layers first::

    state = torch.load(path)                       # of model.state_dict()
    model = …                                      # as it was before convert
    convert(model)                                 # with the same arguments
    normalize(model, [(x, x)])                     # if it was: any x will do, load puts the statistics
    for name, scale in scales(model).items():
        if not any(key.startswith(f"{name}.") for key in state):
            scale.detach().zero_()                 # this layer had been removed
    remove(model)                                  # if it was
    fuse(model)                                    # if it was
    model.load_state_dict(state)                   # then the optimizer, with its state, then LayerL1

Or `torch.save(model, path)` and `torch.load(path, weights_only=False)`, which unpickles code: for
files of your own alone.

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
