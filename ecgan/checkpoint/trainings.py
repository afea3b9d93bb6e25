"""Training checkpoints: ``checkpoints/<images seen>/`` of a run, whole or not at all.

Networks are safetensors, optimiser states are read with ``weights_only``, and ``state.json`` holds
the rest, with size and SHA-256 of each file. A checkpoint that is damaged is skipped for the one
before it.
"""

import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  what torch's reader raises
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ecgan.checkpoint.generators import InheritedTraining
from ecgan.checkpoint.tensors import plain, read_safetensors
from ecgan.errors import UserError, first_line
from ecgan.reading.documents import check_file, read_bytes, schema_error
from ecgan.reading.names import Name
from ecgan.reading.numbers import Count
from ecgan.runtime.files import sha256, whole_folder, write_whole, writing

FORMAT = 1
_STATE = "state.json"
_NAME = re.compile(r"\d{9,15}")
# What torch's reader of optimiser states raises for files that are not such, beside OSError
_READER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError),
    *(MemoryError, RuntimeError, TypeError, UnpicklingError, ValueError, zipfile.BadZipFile),
)


class DamagedError(UserError):
    """A checkpoint that is not as it was written; the one before it may be."""


class OtherVersionError(UserError):
    """A checkpoint of a version of ecgan that keeps other things."""


@dataclass(frozen=True)
class Training:
    """A training checkpoint: named tensors of each network, optimiser states, the rest as JSON."""

    networks: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Any]]
    state: dict[str, Any]


class _Version(BaseModel, frozen=True):
    format: int


class SavedFile(BaseModel, frozen=True):
    """Size and hash of a file of a checkpoint."""

    bytes: Count
    sha256: str


class SavedMeans(BaseModel, frozen=True):
    """Sums of loss terms since the last line of the log, and how many steps they are of."""

    model_config = ConfigDict(allow_inf_nan=False)

    sums: dict[str, float]
    count: Count


class BestScore(BaseModel, frozen=True):
    """The best validation score and where it was."""

    images: Count
    value: float


class TrainingRecord(_Version, frozen=True):
    """Content of ``state.json``.

    Attributes:
        format: version of the file format.
        images_seen: length of the training so far, which names the folder, too.
        means: of the log.
        best: best score, if there was one.
        init: SHA-256 of the generator that the training started from; empty without.
        inherited: layouts that earlier trainings saw; None in files of earlier versions.
        owes_score: an interruption cut off the score at this position.
        files: the other files; empty in records of earlier versions.
    """

    images_seen: Count
    means: SavedMeans
    best: BestScore | None
    init: str
    inherited: list[InheritedTraining] | None = None
    owes_score: bool = False
    files: dict[Name, SavedFile] = {}


