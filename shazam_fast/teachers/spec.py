"""How a teacher is described: its architecture, weights, pooling rule and licence. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ShazamError
from .transform import DEFAULT_TRANSFORM, Transform

LIBRARIES = ("timm", "transformers", "torch")
POOLINGS = ("cls", "cls+mean", "model")
PRECISIONS = ("float16", "bfloat16", "float32")
TRANSFORMS = ("own", "imagenet")


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher: any timm model, any transformers vision model, or any callable that makes a torch module.

        sf.register_teacher(sf.TeacherSpec("tiny", dim=192, arguments={"model_name": "vit_tiny_patch16_224"}))
        sf.register_teacher(sf.TeacherSpec("mine", dim=512, library="torch", pooling="model",
                                           arguments={"create": make_my_model}))

    Args:
        name: of the teacher in archives and students; says the pooling rule where tools disagree.
        dim: columns of its feature.
        hub: "owner/name" on the Hugging Face hub, where its weights are.
        library: "timm" (arguments of `timm.create_model`, layers by their name in timm.layers or torch.nn),
            "transformers" (arguments of `AutoConfig.for_model`) or "torch" (`create`, called without arguments).
        arguments: the arguments of whatever creates the model, architecture included.
        transform: how an image becomes its input.
        pooling: "cls" (first token after the final norm), "cls+mean" (with the mean of the patch tokens beside it) or
            "model" (the module's own output [B, dim]).
        prefix_tokens: CLS and registers, which are no patches.
        precision: of autocast on a GPU, as its authors recommend.
        blocks: transformer blocks, checked when it is built. 0: unknown.
        levels: 0-indexed blocks whose CLS token is the early ("low") and middle ("mid") feature.
        gated: the hub asks for an accepted licence and a token.
        licence: of the weights.
        covers_derivatives: the terms also cover models trained on the teacher's outputs, such as a student. False:
            no such clause is known. Read the terms before you share a student.
        files: names of the weights' file on the hub, the first that exists is taken.

    Raises ShazamError for a field that cannot be.
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
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")

    def __post_init__(self) -> None:
        for what, allowed in (("library", LIBRARIES), ("pooling", POOLINGS), ("precision", PRECISIONS)):
            if (found := getattr(self, what)) not in allowed:
                raise ShazamError(f"teacher {self.name!r}: {what}: one of {allowed} expected, found {found!r}")
        if not self.name or ":" in self.name or self.dim < 1 or self.prefix_tokens < 0:
            raise ShazamError(
                f"teacher {self.name!r}: a name without ':' (kept for levels), dim >= 1 and prefix_tokens >= 0 "
                f"expected, found dim {self.dim} and prefix_tokens {self.prefix_tokens}"
            )
        if self.levels is not None and not 0 <= self.levels[0] < self.levels[1] < self.blocks:
            raise ShazamError(
                f"teacher {self.name!r}: levels 0 <= early < middle < blocks expected, "
                f"found {self.levels} of {self.blocks} blocks"
            )

    def chosen_transform(self, choice: str = "own") -> Transform:
        """The teacher's own transform, or "imagenet": what the released Shazam scripts apply to every model.

        That is ImageNet statistics and a plain, bilinear resize of both sides to the input size.
        """
        if choice not in TRANSFORMS:
            raise ShazamError(f"transform: one of {TRANSFORMS} expected, found {choice!r}")
        return self.transform if choice == "own" else Transform(self.transform.size, None, interpolation="bilinear")
