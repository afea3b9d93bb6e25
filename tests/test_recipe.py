"""Recipes: what comes with the package, overrides, and every refusal with its sentence."""

import json
import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ecgan.errors import UserError
from ecgan.recipe import (
    Recipe,
    class_list_file,
    generator_hash,
    label_space,
    load_recipe,
    nearest_size,
    num_upsamplings,
    recipe_keys,
    recipe_names,
)
from ecgan_cli.main import cli

ROWS = {  # Table 3: parts of each row
    1: set(),
    2: {"edge_generator"},
    3: {"edge_generator", "edge_transfer"},
    4: {"edge_generator", "edge_transfer", "semantic_preserving"},
    5: {"edge_generator", "edge_transfer", "semantic_preserving", "label_generator"},
    6: {
        "edge_generator",
        "edge_transfer",
        "semantic_preserving",
        "label_generator",
        "contrastive",
        "class_specific",
    },
}


def test_the_recipes_that_were_promised_are_there():
    ablations = {f"ablation-{row}" for row in ROWS}
    assert {
        "cityscapes",
        "cityscapes_512x1024",
        "ade20k",
        "coco_stuff",
        "camvid",
        "demo",
        "gaugan",
        "hed",
        "oasis",
    } | ablations == set(recipe_names())


@pytest.mark.parametrize("row", ROWS)
def test_an_ablation_recipe_has_the_parts_of_its_row_of_table_3(row):
    model = load_recipe(f"ablation-{row}").model
    parts = {part for part in ROWS[6] if getattr(model, part) not in {False, "off"}}
    assert parts == ROWS[row]


def test_the_ablations_differ_in_their_parts_only():
    def rest(row):
        document = load_recipe(f"ablation-{row}").model_dump()
        document.pop("name")
        document["model"] = {k: v for k, v in document["model"].items() if k not in ROWS[6]}
        return document

    assert all(rest(row) == rest(1) for row in ROWS)


