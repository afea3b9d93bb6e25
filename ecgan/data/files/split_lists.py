"""Text files that say which photos are of which split, such as VOC's ImageSets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ecgan.data.files import names
from ecgan.data.files.names import IMAGE_SUFFIXES, FoundFile
from ecgan.labels import SPLIT_FOLDERS


def read(files: Iterable[FoundFile]) -> dict[str, list[str]]:
    """Names of each split where text files list them: ImageSets/Segmentation/*.txt and the like."""
    lists: dict[str, list[str]] = {}
    for file in files:
        folders = [folder.lower() for folder in file.folders]
        is_voc = folders[-2:] == ["imagesets", "segmentation"]
        is_list = (not folders or folders[-1:] in (["splits"], ["split"])) and names.split_of(
            file.stem
        )
        if not is_voc and not is_list:
            continue
        try:
            text = file.path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError):
            continue
        lines = [line.split() for line in text.splitlines() if line.strip()]
        own = [line[0] for line in lines if not line[0].startswith("#")]
        if own and len(text) < 50_000_000:
            lists[names.split_of(file.stem) or file.stem.lower()] = own
    return lists


def split_of_names(
    lists: Mapping[str | None, Sequence[str]],
) -> tuple[dict[str, str | None], int]:
    """Split of each name without folders and endings, and how many names stand in two lists."""
    split_of: dict[str, str | None] = {}
    twice = 0
    for split, own in lists.items():
        for line in own:
            name = Path(line.replace("\\", "/"))
            stem = name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name
            twice += split_of.setdefault(stem, split) != split
    return split_of, twice


def by_split(lists: Mapping[str, Sequence[str]]) -> Mapping[str | None, Sequence[str]]:
    """Names of each split; of no split, as in CVAT's default.txt, where no list's name says."""
    named: dict[str | None, Sequence[str]] = {
        split: own for split, own in lists.items() if split in SPLIT_FOLDERS
    }
    if "train" not in named and "trainval" in lists:
        held = {*named.get("val", ()), *named.get("test", ())}
        named["train"] = [name for name in lists["trainval"] if name not in held]
    return named or {None: [name for own in lists.values() for name in own]}
