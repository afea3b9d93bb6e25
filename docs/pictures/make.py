"""Make the pictures of the documents.

    python docs/pictures/make.py diagrams                    # flow.svg, packages.svg
    python docs/pictures/make.py teaser --work DIR           # teaser.png; trains for half an hour
    python docs/pictures/make.py report --demo ecgan-demo    # report.png, with Chromium
    python docs/pictures/make.py styles --before SET --after SET    # styles.png, as they came

The teaser calls the tool's own commands on toy scenes, which carry no licence; each step resumes.
The generator is trained on crops of 64 x 128 of scenes of 128 x 256, which is four times as fast as
whole scenes. All of it is convolutional, so it takes whole scenes as it is; the statistics of its
batch norms are estimated on them.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ecgan.checkpoint import GeneratorFile, load_generator
from ecgan.data.loader import to_images
from ecgan.data.packed.sample_sets import read
from ecgan.labels import from_json, load_label_space
from ecgan.models.layers import condition
from ecgan.shards.manifest import read_manifest
from ecgan.shards.records import ShardSample
from ecgan.training.ema import reestimate_statistics
from ecgan.visualization import colorize, grid

HERE = Path(__file__).parent
PROJECT = HERE.parents[1] / "pyproject.toml"

# Scenes of `ecgan data toy --num 1500`, chosen by eye.
_LAYOUTS = ("scene-00018", "scene-00298", "scene-00388")
_STYLES = {  # in order of the names, which is that of the styles
    "evening": "scene-00098",
    "rain": "scene-00218",
    "sun": "scene-00248",
    "night": "scene-00378",
}
_CROP, _WHOLE = (64, 128), (128, 256)  # height, width
_RECIPE = (
    *("--set", f"data.height={_CROP[0]}", "--set", f"data.width={_CROP[1]}"),
    *("--set", f"data.resize_height={_WHOLE[0]}", "--set", f"data.resize_width={_WHOLE[1]}"),
    *("--set", "train.ema_images=400", "--set", "train.checkpoint_every=800"),
)


def main() -> None:
    """Parse the command line and make what it asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("diagrams")
    teaser = commands.add_parser("teaser")
    teaser.add_argument("--work", type=Path, required=True, help="scratch folder, kept")
    teaser.add_argument("--images", type=int, default=4000, help="length of the training")
    report = commands.add_parser("report")
    report.add_argument("--demo", type=Path, required=True, help="output folder of ecgan demo")
    styles = commands.add_parser("styles")
    for name in ("before", "after"):
        styles.add_argument(
            f"--{name}", type=Path, required=True, help="data set of the demo's validation layouts"
        )
    arguments = parser.parse_args()
    match arguments.command:
        case "diagrams":
            (HERE / "flow.svg").write_text(draw_flow(), encoding="utf-8")
            (HERE / "packages.svg").write_text(draw_packages(), encoding="utf-8")
        case "teaser":
            make_teaser(arguments.work, arguments.images)
        case "report":
            photograph(arguments.demo / "report" / "report.html", HERE / "report.png")
        case "styles":
            made = compare_styles(arguments.before, arguments.after)
            made.quantize(256).save(HERE / "styles.png", optimize=True)


def make_teaser(work: Path, images: int) -> None:
    """Toy scenes, a training, samples in the styles of four scenes, and the sheet of them."""
    toy, run, whole = work / "toy", work / "run", work / "whole.safetensors"
    if not toy.exists():
        ecgan("data", "toy", "--out", toy, "--num", 1500)
    train = ("train", "--recipe", "demo", "--data", toy, "--out", run, *_RECIPE)
    ecgan(*train, "--set", f"train.images={images}")
    enlarge(run / "generator.safetensors", whole)
    estimate_statistics(whole, toy)
    copy(toy / "labels" / "val", work / "layouts", _LAYOUTS)
    copy(toy / "images" / "val", work / "styles", list(_STYLES.values()))
    ecgan(
        *("augment", "--checkpoint", whole, "--labels", work / "layouts"),
        *("--style-images", work / "styles", "--format", "folder"),
        *("--set", "sampling.image_format=png"),
        *("--out", work / "samples", "--overwrite"),
    )
    sheet(work / "samples", toy).quantize(256).save(HERE / "teaser.png", optimize=True)


