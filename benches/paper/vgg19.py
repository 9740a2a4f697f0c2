"""VGG19 on MNIST and on CIFAR-10: linear layers, and whole networks, pruned and with shared values.

The stages are those of `evaluation`: dense, heads, wholes, speed, record. The last 5,000 training images
decide everything. Goals are 0.2 % (MNIST) and 0.4 % (CIFAR-10) of the linear layers' bytes.

    TERSENET_DATA=… TERSENET_CACHE=… PYTHONPATH=benches python benches/paper/vgg19.py mnist [stage…]
    writes benches/record/paper_vgg19_mnist.{json,svg}, and .terse if that is small; likewise cifar10,
    and paper_vgg19_mnist_long where an accelerator trains

Finished parts of stages stay in TERSENET_CACHE and are not run again. With names of stages only these
are run, and nothing is written but by `record`, which takes the rows that are finished. `--device` names
what trains, `--scale` the type of device for which the training is meant: with a cache that an
accelerator filled, `--scale cuda` goes on, measures and records on a processor.

Source: as of `evaluation` and `vgg19_training`.
"""

from __future__ import annotations

import dataclasses

from cache import Cache
from devices import has_bfloat16
from evaluation import Benchmark, Evaluation, run
from vgg19_head import FEATURES, ImageHeads
from vgg19_scale import SCALES
from vgg19_training import load, make, train_dense
from vgg19_whole import ImageWholes

from tersenet.pruning.stages import Progress

BENCHMARKS = {
    "mnist": Benchmark(
        name="vgg19_mnist",
        title="VGG19, MNIST",
        metric="accuracy",
        is_error=False,
        weak=0.99,
        published={"dense": 0.9954, "fc_occupancy": 0.018, "net_occupancy": 0.0544},
        goal=0.002,
    ),
    "cifar10": Benchmark(
        name="vgg19_cifar10",
        title="VGG19, CIFAR-10",
        metric="accuracy",
        is_error=False,
        weak=0.80,
        published={"dense": 0.9344, "fc_occupancy": 0.006, "net_occupancy": 0.0544},
        goal=0.004,
    ),
}


def begin(name: str, cache: Cache, advance: Progress, like: str = "cpu") -> Evaluation:
    """Load a data set, and train the dense network, for as long as on a type of device."""
    device = cache.device
    scale = SCALES[name, like]
    data, net = load(name, device), make(name, device)
    path = cache.folder / "dense-parts.pt"
    seconds = cache.stage("dense", net, lambda: train_dense(net, data, scale, path, device))
    net.eval()
    heads = ImageHeads(net, data, cache, advance)
    benchmark = BENCHMARKS[name]
    if like == "cuda":
        long = {"name": f"{benchmark.name}_long", "title": f"{benchmark.title}, trained long"}
        benchmark = dataclasses.replace(benchmark, **long)
    benchmark = dataclasses.replace(
        benchmark,
        settings=scale.settings() | {"scale": like, "bfloat16": has_bfloat16(device)},
        data=f"{len(data.train[0])} images for training, of which the linear layers see {FEATURES}, "
        f"{len(data.validation[0])} to decide, {len(data.test[0])} reported",
    )
    return Evaluation(benchmark, net, seconds.tolist(), heads, ImageWholes(net, heads, data, scale))


if __name__ == "__main__":
    run(begin, "vgg19", BENCHMARKS, __doc__, takes_device=True)
