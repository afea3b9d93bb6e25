"""The operations in compiled networks, and the kernels compiled for GPUs without one."""

import subprocess
import sys
import textwrap

import pytest
import torch

from ecgan.models.class_specific import ClassSpecificGenerator
from ecgan.ops.onehot_conv import onehot_conv
from tests.ops.test_ops import IGNORE, heads

pytest.importorskip("triton")

# Exponentials that are masked afterwards may overflow; a GPU says nothing, numpy does.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.slow
def test_class_heads_are_one_operation_of_a_compiled_network():
    """No graph break, one graph for any set of classes, the numbers of the plain call."""
    network = ClassSpecificGenerator(6, 5, spectral=False).to(DEVICE)
    compiled, graphs = compiled_and_counted(network)
    for classes in (range(5), [1, 3], [IGNORE]):
        labels = torch.tensor(list(classes))[torch.randint(0, len(classes), (2, 6, 8))].to(DEVICE)
        features = torch.randn(2, 6, 6, 8, device=DEVICE, requires_grad=True)
        inputs = [features, *network.parameters()]
        direction = torch.randn(2, 3, 6, 8, device=DEVICE)
        expected = network(features, labels, IGNORE)
        actual = compiled(features, labels, IGNORE)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad((actual * direction).sum(), inputs),
            torch.autograd.grad((expected * direction).sum(), inputs),
        )
    assert len(graphs) == 1


@pytest.mark.slow
def test_a_one_hot_convolution_is_one_operation_of_a_compiled_network():
    def convolve(labels, weight, bias, boundary):
        return onehot_conv(labels, weight, bias, 3, IGNORE, unknown=True, boundary=boundary)

    compiled, graphs = compiled_and_counted(convolve)
    weight, bias = torch.randn(4, 5, 3, 3, device=DEVICE), torch.randn(4, device=DEVICE)
    for _ in range(2):
        labels = torch.randint(0, 3, (2, 5, 6), device=DEVICE)
        boundary = torch.randint(0, 2, (2, 1, 5, 6), device=DEVICE)
        expected = convolve(labels, weight, bias, boundary)
        actual = compiled(labels, weight, bias, boundary)
        torch.testing.assert_close(actual, expected)
    assert len(graphs) == 1


def compiled_and_counted(f):
    """f compiled without a graph break, and the list of the graphs that it took."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiler = aot_autograd(fw_compiler=count, bw_compiler=lambda g, _: make_boxed_func(g.forward))
    return torch.compile(f, backend=compiler, fullgraph=True, dynamic=False), graphs


@pytest.mark.slow
def test_the_operations_say_what_they_are(implementation):
    """torch's own checks: schema, shapes and strides without data, gradients, tracing."""
    labels = torch.randint(0, 3, (2, 4, 5), device=DEVICE)
    weights = [w.detach().float().to(DEVICE).requires_grad_() for w in heads(3, 4)]
    features = torch.randn(2, 4, 4, 5, device=DEVICE, requires_grad=True)
    checks = torch.library.opcheck(
        torch.ops.ecgan.class_specific_heads.default, (features, labels, IGNORE, *weights)
    )
    with torch.no_grad():
        image, hidden = torch.ops.ecgan.class_specific_heads(features, labels, IGNORE, *weights)
        saved = [image, hidden, features, weights[0], weights[2]]
        saved = [x.detach().clone() for x in saved]
    checks |= torch.library.opcheck(
        torch.ops.ecgan.class_specific_heads_backward.default,
        (torch.randn_like(image), saved, labels, IGNORE),
    )
    table = torch.randn(9, 4, 3, device=DEVICE)
    checks |= torch.library.opcheck(torch.ops.ecgan.table_sum.default, (labels, table))
    assert set(checks.values()) == {"SUCCESS"}


# GPUs, without one


