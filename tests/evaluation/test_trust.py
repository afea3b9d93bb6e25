"""What a data set names is not followed; caches that cannot be written; bombs."""

import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from ecgan.errors import UsageError
from ecgan.evaluation import judge as judges
from ecgan.evaluation import run
from ecgan.evaluation.feature_networks import read_npz
from ecgan.evaluation.figures import _CURVES, _curves
from ecgan.evaluation.request import Request
from ecgan.models.pretrained.weights import load_state
from ecgan.recipe import parse_recipe
from ecgan.runtime import storage
from tests.helpers.errors import message


def carried(tmp_path, **evaluate):
    recipe = {"name": "x", "data": {"root": str(tmp_path), "hed_weights": "/hed.h5"}}
    return SimpleNamespace(
        place="set", manifest=SimpleNamespace(recipe=recipe | {"evaluate": evaluate})
    )


def test_a_judge_that_a_set_names_is_the_users_to_choose(tmp_path):
    one = carried(tmp_path, judge="attacker/model")
    with pytest.raises(UsageError, match="'attacker/model', which no data set may"):
        run._recipe(Request(), [one])
    assert run._recipe(Request(judge="train"), [one]).name == "x"
    chosen = Request(overrides=("evaluate.judge=attacker/model",))
    assert run._recipe(chosen, [one]).evaluate.judge == "attacker/model"
    own = parse_recipe(one.manifest.recipe, "own", ())
    assert run._recipe(Request(recipe=own), [one]).evaluate.judge == "attacker/model"


def test_weights_that_a_set_names_are_not_followed(tmp_path, capsys):
    one = carried(tmp_path, dinov2="/dino", inception_weights="/inception.pth")
    found = run._recipe(Request(overrides=("evaluate.dinov2=/dino",)), [one])
    assert found.evaluate.dinov2 == "/dino"
    assert found.evaluate.inception_weights is None
    assert found.data.hed_weights is None
    assert "evaluate.inception_weights of the samples' own recipe" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_noticed_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    with judges.usable_cache():
        assert storage.cache_folder() == tmp_path / "cache"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "file"))
    with judges.usable_cache():
        inside = storage.cache_folder()
        assert inside.is_dir()
        assert inside != tmp_path / "file"
    assert storage.cache_folder() == tmp_path / "file"
    assert not inside.exists()
    assert "until the end of this command only" in capsys.readouterr().err
    monkeypatch.setattr(judges.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(Exception, match="nor a temporary folder"), judges.usable_cache():
        pytest.fail("went on")


def npz(path, shape, size):
    header = b"\x93NUMPY\x01\x00"
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("mu", "sigma"):
            data = header + (len(text) + 1).to_bytes(2, "little") + text + b"\n" + bytes(size)
            archive.writestr(f"{name}.npy", data)


@pytest.mark.parametrize(("shape", "size"), [((10**15,), 8), ((1 << 27,), 1 << 26), ("()", 8)])
def test_bombs_of_statistics_are_not_read(tmp_path, shape, size):
    npz(tmp_path / "a.npz", shape, size)
    assert "expected (2048,)" in message(read_npz, tmp_path / "a.npz", 2048)


def test_other_files_are_no_statistics(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in message(read_npz, tmp_path / "pipe", 4)
    np.savez(tmp_path / "o.npz", mu=np.array([{}], object), sigma=np.zeros((1, 1)))
    assert "o.npz" in message(read_npz, tmp_path / "o.npz", 1)


def test_compressed_weights_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in message(load_state, tmp_path / "pipe", "x")
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 26))
    assert "compressed weights" in message(load_state, tmp_path / "a.pth", "x")


@pytest.mark.parametrize("kind", ["empty", "external"])
def test_hed_files_that_are_none(tmp_path, kind):
    h5py = pytest.importorskip("h5py")
    from ecgan.models.pretrained.hed import read_hed_weights

    (tmp_path / "secret").write_bytes(bytes(1000))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "empty":
            file.create_dataset("x", (10**10,), "f4", chunks=(1024,))
        else:
            external = [(str(tmp_path / "secret"), 0, 400)]
            file.create_dataset("x", (100,), "f4", external=external)
    text = message(read_hed_weights, tmp_path / "a.h5")
    assert "bytes; none of HED's" in text or "lies in another file" in text


def test_damaged_lines_of_a_log_are_skipped():
    lines = [
        '{"images": 1, "miou": 0.1}',
        '{"images": "many", "miou": 0.2}',
        '{"images": NaN, "miou": 0.2}',
        "[" * 5000,
        '{"images": 2, "miou": {}}',
        '{"images": 3, "miou": 0.3}',
        '{"images": 4, "mi',
    ]
    name = next(iter(_CURVES))
    (curve,) = _curves([line.replace("miou", name) for line in lines])
    assert list(curve.points) == [(1, 0.1), (3, 0.3)]
