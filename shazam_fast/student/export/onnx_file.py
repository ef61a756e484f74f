"""Export of a student to ONNX, which ONNX Runtime and other programs run without PyTorch."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import __version__
from ...errors import ShazamError
from ...runtime.checks import require_path
from ...runtime.files import write_durably
from ..ensemble import FoldedEnsemble
from ..folded import FoldedStudent
from ..loading import load_student
from ..student import Student
from .graph import OPSET, Graph, add_student

FORMAT, VERSION = "shazam_fast student", 1
IR_VERSION = 8  # of the file's format: the one that came with the opset
ANY = "patches"  # name of the first dimension
STANDARDISATION = (
    "in the graph: features go in as the teachers gave them; the means are subtracted (feature_mean.<teacher>), the "
    "scales are part of projection.<teacher>.weight"
)


# Over 40 lines with what it documents.
def export_onnx(student: Student | str | Path, path: str | Path) -> Path:
    """Write the folded student as an ONNX file.

    Inputs: "features" [n, sum of dims], the teachers side by side as they gave them (not standardised), in the
    student's dtype; "present" bool [n, N], which teachers a patch has, at least one each. Without "present" every patch
    has all. Outputs: "probabilities" [n, C], "logits" [n, C], "shares" [n, N].

    The file's metadata has `format`, `version`, `written_by`, and as JSON `teachers` {name: columns}, `classes`,
    `standardisation`, `teacher_dropout` and `teacher_records` (transform, pooling and revision, as far as known).

    Args:
        student: a student or an ensemble, all bare, or where it was saved.
        path: the file, usually called .onnx; a file there is replaced.

    Returns the file.

    Raises:
        ShazamError: the package onnx is missing; a student that does not fold (all but bare), or is neither float32 nor
            float64; the file cannot be written.
        ArchiveError: the saved student is missing or damaged.

    >>> import tempfile, shazam_fast as sf
    >>> student = sf.Student(sf.StudentConfig({"uni": 8, "gigapath": 6}, ("normal", "tumour"), dim=8, depth=1))
    >>> file = sf.export_onnx(student, f"{tempfile.mkdtemp()}/student.onnx")
    >>> import onnx
    >>> [value.name for value in onnx.load(file).graph.output]
    ['probabilities', 'logits', 'shares']
    """
    path = require_path("path", path)
    try:
        import onnx
        from onnx import helper
    except ImportError:
        raise ShazamError("export to ONNX needs the package onnx: pip install 'shazam_fast[onnx]'") from None
    student = load_student(student)
    if student.config.block != "bare":
        raise ShazamError(
            f"only bare students fold and can be exported, this one is {student.config.block!r}; train one with "
            "block='bare' (--block bare)"
        )
    folded = student.fold()
    members = folded.folded if isinstance(folded, FoldedEnsemble) else [folded]
    dtype = members[0].weight.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ShazamError(f"a float32 or float64 student can be exported, this one is {dtype}; give student.float()")
    model = helper.make_model(
        _graph(members), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="shazam_fast", producer_version=__version__,
    )  # fmt: skip
    helper.set_model_props(model, _metadata(student))
    onnx.checker.check_model(model, full_check=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, model.SerializeToString())
    except OSError as error:
        raise ShazamError(f"{path}: cannot be written: {error}; choose another place") from error
    return path


def _graph(members: list[FoldedStudent]) -> Any:
    """The graph whose softmax of the logits is the mean of the members' softmax."""
    from onnx import TensorProto, helper

    config, graph = members[0].config, Graph()
    N, C = len(config.teachers), len(config.classes)
    like = members[0].shift.detach().cpu().numpy()
    graph.constant(np.ones((1, N), dtype=np.bool_), "present")  # the input's value where none is given
    prefixes = [f"member_{index}." if len(members) > 1 else "" for index in range(len(members))]
    found = [add_student(graph, member, prefix) for member, prefix in zip(members, prefixes, strict=True)]
    if len(found) == 1:
        graph.run("Identity", found[0][0], name="logits")
        graph.run("Identity", found[0][1], name="shares")
    else:
        logs = _stack(graph, [graph.run("LogSoftmax", logits, axis=-1) for logits, _ in found])
        total = graph.run("ReduceLogSumExp", logs, axes=[0], keepdims=0)
        graph.run("Sub", total, graph.constant(math.log(len(found)), dtype=like.dtype), name="logits")
        graph.run("ReduceMean", _stack(graph, [shares for _, shares in found]), name="shares", axes=[0], keepdims=0)
    graph.run("Softmax", "logits", name="probabilities", axis=-1)
    kind = TensorProto.FLOAT if like.dtype == np.float32 else TensorProto.DOUBLE
    inputs = [
        helper.make_tensor_value_info("features", kind, [ANY, sum(members[0].dims)]),
        helper.make_tensor_value_info("present", TensorProto.BOOL, ["patches_or_1", N]),
    ]
    widths = {"probabilities": C, "logits": C, "shares": N}
    return graph.finish(inputs, [helper.make_tensor_value_info(n, kind, [ANY, w]) for n, w in widths.items()])


def _stack(graph: Graph, names: list[str]) -> str:
    """Values of one shape along a new first axis."""
    axis = graph.constant([0], "axis_0", np.int64)
    return graph.run("Concat", *(graph.run("Unsqueeze", name, axis) for name in names), axis=0)


def _metadata(student: Student) -> dict[str, str]:
    config = student.config
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "written_by": f"shazam_fast {__version__}",
        "teachers": json.dumps(dict(config.teachers)),
        "classes": json.dumps(list(config.classes)),
        "standardisation": json.dumps(STANDARDISATION),
        "teacher_dropout": json.dumps(config.teacher_dropout),
        "teacher_records": json.dumps(student.training_record.get("teachers", {})),
    }
