"""A folder of pairs packed into shards, as other programs write them."""

import io
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq


def pairs_of(root, split):
    """Key, photo's and label map's bytes of each pair of ``images/SPLIT`` and ``labels/SPLIT``."""
    return [
        (path.stem, path.read_bytes(), (root / "labels" / split / path.name).read_bytes())
        for path in sorted((root / "images" / split).iterdir())
    ]


def write_tar(path, members, mode="w"):
    """A tar of members by name or TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def to_tars(root, out, field="seg.png", per_shard=4):
    """``out/SPLIT/0000.tar``, several of each split."""
    for split in ("train", "val"):
        pairs = pairs_of(root, split)
        for start in range(0, len(pairs), per_shard):
            members = {}
            for key, photo, label in pairs[start : start + per_shard]:
                members |= {f"{key}.png": photo, f"{key}.{field}": label, f"{key}.txt": b"a"}
            write_tar(out / split / f"{start:04}.tar", members)
    shutil.copy(root / "classes.json", out)
    return out


def to_parquet(root, out, wrap=lambda data: {"bytes": data, "path": None}):
    """A local Hugging Face data set: ``data/train-00000-of-00001.parquet`` and validation."""
    (out / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation")):
        pairs = pairs_of(root, split)
        table = {
            "key": [key for key, _, _ in pairs],
            "image": [wrap(photo) for _, photo, _ in pairs],
            "label": [wrap(label) for _, _, label in pairs],
        }
        path = out / "data" / f"{name}-00000-of-00001.parquet"
        pq.write_table(pa.table(table), path, row_group_size=3)
    shutil.copy(root / "classes.json", out)
    return out


def write_arrow(path, table, rows_of_batch=3, **options):
    """An Arrow stream in batches, as ``datasets`` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(table) if isinstance(table, dict) else table
    with (
        path.open("wb") as file,
        pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream,
    ):
        stream.write_table(table, max_chunksize=rows_of_batch)
    return path


def write_state(folder, *names, **more):
    """``state.json`` and ``dataset_info.json`` beside Arrow files."""
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state | more))
    (folder / "dataset_info.json").write_text("{}")


def to_saved(root, out):
    """``DatasetDict.save_to_disk``: a folder of each split, with a cache that is no data."""
    for split, folder in (("train", "train"), ("val", "validation")):
        pairs = pairs_of(root, split)
        halves = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        names = [f"data-{number:05}-of-00002.arrow" for number in range(2)]
        for name, half in zip(names, halves, strict=True):
            table = {
                "key": [key for key, _, _ in half],
                "image": [{"bytes": photo, "path": None} for _, photo, _ in half],
                "label": [{"bytes": label, "path": None} for _, _, label in half],
            }
            write_arrow(out / folder / name, table)
        shutil.copy(out / folder / names[0], out / folder / "cache-0123456789abcdef.arrow")
        write_state(out / folder, *names)
    (out / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    shutil.copy(root / "classes.json", out)
    return out
