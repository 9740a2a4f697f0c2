"""`tersenet report`: numbers of the page against those of the source, its safety, and its errors."""

import base64
import hashlib
import json
import re
import sqlite3
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from pages import DENSE, HOSTILE, Parsed, trace, write_results, write_terse
from scipy.stats import entropy
from test_cli import call, process

from tersenet import CompressedMatrix, io
from tersenet.pages import report_page
from tersenet.pages.texts import in_html, in_plot, in_script, nbytes, shown
from tersenet.pages.weights import Tensor, weights_of

graph_objects = pytest.importorskip(
    "plotly.graph_objects", reason="needs pip install 'tersenet[report]'"
)

# What a browser would load on its own.
LOADING = {"src", "srcset", "href", "data", "action", "formaction", "poster", "background", "ping"}
ELEMENTS = """
html head meta title style body header h1 p dl div dt dd small main noscript section h2 figure figcaption
label select option table thead tr th tbody td wbr footer script
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def trials(folder):
    return write_results(folder / "sweep.sqlite")


@pytest.fixture(scope="module")
def swept(folder, trials):
    report_page(folder / "sweep.sqlite", folder / "sweep.html")
    return Parsed.read(folder / "sweep.html")


@pytest.fixture(scope="module")
def dense(folder):
    return write_terse(folder / "model.terse")


@pytest.fixture(scope="module")
def stored(folder, dense):
    report_page(folder / "model.terse", folder / "model.html")
    return Parsed.read(folder / "model.html")


@pytest.fixture(scope="module")
def hostile(folder):
    """A page of each kind whose names, settings and metadata are hostile."""
    source = folder / "<img src=x onerror='window.pwned = 5'>.sqlite"
    write_results(source, HOSTILE, setting=f"{HOSTILE[0]}.k", trials=3)
    report_page(source, folder / "hostile-sweep.html")
    write_terse(folder / "hostile.terse", HOSTILE)
    report_page(folder / "hostile.terse", folder / "hostile-model.html")
    return [Parsed.read(folder / f"hostile-{kind}.html") for kind in ("sweep", "model")]


def undominated(trials):
    return {
        t.number
        for t in trials
        if not any(
            o.nbytes <= t.nbytes
            and o.accuracy >= t.accuracy
            and (o.nbytes < t.nbytes or o.accuracy > t.accuracy)
            for o in trials
        )
    }


def test_trials_and_the_front_are_drawn_where_they_are(swept, trials):
    figure = swept.figures["accuracy"]
    front, others = trace(figure, "Pareto front"), trace(figure, "trials")
    assert set(map(int, front["ids"])) == undominated(trials)
    assert sorted([*front["ids"], *others["ids"]], key=int) == [str(t.number) for t in trials]
    for points in (front, others):
        for number, x, y, text in zip(
            *(points[k] for k in ("ids", "x", "y", "customdata")), strict=True
        ):
            trial = trials[int(number)]
            assert (x, y) == (trial.nbytes, trial.accuracy)
            assert f"trial {number}: {x:,} bytes, accuracy {y:.4f}" in text
            assert f"*.sparsity = {trial.settings['*.sparsity']:g}" in text
            assert "goal" not in text  # the same in all
    assert front["x"] == sorted(front["x"])
    assert set(trace(figure, "dense model")["y"]) == {DENSE.accuracy}
    assert trace(figure, "trials")["customdata"][0].count("<br>") == 3


def test_seconds_are_drawn_of_every_trial(swept, trials):
    both = swept.figures["seconds"]["data"]
    drawn = {x: y for bars in both for x, y in zip(bars["x"], bars["y"], strict=True)}
    assert drawn == {trial.number: trial.seconds for trial in trials}
    assert set(trace(swept.figures["seconds"], "on the front")["x"]) == undominated(trials)


def test_the_table_is_the_front(swept, trials):
    header, *rows = swept.tables[0]
    assert header == [
        "trial",
        "bytes",
        "accuracy",
        "bits a weight",
        "kept",
        "seconds",
        "*.sparsity",
    ]
    front = sorted((trials[n] for n in undominated(trials)), key=lambda t: (t.nbytes, t.number))
    assert [row[:4] for row in rows] == [
        [str(t.number), f"{t.nbytes:,}", f"{t.accuracy:.4f}", f"{t.bits_per_weight:.3f}"]
        for t in front
    ]
    assert [row[6] for row in rows] == [f"{t.settings['*.sparsity']:g}" for t in front]


@pytest.mark.parametrize("max_drop", [None, 0.4])
def test_the_first_trial_is_the_most_accurate_or_the_choice(folder, trials, max_drop):
    report_page(folder / "sweep.sqlite", folder / "choice.html", max_drop=max_drop)
    page = Parsed.read(folder / "choice.html")
    good = [t for t in trials if max_drop is None or DENSE.accuracy - t.accuracy <= max_drop]
    best = min(good, key=lambda t: (t.nbytes, -t.accuracy))
    if max_drop is None:
        best = min(good, key=lambda t: (-t.accuracy, t.nbytes))
    options = [a["value"] for tag, a in page.elements if tag == "option"]
    assert options[0] == str(best.number)
    assert sorted(options, key=int) == [str(t.number) for t in trials]
    assert trace(page.figures["accuracy"], "shown below")["ids"] == [str(best.number)]
    marked = [
        n for n, (tag, a) in enumerate(page.elements) if tag == "tr" and a.get("class") == "marked"
    ]
    assert len(marked) == 1


def test_layers_of_each_trial_have_their_bits_and_entropies(swept, trials):
    for trial in trials:
        figure = swept.choices["trial"][str(trial.number)]["figures"]["bits"]
        assert figure["layout"]["yaxis"]["ticktext"] == ["conv1", "block.0.fc", "block.1.fc"]
        assert trace(figure, "stored")["x"] == [layer.bits_per_weight for layer in trial.layers]
        marks = trace(figure, "order-0 entropy")
        assert marks["y"] == [0, 2]
        assert marks["x"] == [trial.layers[n].entropy_bits for n in (0, 2)]


def test_treemaps_of_a_trial_add_up_to_its_file_and_to_the_dense_one(swept, trials):
    for trial in trials:
        figures = swept.choices["trial"][str(trial.number)]["figures"]
        (before,), (after,) = figures["before"]["data"], figures["after"]["data"]
        assert leaves(before) == {
            "conv1": 4 * 64 * 32,
            "block.0.fc": 4 * 64 * 64,
            "block.1.fc": 4 * 64 * 96,
        } | {"biases, norms, header and codebooks": DENSE.nbytes - 4 * 64 * 192}
        found = leaves(after)
        assert (
            found.pop("biases, norms, header and codebooks") + sum(found.values()) == trial.nbytes
        )
        assert found == {layer.name: layer.nbytes for layer in trial.layers}
        assert (before["values"][0], after["values"][0]) == (DENSE.nbytes, trial.nbytes)


def leaves(treemap):
    """Return what has no children by the name that pops up; every parent is the sum of its own."""
    parents = treemap["parents"]
    values = dict(zip(treemap["ids"], treemap["values"], strict=True))
    for parent in set(parents) - {""}:
        assert values[parent] == sum(
            v for v, p in zip(treemap["values"], parents, strict=True) if p == parent
        )
    return {
        re.match("<b>(.*?)</b>", text)[1]: values[key]
        for key, (text, _) in zip(treemap["ids"], treemap["customdata"], strict=True)
        if key not in parents
    }


def test_bits_and_entropies_of_a_file_are_those_of_its_weights(folder, stored, dense):
    figure = stored.figures["bits"]
    assert figure["layout"]["yaxis"]["ticktext"] == list(dense)
    bars, marks = trace(figure, "stored"), trace(figure, "order-0 entropy")
    with io.open(folder / "model.terse") as file:
        expected = [8 * file.info(name)["nbytes"] / w.size for name, w in dense.items()]
    assert bars["x"] == pytest.approx(expected)
    assert marks["y"] == [0, 1, 2]  # none of the plain tensor
    for found, w in zip(marks["x"], dense.values(), strict=False):
        counts = np.unique(w.view(np.uint32), return_counts=True)[1]
        assert found == pytest.approx(entropy(counts, base=2))


def test_entropies_are_those_of_the_report_of_the_model(folder):
    torch = pytest.importorskip("torch")
    from models import SmallNet

    from tersenet import Plan, compress, report, save

    small = compress(SmallNet(), Plan.of(sparsity=0.8, quantizer="cws", k=8))
    save(small, folder / "small.terse")
    report_page(folder / "small.terse", folder / "small.html", times=False)
    figure = Parsed.read(folder / "small.html").figures["bits"]
    marks = trace(figure, "order-0 entropy")
    names = [figure["layout"]["yaxis"]["ticktext"][y].removesuffix(".weight") for y in marks["y"]]
    rows = {row.name: row for row in report(small) if row.entropy_bits is not None}
    assert dict(zip(names, marks["x"], strict=True)) == pytest.approx(
        {name: rows[name].entropy_bits for name in names}
    )
    assert len(names) > 3
    assert torch is not None


def test_histograms_count_the_kept_weights_and_the_codebook(stored, dense):
    labels = {a["value"]: n for n, (tag, a) in enumerate(stored.elements) if tag == "option"}
    variants = stored.choices["weight"]
    assert set(labels) == set(variants)
    by_name = {v["note"].partition(":")[0]: v for v in variants.values()}
    assert by_name.keys() == dense.keys()
    for name, w in dense.items():
        figure, note = by_name[name]["figures"]["histogram"], by_name[name]["note"]
        pruned = int((w.view(np.uint32) == 0).sum())
        kept = w[(w.view(np.uint32) != 0) & np.isfinite(w)].astype(np.float64)
        bars = trace(figure, "kept weights")
        assert f"{pruned:,} pruned" in note
        expected, edges = np.histogram(kept, len(bars["y"]))
        assert bars["y"] == expected.tolist()
        assert bars["x"] == pytest.approx(((edges[1:] + edges[:-1]) / 2).tolist())
        if name == "plain.weight":
            assert "2 infinite or not a number" in note
            assert len(figure["data"]) == 1
        else:
            values, counts = np.unique(kept, return_counts=True)
            dots = trace(figure, "codebook")
            assert (dots["x"], dots["y"]) == (values.tolist(), counts.tolist())


def test_treemaps_of_a_file_add_up_to_it(folder, stored, dense):
    (before,), (after,) = (stored.figures[key]["data"] for key in ("before", "after"))
    with io.open(folder / "model.terse") as file:
        sizes = {name: file.info(name)["nbytes"] for name in file}
        assert after["values"][0] == file.nbytes
    found = leaves(after)
    assert found.pop("header, codebooks and checksums") > 0
    assert found == sizes
    assert leaves(before) == {name: w.nbytes for name, w in dense.items()} | {
        "plain.bias": 80,
        "steps": 8,
    }


def test_times_are_of_every_matrix_or_left_out(folder, stored):
    times = stored.figures["times"]
    assert times["layout"]["yaxis"]["ticktext"] == [
        "features.0.weight",
        "features.1.weight",
        "head.weight",
    ]
    for name in ("decode", "product"):
        assert all(ms > 0 for ms in trace(times, name)["x"])
    assert "Measured when this page was made" in stored.text
    report_page(folder / "model.terse", folder / "untimed.html", times=False)
    untimed = Parsed.read(folder / "untimed.html")
    assert "times" not in untimed.figures
    assert untimed.tables == stored.tables
    report_page(folder / "model.terse", folder / "again.html", times=False)
    assert (folder / "again.html").read_bytes() == (folder / "untimed.html").read_bytes()


def test_the_table_of_a_file_is_what_inspect_says(folder, stored):
    _, text, _ = call("inspect", folder / "model.terse", "--json")
    told = json.loads(text)
    header, *rows = stored.tables[0]
    assert header[0] == "tensor"
    for row, (name, fact) in zip(rows, told["tensors"].items(), strict=True):
        assert (row[0], row[1]) == (name, fact["dtype"])
        assert row[5] == f"{fact['nbytes']:,}"
    assert stored.tables[1] == [["name", "value"], *sorted(map(list, told["metadata"].items()))]


@pytest.mark.parametrize("kind", ["swept", "stored"])
def test_plotly_knows_every_property(kind, request):
    for figure in request.getfixturevalue(kind).every_figure():
        graph_objects.Figure(figure)


@pytest.mark.parametrize("kind", ["sweep", "model"])
def test_a_page_loads_nothing_and_runs_its_own_scripts_only(folder, swept, stored, kind):
    page = {"sweep": swept, "model": stored}[kind]
    for tag, attributes in page.elements:
        assert not LOADING & attributes.keys(), (tag, attributes)
    assert not re.search(r"@import|url\(", "".join(page.styles))
    policy = next(
        a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    digests = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for kind, text in page.scripts
        if kind is None
    ]
    assert rules["script-src"].split() == digests
    assert set(rules) == {
        "default-src",
        "script-src",
        "style-src",
        "img-src",
        "base-uri",
        "form-action",
    }


def test_hostile_names_are_text(hostile):
    for page in hostile:
        assert {tag for tag, _ in page.elements} <= set(ELEMENTS.split())
        assert [kind for kind, _ in page.scripts] == ["application/json", None, None]
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        drawn = json.dumps(list(page.every_figure()))
        assert set(re.findall("<[^>]*>", drawn)) <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}
    sweep, model = hostile
    assert sweep.tables[0][0][-1] == shown(f"{HOSTILE[0]}.k")
    assert {row[0] for row in model.tables[0][1:]} >= set(map(shown, HOSTILE))
    assert [shown(HOSTILE[0]), "x"] in model.tables[1]


@given(st.text())
def test_text_comes_back_from_html_and_from_a_script(text):
    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            self.found = [tag, dict(attributes)["title"], ""]

        def handle_data(self, data):
            self.found[2] += data

    reader = Reader()
    reader.feed(f'<b title="{in_html(text)}">{in_html(text)}</b>')
    reader.close()
    assert reader.found == ["b", shown(text), shown(text)]
    script = in_script({text: [text, 1.5, None]})
    assert not set("<>&\u2028\u2029") & set(script)
    assert script.isascii()
    assert json.loads(script) == {text: [text, 1.5, None]}
    assert not set("<>") & set(in_plot(text))
    assert len(shown(text, 20)) <= 20


def test_bytes_have_units():
    assert [nbytes(n) for n in (0, 999, 1000, 999_949, 999_950, 5_457_048, 10**16)] == [
        *("0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "5.5 MB", "10.0 PB")
    ]


@given(
    arrays_of.arrays(
        np.float32,
        arrays_of.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(width=32),
    )
)
def test_every_weight_is_counted_once(w):
    tensor = Tensor("w", "float32", w.shape, "plain", None, w.nbytes, w.nbytes, None)
    matrix = CompressedMatrix.compress(w)
    for value in (w, matrix):
        found = weights_of(tensor, value)
        assert found.pruned == int((w.view(np.uint32) == 0).sum())
        assert found.infinite == int((~np.isfinite(w)).sum())
        drawn = found.histogram
        in_bins = 0 if drawn is None else sum(drawn.counts)
        assert found.pruned + found.infinite + in_bins == w.size
        if drawn is not None:
            kept = w[(w.view(np.uint32) != 0) & np.isfinite(w)].astype(np.float64)
            assert drawn.edges[0] <= kept.min() and kept.max() <= drawn.edges[-1]
            assert np.isfinite(drawn.edges).all()
            in_script(vars(drawn))
    assert weights_of(tensor, matrix).k == np.setdiff1d(w.view(np.uint32), [0]).size


def test_weights_of_other_types_are_counted(folder):
    double = np.array([[1e300, -1e300, 0], [5e-324, np.nan, -np.inf]])
    half = np.array([[1, 0], [2, 3]], np.float16)
    integers = np.ones((3, 3), np.int64)
    io.save({"double": double, "half": half, "integers": integers}, folder / "types.terse")
    report_page(folder / "types.terse", folder / "types.html")
    page = Parsed.read(folder / "types.html")
    notes = sorted(v["note"] for v in page.choices["weight"].values())
    assert [note.partition(":")[0] for note in notes] == ["double", "half"]
    assert "1 pruned (16.7 %), not drawn; 3 drawn; 2 infinite" in notes[0]
    assert "times" not in page.figures


def test_of_many_layers_the_largest_are_drawn_and_the_page_says_so(folder):
    random = np.random.default_rng(0)
    values = {
        f"layers.{n}.weight": CompressedMatrix.compress(
            random.integers(0, 3, (8, 8 + n)).astype(np.float32)
        )
        for n in range(400)
    }
    io.save(values, folder / "many.terse")
    total = report_page(folder / "many.terse", folder / "many.html", times=False)
    page = Parsed.read(folder / "many.html")
    assert page.figures["bits"]["layout"]["yaxis"]["ticktext"] == [
        f"layers.{n}.weight" for n in range(320, 400)
    ]
    assert "Drawn are the 80 largest of 400." in page.text
    assert "150 smaller tensors" in json.dumps(page.figures["after"])
    assert len(page.tables[0]) == 301
    assert "The first 300, of 400." in page.text
    assert total - len(page.scripts[1][1]) < 1_000_000


def test_of_many_trials_those_of_the_front_can_be_chosen(folder):
    names = [f"layer{n}" for n in range(500)]
    trials = write_results(folder / "many.sqlite", names, trials=30)
    total = report_page(folder / "many.sqlite", folder / "many.html")
    page = Parsed.read(folder / "many.html")
    assert len(page.choices["trial"]) == 12
    assert set(map(int, page.choices["trial"])) >= undominated(trials)
    assert "12 of 30 trials can be chosen" in page.text
    assert len(trace(page.figures["seconds"], "trials")["x"]) + len(undominated(trials)) == 30
    assert total - len(page.scripts[1][1]) < 6_000_000


class TestCommand:
    """Options and errors, as they are met in a terminal."""

    def test_it_writes_the_page(self, folder, trials, dense):
        for source in ("sweep.sqlite", "model.terse"):
            path = folder / "command.html"
            status, told, err = call("report", folder / source, "-o", path)
            assert (status, err) == (0, "")
            assert told == f"{path}: {path.stat().st_size:,} bytes\n"
            assert Parsed.read(path).figures

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", b"hello\n", "it is a text file; expected that, or the results of a sweep"),
            ("a.bin", b"", "it is empty; expected that, or the results of a sweep"),
            ("a.svg", b"<svg/>", "expected that, or the results of a sweep"),
            ("a.sqlite", b"SQLite format 3\0" + bytes(50), "expected the results of a sweep"),
            ("cut.terse", b"\x89TRS\r\n\x1a\n" + bytes(9), "cut.terse: "),
        ],
    )
    def test_a_foreign_file_is_one_line_that_says_what_it_is(
        self, tmp_path, name, content, message
    ):
        (tmp_path / name).write_bytes(content)
        self.refused(tmp_path, message, tmp_path / name, "-o", tmp_path / "a.html")

    def test_sources_that_show_nothing_are_refused(self, tmp_path, folder, dense):
        out = tmp_path / "a.html"
        self.refused(tmp_path, "No such file", tmp_path / "no.terse", "-o", out)
        self.refused(tmp_path, "Is a directory", tmp_path, "-o", out)
        sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE a (b)").connection.close()
        self.refused(tmp_path, "no results of a sweep", tmp_path / "other.sqlite", "-o", out)
        write_results(tmp_path / "empty.sqlite", trials=0)
        self.refused(
            tmp_path, "empty.sqlite: no finished trial", tmp_path / "empty.sqlite", "-o", out
        )
        write_results(tmp_path / "poor.sqlite", trials=2)
        arguments = [tmp_path / "poor.sqlite", "-o", out, "--max-drop", "-1"]
        self.refused(tmp_path, "the best of 2 has", *arguments)
        arguments = [folder / "model.terse", "-o", out, "--max-drop", "1"]
        self.refused(tmp_path, "expected the results of a sweep with max_drop 1.0", *arguments)
        arguments = [folder / "model.terse", "-o", out, "--limit", "tensors=1"]
        self.refused(tmp_path, "limit", *arguments)

    def test_a_page_that_cannot_be_there_is_refused(self, tmp_path, folder, dense):
        source = folder / "model.terse"
        self.refused(tmp_path, "in no folder that exists", source, "-o", tmp_path / "no" / "a.html")
        (tmp_path / "d.html").mkdir()
        self.refused(tmp_path, "d.html: is a folder", source, "-o", tmp_path / "d.html")
        self.refused(tmp_path, "ending '.terse', expected .html", source, "-o", source)
        copy = tmp_path / "c.html"
        copy.write_bytes(source.read_bytes())
        self.refused(tmp_path, "is the source, expected another", copy, "-o", copy)
        assert copy.read_bytes() == source.read_bytes()

    @staticmethod
    def refused(tmp_path, message, *arguments):
        status, told, err = call("report", *arguments)
        assert (status, told) == (2, "")
        assert message in err
        assert err.startswith("tersenet: ") and err.count("\n") == 1
        assert not (tmp_path / "a.html").exists()

    def test_without_plotly_the_error_says_what_to_install(self, tmp_path, folder, dense):
        code = (
            "import sys; sys.modules['plotly'] = None; "
            "from tersenet.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        found = process("report", folder / "model.terse", "-o", tmp_path / "a.html", code=code)
        assert found.returncode == 2
        assert found.stderr == "tersenet: plotly is not installed: pip install 'tersenet[report]'\n"

    def test_torch_is_not_needed(self, tmp_path, folder, dense, trials):
        code = (
            "import sys; sys.modules['torch'] = None; "
            "from tersenet.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        for source in ("model.terse", "sweep.sqlite"):
            found = process("report", folder / source, "-o", tmp_path / "a.html", code=code)
            assert (found.returncode, found.stderr) == (0, "")


def test_progress_counts_to_the_end(folder, dense):
    steps = {}
    report_page(
        folder / "model.terse",
        folder / "progress.html",
        progress=lambda what, done, total: steps.setdefault(what, []).append((done, total)),
    )
    assert steps == {
        "counting": [(n, 4) for n in range(5)],
        "measuring": [(n, 3) for n in range(4)],
    }


def test_a_page_is_written_whole_or_not_at_all(folder, dense, monkeypatch):
    path = folder / "kept.html"
    path.write_text("before")
    monkeypatch.setattr(
        "tersenet.replacing.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        report_page(folder / "model.terse", path, times=False)
    assert path.read_text() == "before"
    assert [p.name for p in folder.glob("kept.html*")] == ["kept.html"]
