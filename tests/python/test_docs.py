"""Every snippet of the documentation runs, in the order of its page; links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s:]+)(?:#[^)\s]*)?\)")


class Model(nn.Sequential):
    """What pages call a trained model of the reader's own."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def given() -> dict[str, object]:
    """What a reader has: pages say `name = ...`, or use the name."""
    torch.manual_seed(0)
    example = torch.randn(1, 64)
    return {"model": Model(), "Model": Model, "example": example, "x": example}


def commands(text: str) -> list[list[str]]:
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    return [line for line in lines if line[:1] == ["tersenet"]]


def python_pages():
    return [p for p in PAGES if any(m[1] == "python" for m in BLOCK.finditer(p.read_text("utf-8")))]


@pytest.mark.parametrize("page", python_pages(), ids=lambda page: page.name)
def test_snippets_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = given()
    for block in BLOCK.finditer(page.read_text("utf-8")):
        if block[1] != "python":
            continue
        # What the reader has is not to be made by the page.
        code = re.sub(r"^(\w+) = \.\.\..*$", "", block[2], flags=re.MULTILINE)
        if "network.run(x)" in code and isinstance(names["x"], torch.Tensor):
            names["x"] = names["x"].numpy()
        exec(compile(code, str(page), "exec"), names)  # noqa: S102
    # Commands on the files that the snippets left.
    if page.name == "tutorial.md":
        text = "\n".join(b[2] for b in BLOCK.finditer(page.read_text("utf-8")) if not b[1])
        ran = commands(text)
        assert len(ran) == 5
        for command in ran:
            run = [sys.executable, "-m", "tersenet.cli", *command[1:]]
            done = subprocess.run(run, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (command, done.stderr)


def test_the_commands_of_the_readme_exist(tmp_path, monkeypatch):
    """Each with the files that its line names, made here."""
    from safetensors.numpy import save_file

    import tersenet

    monkeypatch.chdir(tmp_path)
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    save_file({"fc.weight": weights}, "model.safetensors")
    np.save("weights.npy", weights)
    np.save("x.npy", np.ones((2, 64), np.float32))
    tersenet.export(Model(), torch.randn(1, 64), "network.terse")
    text = "\n".join(b[2] for b in BLOCK.finditer((ROOT / "README.md").read_text("utf-8")))
    ran = [c for c in commands(text) if c[1] not in ("sweep", "demo", "report")]
    assert {c[1] for c in ran} >= {"compress", "inspect", "verify", "decompress", "run", "bench"}
    for command in ran:
        run = [sys.executable, "-m", "tersenet.cli", *command[1:]]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page}: {target}"
