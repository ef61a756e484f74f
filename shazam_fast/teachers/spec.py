"""How a teacher is described: its architecture, weights, pooling rule and licence. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ShazamError
from ..runtime.checks import require_choice, require_count
from .transform import DEFAULT_TRANSFORM, Transform

LIBRARIES = ("timm", "transformers", "torch")
POOLINGS = ("cls", "cls+mean", "model")
PRECISIONS = ("float16", "bfloat16", "float32")
TRANSFORMS = ("own", "imagenet")


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher: a timm model, a transformers vision model, or a callable that makes a torch module.

    Args:
        name: the teacher's name in archives and students; it tells the pooling where tools differ in it.
        dim: number of columns of its feature.
        hub: "owner/name" of the repository on the Hugging Face hub that has its weights.
        library: "timm" (arguments of `timm.create_model`, layers by their name in timm.layers or torch.nn),
            "transformers" (arguments of `AutoConfig.for_model`) or "torch" (`create`, called without arguments).
        arguments: what the library creates the model from, by name.
        transform: how an image becomes its input.
        pooling: "cls" (first token after the final norm), "cls+mean" (with the mean of the patch tokens beside it) or
            "model" (the module's own output [B, dim]).
        prefix_tokens: number of tokens before those of the patches: CLS and registers.
        precision: "float16", "bfloat16" or "float32", of autocast on a GPU, as its authors recommend.
        blocks: number of transformer blocks, checked when the model is built; 0 if unknown.
        levels: 0-indexed blocks whose CLS token is the early ("low") and middle ("mid") feature.
        gated: whether the hub asks for an accepted licence and a token.
        licence: licence of the weights.
        covers_derivatives: the terms also cover models trained on the teacher's outputs, such as a student. False:
            no such clause is known. Read the terms before you share a student.
        gflops: 10^9 floating-point operations for one image, a multiplication and an addition being two; 0 if unknown.
        files: names that the weights' file may have on the hub; the first that exists is taken.

    Raises ShazamError naming the first field that is out of range or unknown.

    >>> TeacherSpec("tiny", dim=192, arguments={"model_name": "vit_tiny_patch16_224"}).pooling
    'cls'
    >>> TeacherSpec("mine", dim=512, library="torch", pooling="model", arguments={"create": lambda: model}).licence
    'unknown'
    """

    name: str
    dim: int
    hub: str | None = None
    library: str = "timm"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    transform: Transform = DEFAULT_TRANSFORM
    pooling: str = "cls"
    prefix_tokens: int = 1
    precision: str = "float32"
    blocks: int = 0
    levels: tuple[int, int] | None = None
    gated: bool = False
    licence: str = "unknown"
    covers_derivatives: bool = False
    gflops: float = 0.0
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")

    def __post_init__(self) -> None:
        where = f"teacher {self.name!r}: "
        if not isinstance(self.name, str) or not self.name or ":" in self.name:
            raise ShazamError(f"{where}a name without ':' expected (that sign marks levels)")
        for what, allowed in (("library", LIBRARIES), ("pooling", POOLINGS), ("precision", PRECISIONS)):
            require_choice(where + what, getattr(self, what), allowed)
        for what, least in (("dim", 1), ("prefix_tokens", 0), ("blocks", 0)):
            object.__setattr__(self, what, require_count(where + what, getattr(self, what), least))
        if self.levels is not None and not 0 <= self.levels[0] < self.levels[1] < self.blocks:
            raise ShazamError(
                f"teacher {self.name!r}: levels 0 <= early < middle < blocks expected, "
                f"found {self.levels} of {self.blocks} blocks"
            )

    def chosen_transform(self, choice: str = "own") -> Transform:
        """The transform that a teacher is run with.

        Args:
            choice: "own", the teacher's; or "imagenet", what the released Shazam scripts apply to every model:
                ImageNet statistics and a bilinear resize of both sides to the input size.

        Raises ShazamError for another choice.

        >>> TeacherSpec("tiny", dim=192).chosen_transform("imagenet").interpolation
        'bilinear'
        """
        require_choice("transform", choice, TRANSFORMS)
        return self.transform if choice == "own" else Transform(self.transform.size, None, interpolation="bilinear")