LAUNCHES = textwrap.dedent("""
    import os, subprocess, sys, tempfile
    os.environ["ECGAN_KERNELS"] = "triton"
    import torch, triton
    import torch.nn.functional as F
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction, mangle_type
    from ecgan.ops.class_conv import class_specific_heads
    from ecgan.ops.onehot_conv import onehot_conv
    from ecgan.ops.pair_similarity import pair_similarity
    from ecgan.ops.pixel_contrast import pixel_contrast

    torch.set_num_threads(1)
    done = set()

    def compile_instead(kernel, *args, grid, warmup, **options):
        constants = {p.name: options.pop(p.name) for p in kernel.params if p.is_constexpr}
        signature, values, attributes = {}, {}, {}
        for position, parameter in enumerate(kernel.params):
            name = parameter.name
            if parameter.is_constexpr:
                signature[name], values[(position,)] = "constexpr", constants[name]
                continue
            value = args[position]
            signature[name] = mangle_type(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(position,)] = [["tt.divisibility", 16]]
        key = (kernel.fn.__name__, str(signature), str(values), str(attributes), str(options))
        if key in done:
            return
        done.add(key)
        code = triton.compile(
            ASTSource(kernel, signature, values, attributes),
            target=GPUTarget("cuda", int(sys.argv[1]), 32),
            options=options,
        )
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
                check=True, capture_output=True, text=True,
            ).stdout
        spilled = int(usage.split("STACK:")[1].split()[0])
        tensor_cores = "wgmma" in code.asm["ptx"]
        registers = usage.split("REG:")[1].split()[0]
        shared = code.metadata.shared
        print(kernel.fn.__name__, spilled, shared, tensor_cores, registers, flush=True)

    JITFunction.run = compile_instead

    for N in (12, 19, 35, 182):
        p = torch.rand(1, N, 16, 32, requires_grad=True)
        pair_similarity(p, torch.randint(0, N, (1, 16, 32)), 255)
    with torch.no_grad():
        pair_similarity(p, torch.randint(0, N, (1, 16, 32)), 255)
    e = F.normalize(torch.rand(256, 64), dim=1).requires_grad_()
    pixel_contrast(e, torch.randint(0, 9, (256,)), 0.07)
    for dtype in (torch.float32, torch.bfloat16):
        shapes = ((12, 16, 64, 3, 3), (12, 16), (12, 3, 16, 3, 3), (12, 3))
        weights = [torch.rand(shape, requires_grad=True) for shape in shapes]
        features = torch.rand(1, 64, 16, 32, dtype=dtype, requires_grad=True)
        labels = torch.randint(0, 12, (1, 16, 32))
        class_specific_heads(features, labels, 255, *weights).sum().backward()
        weight = torch.rand(128, 13, 3, 3, dtype=dtype)
        onehot_conv(labels, weight, None, 12, 255, unknown=True)
""")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for NVIDIA GPUs")
@pytest.mark.parametrize(("capability", "kibibytes"), [("90", 227), ("89", 99)])
def test_every_kernel_compiles_for_a_gpu(monkeypatch, capability, kibibytes):
    """To machine code of an H100 and of cards with less shared memory: it suffices.

    On an H100 registers do too.
    """
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES, capability], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in kernels} == {
        "_split", "_round", "_rows", "_log_negatives", "_positives", "_negatives", "_convolve",
        "_kernel_gradients", "_look_up", "_add_up",
    }  # fmt: skip
    for name, _, shared, *_ in kernels:
        assert int(shared) <= kibibytes * 1024, name
    if capability != "90":
        return
    for name, spilled, _, tensor_cores, _ in kernels:
        assert int(spilled) <= 16, name  # bytes, outside of the loops
        if name in {"_rows", "_log_negatives", "_positives", "_negatives"}:
            assert tensor_cores == "True", name
    # Two programs share a multiprocessor: while one multiplies, the other takes roots
    contrast = [row for row in kernels if row[0] in {"_log_negatives", "_positives", "_negatives"}]
    similarity = [row for row in kernels if row[0] == "_rows"][:3]  # 12, 19 and 35 classes
    for name, _, shared, _, registers in contrast + similarity:
        assert int(registers) <= 128, name
        assert int(shared) <= 113 * 1024, name
