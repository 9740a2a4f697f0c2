"""What the bench of DeepDTA rests on: its data, its batches, its measure, and a faster reading."""

import json
import os
from pathlib import Path

import affinity
import networks
import numpy as np
import pytest
import torch
from affinity import Blocks, Pairs
from deepdta_head import FULL, layers_of
from deepdta_training import Paired, read_texts
from heads import widened
from hypothesis import example, given, settings
from hypothesis import strategies as st

FOLDER = Path(os.environ.get("TERSENET_DATA") or "absent", "deepdta")
needs_data = pytest.mark.skipif(
    not FOLDER.exists(), reason="TERSENET_DATA names no folder with deepdta in it"
)

numbers = st.integers(-3, 3)


def texts(letters, lengths, length):
    """Random codes, filled with zeros to a length."""
    found = torch.zeros(len(lengths), length, dtype=torch.int64)
    for row, used in zip(found, lengths, strict=True):
        row[:used] = torch.randint(1, letters + 1, (used,))
    return found


def all_pairs(drugs, proteins, part):
    """A random part of all pairs, with affinities that name the pair."""
    places = torch.cartesian_prod(torch.arange(drugs), torch.arange(proteins))
    places = places[torch.rand(len(places)) < part]
    return Pairs(places, (places[:, 0] * 1000 + places[:, 1]).float())


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30))
@example([(0, 1), (1, 1)])
def test_concordance_is_that_of_all_pairs(values):
    known, found = np.array(values, np.float64).T
    won = comparable = 0.0
    for a, p in zip(known, found, strict=True):
        for b, q in zip(known, found, strict=True):
            if a > b:
                comparable += 1
                won += 1 if p > q else 0.5 if p == q else 0
    if comparable:
        assert affinity.concordance(known, found) == pytest.approx(won / comparable, abs=1e-12)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.1, 0.5, 1.0]))
def test_an_epoch_has_every_pair_once_and_each_weighs_the_same(drug_groups, protein_groups, part):
    torch.manual_seed(0)
    drugs, proteins = torch.arange(7) + 100, torch.arange(11) + 200
    pairs = all_pairs(7, 11, part)
    if not len(pairs):
        return
    blocks = Blocks(drugs, proteins, pairs, groups=(drug_groups, protein_groups), seed=3)
    orders = []
    for _ in range(2):
        seen, total = [], 0.0
        for (some, others, which, with_which), affinities in blocks:
            assert len(some.unique()) == len(some)
            assert len(others.unique()) == len(others)
            found = (some[which] - 100) * 1000 + others[with_which] - 200
            torch.testing.assert_close(found.float(), affinities)
            seen += affinities.tolist()
            total += float(blocks.loss(affinities + 2.0, affinities))
        assert sorted(seen) == sorted(pairs.affinities.tolist())
        assert total / len(blocks) == pytest.approx(4.0)
        orders.append(seen)
    if drug_groups * protein_groups > 20 and part == 1.0:
        assert orders[0] != orders[1]


def test_reading_each_text_once_computes_what_the_network_computes():
    torch.manual_seed(0)
    net = networks.DeepDTA(8, 64).double().eval()
    drugs, proteins = texts(64, [40, 18, 1, 25], 40), texts(25, [60, 23, 59, 30, 2], 60)
    pairs = all_pairs(4, 5, 1.0)
    drug, protein = pairs.places.unbind(1)
    expected = net(drugs[drug], proteins[protein])[:, 0]
    found = Paired(net)(drugs, proteins, drug, protein)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = list(net.parameters())
    gradients = [
        torch.autograd.grad((each * torch.arange(len(each))).sum(), parameters)
        for each in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_texts_are_read_in_parts_of_like_length(monkeypatch):
    torch.manual_seed(0)
    net = networks.DeepDTA(8, 64).eval()
    proteins = texts(25, [60, 23, 59, 30, 2, 60, 41], 60)
    whole = read_texts(net.protein, proteins)
    monkeypatch.setattr("deepdta_training._AT_ONCE", 120)
    torch.testing.assert_close(read_texts(net.protein, proteins), whole)


def test_wider_layers_compute_the_same():
    torch.manual_seed(0)
    fc = layers_of((24, 16, 8), 12).eval()
    with torch.no_grad():
        fc[3].weight[fc[3].weight.abs() < 0.15] = 0
    wide = widened(fc, layers_of(FULL, 12)).eval()
    assert tuple(wide[place].out_features for place in (0, 3, 6)) == FULL
    x = torch.randn(5, 12)
    torch.testing.assert_close(wide(x), fc(x))


def test_a_letter_without_a_code_is_an_error():
    with pytest.raises(ValueError, match="'ü', expected one of"):
        affinity.codes(["CC", "Cü"], affinity.SMILES, 4)


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("davis", ((68, 85), (442, 1200)), (20037, 5009, 5010)),
        ("kiba", ((2111, 100), (229, 1000)), (78836, 19709, 19709)),
    ],
)
def test_real_pairs_are_what_the_files_hold(name, shape, counts):
    data = affinity.load(name)
    assert (data.drugs.shape, data.proteins.shape) == shape
    folds = (data.train, data.validation, data.test)
    assert tuple(map(len, folds)) == counts
    places = torch.cat([fold.places for fold in folds])
    assert len(places.unique(dim=0)) == sum(counts)
    smiles = list(json.loads((FOLDER / name / "ligands_can.txt").read_text()).values())
    residues = list(json.loads((FOLDER / name / "proteins.txt").read_text()).values())
    known = np.load(FOLDER / name / "Y.npz")["Y"]
    for pair in range(0, len(data.test), 997):
        drug, protein = data.test.places[pair].tolist()
        decoded = "".join(affinity.SMILES[code - 1] for code in data.drugs[drug] if code)
        assert decoded == smiles[drug][: shape[0][1]]
        decoded = "".join(affinity.RESIDUES[code - 1] for code in data.proteins[protein] if code)
        assert decoded == residues[protein][: shape[1][1]]
        value = known[drug, protein]
        expected = -np.log10(value / 1e9) if name == "davis" else value
        assert float(data.test.affinities[pair]) == pytest.approx(expected, rel=1e-6)
