"""Shapes of tokens on which the kernels are compared with the definitions: B, N, D, and whether teachers are missing.

Every padded number of teachers, full and not; batches of one, of part of a tile and of several tiles; D odd, whole and
beyond one block. Patches are independent: larger batches only repeat these.
"""

SHAPES = [
    (1, 1, 5), (17, 1, 33), (3, 2, 200), (1, 3, 33), (5, 4, 128), (1, 4, 1100), (3, 5, 33), (1, 16, 33), (2, 32, 33),
]  # fmt: skip
CASES = [(*shape, True) for shape in SHAPES] + [(1, 1, 5, False), (5, 4, 128, False)]
