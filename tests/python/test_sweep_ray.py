"""Sweeps on real Ray clusters, whose nodes and drivers are killed in the middle of trials.

Run alone: `pytest tests/python/test_sweep_ray.py`. Ray runs in processes of its own, since it would
leave threads and sockets behind in this one.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from digits import logged, make_data, make_model, measured_by, on_two_nodes
from underway import kill_underway

from tersenet import sweep
from tersenet.sweeping import Results

pytest.importorskip("ray", reason="needs pip install 'tersenet[ray]'")

SPACE = {
    "layers": {"fc:*": {"sparsity": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], "quantizer": "cws", "k": 4}}
}

CLUSTER = """
    import sys

    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
"""

DRIVER = """
    import sys

    import torch

    import tersenet
    from tersenet.sweeping import RayExecutor

    model, data, space = torch.load(sys.argv[1], weights_only=False)
    with RayExecutor(sys.argv[3]) as executor:
        tersenet.sweep(lambda: model, data, space, executor, results=sys.argv[2])
"""

PROGRAM = """
    import json, os, sys, threading, time
    from concurrent.futures import BrokenExecutor
    from pathlib import Path

    import torch

    model, data, space = torch.load(sys.argv[1], weights_only=False)
    results, marks = Path(sys.argv[2]), Path(os.environ["SWEEP_LOG"])

    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)

    import tersenet
    from tersenet.sweeping import RayExecutor

    def kill():
        while not (marks / second.node_id).exists():  # a trial is under way there
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)
        (marks / "killed").touch()

    def fail(text):
        raise ArithmeticError(text)

    facts = {}
    with RayExecutor(cluster.address) as executor:
        stored = executor.put(b"some bytes")
        facts["put"] = executor.submit(lambda: stored.get().decode()).result()
        error = executor.submit(fail, "on purpose").exception()
        facts["error"] = f"{type(error).__name__}: {error}"
        threading.Thread(target=kill, daemon=True).start()
        tersenet.sweep(lambda: model, data, space, executor, results=results)
        try:
            RayExecutor(cluster.address)
        except ValueError as error:
            facts["again"] = str(error)
        executor_of_one_try = RayExecutor(retries=0)
        error = executor_of_one_try.submit(os._exit, 1).exception()
        facts["given_up"] = type(error).__name__
    facts["alive"] = ray.is_initialized()
    try:
        executor.submit(fail, "too late")
    except RuntimeError as error:
        facts["shut"] = str(error)
    facts["nodes"] = sorted(path.name for path in marks.iterdir() if path.name != "killed")
    facts["second"] = second.node_id
    cluster.shutdown()
    print(json.dumps(facts))
"""


def ray_environment(log, **more):
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "SWEEP_LOG": str(log),
        **more,
    }


def program(path, text):
    path.write_text(textwrap.dedent(text))
    return [sys.executable, path]


def test_a_killed_node_loses_no_trial_and_the_front_is_the_serial_one(tmp_path):
    marks, results = tmp_path / "marks", tmp_path / "r.sqlite"
    marks.mkdir()
    model = make_model()
    torch.save((model, measured_by(on_two_nodes), SPACE), tmp_path / "swept.pt")
    command = [*program(tmp_path / "program.py", PROGRAM), tmp_path / "swept.pt", results]
    environment = ray_environment(marks)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["put"] == "some bytes"
    assert facts["error"] == "ArithmeticError: on purpose"
    assert facts["given_up"] == "BrokenExecutor"
    assert "expected none: this process has joined a cluster" in facts["again"]
    assert "submit after shutdown" in facts["shut"]
    assert facts["alive"] is False
    assert len(facts["nodes"]) == 2 and facts["second"] in facts["nodes"]
    assert (marks / "killed").exists()
    serial = sweep(lambda: model, make_data(), SPACE, workers=0)
    found = Results.open(results)
    assert len(found) == 6
    assert list(found) == list(serial)
    assert [t.layers for t in found] == [t.layers for t in serial]
    assert list(found.front()) == list(serial.front())


def test_a_killed_driver_loses_no_trial_and_does_none_twice(tmp_path):
    log, results, swept = tmp_path / "log", tmp_path / "r.sqlite", tmp_path / "swept.pt"
    model = make_model()
    torch.save((model, measured_by(logged), SPACE), swept)
    environment = ray_environment(log, SWEEP_SLEEP_S="0.2")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    cluster = subprocess.Popen(program(tmp_path / "cluster.py", CLUSTER), env=environment, **pipes)
    try:
        address = cluster.stdout.readline().strip()
        command = [*program(tmp_path / "driver.py", DRIVER), swept, results, address]
        kill_underway(command, environment, results, log)
        finished = Results.open(results)
        log.write_text("")
        subprocess.run(command, env=environment, check=True, timeout=240)
    finally:
        cluster.communicate(timeout=60)
    serial = sweep(lambda: model, make_data(), SPACE, workers=0)
    assert 2 <= len(finished) < len(serial)
    assert all(trial == serial[trial.number] for trial in finished)
    nbatches = len(make_data()[1])
    assert len(log.read_text().split()) == nbatches * (len(serial) - len(finished))
    found = Results.open(results)
    assert list(found) == list(serial)
    assert list(found.front()) == list(serial.front())


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    from tersenet.sweeping import RayExecutor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'tersenet\[ray\]'"):
        RayExecutor()
