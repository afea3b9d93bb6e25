"""No key of a recipe is parsed and ignored: changing it changes something that can be seen.

One test walks the schema. ``CHANGES`` says, for every key, what it is changed to (with what else it
needs), and where the change must show. A key without a line is a failure.
"""

import json
import multiprocessing
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from ecgan import checkpoint
from ecgan.data import loader
from ecgan.data.packed import sample_sets as sets
from ecgan.errors import UserError
from ecgan.evaluation import run as evaluate
from ecgan.evaluation.downstream.arms import Arm
from ecgan.generation import run as generate
from ecgan.models.encoder import StyleModulation
from ecgan.models.style import StylePrior
from ecgan.recipe import data_folder, label_space, load_recipe, recipe_keys
from ecgan.training import estimate
from ecgan.training import run as train
from ecgan.training import step as steps
from tests.helpers.tiny import NAMES, write_pairs
from tests.training.test_run import LIGHT, Setting

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "toy"
    write_pairs(folder, num_train=6, num_val=4, height=64, width=128)
    return folder


# Where a change shows


def built(recipe, _):
    """Networks, by the shapes of their weights and of what they make; parts; terms; pictures."""
    made = steps.build(recipe, label_space(recipe.data), CPU)
    sides = [made.generator, made.discriminator]
    shapes = [
        (name, tuple(value.shape))
        for side in sides
        if side is not None
        for name, value in side.network.state_dict().items()
    ]
    sizes, parts = made.side.generator.trunk.block_sizes(), recipe.parts()
    return shapes, sizes, parts.names, parts.terms, parts.pictures


def step(recipe, _):
    """The logged terms of one step."""
    return Setting(recipe).values()


def data(recipe, _):
    """Keys and pixels of the first training samples, or the refusal."""
    try:
        dataset = train.build_sets(recipe, label_space(recipe.data))[0]
    except UserError as error:
        return str(error)
    samples = [dataset.load(position) for position in range(4)]
    return [(s.key, s.label.tolist(), s.image.tolist(), s.edge is None) for s in samples]


def read(recipe, folder):
    """How the files of the data are read."""
    return train.check(recipe, folder / "run", device=CPU, quiet=True).train_set.items[0].reading


def alone(recipe, folder):
    """Photos without label maps to learn from, or what is said of their folder."""
    try:
        return train.check(recipe, folder / "run", device=CPU, quiet=True).unlabelled
    except UserError as error:
        return str(error)


def held_out(recipe, folder):
    """Keys that are held out where there is no split val."""
    for kind in ("images", "labels"):
        shutil.copytree(Path(recipe.data.root) / kind / "train", folder / kind, dirs_exist_ok=True)
    return [item.key for item in data_folder(recipe.data, folder).items_for("val")]


def space(recipe, _):
    """The class list."""
    return label_space(recipe.data)


def processes(recipe, _):
    """Loader processes."""
    dataset = train.build_sets(recipe, label_space(recipe.data))[0]
    found = loader.batches(dataset, 0, 2, workers=recipe.data.workers)
    next(found)

    return len(multiprocessing.active_children())


def refusal(recipe, folder):
    """What is said of a file that is not there."""
    with pytest.raises(UserError) as error:
        train.run(recipe, folder / "run", device="cpu", quiet=True)
    return str(error.value)


