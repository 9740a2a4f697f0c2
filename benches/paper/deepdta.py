"""DeepDTA on DAVIS and on KIBA: linear layers, and whole networks, pruned and with shared values.

The stages are those of `evaluation`: dense, heads, wholes, speed, record. The dense network trains on
four of five folds, and the fifth decides everything. Goals are 3.5 % (DAVIS) and 5 % (KIBA) of the linear
layers' bytes.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/deepdta.py davis [stage…]
    writes benches/record/paper_deepdta_davis.{json,svg,terse}; likewise kiba

Finished parts of stages stay in TERSENET_CACHE and are not run again. With names of stages only these
are run, and nothing is written but by `record`, which takes the rows that are finished.

Networks have kernels of 4, 6, 8 letters of drugs and 4, 8, 12 residues of proteins, and 32, 64, 96
filters.

Source: as of `evaluation`; Öztürk et al. 2018, "DeepDTA".
"""

from __future__ import annotations

import dataclasses

import affinity
import deepdta_training
import deepdta_whole
import torch
from cache import Cache
from deepdta_head import AffinityHeads
from deepdta_training import SEED, train_dense
from deepdta_whole import AffinityWholes
from evaluation import Benchmark, Evaluation, run
from networks import DeepDTA

from tersenet.pruning.stages import Progress

BENCHMARKS = {
    "davis": Benchmark(
        name="deepdta_davis",
        title="DeepDTA, DAVIS",
        metric="mse",
        is_error=True,
        weak=0.45,
        published={"dense": 0.3223, "fc_occupancy": 0.060, "net_occupancy": 0.0544},
        goal=0.035,
        columns=("ci",),
    ),
    "kiba": Benchmark(
        name="deepdta_kiba",
        title="DeepDTA, KIBA",
        metric="mse",
        is_error=True,
        weak=0.30,
        published={"dense": 0.1756, "fc_occupancy": 0.127, "net_occupancy": 0.0544},
        goal=0.05,
        columns=("ci",),
    ),
}


def begin(name: str, cache: Cache, advance: Progress) -> Evaluation:
    """Load a data set, and train the dense network."""
    data = affinity.load(name)
    torch.manual_seed(SEED)
    net = DeepDTA()
    path = cache.folder / "dense-epochs.pt"
    seconds = cache.stage("dense", net, lambda: train_dense(net, data, name, path))
    net.eval()
    heads = AffinityHeads(net, data, name, cache, advance)
    benchmark = dataclasses.replace(
        BENCHMARKS[name],
        settings={
            "dense": {"lr": deepdta_training.LR, "epochs": deepdta_training.EPOCHS[name]},
            "wholes": {"lr": deepdta_whole.LR, "epochs": deepdta_whole.EPOCHS[name]},
            "lengths": affinity.LENGTHS[name],
        },
        data=f"{len(data.train)} pairs for training, {len(data.validation)} to decide, "
        f"{len(data.test)} reported",
    )
    return Evaluation(benchmark, net, seconds.tolist(), heads, AffinityWholes(net, heads, name))


if __name__ == "__main__":
    run(begin, "deepdta", BENCHMARKS, __doc__)
