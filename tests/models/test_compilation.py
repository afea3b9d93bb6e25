"""G and D compile as whole graphs: whatever breaks one costs a launch gap at every step."""

import subprocess
import sys

import pytest
import torch

from ecgan.models.layers import condition
from ecgan.recipe import label_space, load_recipe
from ecgan.training.objective import GeneratorSide, build_discriminator

CLASSES = "data.classes=[a, b, c]"
SMALL = (CLASSES, "data.height=32", "data.width=64", "model.width=4", "model.upsamplings=5")


def explained(module, *arguments):
    torch._dynamo.reset()
    with torch.random.fork_rng():
        return torch._dynamo.explain(module)(*arguments)


def inputs(recipe):
    space = label_space(recipe.data)
    labels = torch.randint(0, 3, (2, 32, 64))
    return space, labels, condition(labels.to(torch.uint8), None, space)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["true", "false"])
@pytest.mark.parametrize("heads", ["true", "false"])
def test_the_generator_is_one_graph(style, heads):
    recipe = load_recipe("demo", (*SMALL, f"model.style={style}", f"model.class_specific={heads}"))
    space, labels, S = inputs(recipe)
    generator = GeneratorSide(recipe, space).generator
    z = torch.randn(2, generator.style_dim) if generator.style else None
    found = explained(generator, S, labels, space.ignore_index, z)
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1


@pytest.mark.slow
def test_the_discriminator_is_one_graph():
    recipe = load_recipe("demo", SMALL)
    space, _, S = inputs(recipe)
    discriminator = build_discriminator(recipe, space)
    found = explained(discriminator, S, torch.rand(4, 3, 32, 64))
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1


@pytest.mark.slow
def test_the_compiler_is_loaded_only_where_it_is_asked_for():
    """It takes 1.5 s and 160 MB of every worker that makes samples."""
    code = (
        "import sys, ecgan.runtime.executor, ecgan.generation.run\n"
        "print([m for m in sys.modules if m.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