def test_hed_is_ablation_4_with_hed_edges():
    hed, row_4 = load_recipe("hed").model_dump(), load_recipe("ablation-4").model_dump()
    assert hed["data"].pop("edges") == "hed"
    assert row_4["data"].pop("edges") == "canny"
    assert hed.pop("name") != row_4.pop("name")
    assert hed == row_4


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_reads_back_as_itself(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(str(path)) == recipe
    assert generator_hash(load_recipe(str(path))) == generator_hash(recipe)


def test_the_defaults_are_the_weights_of_appendix_b():
    losses, train = Recipe().losses, Recipe().train
    assert (losses.adversarial, losses.similarity, losses.contrastive) == (1, 1, 1)
    assert (losses.feature_matching, losses.perceptual, losses.refined) == (10, 10, 2)
    assert (losses.kl, losses.temperature) == (0.05, 0.07)
    assert (train.lr_generator, train.lr_discriminator) == (1e-4, 4e-4)
    assert Recipe().model.width == 64


def test_overrides_are_applied_in_order_and_keep_yaml_types():
    recipe = load_recipe(
        "demo",
        [
            "train.batch=4",
            "train.batch=2",
            "train.lr_generator=5e-5",
            "losses.contrastive_taps=[0, 1]",
            "model.label_generator=off",
        ],
    )
    assert recipe.train.batch == 2
    assert recipe.train.lr_generator == 5e-5
    assert recipe.losses.contrastive_taps == [0, 1]
    assert recipe.model.label_generator == "off"


def test_all_faults_are_reported_at_once_with_suggestions():
    with pytest.raises(UserError) as error:
        load_recipe(
            "camvid",
            [
                "data.hieght=3",
                "train.batch=many",
                "losses.temperature=0",
                "losess.kl=1",
                "train.lr_generator=.inf",
            ],
        )
    message = str(error.value)
    assert message.startswith("recipe camvid:\n")
    assert "data.hieght: no such key (did you mean height?)" in message
    assert "losess: no such key (did you mean losses?)" in message
    assert "train.batch: Input should be a valid integer" in message
    assert "'many'" in message
    assert "losses.temperature: Input should be greater than 0, got 0" in message
    assert "train.lr_generator: Input should be a finite number" in message


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.height=200", "the nearest size is height 192 x width 256"),
        ("data.resize_width=100", "resize_width (100) must not be below width (256)"),
        ("model.edge_generator=false", "edge_transfer needs edge_generator"),
        ("train.accumulate=3", "batch (16) must divide by accumulate (3)"),
        ("losses.contrastive_taps=[]", "one to six numbers from 0 to 5"),
        ("losses.contrastive_taps=[0, 0]", "each tap once"),
        ("evaluate.downstream_training.batch=0", "Input should be greater than 0, got 0"),
        ("evaluate.downstream_training.channels=12", "should be a multiple of 8, got 12"),
        ("train=3", "train: Input should be a valid dictionary"),
        ("sampling.image_format=gif", "sampling.image_format: Input should be 'jpg'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_rule(override, sentence):
    with pytest.raises(UserError) as error:
        load_recipe("camvid", [override])
    assert sentence in str(error.value)


def test_fused_output_needs_class_specific_generation():
    with pytest.raises(UserError, match="output: fused needs class_specific"):
        load_recipe("camvid", ["model.output=fused", "model.class_specific=false"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("foo", "--set foo: expected SECTION.KEY=VALUE, e.g. train.batch=8"),
        ("train.batch.size=3", "batch is a value, not a section"),
        ("train.batch={", "the value is not YAML"),
    ],
)
def test_an_override_that_is_none_is_refused(override, sentence):
    with pytest.raises(UserError) as error:
        load_recipe("camvid", [override])
    assert sentence in str(error.value)


def test_a_recipe_that_is_not_there_is_refused_with_the_names_that_are(tmp_path):
    with pytest.raises(UserError, match=r"no recipe 'camvd' \(did you mean camvid\?\)"):
        load_recipe("camvd")
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        load_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data: [", "not YAML"),
        ("- 1", "expected sections"),
        ("a: !!python/object:x.Y {}", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text, sentence, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_recipe(str(path))


@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(["auto", 5, 6]))
def test_the_nearest_size_is_one_that_the_trunk_reaches(height, width, upsamplings):
    near = nearest_size(height, width, upsamplings)
    step = 2 ** num_upsamplings(height, width, upsamplings)
    assert all(side % step == 0 and side > 0 for side in near)
    assert all(
        abs(a - b) <= step / 2 or a == step for a, b in zip(near, (height, width), strict=True)
    )


@pytest.mark.parametrize(("size", "expected"), [((256, 512), 6), ((256, 256), 5), ((192, 256), 6)])
def test_auto_starts_at_one_64th_when_the_image_is_wide(size, expected):
    assert num_upsamplings(*size, "auto") == expected


OLD_KEYS = {
    "model.label_generator_images": 16,
    "model.label_generator_width": 8,
    "evaluate.judge_network": "unet",
    "evaluate.judge_images": 24,
    "evaluate.judge_width": 16,
    "evaluate.seed": 5,
    "evaluate.student_images": 40,
    "evaluate.student_width": 24,
    "evaluate.student_batch": 4,
    "sampling.filter_images": 48,
    "sampling.filter_width": 40,
}


def test_the_keys_of_version_0_1_are_still_read(tmp_path):
    path = tmp_path / "old.yaml"
    sections = {}
    for key, value in OLD_KEYS.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    path.write_text(yaml.safe_dump(sections))
    by_file = load_recipe(str(path))
    by_override = load_recipe("demo", [f"{key}={value}" for key, value in OLD_KEYS.items()])
    for recipe in (by_file, by_override):
        found = recipe.model.label_generator_training
        assert (found.images, found.channels, found.seed) == (16, 8, None)
        found = recipe.evaluate.judge_training
        assert (found.architecture, found.images, found.channels) == ("unet", 24, 16)
        assert found.seed == 5
        found = recipe.evaluate.downstream_training
        assert (found.images, found.channels, found.batch) == (40, 24, 4)
        found = recipe.sampling.filter_training
        assert (found.images, found.channels) == (48, 40)
    assert not any(key.partition(".")[2] in by_file.to_yaml() for key in OLD_KEYS if "_" in key)


def test_an_override_by_a_key_of_version_0_1_wins_over_the_file(tmp_path):
    path = tmp_path / "resolved.yaml"
    path.write_text(load_recipe("demo").to_yaml())
    recipe = load_recipe(str(path), ["model.label_generator_width=24", "evaluate={seed: 3}"])
    assert recipe.model.label_generator_training.channels == 24
    assert recipe.evaluate.judge_training.seed == 3
    with pytest.raises(
        UserError, match=r"label_generator_training\.channels: Input should be a mult"
    ):
        load_recipe("demo", ["model.label_generator_width=12"])


def test_a_file_with_a_key_by_both_names_is_refused(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text("evaluate: {judge_width: 8, judge_training: {channels: 16}}")
    with pytest.raises(UserError, match=r"judge_width is the former name of evaluate\.judge"):
        load_recipe(str(path))


def test_the_hash_of_a_generators_recipe_is_that_of_version_0_1():
    old = (  # the recipe as it was
        *("model.style_encoder=gaugan", "model.style_injection=start", "losses.kl=0.05"),
        *("model.segmentation_discriminator=off", "model.label_generator=train"),
        *("losses.segmentation_adversarial=1", "train.batch=4"),
        *("train.images=1600", "train.checkpoint_every=800", "train.preview_every=800"),
    )
    recipe = load_recipe("demo", old)
    before = "12a51e3b7bd1ab7aba1452ddc4ede7fb228103ed8c198f898cd83525bbb00bac"
    assert generator_hash(recipe) == before
    assert generator_hash(load_recipe("demo", [*old, "evaluate.num_images=3"])) == before
    for override in ("seed=1", "batch=4", "channels=8", "architecture=unet"):
        changed = load_recipe("demo", [*old, f"model.label_generator_training.{override}"])
        assert generator_hash(changed) != before
    for override in ("model.style_injection=blocks", "losses.label_mix=1"):
        assert generator_hash(load_recipe("demo", [*old, override])) != before


def test_a_class_list_in_the_recipe_wins(tmp_path):
    recipe = load_recipe("camvid", ["data.classes=[sky, road]", "data.ignore=null"])
    space = label_space(recipe.data)
    assert space.names == ("sky", "road")
    assert space.ignore is None
    with pytest.raises(UserError, match=r"classes\.json: no such file"):
        label_space(load_recipe("camvid", [f"data.root={tmp_path}"]).data)


def test_the_class_list_may_be_a_file_of_another_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "labelmap.txt").write_text("sky:1,2,3::\nroad:4,5,6::\n")
    recipe = load_recipe("camvid", ["data.classes=~/labelmap.txt", "data.ignore=9"])
    assert class_list_file(recipe.data) == tmp_path / "labelmap.txt"
    assert label_space(recipe.data).names == ("sky", "road")
    assert label_space(recipe.data).ignore == 9


def test_the_class_list_beside_the_data_is_found(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/_classes.csv"
    path.write_text("Pixel Value,Class\n0,sky\n")
    data = load_recipe("camvid", [f"data.root={tmp_path}", "data.ignore=null"]).data
    assert (class_list_file(data), label_space(data).names) == (path, ("sky",))
    assert label_space(data).ignore is None
    (tmp_path / "classes.json").write_text('["road"]')
    with pytest.raises(UserError, match="0 is road in the first and sky in the second"):
        label_space(data)
    assert label_space(data.model_copy(update={"classes": str(path)})).names == ("sky",)


def test_the_recipes_and_the_papers_lists_have_no_file():
    assert class_list_file(load_recipe("camvid", ["data.classes=[sky]"]).data) is None
    assert class_list_file(load_recipe("cityscapes").data) is None


def test_the_commands_print_recipes_that_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert "ablation-6" in run(cli, ["recipes", "list"]).output
    shown = run(cli, ["recipes", "show", "demo", "--resolved", "--set", "train.batch=4"])
    assert yaml.safe_load(shown.output)["train"]["batch"] == 4
    assert run(cli, ["recipes", "cp", "demo"]).exit_code == 0
    assert load_recipe("demo.yaml") == load_recipe("demo")
    again = run(cli, ["recipes", "cp", "demo"])
    assert again.exit_code == 2
    assert "demo.yaml exists already" in again.output
    assert run(cli, ["recipes", "validate", "demo.yaml"]).output == "demo.yaml: valid\n"
    assert yaml.safe_load(run(cli, ["recipes", "show", "demo.yaml"]).output)["train"]["keep"] == 2
    Path("demo.yaml").write_text("train: {batch: 0, sed: 1}\n")
    faulty = run(cli, ["recipes", "validate", "demo.yaml"])
    assert faulty.exit_code == 1
    assert "train.batch" in faulty.output
    assert "train.sed: no such key (did you mean seed?)" in faulty.output


def test_the_schema_names_every_key_with_a_description():
    output = CliRunner().invoke(cli, ["recipes", "schema"]).output
    for key, field in recipe_keys().items():
        assert field.description, f"{key} says nothing"
        if key != "name":
            assert f"  {key.partition('.')[2]}: " in output
    assert "  images: integer > 0  [default: 595200]" in output
    assert "  image_format: jpg | png | webp" in output
    assert "  similarity_stride: auto or integer > 0" in output
    schema = json.loads(CliRunner().invoke(cli, ["recipes", "schema", "--json"]).output)
    assert schema["additionalProperties"] is False


BOMB = "a: &a [x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: ../../C/run", "name: a name, not a path"),
        ("name: /tmp/run", "name: a name, not a path"),
        ("name: " + "x" * 5000, "name: a text of 5,000 characters"),
        ("name: " + "x" * 300, "name: a name of more than 200 bytes"),
        ('name: "a\\0b"', "name: must not have the characters"),
        ('data: {root: "a\\0b"}', "data.root: must not have the characters"),
        ('data: {classes: ["a\\e[2J"]}', "data.classes.0: must not have the characters"),
        ('"a\\e": 1', "the recipe: a key: must not have the characters"),
        (f"train: {{batch: {10**30}}}", "train.batch: expected a number of at most"),
        (f"train: {{seed: {10**30}}}", "train.seed: expected a seed of at most"),
        (f"data: {{height: {10**4000}}}", "more than 100 digits"),
        (BOMB, "an alias"),
        ("a: " + "[" * 100_000, "nested deeper"),
        ("train: {1: 2}", "train.1"),
        ("{1: 2}", "1: "),
        ("train: {images: [[[1]]]}", "train.images"),
        ("model: {label_generator_training: {x: {y: 1}}}", "label_generator_training.x: no such"),
        ("a: 2020-99-99", "not YAML: month"),
    ],
)
def test_a_recipe_of_somebody_else_is_refused_in_a_short_message(text, sentence, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.timeout(10)
def test_a_device_and_a_pipe_are_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in ("/dev/zero", str(tmp_path / "pipe.yaml")):
        with pytest.raises(UserError, match=r"a pipe, a device or a socket, not a file"):
            load_recipe(path)
