"""Segmenters: mapping of classes, gradients, loading and saving, training from scratch."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from ecgan import labels
from ecgan.data import loader
from ecgan.data.loader import TripleDataset
from ecgan.demo import toy
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.metrics.segmentation import PerImageConfusion, agreement
from ecgan.recipe import SegmenterTraining
from ecgan.segmentation import segmenter as segmentation
from ecgan.segmentation import training
from ecgan.segmentation.class_mapping import map_by_name
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Normalisation, Provenance, Segmenter, Sources
from ecgan.segmentation.training import train_segmenter
from tests.helpers import folder_items

STREET = ("sky", "road", "tree")


def space_of(*names, evaluation=None, evaluation_names=()):
    classes = tuple(LabelClass(i, name, (i, i, i)) for i, name in enumerate(names))
    return LabelSpace(classes, 255, evaluation, evaluation_names)


def tiny(class_map=(0, 1, 2), names=STREET, **options):
    network = segmentation.segformer(8, [f"class {i}" for i in range(len(class_map))], seed=0)
    return Segmenter(
        network,
        class_map,
        names,
        normalisation=Normalisation(),
        provenance=Provenance("loaded", "tiny"),
        **options,
    )


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 64) * 2 - 1


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / "data"
    toy.write_toy(root, 10, seed=0, height=32, width=64)
    return root


def pairs(root, *, split="train", height=32, width=64, **options):
    space = labels.load_label_space(root / "classes.json")
    items = folder_items.items_for("folder", root, split)
    return TripleDataset(items, space, "folder", height=height, width=width, **options)


def train(root, cache, **options):
    dataset = pairs(root, flip=True)
    space, evaluation = options.pop("space", dataset.space), options.pop("evaluation", False)
    settings = SegmenterTraining(**{"channels": 8, "images": 16, "batch": 4} | options)
    return train_segmenter(dataset, space, settings, cache, evaluation=evaluation)


def test_probabilities_add_drop_and_renormalise(images):
    segmenter = tiny((1, -1, 0, 1, -1), ("sky", "road", "tree"))
    own = segmenter.logits(images).softmax(1)
    expected = torch.zeros(2, 3, 32, 64)
    for b, y, x in ((0, 0, 0), (1, 31, 63), (0, 17, 40)):
        p = own[b, :, y, x]
        mapped = p[0] + p[2] + p[3]
        expected[b, 0, y, x], expected[b, 1, y, x] = p[2] / mapped, (p[0] + p[3]) / mapped
        ours = segmenter.probabilities(images)[b, :, y, x]
        torch.testing.assert_close(ours, expected[b, :, y, x])
    assert segmenter.known.tolist() == [True, True, False]
    total = segmenter.probabilities(images).sum(1)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert segmenter.describe()["unknown"] == ["tree"]
    assert set(segmenter.predict(images).unique().tolist()) <= {0, 1}


def test_logits_are_the_networks_upsampled(images):
    segmenter = tiny()
    small = segmenter.network(images).logits  # mean and std 0.5 leave [-1, 1] as it is
    assert small.shape == (2, 3, 8, 16)
    torch.testing.assert_close(
        segmenter.logits(images), F.interpolate(small, (32, 64), mode="bilinear")
    )


def test_normalisation_is_the_networks(images):
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    segmenter, plain = tiny(), tiny()
    other = Segmenter(
        segmenter.network,
        (0, 1, 2),
        STREET,
        normalisation=Normalisation(mean, std),
        provenance=segmenter.provenance,
    )
    normal = ((images + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(other.logits(images), plain.logits(normal), rtol=1e-4, atol=1e-5)


def test_frozen_and_differentiable(images):
    segmenter = tiny((0, 1, -1, 2))
    segmenter.train()
    assert not any(module.training for module in segmenter.modules())
    assert not any(p.requires_grad for p in segmenter.parameters())
    images.requires_grad_()
    segmenter.probabilities(images)[:, 0].mean().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("own", "recipe", "expected"),
    [
        (["Road", "SKY"], ["sky", "road"], [1, 0]),
        (["traffic-light", "x"], ["traffic_light"], [0, -1]),
        (["sidewalk", "vegetation", "person"], ["pavement", "tree", "pedestrian"], [0, 1, 2]),
        (["building, edifice", "sky"], ["edifice"], [0, -1]),
        (["tree", "vegetation"], ["tree", "vegetation"], [0, 1]),  # the very name wins
        (["tree", "vegetation"], ["tree"], [0, 0]),  # both are added
        (["traffic sign", "rider"], ["bicyclist", "sign"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["sky", "road"], [0, 1]),
    ],
)
def test_classes_are_mapped_by_name(own, recipe, expected):
    assert map_by_name(own, recipe, "x") == expected


@pytest.mark.parametrize("own", [["cat", "dog"], ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_no_common_class(own):
    with pytest.raises(UserError, match=r"no class of its \d .*label_generator_map"):
        map_by_name(own, ["sky", "road"], "x")


def test_cityscapes_names_find_their_raw_ids():
    own = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"]
    own += ["traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"]
    own += ["bus", "train", "motorcycle", "bicycle"]
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    space = labels.builtin("cityscapes")
    assert map_by_name(own, space.names, "x") == ids
    assert map_by_name(own, space.names_for_evaluation, "x") == list(range(19))


def test_saved_and_loaded_is_the_same(tmp_path, images):
    segmenter = tiny((1, -1, 0))
    segmenter.save(tmp_path / "a" / "segmenter")
    loaded = load_segmenter(tmp_path / "a" / "segmenter", space_of(*STREET))
    assert torch.equal(loaded.probabilities(images), segmenter.probabilities(images))
    assert loaded.hash == segmenter.hash
    assert loaded.describe() == segmenter.describe()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["segmenter"]


def test_saved_folder_is_one_of_transformers(tmp_path, images):
    segmenter = tiny()
    segmenter.save(tmp_path / "s")
    network = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "s")
    processor = json.loads((tmp_path / "s" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.5] * 3
    torch.testing.assert_close(network.eval()(images).logits, segmenter.network(images).logits)


def test_folder_of_transformers_is_mapped_by_name_or_number(tmp_path, images):
    network = segmentation.segformer(8, ["Sky", "vegetation", "dog"], seed=0)
    network.save_pretrained(tmp_path / "s")
    by_name = load_segmenter(tmp_path / "s", space_of(*STREET))
    assert by_name.class_map == (0, 2, -1)
    assert by_name.normalisation.mean == pytest.approx((0.485, 0.456, 0.406))
    by_number = load_segmenter(str(tmp_path / "s"), space_of(*STREET), {2: 1, 0: 1})
    assert by_number.class_map == (1, -1, 1)
    assert by_number.hash != by_name.hash
    assert by_name.describe()["kind"] == "loaded"


def test_evaluation_ids_are_a_space_of_their_own(tmp_path):
    space = space_of(
        "ground", *STREET, evaluation=(255, 1, 0, 1), evaluation_names=("road", "sky or tree")
    )
    network = segmentation.segformer(8, ["road", "other"], seed=0)
    network.save_pretrained(tmp_path / "s")
    segmenter = load_segmenter(tmp_path / "s", space, evaluation=True)
    assert segmenter.evaluation
    assert segmenter.names == ("road", "sky or tree")
    assert segmenter.known.tolist() == [True, False]
    assert load_segmenter(tmp_path / "s", space).known.tolist() == [False, False, True, False]


@pytest.mark.slow
def test_faults_of_a_class_map_come_together(tmp_path):
    tiny().save(tmp_path / "s")
    with pytest.raises(UserError) as faults:
        load_segmenter(tmp_path / "s", space_of(*STREET), {9: 0, 1: 7})
    assert "class 9: the network has 0-2" in str(faults.value)
    assert "class 1 -> 7: the recipe has 0-2" in str(faults.value)
    with pytest.raises(UserError, match="it is empty"):
        load_segmenter(tmp_path / "s", space_of(*STREET), {})


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    space = space_of(*STREET)
    with pytest.raises(UserError, match=r"'no/such-model': neither .*label_generator: train"):
        load_segmenter("no/such-model", space)
    with pytest.raises(UserError, match="no such folder"):
        load_segmenter(tmp_path / "not" / "there", space)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_segmenter(tmp_path, space)
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert is not a model for semantic segmentation"):
        load_segmenter(tmp_path / "bert", space)
    tiny().save(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_segmenter(tmp_path / "cut", space)


def small_swin():
    return transformers.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def universal(kind, folder):
    """A tiny Mask2Former or OneFormer with random weights, saved as the hub has them."""
    sizes = {
        "backbone_config": small_swin(),
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "num_queries": 5,
        "id2label": dict(enumerate(STREET)),
    }
    if kind == "mask2former":
        sizes |= {"feature_size": 32, "mask_feature_size": 32}
        config = transformers.Mask2FormerConfig(**sizes)
        transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
        return
    sizes |= {"conv_dim": 32, "mask_dim": 32, "query_dec_layers": 1, "task_seq_len": 8}
    sizes |= {"text_encoder_width": 32, "text_encoder_num_layers": 1}
    sizes |= {"text_encoder_vocab_size": 100, "text_encoder_context_length": 8}
    config = transformers.OneFormerConfig(**sizes, is_training=False)
    transformers.OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    letters = "thesakimnc"
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    ).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask2former", "oneformer"])
def test_mask_classification(kind, tmp_path, images):
    universal(kind, tmp_path / "m")
    segmenter = load_segmenter(tmp_path / "m", space_of("road", "sky"))
    images.requires_grad_()
    probabilities = segmenter.probabilities(images)
    pixels = ((images + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    task = {} if kind == "mask2former" else {"task_inputs": segmenter._task.expand(2, -1)}
    output = segmenter.network(pixel_values=pixels, **task)
    classes = output.class_queries_logits.softmax(-1)
    masks = F.interpolate(output.masks_queries_logits, (32, 64), mode="bilinear").sigmoid()
    for b, y, x in ((0, 0, 0), (1, 31, 63), (0, 17, 40)):
        sky, road = (sum(classes[b, q, c] * masks[b, q, y, x] for q in range(5)) for c in (0, 1))
        expected = torch.stack([road, sky]) / (road + sky)
        torch.testing.assert_close(probabilities[b, :, y, x], expected, rtol=1e-4, atol=1e-5)
    probabilities[:, 0].mean().backward()
    assert images.grad.abs().sum() > 0
    segmenter.save(tmp_path / "copy")
    copy = load_segmenter(tmp_path / "copy", space_of("road", "sky"))
    assert torch.equal(copy.probabilities(images), probabilities)


@pytest.mark.slow
def test_training_is_seeded_and_cached(street, tmp_path):
    state = torch.get_rng_state()
    first = train(street, tmp_path / "a")
    assert torch.equal(state, torch.get_rng_state())
    (folder,) = (tmp_path / "a").iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = train(street, tmp_path / "a")
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert first.hash == again.hash == train(street, tmp_path / "b").hash
    assert first.hash != train(street, tmp_path / "b", seed=1).hash
    assert len([*(tmp_path / "b").iterdir()]) == 2
    report = first.describe()
    assert report["kind"] == "trained"
    assert (report["width"], report["images"]) == (8, 16)
    assert report["train_loss"] < 3
    assert folder.name.endswith(report["data"][:16])
    assert first.known.all()


@pytest.mark.slow
def test_a_segmenter_knows_what_it_learnt_from(street, tmp_path):
    segmenter = train(street, tmp_path / "cache", images=4)
    items = folder_items.items_for("folder", street, "train")
    assert segmenter.sources.keys == {item.key for item in items}
    contents = {hashlib.sha256(item.label.read_bytes()).hexdigest() for item in items}
    assert segmenter.sources.labels == contents
    assert "sources" not in segmenter.describe()  # a report has no room for every key
    segmenter.save(tmp_path / "copy")
    space = labels.load_label_space(street / "classes.json")
    assert load_segmenter(tmp_path / "copy", space).sources == segmenter.sources
    assert Path(segmenter.loaded_from).parent == tmp_path / "cache"


def test_folders_of_earlier_versions_do_not_say_what_they_learnt_from(tmp_path):
    tiny(sources=Sources(frozenset({"a"}), frozenset({"b"}))).save(tmp_path / "s")
    path = tmp_path / "s" / "segmenter.json"
    own = json.loads(path.read_text())
    assert own.pop("sources") == {"keys": ["a"], "labels": ["b"]}
    path.write_text(json.dumps(own))
    assert load_segmenter(tmp_path / "s", space_of(*STREET)).sources == Sources()
    assert tiny().sources == Sources()


def test_changed_data_is_learnt_anew(street, tmp_path):
    root = shutil.copytree(street, tmp_path / "data")
    train(root, tmp_path / "cache", images=4)
    path = min((root / "labels" / "train").iterdir())
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    train(root, tmp_path / "cache", images=4)
    assert len([*(tmp_path / "cache").iterdir()]) == 2


def test_evaluation_ids_are_learnt(street, tmp_path):
    names = labels.load_label_space(street / "classes.json").names
    ids = tuple(0 if i == 0 else 1 if i < 9 else 255 for i in range(len(names)))
    space = space_of(*names, evaluation=ids, evaluation_names=("sky", "ground"))
    segmenter = train(street, tmp_path, space=space, evaluation=True)
    assert segmenter.evaluation
    assert segmenter.names == ("sky", "ground")
    assert segmenter.network.config.num_labels == 2
    table = training._training_ids(space, evaluation=True)
    assert table[[0, 1, 8, 9, 254, 255]].tolist() == [0, 1, 1, -100, -100, -100]


def test_many_classes_fit():
    space = LabelSpace(tuple(LabelClass(i, f"c{i}", (0, 0, 0)) for i in range(300)), 65535)
    table = training._training_ids(space, evaluation=False)
    assert table[[0, 255, 299, 300, 65535]].tolist() == [0, 255, 299, -100, -100]


def test_pixels_without_a_label_teach_nothing(street, tmp_path):
    root = shutil.copytree(street, tmp_path / "data")
    for path in (root / "labels" / "train").iterdir():
        Image.fromarray(np.full((32, 64), 255, np.uint8)).save(path)
    segmenter = train(root, tmp_path / "cache")
    assert segmenter.provenance.train_loss == 0


def test_an_error_leaves_nothing_behind(street, tmp_path):
    root = shutil.copytree(street, tmp_path / "data")
    path = min((root / "images" / "train").iterdir())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError):
        train(root, tmp_path / "cache", images=64)
    assert not (tmp_path / "cache").exists() or not [*(tmp_path / "cache").iterdir()]


@pytest.mark.slow
def test_scenes_are_learnt(tmp_path):
    toy.write_toy(tmp_path / "data", 60, seed=0, height=64, width=128)
    dataset = pairs(tmp_path / "data", height=64, width=128, flip=True)
    segmenter = train_segmenter(
        dataset,
        dataset.space,
        SegmenterTraining(channels=16, images=800),
        tmp_path / "cache",
    )
    held_out = pairs(tmp_path / "data", split="val", height=64, width=128, train=False)
    confusion = PerImageConfusion(dataset.space.num_classes)
    for batch in loader.ordered_batches(held_out, 8):
        predictions = segmenter.predict(loader.to_images(batch.images)).numpy()
        for key, label, prediction in zip(
            batch.keys, batch.labels.numpy(), predictions, strict=True
        ):
            confusion.add(key, key, label, prediction)
    scores = agreement(confusion).overall
    assert scores["accuracy"].value > 0.7
    assert scores["miou"].value > 0.3


def test_a_segmenter_whose_head_is_missing_is_refused(tmp_path):
    """transformers would draw it at random, each time anew."""
    network = segmentation.segformer(8, STREET, seed=0)
    weights = {k: v.contiguous() for k, v in network.state_dict().items() if "classifier" not in k}
    network.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights lack decode_head.classifier.bias \(2 in"):
        load_segmenter(str(tmp_path), space_of(*STREET))
