"""Several ranks: what they compute together equals what one computes alone."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from ecgan.data import loader
from ecgan.data.loader import TripleDataset, to_images
from ecgan.errors import UserError
from ecgan.models.layers import condition
from ecgan.recipe import label_space, load_recipe
from ecgan.runtime import distributed
from ecgan.runtime.device import choose_device
from ecgan.segmentation.segmenter import Normalisation, Provenance, Segmenter, segformer
from ecgan.training import step as steps
from ecgan.training.objective import Inputs, Objective, build_bank
from tests.helpers.folder_items import items_for
from tests.helpers.tiny import write_pairs

STEPS = 3
TINY = (
    "data.height=32", "data.width=64", "model.width=4", "train.batch=4",
    "model.label_generator=train",
    "losses.contrastive_bank=2", "losses.contrastive_taps=[0,1]",
    "train.lr_generator=1e-4", "train.lr_discriminator=1e-4",
)  # fmt: skip


def test_one_process_is_a_world_of_one():
    x = torch.ones(2, requires_grad=True)
    assert distributed.world_size() == 1
    assert distributed.rank() == 0
    assert distributed.gather(x) is x
    assert distributed.all_reduce_sum(x) is x
    assert distributed.any_rank(True)
    network = nn.BatchNorm2d(2)
    assert distributed.synchronised(network, torch.device("cpu")) is network
    assert distributed.parallel(network, torch.device("cpu")) is network


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("gpu", "mps:99999999999", "meta"):
        with pytest.raises(UserError, match="expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match="no CUDA device here; use --device cpu"):
            choose_device("cuda")


def test_kernels_and_events_are_on_the_gpu_that_was_asked_for(monkeypatch):
    """Triton and CUDA's events take the current device, wherever their tensors are."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert not chosen, "who only asks makes no context"
    choose_device("cuda:1", current=True)
    assert chosen == [1]


