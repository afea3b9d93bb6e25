"""The documents are true: their commands are ones the program takes, their names exist."""

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ecgan.checkpoint import GeneratorMetadata, load_generator
from ecgan.data import SampleDataset
from ecgan.demo.toy import write_toy
from ecgan.evaluation.report.document import Report
from ecgan.recipe import load_recipe, recipe_names
from ecgan.shards.manifest import Manifest
from ecgan.shards.records import Record
from ecgan_cli.main import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def blocks(text):
    """Language and text of each fenced code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands():
    """Every command in a code block of a document, without comments; variables are set in."""
    found = []
    for path in DOCUMENTS:
        text = "\n".join(block for language, block in blocks(path.read_text()) if not language)
        text = text.replace("\\\n", " ")
        for name, value in re.findall(r'^([A-Z]+)="(.*)"$', text, re.MULTILINE):
            text = text.replace(f"${name}", value)
        lines = [line.split("#")[0] for line in text.splitlines()]
        found += [(path.name, " ".join(part.split())) for x in lines for part in x.split("&&")]
    return sorted({(name, line) for name, line in found if line})


ECGAN = [line for _, line in commands() if line.startswith("ecgan ")]


def parse(line):
    """Parameters of the command that a line calls, parsed by the program; no file need exist."""
    words, command, context = shlex.split(line)[1:], cli, click.Context(cli)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{line}: no command {name}"
        command = found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))
        return command.make_context(
            command.name, words, parent=click.Context(cli, **cli.context_settings)
        ).params


def test_the_readme_shows_every_daily_command():
    shown = {line.split()[1] for name, line in commands() if name == "README.md" and line in ECGAN}
    assert shown >= {"demo", "train", "augment", "evaluate", "data"}


def test_the_documents_show_every_command():
    shown = {line.split()[1] for line in ECGAN}
    assert shown == set(cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize("line", ECGAN)
def test_a_command_is_one_that_the_program_takes(line):
    parse(line)


@pytest.mark.parametrize("line", [line for line in ECGAN if "--set" in line])
def test_the_keys_that_a_command_sets_exist(line):
    params = parse(line)
    recipe = params.get("recipe") or params.get("name")
    overrides = params.get("overrides") or params.get("changes") or ()
    assert overrides, params
    load_recipe(recipe if recipe in recipe_names() else "camvid", overrides)


def test_modules_and_extras_of_the_commands_exist():
    project = (ROOT / "pyproject.toml").read_text()
    for name, line in commands():
        for module in re.findall(r"python -m (tests[\w.]+)", line):
            assert importlib.util.find_spec(module) is not None, f"{name}: {module}"
        for extras in re.findall(r"'\.\[([\w,]+)\]'", line):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{name}: {extra}"


@pytest.mark.parametrize("line", [line for line in ECGAN if line.startswith("ecgan recipes ")])
def test_commands_about_recipes_run(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if " cp " not in line:  # what an earlier line left
        (tmp_path / "mine.yaml").write_text("data: {root: DIR}\n")
    result = CliRunner().invoke(cli, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_folder_of_ones_own_is_inspected_and_planned_as_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = [line for name, line in commands() if name == "README.md"]
    toy = next(line for line in ECGAN if line.startswith("ecgan data toy"))
    toy = re.sub(r"--out \S+", "--out DIR", re.sub(r"--num \S+", "--num 8", toy))
    steps = [toy, *(x for x in readme if x.startswith("ecgan data inspect DIR"))]
    steps += [x for x in readme if "--recipe mine.yaml" in x and "--dry-run" in x]
    assert len(steps) == 3, steps
    for line in steps:
        result = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_forty_photos_on_a_laptop_go_as_shown(tmp_path, monkeypatch):
    """The commands of the README, in their order, on few photos and at a tiny length."""
    monkeypatch.chdir(tmp_path)
    write_toy(Path("drawn"), 10, 0, height=96, width=128)
    for folder in ("images", "labels"):  # not divided, as a folder of one's own
        Path("photos", folder).mkdir(parents=True)
        for path in Path("drawn", folder).rglob("*.*"):
            path.rename(Path("photos", folder, path.name))
    Path("drawn", "classes.json").rename("photos/classes.json")
    section = (ROOT / "README.md").read_text().split("## Forty photos on a laptop")[1]
    lines = [line.split("#")[0] for line in blocks(section)[0][1].splitlines()]
    assert [line.split()[1] for line in lines] == ["data", "train", "augment"]
    lines[1] += "--set train.images=8 --set train.ema_images=4 --set train.preview_every=8"
    for line in lines:
        result = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert load_generator(Path("runs/laptop/generator.safetensors")).recipe.model.width == 16
    assert len(SampleDataset("laptop-samples")) == 50


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_python_blocks_compile(path):
    for language, block in blocks(path.read_text()):
        if language == "python":
            ast.parse(block)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path):
    text = path.read_text()
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if target.startswith("http"):
            continue
        file = path.parent / target if target else path
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {_anchor(title) for title in titles}, f"{target}#{anchor}"


def _anchor(title):
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_files_and_names_of_the_source_exist(path):
    text = path.read_text()
    for file in re.findall(r"`((?:ecgan|ecgan_cli|tests|recipes|docs|\.ci)/[\w./-]*)`", text):
        assert (ROOT / file).exists(), file
    for name in re.findall(r"`(ecgan(?:\.\w+)+)`", text):
        assert _resolves(name), name


def _resolves(name):
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_the_page_of_recipe_keys_is_what_the_schema_says():
    script = _script("docs/make_recipes.py")
    assert script.TARGET.read_text() == script.render(), "python docs/make_recipes.py"


def test_the_picture_of_the_packages_is_what_the_import_rules_say():
    script = _script("docs/pictures/make.py")
    drawn = (ROOT / "docs/pictures/packages.svg").read_text()
    assert drawn == script.draw_packages(), "python docs/pictures/make.py diagrams"


def _script(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("### Generator file", GeneratorMetadata),
        ("### Records", Record),
        ("### manifest.json", Manifest),
        ("## Reports", Report),
    ],
)
def test_every_field_of_a_document_is_explained(title, model):
    text = (ROOT / "docs/formats.md").read_text()
    section = text[text.index(f"\n{title}\n") :].split("\n#", 2)[1]
    for name, field in getattr(model, "model_fields", model.__annotations__).items():
        assert f"`{getattr(field, 'alias', None) or name}`" in section, name