def save_training(run: Path, images_seen: int, training: Training) -> Path:
    """Write ``checkpoints/<images seen>/``; whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    folder = run / "checkpoints" / f"{images_seen:09d}"
    files: dict[str, dict[str, Any]] = {}

    def write(path: Path, content: bytes) -> None:
        write_whole(path, content)
        digest = hashlib.sha256(content).hexdigest()
        files[path.name] = SavedFile(bytes=len(content), sha256=digest).model_dump()

    with writing(folder), whole_folder(folder) as partial:
        for name, tensors in training.networks.items():
            write(partial / f"{name}.safetensors", safetensors.torch.save(plain(tensors)))
        for name, state in training.optimizers.items():
            # torch's writer does not say why a file could not be written
            stream = io.BytesIO()
            torch.save(state, stream)
            write(partial / f"{name}.pt", stream.getvalue())
        about = {"format": FORMAT, "images_seen": images_seen} | training.state | {"files": files}
        write_whole(partial / _STATE, json.dumps(about))
        if folder.exists():  # the same state again, after an interruption at this very step
            shutil.rmtree(folder)
    return folder


def load_training(folder: Path) -> Training:
    """Read a folder that :func:`save_training` wrote.

    Raises:
        DamagedError: a file is missing or damaged.
        OtherVersionError: another version of ecgan wrote it.
    """
    try:
        record = _record(folder, read_bytes(folder / _STATE))
        paths = _paths(folder, record)
        networks = {p.stem: read_safetensors(p) for p in paths if p.suffix == ".safetensors"}
        optimizers = {p.stem: _load_optimizer(p) for p in paths if p.suffix == ".pt"}
    except OSError as error:
        raise DamagedError(f"{folder}: cannot read: {error.strerror}") from error
    except (DamagedError, OtherVersionError):
        raise
    except UserError as error:
        raise DamagedError(str(error)) from error
    return Training(networks, optimizers, record.model_dump(exclude={"files"}))


def newest_training(
    run: Path, check: Callable[[Training], None]
) -> tuple[Path, Training, list[str]] | None:
    """The newest checkpoint of a run that is whole.

    Args:
        run: the run folder.
        check: raises UserError where a checkpoint is not one of this training.

    Returns:
        Its folder, its content, and a note on each damaged one that was skipped; None where the run
        has no checkpoint.

    Raises:
        UserError: all are damaged, or another version of ecgan wrote the newest.
    """
    folders = training_checkpoints(run)
    notes: list[str] = []
    for folder in reversed(folders):
        try:
            training = load_training(folder)
            _checked(folder, training, check)
        except DamagedError as error:
            notes.append(f"skipped a damaged checkpoint: {error}")
            continue
        return folder, training, notes
    if folders:
        raise UserError(
            f"{run}: no checkpoint is whole; copy one again, or delete {run / 'checkpoints'} to "
            "train anew",
            [note.partition(": ")[2] for note in notes[:5]],
        )
    return None


def training_checkpoints(run: Path) -> list[Path]:
    """Folders of training checkpoints, oldest first."""
    folders = (run / "checkpoints").glob("*")
    return sorted(
        (p for p in folders if p.is_dir() and _NAME.fullmatch(p.name)), key=lambda p: int(p.name)
    )


def prune(run: Path, keep: int, best: int | None, images_seen: int | None = None) -> None:
    """Delete all training checkpoints but the newest ``keep`` and the one at ``best`` images.

    Those beyond ``images_seen`` go, too: the training would have gone on from them, were they
    whole.
    """
    folders = training_checkpoints(run)
    later = [f for f in folders if images_seen is not None and int(f.name) > images_seen]
    kept = folders[: len(folders) - len(later)]
    for folder in [*later, *kept[:-keep]]:
        if folder in later or int(folder.name) != best:
            shutil.rmtree(folder)


def _record(folder: Path, content: bytes) -> TrainingRecord:
    try:  # pydantic's reader takes -Infinity, which a score may be, and stops at a depth
        version = _Version.model_validate_json(content).format
        if version != FORMAT:
            raise OtherVersionError(
                f"{folder}: written by another version of ecgan (format {version}, "
                f"this one reads {FORMAT}); use a new run folder"
            )
        record = TrainingRecord.model_validate_json(content)
    except ValidationError as error:
        raise schema_error(error, f"{folder / _STATE}", "its checkpoint is damaged") from None
    if record.images_seen != int(folder.name):
        raise UserError(
            f"{folder / _STATE}: images_seen is {record.images_seen}, but the folder's name is "
            f"{folder.name}"
        )
    return record


def _paths(folder: Path, record: TrainingRecord) -> list[Path]:
    """Files of a checkpoint; compared with the record where it names them."""
    if not record.files:
        return sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt")])
    paths = [folder / name for name in sorted(record.files)]
    for path in paths:
        check_file(path)
        expected, size = record.files[path.name], path.stat().st_size
        if size != expected.bytes:
            raise UserError(f"{path}: {size:,} bytes, and {expected.bytes:,} were written")
        if sha256(path) != expected.sha256:
            raise UserError(f"{path}: not the bytes that were written")
    return paths


def _checked(folder: Path, training: Training, check: Callable[[Training], None]) -> None:
    try:
        check(training)
    except UserError as error:
        raise DamagedError(f"{folder}: {error}") from error


def _load_optimizer(path: Path) -> dict[str, Any]:
    check_file(path)
    try:
        _refuse_bomb(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _READER_ERRORS as error:
        raise UserError(f"{path}: not an optimiser state of ecgan ({first_line(error)})") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: not an optimiser state of ecgan")
    return dict(state)


def _refuse_bomb(path: Path) -> None:
    """Refuse what torch would read as an old pickle, and archives that are more than their file."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is truncated or was not written by ecgan")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed, and ecgan compresses none")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")
