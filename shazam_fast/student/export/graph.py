"""The folded student as a graph of ONNX operations, written node by node: the same with every release of PyTorch."""

from collections.abc import Sequence
from itertools import accumulate, count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..folded import FoldedStudent

if TYPE_CHECKING:
    from onnx import GraphProto

OPSET = 17  # the first with LayerNormalization
EPSILON = 1e-5  # of PyTorch's LayerNorm


class Graph:
    """Nodes and constants of a graph; operations return the names of their results."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._numbers = count()

    def constant(self, value: Any, name: str = "", dtype: Any = None) -> str:
        """A constant; the same name stands for the first value that it had."""
        name = name or f"constant_{next(self._numbers)}"
        self._constants.setdefault(name, np.asarray(value, dtype=dtype))
        return name

    def run(self, operation: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """An operation on named values; its one result gets the name."""
        from onnx import helper

        name = name or f"{operation.lower()}_{next(self._numbers)}"
        self._nodes.append(helper.make_node(operation, list(inputs), [name], name=f"{name}_node", **attributes))
        return name

    def finish(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> "GraphProto":
        """The graph, as ONNX has it."""
        from onnx import helper, numpy_helper

        constants = [numpy_helper.from_array(value, name) for name, value in self._constants.items()]
        return helper.make_graph(self._nodes, "student", inputs, outputs, constants)


def add_student(graph: Graph, student: FoldedStudent, prefix: str = "") -> tuple[str, str]:
    """Add a folded student that reads "features" [n, sum of dims] and "present" [n or 1, N].

    Args:
        graph: what it is added to.
        student: the student.
        prefix: of the names of its tensors.

    Returns the names of its logits [n, C] and of its shares [n, N].
    """
    tokens, visible = _tokens(graph, student, prefix)
    pooled, shares = _attend(graph, student, tokens, prefix)
    hidden = _linear(graph, pooled, student.head_weight_1, student.head_bias_1, f"{prefix}head_1")
    ones = graph.constant(np.ones(student.head_bias_1.shape[0], _array(student.head_bias_1).dtype))
    hidden = graph.run("LayerNormalization", graph.run("Relu", hidden), ones, axis=-1, epsilon=EPSILON)
    logits = _linear(graph, hidden, student.head_weight_2, student.head_bias_2, f"{prefix}head_2")
    if student.votes is None:
        return logits, shares
    weight = graph.constant(_array(student.votes.weight), f"{prefix}votes.weight")  # [N, D, C]
    bias = graph.constant(_array(student.votes.bias)[:, None], f"{prefix}votes.bias")  # [N, 1, C]
    by_teacher = graph.run("Transpose", tokens, perm=[1, 0, 2])  # [N, n, D]
    votes = graph.run("Add", graph.run("MatMul", by_teacher, weight), bias)
    votes = graph.run("Where", visible, graph.run("Transpose", votes, perm=[1, 0, 2]), _zero(graph, student))
    return graph.run("Add", logits, graph.run("ReduceMean", votes, axes=[1], keepdims=0)), shares


def _tokens(graph: Graph, student: FoldedStudent, prefix: str) -> tuple[str, str]:
    """Tokens [n, N, D], 0 of missing teachers, and "present" as [n or 1, N, 1]."""
    last = graph.constant([2], "axis_2", np.int64)
    visible = graph.run("Unsqueeze", "present", last)
    tokens = []
    ends = list(accumulate(student.dims))
    for i, (name, end, dim) in enumerate(zip(student.config.teachers, ends, student.dims, strict=True)):
        here = slice(end - dim, end)
        axis = graph.constant([1], "axis_1", np.int64)
        limits = [graph.constant([number], dtype=np.int64) for number in (here.start, here.stop)]
        mean = graph.constant(_array(student.shift)[here], f"{prefix}feature_mean.{name}")
        centred = graph.run("Sub", graph.run("Slice", "features", *limits, axis), mean)
        token = _linear(graph, centred, student.weight[here], student.bias[i], f"{prefix}projection.{name}")
        tokens.append(graph.run("Unsqueeze", token, axis))
    whole = graph.run("Concat", *tokens, axis=1)
    return graph.run("Where", visible, whole, _zero(graph, student)), visible  # not even a NaN of a missing one is left


def _attend(graph: Graph, student: FoldedStudent, tokens: str, prefix: str) -> tuple[str, str]:
    """w T [n, D] and the shares w [n, N]: M_l = softmax(M_{l-1} (T B_l T^T) M_{l-1}^T) M_{l-1}, w = mean M_K."""
    D = student.value_map.shape[0]
    turned, M = graph.run("Transpose", tokens, perm=[0, 2, 1]), ""
    columns = graph.run("Unsqueeze", "present", graph.constant([1], "axis_1", np.int64))  # [n or 1, 1, N]
    never = graph.constant(-np.inf, "never", _array(student.shift).dtype)
    for layer, score_map in enumerate(student.score_maps.split(D, dim=1)):
        left = graph.run("MatMul", tokens, graph.constant(_array(score_map), f"{prefix}score_map.{layer}"))
        scores = graph.run("MatMul", left, turned)  # [n, N, N]
        if M:
            scores = graph.run("MatMul", graph.run("MatMul", M, scores), graph.run("Transpose", M, perm=[0, 2, 1]))
        weights = graph.run("Softmax", graph.run("Where", columns, scores, never), axis=-1)
        M = graph.run("MatMul", weights, M) if M else weights
    count_of = graph.run("Cast", columns, to=_onnx_type(_array(student.shift)))
    total = graph.run("ReduceSum", count_of, graph.constant([2], "axis_2", np.int64), keepdims=1)
    w = graph.run("MatMul", graph.run("Div", count_of, total), M)  # [n, 1, N]
    axis = graph.constant([1], "axis_1", np.int64)
    return graph.run("Squeeze", graph.run("MatMul", w, tokens), axis), graph.run("Squeeze", w, axis)


def _linear(graph: Graph, x: str, weight: Tensor, bias: Tensor, name: str) -> str:
    product = graph.run("MatMul", x, graph.constant(_array(weight), f"{name}.weight"))
    return graph.run("Add", product, graph.constant(_array(bias), f"{name}.bias"))


def _zero(graph: Graph, student: FoldedStudent) -> str:
    return graph.constant(0, "zero", _array(student.shift).dtype)


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return array


def _onnx_type(array: NDArray[Any]) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
