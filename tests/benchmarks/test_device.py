"""The run on a device, on a CPU: every part, failures, time that runs out, a run that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.device.parts import FILE_BYTES, FILES, PARTS
from tests.benchmarks.device.results import JSON, LOG, MARKDOWN, verdict
from tests.benchmarks.device.run import ROOT, Part, Run, measure, time_limits

HERE = f"{__name__}:"


# Parts for the tests: called in a process of their own


def gives_a_figure(child):
    child.figure("seconds", child.seconds, "s", at_most=1000)


def fails(child):
    child.figure("before", 1)
    raise ValueError("injected | fault\nsecond line")


def fails_in_one_line(child):
    with child.attempt("first"):
        raise RuntimeError("injected")
    child.figure("second", 2.0)


def dies(child):
    child.figure("before", 1)
    os.kill(os.getpid(), signal.SIGKILL)


def takes_too_long(child):
    child.figure("before", 1)
    (child.scratch / "begun").touch()
    subprocess.run(["sleep", "60"], check=False)


def ignores_the_end(child):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    takes_too_long(child)


def lacks_a_package(child):
    import a_package_that_is_not_there  # noqa: F401  # pyright: ignore[reportMissingImports]


def lacks_a_module_of_ours(child):
    import tests.a_module_that_is_not_there  # noqa: F401  # pyright: ignore[reportMissingImports]


def run_of(tmp_path):
    return Run("cpu", True, str(tmp_path / "out"))


def part(function, share=1.0, minimum=0.0):
    return Part(function.__name__, function.__name__, f"{HERE}{function.__name__}", share, minimum)


def read(folder):
    parts = json.loads((folder / JSON).read_text())["parts"]
    return {part["name"]: part for part in parts}


@pytest.mark.slow
def test_a_part_that_fails_is_a_line_and_the_next_one_runs(tmp_path):
    functions = (
        fails, fails_in_one_line, dies, lacks_a_package, lacks_a_module_of_ours, gives_a_figure,
    )  # fmt: skip
    measure([part(f) for f in functions], run_of(tmp_path), 300)
    found = read(tmp_path / "out")
    ends = {name: (part["state"], part["reason"]) for name, part in found.items()}
    assert ends == {
        "fails": ("failed", "ValueError: injected | fault"),
        "fails_in_one_line": ("failed", "1 of its lines; the others stand"),
        "dies": ("failed", f"the process ended with code -9; see {LOG}"),
        "lacks_a_package": ("left out", "the package a_package_that_is_not_there is not installed"),
        "lacks_a_module_of_ours": (
            "failed", "ModuleNotFoundError: No module named 'tests.a_module_that_is_not_there'",
        ),
        "gives_a_figure": ("done", ""),
    }  # fmt: skip
    assert [f["name"] for f in found["fails"]["figures"]] == ["before"]
    assert [f["name"] for f in found["dies"]["figures"]] == ["before"]
    notes = [(f["name"], f["value"], f["note"]) for f in found["fails_in_one_line"]["figures"]]
    assert notes == [("first", None, "RuntimeError: injected"), ("second", 2.0, "")]
    text = (tmp_path / "out" / MARKDOWN).read_text()
    assert "failed after" in text
    assert "ValueError: injected | fault" in text
    assert "second line" in (tmp_path / "out" / LOG).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("function", [takes_too_long, ignores_the_end])
def test_a_part_that_runs_out_of_time_is_ended_and_its_figures_stand(tmp_path, function):
    start = time.monotonic()
    measure([part(function), part(gives_a_figure, 9)], run_of(tmp_path), 60)
    assert time.monotonic() - start < 50
    found = read(tmp_path / "out")
    late = found[function.__name__]
    assert late["state"] == "out of time"
    assert late["limit"] <= late["seconds"] < late["limit"] + 15
    assert found["gives_a_figure"]["state"] == "done"


def test_a_part_may_have_what_those_before_it_left():
    parts = [part(fails, 10), part(dies, 20), part(gives_a_figure, 70)]
    assert time_limits(parts, parts, 100, 100) == [10, 20, 70]
    assert time_limits(parts[1:], parts, 99, 100) == [29, 79]  # the first one took 1 of its 10
    assert time_limits(parts[2:], parts, 5, 100) == [5]
    assert time_limits(parts, parts, 5, 100) == [0, 0, 0]


@pytest.mark.slow
def test_parts_for_which_there_is_no_time_are_lines(tmp_path):
    parts = [part(fails, 1, 50.0), part(gives_a_figure, 9), part(dies, 1, 60.0)]
    measure(parts, run_of(tmp_path), 40)
    found = read(tmp_path / "out")
    assert list(found) == ["gives_a_figure", "fails", "dies"]  # the first one did not fit
    assert found["gives_a_figure"]["state"] == "done"
    for name, least in (("fails", 50), ("dies", 60)):
        assert found[name]["state"] == "left out"
        assert found[name]["reason"].endswith(f"s are left, and it takes {least} s")


@pytest.mark.slow
def test_a_run_that_is_killed_keeps_what_was_measured(tmp_path):
    code = (
        "from tests.benchmarks import test_device as t\n"
        f"parts = [t.part(t.gives_a_figure), t.part(t.takes_too_long, 9)]\n"
        f"t.measure(parts, t.Run('cpu', True, {str(tmp_path / 'out')!r}), 600)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    end = time.monotonic() + 120
    while not [*tmp_path.glob("ecgan-device-*/begun")]:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)  # for the figure that comes before it
    process.kill()
    process.wait()
    found = read(tmp_path / "out")
    assert found["gives_a_figure"]["state"] == "done"
    assert [f["name"] for f in found["gives_a_figure"]["figures"]] == ["seconds"]
    assert found["takes_too_long"]["state"] == "running"
    assert [f["name"] for f in found["takes_too_long"]["figures"]] == ["before"]
    text = (tmp_path / "out" / MARKDOWN).read_text()
    assert "running: no end was seen" in text


def test_targets_are_met_or_missed():
    def judged(value, target):
        return verdict({"value": value, "target": target})

    assert judged(1700, ("at least", 1700)) == "met"
    assert judged(1699.9, ("at least", 1700)) == "missed"
    assert judged(15.0, ["at most", 15]) == "met"  # a list, once it was JSON
    assert judged(15.1, ["at most", 15]) == "missed"
    assert judged(None, ("at most", 15)) == ""
    assert judged(3.0, None) == ""


@pytest.mark.slow
def test_every_part_gives_its_figures_on_a_cpu(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.benchmarks.device", "--out", str(out)]
    done = subprocess.run(
        [*command, "--minutes", "20", "--device", "cpu", "--small"], cwd=ROOT, text=True,
        capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + (out / LOG).read_text()
    assert done.stdout.strip() == (out / MARKDOWN).read_text().strip()
    found = read(out)
    assert list(found) == [part.name for part in PARTS]
    for name, one in found.items():
        measured = [f for f in one["figures"] if isinstance(f["value"], float | int)]
        assert measured, name
        assert all(f["value"] > 0 for f in measured), name
        assert not any(f["target"] for f in one["figures"]), name  # sizes are not the targets'
    names = {name: [f["name"] for f in one["figures"]] for name, one in found.items()}
    for name, expected in EXPECTED.items():
        for text in expected:
            assert any(text in found_name for found_name in names[name]), (name, text)
    files = sorted(out.iterdir())
    assert {JSON, MARKDOWN, LOG, "preview.png"} < {path.name for path in files}
    assert len([path for path in files if path.suffix == ".tar"]) == 1
    assert len(files) <= FILES
    assert all(path.stat().st_size <= FILE_BYTES for path in files)


EXPECTED = {
    "tests": ["test_kernels.py::", "tests passed"],
    "losses": ["Eq. 3, 12 classes", "Eq. 3, 35 classes", "Eq. 5", "182 against 12 classes"],
    "sampling": ["x 5, width", "x 1, width", "look-ups", "plain modules"],
    "training": ["no pretrained network", "B0 label generator", "small-data recipe", "memory"],
    "engine": ["generator alone", "end to end against alone", "where the time goes"],
    "recipe": ["samples of the test layouts", "median of its log"],
}


@pytest.mark.slow
def test_where_packages_are_missing_the_other_parts_give_their_figures(tmp_path):
    for name in ("pydantic", "ray"):
        text = f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n"
        (tmp_path / f"{name}.py").write_text(text)
    out = tmp_path / "out"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.device", "--out", str(out), "--small"),
            *("--minutes", "20", "--device", "cpu"),
            *("--only", "tests", "losses", "sampling", "recipe"),
        ],
        cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    found = read(out)
    assert {name: one["state"] for name, one in found.items()} == {
        **dict.fromkeys(("tests", "losses"), "done"),
        **dict.fromkeys(("sampling", "recipe"), "left out"),
    }
    assert found["sampling"]["reason"] == "the package pydantic is not installed"
    assert found["sampling"]["figures"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--camvid", "nowhere"], "no labels/test in it"), (["--out", "."], "not empty")],
)
def test_wrong_folders_are_refused(tmp_path, options, message):
    command = [sys.executable, "-m", "tests.benchmarks.device", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not Path(tmp_path / "out").exists()
