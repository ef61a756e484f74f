"""Calls every function of the core with valid arguments of which some were spoilt: FOLDER SEED CALLS.

Prints how many calls passed and how many were refused; any other error, or a crash, is a fault.
"""

import resource
import sys
import warnings

import numpy as np

from shazam_fast import _core

warnings.simplefilter("ignore")
folder, seed, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = np.random.default_rng(seed)
RIGHT = (_core.StoreError, TypeError, ValueError, OverflowError)
with open("/proc/self/statm") as statm:
    taken = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30),) * 2)  # nothing here has a reason to take much memory
np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32).tofile(folder + "/a")
np.ones((64, 6), np.float16).tofile(folder + "/b")
INTEGERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 5, 63, 64, 65, 1025, 2**31, 2**62, 2**63 - 1, 2**63]


def ones(*shape):
    return np.ones(shape, np.float32)


def pick(values):
    return values[draw.integers(len(values))]


def spoil_array(value):
    if max(value.shape, default=0) > 1000:  # of `huge`
        return value
    try:
        return pick(SPOILT_ARRAYS)(value)
    except (TypeError, ValueError, IndexError):  # of an array that was spoilt before
        return value


def spoil(value):
    if isinstance(value, np.ndarray):
        return spoil_array(value)
    if isinstance(value, tuple):
        return tuple(spoil(v) if draw.random() < 0.5 else v for v in value)
    choices = [None, 1, "x", ones(2), ones(0)]
    if isinstance(value, list):
        choices = [value[:-1], value * 2, [spoil(v) for v in value], [], None]
    elif isinstance(value, str):
        choices = ["", "float32", "float16", "bfloat16", "\0", "\udcff", folder, folder + "/b", None]
    elif isinstance(value, (bool, int, float)):
        choices = [*INTEGERS, 0.5, float("nan"), None, True]
    return pick(choices)


def reshaped(a):
    shape = [pick([0, 1, 2, 3, n, n + 1, max(0, n - 1)]) for n in a.shape]
    if draw.random() < 0.3:
        shape = shape[:-1] if draw.random() < 0.5 else [*shape, pick([0, 1, 2])]
    return np.ones(shape, a.dtype)


def huge(a):
    """No values, but sizes that overflow when multiplied."""
    shape = [pick([n, 2**31, 2**40, 2**60]) for n in a.shape]
    if not shape:
        return a
    shape[draw.integers(len(shape))] = 0
    try:
        return np.empty(shape, a.dtype)
    except ValueError:
        return a


def unaligned(a):
    memory = np.zeros(a.nbytes + 1, np.uint8)
    return memory[1:].view(a.dtype).reshape(a.shape)


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


SPOILT_ARRAYS = [
    reshaped,
    reshaped,
    huge,
    unaligned,
    read_only,
    lambda a: a.astype(pick(["f8", ">f4", "f2", "u2", "i8", "i4", "?", "c8", "O", "U3"])),
    lambda a: a.T,
    lambda a: a[::-1],
    lambda a: a[..., ::2],
    lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
    np.asfortranarray,
    lambda a: np.broadcast_to(a[:1], a.shape) if a.ndim else a,
    lambda a: pick(INTEGERS) % 2**63 - a if a.dtype == np.int64 else a * np.float32("nan"),
    lambda a: a.tolist(),
    lambda a: None,
]


def extents():
    return np.array([[0, 0, 40, 24], [1, 12, 20, 24]])


def store(*arguments):
    return _core.FeatureStore(*(arguments or (6, "float32", [folder + "/a", folder + "/a"], extents(), 1)))


def use_store(columns, dtype, files, table, max_open, rows, out, threads):
    made = store(columns, dtype, files, table, max_open)
    made.gather(rows, out, threads)