def ran(recipe, folder):
    """What a run of a few steps leaves: files, lines, weights."""
    out = folder / "run"
    train.run(recipe, out, device="cpu", quiet=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    files = sorted(
        str(path.relative_to(out))
        for path in out.rglob("*")
        if "tfevents" not in path.name and ".ecgan" not in path.parts
    )
    kept = checkpoint.load_generator(out / checkpoint.GENERATOR)
    weights = [value.sum().item() for value in kept.generator.state_dict().values()]
    return files, lines, weights


def remembered(recipe, _):
    """The estimate of memory."""
    return estimate.memory(recipe, label_space(recipe.data), images=2, trained=0)


def compiled(recipe, _):
    """Whether G is compiled."""
    generator = steps.build(recipe, label_space(recipe.data), CPU).side.generator
    return generator._compiled_call_impl is not None


def sampled(recipe, folder, **options):
    """A data set made with a generator of this recipe."""
    source = folder / "generator.safetensors"
    torch.manual_seed(0)
    generator = checkpoint.build_generator(recipe, label_space(recipe.data))
    for module in generator.modules():
        if isinstance(module, StyleModulation):  # an untrained one ignores the style
            nn.init.normal_(module.linear.weight, std=0.1)
    prior = StylePrior(4)
    prior.deviations.fill_(3)
    checkpoint.save_generator(
        source,
        generator,
        recipe,
        label_space(recipe.data),
        style_encoder=checkpoint.build_style_encoder(recipe),
        style_prior=prior,
    )
    request = generate.Request.of(
        source, folder / "out", n_styles=2, device="cpu", quiet=True, **options
    )
    generate.run(request)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    names = []
    for shard in manifest["shards"]:
        with tarfile.open(folder / "out" / shard["name"]) as tar:
            suffixes = {Path(name).suffix for name in tar.getnames()}
        names.append((shard["name"], shard["bytes"], suffixes))
    card = (folder / "out" / "README.md").read_text().splitlines()[1]
    fingerprint = {k: v for k, v in manifest["fingerprint"].items() if k == "batch"}
    decided = manifest["fingerprint"]["filter"], manifest["filter"], manifest["class_pixels"]
    return names, card, fingerprint, decided


def drawn(recipe, folder):
    """Pixels of a data set."""
    sampled(recipe, folder)
    return [sample.image.tolist() for sample in sets.read(folder / "out")]


def filtered(recipe, folder):
    """A data set whose labels were filtered by segmenters of this recipe."""
    return sampled(recipe, folder, label_filter="train", on_inconsistent="retry")


def spread(recipe, folder):
    """How often each layout occurs in a data set with a target."""
    sampled(recipe, folder, spread="target", targets=("car=0.9",))
    keys = [sample.source for sample in sets.read(folder / "out")]
    return sorted(Counter(keys).items())


def pasted(recipe, folder):
    """Labels of layouts with pasted objects."""
    sampled(recipe, folder, changes=("paste",), n_variants=2)
    return [sample.label.tolist() for sample in sets.read(folder / "out")]


def evaluated(recipe, folder):
    """Protocol, metrics and notes of an evaluation."""
    document = report_of(recipe, folder)
    return document["protocol"], document["metrics"], document["skipped"]


def taught(recipe, folder):
    """Protocol and results of segmenters that were trained on real pairs."""
    document = report_of(
        recipe, folder, downstream=evaluate.DownstreamOptions(arms=(Arm.of(0),), seeds=1)
    )
    return document["downstream"]["protocol"], document["downstream"]["rows"]


def report_of(recipe, folder, **options):
    """What an evaluation of real pairs in the place of samples finds."""
    root = recipe.data.root
    samples = folder / "samples"
    if not samples.exists():
        for name in ("images", "labels"):
            target = samples / name
            target.mkdir(parents=True)
            for path in sorted((Path(root) / name / "val").iterdir())[:3]:
                (target / path.name).write_bytes(path.read_bytes())
    request = evaluate.Request(
        (samples,), folder / "report", recipe=recipe, device="cpu", quiet=True, **options
    )
    report, _ = evaluate.run(request)
    return report.to_json()


# What every key is changed to: overrides, where the change shows, overrides of both sides.
FULL = ("model.label_generator=train", "losses.similarity_stride=4")
EVALUATED = ("evaluate.features=[]", "evaluate.judge_training={channels: 8, images: 8}")
TAUGHT = (
    *EVALUATED,
    "evaluate.downstream_training={architecture: segformer, channels: 8, images: 4, batch: 2}",
)
FILTERED = (
    "sampling.filter_training={channels: 8, images: 8}",
    *("sampling.filter_min_kept=1.0", "sampling.filter_tolerance=1.0"),
)
CHANGES = {
    "data.dataset": ("data.dataset=cityscapes", data),
    "data.root": ("data.root=nowhere", data),
    "data.split": ("data.split=val", data),
    "data.fraction": ("data.fraction=0.5", data),
    "data.pairs": ("data.pairs=2", data),
    "data.draw": ("data.draw=1", data, "data.pairs=2"),
    "data.draw_by": ("data.draw_by=block", data, "data.pairs=2"),
    "data.height": ("data.height=64", built, "model.upsamplings=5"),
    "data.width": ("data.width=128", built, "model.upsamplings=5"),
    "data.resize_height": ("data.resize_height=48", data),
    "data.resize_width": ("data.resize_width=96", data),
    "data.flip": ("data.flip=false", data),
    "data.classes": (f"data.classes=[{', '.join(NAMES)}, person]", space),
    "data.ignore": ("data.ignore=null", space, f"data.classes=[{', '.join(NAMES)}]"),
    "data.images": ("data.images=photos", data),
    "data.labels": ("data.labels=maps", data),
    "data.label_suffix": ("data.label_suffix=_mask", data),
    "data.label_encoding": ("data.label_encoding=gray", read),
    "data.orientation": ("data.orientation=stored", read),
    "data.photo_levels": ("data.photo_levels=[0, 4095]", read),
    "data.unlabelled": ("data.unlabelled=nowhere", alone),
    "data.val_by": ("data.val_by=[scene-00, scene-01]", held_out),
    "data.instances": ("data.instances=true", built),
    "data.edges": ("data.edges=folder", data),
    "data.hed_weights": ("data.hed_weights=there.h5", refusal, "data.edges=hed"),
    "data.workers": ("data.workers=1", processes),
    "model.width": ("model.width=8", built),
    "model.upsamplings": ("model.upsamplings=6", built, "data.height=64", "data.width=64"),
    "model.style": ("model.style=false", built),
    "model.style_encoder": ("model.style_encoder=none", built),
    "model.style_injection": ("model.style_injection=start", built),
    "model.segmentation_discriminator": ("model.segmentation_discriminator=features", built),
    "model.output": ("model.output=fused", built),
    "model.spectral_norm": ("model.spectral_norm=all", built),
    "model.edge_generator": ("model.edge_generator=false", built, "model.edge_transfer=false"),
    "model.edge_transfer": ("model.edge_transfer=false", built),
    "model.semantic_preserving": ("model.semantic_preserving=false", built),
    "model.class_specific": ("model.class_specific=false", built),
    "model.contrastive": ("model.contrastive=false", built),
    "model.label_generator": ("model.label_generator=train", built),
    "model.label_generator_map": (
        "model.label_generator_map={99: 0}", refusal, "model.label_generator={segmenter}",
    ),
    "losses.adversarial": ("losses.adversarial=0.5", built),
    "losses.similarity": ("losses.similarity=0.5", built, *FULL),
    "losses.contrastive": ("losses.contrastive=0.5", built),
    "losses.segmentation_adversarial": (
        "losses.segmentation_adversarial=2", built, "model.segmentation_discriminator=features",
    ),
    "losses.label_mix": (
        "losses.label_mix=10", ran, "model.segmentation_discriminator=unet",
        "model.edge_generator=false", "model.edge_transfer=false",
    ),
    "losses.class_l1": ("losses.class_l1=0.5", built),
    "losses.feature_matching": ("losses.feature_matching=5", built),
    "losses.perceptual": (
        "losses.perceptual=2", built, "losses.perceptual_network=efficientnet_lite0",
    ),
    "losses.refined": ("losses.refined=3", built),
    "losses.edge_slope": ("losses.edge_slope=0.05", ran),
    "losses.kl": ("losses.kl=0.1", built),
    "losses.adversarial_kind": ("losses.adversarial_kind=log", step),
    "losses.class_l1_mean": ("losses.class_l1_mean=pixels", step),
    "losses.perceptual_network": ("losses.perceptual_network=efficientnet_lite0", built),
    "losses.vgg19_weights": (
        "losses.vgg19_weights=there.pth", refusal, "losses.perceptual_network=vgg19",
    ),
    "losses.similarity_stride": ("losses.similarity_stride=8", ran, *FULL),
    "losses.contrastive_stride": ("losses.contrastive_stride=8", step),
    "losses.contrastive_taps": ("losses.contrastive_taps=[0, 1]", built),
    "losses.contrastive_bank": ("losses.contrastive_bank=2", ran),
    "losses.temperature": ("losses.temperature=0.5", step),
    "train.images": ("train.images=4", ran),
    "train.batch": ("train.batch=4", ran),
    "train.accumulate": ("train.accumulate=2", ran),
    "train.lr_generator": ("train.lr_generator=1e-3", ran),
    "train.lr_discriminator": ("train.lr_discriminator=2e-3", ran),
    "train.lr_decay": ("train.lr_decay=0", ran),
    "train.ema_images": ("train.ema_images=0", ran),
    "train.precision": ("train.precision=bfloat16", ran),
    "train.checkpointing": ("train.checkpointing=2", remembered),
    "train.compile": ("train.compile=true", compiled),
    "train.augment": ("train.augment=none", step),
    "train.seed": ("train.seed=3", step),
    "train.checkpoint_every": ("train.checkpoint_every=2", ran),
    "train.preview_every": ("train.preview_every=2", ran),
    "train.evaluate_every": ("train.evaluate_every=4", ran, "evaluate.features=[]"),
    "train.log_every": ("train.log_every=4", ran),
    "train.keep": ("train.keep=1", ran),
    "evaluate.judge": ("evaluate.judge={segmenter}", evaluated, *EVALUATED),
    "evaluate.dinov2": (
        "evaluate.dinov2=there.pth", "refused", *EVALUATED, "evaluate.features=[dinov2]",
    ),
    "evaluate.features": ("evaluate.features=[efficientnet_lite0]", evaluated, *EVALUATED),
    "evaluate.inception_weights": (
        "evaluate.inception_weights=there.pth", "refused", *EVALUATED,
        "evaluate.features=[inception]",
    ),
    "evaluate.num_images": ("evaluate.num_images=2", evaluated, *EVALUATED),
    "sampling.batch": ("sampling.batch=3", sampled),
    "sampling.compile": ("sampling.compile=true", "not on cuda"),
    "sampling.samples_per_shard": ("sampling.samples_per_shard=3", sampled),
    "sampling.layout_fit": ("sampling.layout_fit=crop", drawn, "data.height=64", "data.width=64"),
    "sampling.image_format": ("sampling.image_format=png", sampled),
    "sampling.quality": ("sampling.quality=50", sampled),
    "sampling.license": ("sampling.license=cc0-1.0", sampled),
    "sampling.filter_tolerance": ("sampling.filter_tolerance=0.5", filtered, *FILTERED),
    "sampling.filter_min_kept": ("sampling.filter_min_kept=0.0", filtered, *FILTERED),
    "sampling.filter_min_class_kept": ("sampling.filter_min_class_kept=1.0", filtered, *FILTERED),
    "sampling.filter_retries": ("sampling.filter_retries=1", filtered, *FILTERED),
    "sampling.balance_max_styles": ("sampling.balance_max_styles=3", spread),
    "sampling.style_prior": ("sampling.style_prior=photos", drawn),
    "sampling.style_temperature": (
        "sampling.style_temperature=0.5", drawn, "sampling.style_prior=photos",
    ),
    "sampling.things": ("sampling.things=[tree]", pasted),
}  # fmt: skip
TRAININGS = {
    "model.label_generator_training": (ran, *FULL),
    "evaluate.judge_training": (evaluated, *EVALUATED),
    "evaluate.downstream_training": (taught, *TAUGHT),
    "sampling.filter_training": (filtered, *FILTERED),
}
SETTINGS = {"architecture": "unet", "channels": 16, "images": 16, "batch": 4, "seed": 7}
CHANGES |= {
    f"{section}.{key}": (f"{section}.{key}={value}", *context)
    for section, context in TRAININGS.items()
    for key, value in SETTINGS.items()
}
CHANGES |= {
    f"evaluate.downstream_training.{key}": (f"evaluate.downstream_training.{key}={value}", *context)
    for context in [TRAININGS["evaluate.downstream_training"]]
    for key, value in {"mix_until": 0.5, "sample_weight": 2, "border": 1}.items()
}
QUICK = {built, data, space, step, compiled, remembered}
KEYS = [key for key in recipe_keys() if key != "name"]


def test_every_key_of_the_schema_is_walked():
    assert sorted(CHANGES) == sorted(KEYS)


@pytest.fixture(scope="session")
def segmenter(root, tmp_path_factory):
    """A folder with a segmenter of these classes."""
    from ecgan.recipe import SegmenterTraining
    from ecgan.segmentation.training import train_segmenter

    recipe = load_recipe("demo", (*LIGHT, f"data.root={root}"))
    pairs, _ = train.build_sets(recipe, label_space(recipe.data))
    cache = tmp_path_factory.mktemp("segmenter")
    train_segmenter(
        pairs,
        label_space(recipe.data),
        SegmenterTraining(channels=8, images=8, seed=5),
        cache,
        evaluation=True,
    )
    return next(cache.iterdir())


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=() if CHANGES[key][1] in QUICK else pytest.mark.slow)
        for key in KEYS
        if key in CHANGES
    ],
)
def test_changing_a_key_changes_what_can_be_seen(key, root, request, tmp_path):
    change, where, *context = CHANGES[key]
    overrides = [*LIGHT, f"data.root={root}", *context, change]
    if any("{segmenter}" in text for text in overrides):
        folder = str(request.getfixturevalue("segmenter"))
        overrides = [text.replace("{segmenter}", folder) for text in overrides]
    before, after = load_recipe("demo", overrides[:-1]), load_recipe("demo", overrides)
    assert before != after, "the change is none"
    if where == "refused":
        with pytest.raises(UserError, match=r"there\.pth"):
            evaluated(after, tmp_path)
        return
    if where == "not on cuda":
        with pytest.raises(UserError, match="compiled for CUDA, and this device is none"):
            sampled(after, tmp_path)
        return
    if where is refusal:
        assert refusal(after, tmp_path) != (
            "" if key == "model.label_generator_map" else refusal(before, tmp_path)
        )
        return
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    torch.manual_seed(0)
    unchanged = seen_before(where, before, tmp_path / "before")
    torch.manual_seed(0)
    assert unchanged != where(after, tmp_path / "after")


_SEEN = {}  # of recipes that several keys start from, by the recipe


def seen_before(where, recipe, folder):
    """What shows without a change; of what leaves no files, once for each recipe."""
    if where not in QUICK:
        return where(recipe, folder)
    key = where, recipe.model_dump_json()
    if key not in _SEEN:
        _SEEN[key] = where(recipe, folder)
    return _SEEN[key]
