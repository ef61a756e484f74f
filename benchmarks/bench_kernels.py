"""The student's operations one by one: eager PyTorch, torch.compile, and ours, forward and with backward.

    pytest benchmarks/bench_kernels.py [--quick] --benchmark-json=out.json

Providers: "eager" is PyTorch as the authors' script writes it (github.com/Tuner12/Shazam), one operation after another;
"compile" the same under torch.compile(mode="reduce-overhead"), for four teachers; "ours" the Triton kernels on a GPU,
the C++ core without one; "graph", on a GPU, ours replayed from a CUDA graph, as training runs them. Bytes count every
input read once and every output written once, and as much again twice for backward; FLOPs count matrix products, two
a multiply-add. "of the ceiling" is the larger of bytes over the copy rate and FLOPs over the float32 GEMM rate, both
measured in the same run, over the time.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from shazam_fast.ops import dispatch as ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = DEVICE.type == "cuda"
DEPTH = 5
DIM = 1024  # columns of a teacher
OPERATIONS = ("attention", "stack", "losses", "projection")


def cases(quick):
    if quick:
        return [(op, 4, 128, 64) for op in OPERATIONS]
    teachers, widths, batches = (2, 4, 5, 8, 16), (128, 256, 512, 1024), (64, 1024, 16384)
    if not GPU:  # the largest take minutes on a CPU and gigabytes
        teachers, widths, batches = (2, 4, 8, 16), (128, 512), (64, 1024)
    return [
        (op, N, D, B)
        for op in OPERATIONS
        for N in teachers
        for D in widths
        for B in batches
        if B * N * D * (DEPTH if op == "stack" else 1) <= 2**29  # what backward keeps fits any card
        and (op != "projection" or (N == 4 and D <= 512))
    ]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        quick = metafunc.config.getoption("--quick")
        metafunc.parametrize("case", cases(quick), ids=lambda c: "{}-N{}-D{}-B{}".format(*c))


def eager_attention(x, weight):
    q, k, v = (x @ w for w in weight.chunk(3, dim=-1))
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(x.shape[-1]), dim=-1) @ v


def eager(operation):
    """PyTorch as the authors' script writes it."""
    if operation == "attention":
        return lambda x, qkv: eager_attention(x, qkv[0]).mean(dim=1)
    if operation == "stack":

        def stack(x, qkv):
            for weight in qkv:
                x = eager_attention(x, weight)
            return x.mean(dim=1)

        return stack
    if operation == "losses":

        def losses(fused, targets):
            total = fused.new_zeros(())
            for target in targets.unbind(1):
                total = total + 1 - F.cosine_similarity(fused, target, dim=-1).mean()
                total = total + F.huber_loss((fused - target).norm(dim=-1), fused.new_zeros(len(fused)))
            return total

        return losses

    def project(weight, bias, table, rows, mean, scale):
        x = (table[rows].float() - mean) / scale
        parts = zip(x.split(DIM, dim=1), weight.split(DIM), bias, strict=True)
        return torch.stack([part @ W + b for part, W, b in parts], dim=1)

    return project


def ours(operation):
    if operation in ("attention", "stack"):
        return lambda x, qkv: ops.bare_stack(x, qkv, None)[0]
    if operation == "losses":
        return lambda fused, targets: ops.distillation_loss(fused, targets, 1.0, 1.0, "norm", None)[0]
    return lambda weight, bias, table, rows, mean, scale: ops.project(
        table, rows, ops.TokenMaps(weight, bias, [DIM] * len(bias), (mean, scale)), None
    )


def inputs(operation, N, D, B):
    """What gradients are wanted of, and what is only read."""
    g = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape, spread=1.0):
        return (spread * torch.randn(*shape, generator=g, device=DEVICE)).requires_grad_()

    if operation in ("attention", "stack"):
        return [normal(B, N, D), normal(DEPTH if operation == "stack" else 1, D, 3 * D, spread=D**-0.5)], []
    if operation == "losses":
        return [normal(B, D), normal(B, N, D)], []
    table = normal(4 * B, N * DIM).detach().half()
    rows = torch.randint(4 * B, (B,), generator=g, device=DEVICE)
    moments = normal(N * DIM).detach(), torch.rand(N * DIM, generator=g, device=DEVICE) + 0.5
    return [normal(N * DIM, D, spread=0.03), normal(N, D)], [table, rows, *moments]


def costs(operation, N, D, B):
    """FLOPs and bytes of a forward pass."""
    tokens = 4 * B * N * D
    if operation == "losses":
        return 2 * 3 * B * N * D, tokens + 4 * B * D
    if operation == "projection":
        return 2 * B * N * DIM * D, 2 * B * N * DIM + 4 * N * DIM * D + tokens
    K = DEPTH if operation == "stack" else 1
    return K * B * (2 * N * D * 3 * D + 4 * N * N * D), tokens + 4 * B * D + K * 12 * D * D


def repeatable(provider, function, wanted, read, backward):
    """A call without arguments that leaves its result on the device, synchronised."""

    def once():
        if not backward:
            with torch.no_grad():
                return function(*wanted, *read)
        result = function(*wanted, *read)
        return torch.autograd.grad(result, wanted, torch.ones_like(result))

    if provider == "graph":
        once = capture(once)
    finish = torch.cuda.synchronize if GPU else lambda: None

    def run():
        result = once()
        finish()
        return result

    return run


def capture(once):
    """The same call as a replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = once()

    def replay():
        graph.replay()
        return result

    return replay


@pytest.mark.parametrize("provider", ["eager", "compile", "ours", "graph"])
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_operation(measure, ceilings, case, direction, provider):
    operation, N, D, B = case
    if provider == "graph" and not GPU:
        pytest.skip("CUDA graphs need a GPU")
    if provider == "compile" and not (GPU and N == 4 and D in (128, 512)):
        pytest.skip("compiled for a few cases only: it takes half a minute each")
    wanted, read = inputs(operation, N, D, B)
    plain = eager(operation)
    function = ours(operation) if provider in ("ours", "graph") else plain
    if provider == "compile":
        torch._dynamo.reset()
        function = torch.compile(plain, mode="reduce-overhead")
    backward = direction != "forward"
    flops, nbytes = (x * (3 if backward else 1) for x in costs(operation, N, D, B))
    rounds = 50 if GPU else min(max(int(2e10 / (flops + nbytes)), 7), 60)
    found = measure(
        f"{operation} {direction} N={N} D={D} B={B}", provider, repeatable(provider, function, wanted, read, backward),
        rows=B, flops=flops, nbytes=nbytes, baseline="eager", rounds=rounds, ceilings=ceilings,
    )  # fmt: skip
    expected = repeatable("eager", plain, wanted, read, backward)()
    pairs = zip(found, expected, strict=True) if backward else [(found, expected)]
    for left, right in pairs:
        assert (left - right).norm() <= 1e-3 * right.norm()