def test_torchrun_is_never_started_twice(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun started this process already"):
        distributed.launch(2, ["train"], device="cpu")


@pytest.mark.parametrize(("device", "closed"), [("cpu", True), ("cuda", False)])
def test_a_rank_that_fails_waits_for_nobody(monkeypatch, device, closed):
    """To leave NCCL's group is to wait for ranks that wait for this one; torchrun ends them."""
    calls = []
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    # Not for the process of the tests, whose own parent may be gone
    monkeypatch.setattr(distributed, "end_with_launcher", lambda: calls.append("bound"))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: calls.append("init"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroy"))
    with pytest.raises(ValueError, match="disk"), distributed.process_group(torch.device(device)):
        raise ValueError("disk")
    assert calls == ["init", "bound", *(["destroy"] if closed else [])]
    with distributed.process_group(torch.device(device)):
        calls.clear()
    assert calls == ["destroy"]


def test_batch_norm_over_one_rank_is_batch_norm():
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(3)
    nn.init.normal_(theirs.weight)
    ours = distributed.BatchNormOverRanks.like(theirs)
    x = (torch.randn(4, 3, 5, 6) * 3 + 100).requires_grad_()
    y = x.detach().clone().requires_grad_()
    target = torch.randn(4, 3, 5, 6)
    for _ in range(2):
        for norm, values in ((theirs, x), (ours, y)):
            values.grad = None
            (norm(values) * target).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def on_two_ranks(function, port, *arguments):
    torch.multiprocessing.spawn(_start, (function, port, arguments), nprocs=2)


def _start(rank, function, port, arguments):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with distributed.process_group(torch.device("cpu")):
        function(rank, *arguments)


def _sums_and_norms(rank):
    torch.manual_seed(0)
    whole = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    target = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    own = slice(2 * rank, 2 * rank + 2)

    # a loss of gathered and of summed tensors: each rank holds all of it, DDP takes the mean
    alone = whole.clone().requires_grad_()
    ((alone * target).sum().square() + (alone**3).mean()).backward()
    x = whole[own].clone().requires_grad_()
    total = distributed.all_reduce_sum((x * target[own]).sum())
    (total.square() + (distributed.gather(x) ** 3).mean()).backward()
    torch.testing.assert_close(x.grad / 2, alone.grad[own])

    # batch norm over ranks against batch norm on the whole batch
    alone = whole.clone().requires_grad_()
    norm = nn.BatchNorm2d(3, affine=False).double()
    ours = distributed.synchronised(nn.Sequential(nn.BatchNorm2d(3, affine=False).double()),
                                    torch.device("cpu"))  # fmt: skip
    expected = norm(alone)
    (expected * target).sum().backward()
    x = whole[own].clone().requires_grad_()
    actual = ours(x)
    (actual * target[own]).sum().backward()
    torch.testing.assert_close(actual, expected[own])
    torch.testing.assert_close(x.grad, alone.grad[own])
    torch.testing.assert_close(ours[0].running_var, norm.running_var)
    assert list(ours.state_dict()) == [f"0.{name}" for name in norm.state_dict()]

    assert distributed.any_rank(rank == 1)
    assert distributed.mean_(torch.tensor(float(rank))).item() == 0.5


@pytest.mark.slow
def test_sums_gathers_and_norms_over_two_ranks_have_the_gradient_of_the_whole_batch(free_port):
    on_two_ranks(_sums_and_norms, free_port)


def _train(rank, world, root, out):
    """A few steps with every part on; weights and logged terms go to a file."""
    recipe = load_recipe("demo", (*TINY, f"data.root={root}"))
    space = label_space(recipe.data)
    dataset = TripleDataset(
        items_for("folder", root, "train"), space, "folder",
        height=32, width=64, flip=True, seed=recipe.train.seed,
    )  # fmt: skip
    label_generator = Segmenter(
        segformer(8, space.names, seed=0), range(space.num_classes), space.names,
        normalisation=Normalisation(), provenance=Provenance("trained", "test"),
    ).double()  # fmt: skip
    from ecgan.models.pretrained import perceptual_features

    device = torch.device("cpu")
    torch.set_default_dtype(torch.float64)
    bank = build_bank(recipe, space, device)
    frozen = perceptual_features("efficientnet_lite0").double()
    terms = Objective(recipe, space, device, label_generator, frozen, bank, frozen)
    both = steps.build(recipe, space, device)
    assert both.segmentation_discriminator is not None
    logged = []
    found = loader.batches(dataset, 0, recipe.train.batch, rank=rank, world=world)
    for _, batch in zip(range(STEPS), found, strict=False):
        inputs = Inputs(
            batch.keys, batch.positions, batch.labels.long(),
            condition(batch.labels, batch.boundary, space).double(),
            to_images(batch.images).double(),
            to_images(batch.edges).double().expand(-1, 3, -1, -1),
        )  # fmt: skip
        values = steps.step(both, terms, [inputs], 1.0).means
        stacked = torch.stack([value.double() for value in values.values()])
        logged.append(dict(zip(values, distributed.mean_(stacked).tolist(), strict=True)))
    weights = {
        "generator": both.side.state_dict(),
        "discriminator": both.discriminator.network.state_dict(),
        "segmentation_discriminator": both.segmentation_discriminator.network.state_dict(),
        "bank": bank.state_dict(),
    }
    torch.save({"weights": weights, "logged": logged}, out / f"{world}-{rank}.pt")


def _train_one_of_two(rank, root, out):
    _train(rank, 2, root, out)


def _flat(path):
    saved = torch.load(path, weights_only=True)
    return saved["logged"], {
        f"{part}.{name}": value
        for part, state in saved["weights"].items()
        for name, value in state.items()
    }


@pytest.mark.slow
def test_two_ranks_with_half_a_batch_each_equal_one_with_all_of_it(tmp_path, free_port):
    """All parts, style and bank on, in float64 (but for Gl's softmax): sums differ in order."""
    root = tmp_path / "toy"
    write_pairs(root)
    default = torch.get_default_dtype()
    try:
        _train(0, 1, root, tmp_path)
    finally:
        torch.set_default_dtype(default)
    on_two_ranks(_train_one_of_two, free_port, root, tmp_path)

    logged, alone = _flat(tmp_path / "1-0.pt")
    logged_by_two, first = _flat(tmp_path / "2-0.pt")
    _, second = _flat(tmp_path / "2-1.pt")
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between the ranks"
    assert len(logged) == STEPS
    for one, two in zip(logged, logged_by_two, strict=True):
        assert list(one) == [
            "discriminator", "segmentation_discriminator", "segmentation_accuracy", "called_made",
            "adversarial", "feature_matching", "segmentation_adversarial", "perceptual",
            "similarity", "contrastive", "class_l1", "kl",
        ]  # fmt: skip
        assert two == pytest.approx(one, rel=1e-6)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-7, msg=name)