def enlarge(source: Path, target: Path) -> None:
    """Make a generator of crops one of whole scenes."""
    with safe_open(source, "pt") as file:
        document = json.loads(file.metadata()["ecgan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    data = document["recipe"]["data"]
    data.update(height=_WHOLE[0], width=_WHOLE[1], resize_height=None, resize_width=None)
    save_file(tensors, target, metadata={"ecgan": json.dumps(document)})


def estimate_statistics(file: Path, toy: Path, num: int = 256) -> None:
    """Estimate the batch norms' statistics on whole scenes, each in the style of its own photo.

    A run estimates them at its own size, which is that of crops here.
    """
    made = load_generator(file)
    assert made.style_encoder is not None
    labels = sorted((toy / "labels" / "train").iterdir())[:num]
    pairs = [(path, toy / "images" / "train" / f"{path.stem}.jpg") for path in labels]
    reestimate_statistics(made.generator, _conditions(pairs, made))
    with safe_open(file, "pt") as source:
        metadata = source.metadata()
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    state = made.generator.state_dict()
    tensors |= {name: value for name, value in state.items() if "running_" in name}
    save_file(tensors, file, metadata=metadata)


@torch.no_grad()
def _conditions(
    pairs: Sequence[tuple[Path, Path]], made: GeneratorFile
) -> Iterator[tuple[Tensor, Tensor]]:
    assert made.style_encoder is not None
    for batch in (pairs[i : i + 4] for i in range(0, len(pairs), 4)):
        maps, photos = (
            np.stack([np.array(Image.open(f)) for f in one]) for one in zip(*batch, strict=True)
        )
        z, _ = made.style_encoder(to_images(torch.from_numpy(photos).permute(0, 3, 1, 2)))
        yield condition(torch.from_numpy(maps), None, made.space), z


def ecgan(*arguments: object) -> None:
    """Run a command of the tool."""
    subprocess.run([sys.executable, "-m", "ecgan_cli", *map(str, arguments)], check=True)


def copy(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy the files of these names, whatever their suffix."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in names:
        (path,) = source.glob(f"{name}.*")
        shutil.copy(path, target)


def sheet(samples: Path, toy: Path) -> Image.Image:
    """Layout, edge and one column for each style; labels in the colours of the class list."""
    space = load_label_space(toy / "classes.json")
    rows = []
    for name in _LAYOUTS:
        images = sorted((samples / "images").rglob(f"{name}*"))
        label = np.array(Image.open(next((samples / "masks").rglob(f"{name}*"))))
        edge = np.array(Image.open(next((samples / "edges").rglob(f"{name}*"))))
        row = [colorize(label, space.palette), edge]
        rows.append(row + [np.array(Image.open(path)) for path in images])
    return grid(rows, ("layout = label", "edge", *_STYLES))


def compare_styles(before: Path, after: Path, num_layouts: int = 3) -> Image.Image:
    """The first layouts of two data sets with all their styles, of the first set above."""
    rows = []
    for folder in (before, after):
        by_layout: dict[str, list[ShardSample]] = {}
        for sample in read(folder):
            by_layout.setdefault(sample.source, []).append(sample)
        manifest = read_manifest(folder)
        assert manifest is not None, f"{folder}: no data set"
        palette = from_json(manifest.classes, str(folder)).palette
        for key in sorted(by_layout)[:num_layouts]:
            styles = sorted(by_layout[key], key=lambda one: one.style)
            rows.append([colorize(styles[0].label, palette), *(one.image for one in styles)])
    return grid(rows, ("label", *(f"style {k}" for k in range(len(rows[0]) - 1))))


def photograph(page: Path, target: Path, width: int = 1000, height: int = 1250) -> None:
    """Picture of the top of a page as Chromium shows it, at 60 % of its size."""
    with TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
        command += [
            f"--window-size={width},{height}",
            f"--screenshot={shot}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)
        picture = Image.open(shot).convert("RGB")
        picture = picture.resize((width * 4 // 5, height * 4 // 5), Image.Resampling.LANCZOS)
        picture.quantize(128).save(target, optimize=True)


# Diagrams: boxes and arrows in SVG, dark on white, so that they read on any background.

_COLORS = {"data": "#e8f1fb", "command": "#fff3d6", "result": "#e6f5e6", "layer": "#eef2f7"}


def draw_flow() -> str:
    """The data flow of the three commands."""
    boxes = [
        _box(10, 20, 190, 64, "data", "photos + label maps", "images/ labels/ classes.json"),
        _box(10, 150, 190, 64, "data", "more label maps", "no photos needed"),
        _box(250, 20, 150, 64, "command", "ecgan train", "recipe: YAML"),
        _box(450, 20, 190, 64, "result", "run folder", "generator.safetensors"),
        _box(470, 150, 150, 64, "command", "ecgan augment", "styles, filter, balance"),
        _box(690, 150, 210, 64, "result", "data set", "image + edge + label shards"),
        _box(720, 20, 150, 64, "command", "ecgan evaluate", "against real photos"),
        _box(930, 20, 150, 64, "result", "report", "report.html, .json"),
        _box(930, 150, 150, 64, "data", "your segmenter", "PyTorch, HF, Ray, ..."),
    ]
    arrows = [
        _arrow(200, 52, 250, 52),
        _arrow(400, 52, 450, 52),
        _arrow(545, 84, 545, 150),
        _arrow(200, 182, 470, 182),
        _arrow(620, 182, 690, 182),
        _arrow(795, 150, 795, 84),
        _arrow(870, 52, 930, 52),
        _arrow(900, 182, 930, 182),
    ]
    return _svg(1090, 234, boxes + arrows)


def draw_packages() -> str:
    """The layers of `pyproject.toml`, from the command line down."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    command_line, packages = project["tool"]["importlinter"]["contracts"]
    layers = [command_line["layers"][0], *packages["layers"]]
    marks, top = [], 10
    for layer in layers:
        names = [name.strip() for name in re.split("[|:]", layer)]
        width = (900 - 10 * (len(names) - 1)) / len(names)
        for index, name in enumerate(names):
            text = _ROLES.get(name, "")
            marks.append(_box(10 + index * (width + 10), top, width, 50, "layer", name, text))
        top += 60
    marks.append(_text(460, top + 14, "a package imports only from the rows below it", 13))
    return _svg(920, top + 30, marks)


_ROLES = {
    "ecgan_cli": "parses options, calls the library, prints",
    "demo": "toy scenes, everything once",
    "training": "fits a generator",
    "evaluation": "measures samples, writes reports",
    "generation": "plan, shards, resume, workers",
    "sampling": "layouts + styles -> pixels",
    "segmentation": "label generator, judge, filter, student",
    "checkpoint": "run folder <-> networks",
    "recipe": "the configuration: keys, defaults, checks, reading",
    "data": "pairs in",
    "shards": "samples out",
    "models": "networks",
    "losses": "Eqs. 3-9",
    "metrics": "mIoU, FID, ...",
    "ops": "arithmetic, Triton kernels",
    "runtime": "processes, storage, devices",
    "class_files": "class lists of other tools",
    "labels": "class lists' meaning",
    "visualization": "grids, colours",
    "seeds": "seeds of all draws",
    "reading": "files of others",
    "errors": "UserError",
}


def _box(x: float, y: float, width: float, height: float, kind: str, title: str, text: str) -> str:
    middle = x + width / 2
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
        f'fill="{_COLORS[kind]}" stroke="#445566"/>'
        + _text(middle, y + height / 2 - 4, title, 15, bold=True)
        + _text(middle, y + height / 2 + 15, text, 12)
    )


def _text(x: float, y: float, text: str, size: int, *, bold: bool = False) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{weight}>{escaped}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#head)"/>'


def _svg(width: int, height: int, marks: Sequence[str]) -> str:
    style = (
        "text{font-family:sans-serif;text-anchor:middle;fill:#1b2733}"
        "line{stroke:#445566;stroke-width:1.6}"
    )
    head = (
        '<marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z" fill="#445566"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">\n'
        f"<style>{style}</style><defs>{head}</defs>\n"
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(marks)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