def prefetch(column, rows, bounds, buffers, threads):
    prefetcher = _core.Prefetcher([(store(), column)], rows, bounds, buffers, threads)
    for _ in range(9):
        batch = prefetcher.next()
        if batch is None:
            return
        assert 0 <= batch[1] <= len(buffers[batch[0]])
        prefetcher.release(pick([batch[0]] * 5 + [-1, 7]))


def student(dims, *rest):
    core = _core.FoldedStudent(dims, *rest[:8])
    core.forward(*rest[8:])


B, N, D, K, C = 5, 3, 4, 2, 3


def space():
    return ones(_core.bare_stack_space(ones(B, N, D), ones(K, D, 3 * D), True))


CASES = [
    (use_store, lambda: [6, "float32", [folder + "/a"] * 2, extents(), 1, np.arange(9), ones(9, 6), 2]),
    (lambda *a: store().gather(*a), lambda: [np.arange(9), ones(9, 6), 2]),
    (lambda *a: store().read(*a), lambda: [3, 12, ones(9, 6), 2]),
    (lambda *a: store().check_finite(*a), lambda: [3, 12]),
    (lambda *a: store().read_ahead(*a), lambda: [np.arange(9)]),
    (lambda *a: store().gather_past_cache(*a), lambda: [np.arange(9), ones(9, 6), 2]),
    (_core.file_states, lambda: [[folder + "/a", folder + "/none"]]),
    (_core.take_rows, lambda: [ones(9, 6), np.arange(4), ones(4, 6)]),
    (lambda *a: store().advise(*a), lambda: ["random"]),
    (prefetch, lambda: [0, np.arange(20), np.array([0, 8, 16, 20]), [ones(8, 6), ones(8, 6)], 2]),
    (_core.attention_forward, lambda: [ones(B * N, 3 * D), np.ones((B, N), bool), ones(B, N, N), ones(B, N, D), 2]),
    (_core.attention_forward, lambda: [ones(B * N, 3 * D), None, ones(B, N, N), ones(B, D), 1]),
    (_core.attention_backward, lambda: [ones(B * N, 3 * D), None, ones(B, N, N), ones(B, N, D), ones(B * N, 3 * D), 2]),
    (
        _core.distillation,
        lambda: [
            ones(B, D),
            ones(B, N, D),
            np.ones((B, N), bool),
            0.5,
            1.0,
            False,
            np.ones((), np.float32),
            ones(N),
            ones(N),
            ones(B, D),
            ones(B, N, D),
            2,
        ],
    ),
    (
        _core.bare_stack_forward,
        lambda: [ones(B, N, D), ones(K, D, 3 * D), None, ones(B, D), ones(B, K, N, N), space(), True, 2],
    ),
    (
        _core.bare_stack_backward,
        lambda: [
            ones(B, N, D),
            ones(K, D, 3 * D),
            np.ones((B, N), bool),
            ones(B, K, N, N),
            ones(B, D),
            space(),
            ones(B, N, D),
            ones(K, D, 3 * D),
            2,
        ],
    ),
    (_core.project_gradient, lambda: [ones(B, 18), [5, 6, 7], ones(B, N, D), ones(18, D), 2]),
    (_core.folded_scores, lambda: [ones(B, N * K, D), ones(B, N, D), None, ones(B, D), ones(B, N), 2]),
    (
        student,
        lambda: [
            [5, 6, 7],
            ones(18, D),
            ones(3, D),
            ones(D, K * D),
            ones(D, D),
            ones(D),
            ones(D, C),
            ones(C),
            ones(18),
            ones(B, 20),
            [0, 5, -1],
            ones(B, C),
            ones(B, N),
            ones(B, D),
        ],
    ),
]

passed = refused = 0
for _ in range(calls):
    function, arguments = pick(CASES)
    arguments = arguments()
    for _spoilt in range(draw.integers(0, 3)):
        index = draw.integers(len(arguments))
        arguments[index] = spoil(arguments[index])
    try:
        function(*arguments)
        passed += 1
    except RIGHT:
        refused += 1
print(passed, refused)
