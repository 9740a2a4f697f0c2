"""Training on an accelerator, where there is one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersenet.parametrization import masks, unparametrize
from tersenet.plan import Plan
from tersenet.pruning import prune
from tersenet.quantization import prepare_qat, quantize
from tersenet.training import TensorBatches, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

METHODS = {
    "shared": lambda model: quantize(model, Plan.of(quantizer="cws", k=8, seed=0)),
    "learned": lambda model: prepare_qat(model, Plan.of(quantizer="cws", k=8, seed=0)),
    "steps": lambda model: prepare_qat(model, Plan.of(quantizer="lsq", k=16, seed=0)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_an_accelerator_is_that_on_the_processor(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    data = torch.randn(64, 3, 8, 8), torch.randint(0, 10, (64,))
    trained = {}
    for device in ("cpu", "cuda"):
        found = copy.deepcopy(model).to(device)
        prune(found, Plan.of(sparsity=0.5))
        METHODS[name](found)
        batches = TensorBatches(*(part.to(device) for part in data), batch_size=64)
        sgd = torch.optim.SGD(found.parameters(), 0.01)
        fit(found, batches, epochs=1, optimizer=sgd, loss=F.cross_entropy)
        kept = masks(found)
        unparametrize(found)
        trained[device] = found.cpu().state_dict(), kept
    for key, expected in trained["cpu"][0].items():
        torch.testing.assert_close(trained["cuda"][0][key], expected, rtol=1e-3, atol=1e-4)
    for key, mask in trained["cpu"][1].items():
        assert torch.equal(trained["cuda"][1][key].cpu(), mask)
