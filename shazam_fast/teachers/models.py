"""Teachers as torch modules: created from the arguments of their spec, with weights from the hub, a file or chance."""

from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MismatchError, ShazamError
from ..runtime.products import ONEDNN_PRODUCTS, onednn_linear
from .registry import get_teacher
from .spec import TeacherSpec
from .transform import Transform
from .weights import fetch, load_weights, sha256

LAYER_ARGUMENTS = ("mlp_layer", "act_layer", "norm_layer")  # given by name; timm wants the class
RANDOM_SEED = 0


class Teacher(nn.Module):
    """A frozen teacher in evaluation mode.

    An archive records its `spec`, `transform` (how images become its input) and `revision` (the hub's commit,
    "sha256:..." of a local file, "random" or "callable").
    """

    def __init__(self, spec: TeacherSpec, model: nn.Module, transform: Transform, revision: str) -> None:
        super().__init__()
        self.spec, self.transform, self.revision = spec, transform, revision
        self.model = model
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, dim], in one forward pass."""
        output = self._forward(images)
        features = output if self.spec.pooling == "model" else pool(output, self.spec)
        if features.shape != (len(images), self.spec.dim):
            raise MismatchError(
                f"teacher {self.spec.name!r}: features [{len(images)}, {self.spec.dim}] expected, "
                f"found {list(features.shape)}"
            )
        return features

    def multi_level(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> {"low", "mid": CLS [B, width] of the early and middle block, "high": `features`}.

        One forward pass. Low and mid are taken from the blocks' raw outputs, before the final norm. Raises
        ShazamError when the spec does not say which blocks.
        """
        if self.spec.levels is None:
            raise ShazamError(f"teacher {self.spec.name!r}: its spec names no early and middle block (levels)")
        blocks = find_blocks(self.model, self.spec)
        taken: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for level, index in zip(("low", "mid"), self.spec.levels, strict=True):
                handle = blocks[index].register_forward_hook(partial(_take_cls, taken, level))
                hooks.callback(handle.remove)
            high = self.features(images)
        return {**taken, "high": high}

    def forward(self, images: Tensor) -> Tensor:
        """The same as `features`."""
        return self.features(images)

    def _forward(self, images: Tensor) -> Tensor:
        if self.spec.pooling == "model" or self.spec.library == "torch":
            output = self.model(images)
        elif self.spec.library == "timm":
            output = self.model.forward_features(images)  # type: ignore[operator]
        else:
            output = self.model(pixel_values=images).last_hidden_state
        if not isinstance(output, Tensor):
            raise MismatchError(f"teacher {self.spec.name!r}: a tensor expected, found {type(output).__name__}")
        return output


def pool(tokens: Tensor, spec: TeacherSpec) -> Tensor:
    """Tokens after the final norm [B, T, D] -> the feature [B, dim] by the spec's rule."""
    if tokens.ndim != 3 or tokens.shape[1] <= spec.prefix_tokens:
        raise MismatchError(
            f"teacher {spec.name!r}: tokens [B, T > {spec.prefix_tokens}, D] expected for pooling "
            f"{spec.pooling!r}, found {list(tokens.shape)}"
        )
    if spec.pooling == "cls":
        return tokens[:, 0]  # [B, D]
    return torch.cat([tokens[:, 0], tokens[:, spec.prefix_tokens :].mean(dim=1)], dim=1)  # [B, 2 D]


def find_blocks(model: nn.Module, spec: TeacherSpec) -> nn.ModuleList | nn.Sequential:
    """The transformer blocks: the first list of `spec.blocks` modules of one type. Raises MismatchError if none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    lists = [blocks for blocks in lists if len({type(block) for block in blocks}) == 1]
    found = next((blocks for blocks in lists if len(blocks) == spec.blocks), None)
    if found is None:
        raise MismatchError(
            f"teacher {spec.name!r}: a list of {spec.blocks} blocks expected, "
            f"found lists of {sorted({len(blocks) for blocks in lists})}"
        )
    return found


# Over 40 lines: every option is documented here.
def load_teacher(
    teacher: str | TeacherSpec, weights: str | Path = "hub", token: str | None = None, transform: str = "own"
) -> Teacher:
    """Create a teacher's model, load its weights and freeze it.

    Args:
        teacher: a name (`list_teachers` has all) or a spec.
        weights: "hub" downloads them (or takes them from the hub's cache), "random" draws them, the same on every
            call; else a local file (safetensors or torch.save) or, for transformers, its directory.
        token: access token of the Hugging Face hub; by default the one that `hf auth login` stored.
        transform: "own", the teacher's own; "imagenet", ImageNet statistics and a bilinear resize for every teacher,
            as in the authors' scripts.

    Returns the teacher on the CPU, in float32, in evaluation mode.

    Raises:
        ShazamError: a missing package; weights that cannot be downloaded (the message names gate, licence
            and what to do); a "torch" teacher without its callable. The code of conch-v1.5 lies in the hub's
            repository. This package does not run code from there; these lines do:

                titan = transformers.AutoModel.from_pretrained("MahmoodLab/TITAN", trust_remote_code=True)
                arguments = {"create": lambda: titan.return_conch()[0]}
                sf.register_teacher(dataclasses.replace(sf.get_teacher("conch-v1.5"), arguments=arguments))
        ArchiveError: a weights file that is missing, corrupt, or would execute code.
        MismatchError: weights whose names or shapes do not fit; a model that is not what the spec says.

    >>> import torch, shazam_fast as sf
    >>> create = {"create": torch.nn.Identity}
    >>> spec = sf.TeacherSpec("mine", dim=3, library="torch", pooling="model", arguments=create)
    >>> sf.load_teacher(spec).features(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    spec = get_teacher(teacher) if isinstance(teacher, str) else teacher
    chosen = spec.chosen_transform(transform)
    if spec.library == "torch":
        model, revision = _call(spec, weights), "callable"
    elif weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model, revision = create(spec), "random"
    else:
        path, revision = fetch(spec, token) if weights == "hub" else (Path(weights), "")
        model, file = load_weights(create(spec), path, spec)
        revision = revision or f"sha256:{sha256(file)}"
    if spec.blocks:
        find_blocks(model, spec)
    return Teacher(spec, model.float(), chosen, revision)


def create(spec: TeacherSpec) -> nn.Module:
    """The architecture from the registry's arguments, weights as its library initialises them."""
    arguments = dict(spec.arguments)
    try:
        if spec.library == "timm":
            import timm

            named = {key: _layer(arguments[key]) for key in LAYER_ARGUMENTS if key in arguments}
            return timm.create_model(**{"num_classes": 0, **arguments, **named})
        from transformers import AutoConfig, AutoModel

        return AutoModel.from_config(AutoConfig.for_model(**arguments))  # type: ignore[no-any-return, no-untyped-call]
    except ImportError as error:
        raise ShazamError(
            f"teacher {spec.name!r} needs {spec.library}: pip install 'shazam_fast[teachers]' ({error})"
        ) from None
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ShazamError(
            f"teacher {spec.name!r}: {spec.library} cannot create it from {arguments}: {error}"
        ) from error


def _call(spec: TeacherSpec, weights: str | Path) -> nn.Module:
    if "create" not in spec.arguments:
        raise ShazamError(
            f"teacher {spec.name!r}: the code of its model lies in the hub's repository ({spec.hub}, gated, "
            f"{spec.licence}) and is not run from here; give it as a callable, see sf.load_teacher for the lines"
        )
    if weights not in ("hub", "random"):
        raise ShazamError(f"teacher {spec.name!r}: its callable brings its own weights, {weights} cannot be loaded")
    model = spec.arguments["create"]()
    if not isinstance(model, nn.Module):
        raise MismatchError(f"teacher {spec.name!r}: create() must return a torch module, found {type(model).__name__}")
    return model


def _layer(given: Any) -> Any:
    """The class that a layer's name means."""
    if not isinstance(given, str):
        return given
    for home in ("timm.layers", "torch.nn"):
        if layer := getattr(import_module(home), given, None):
            return layer
    raise ValueError(f"no layer of timm.layers or torch.nn is called {given!r}")


def _take_cls(taken: dict[str, Tensor], level: str, module: nn.Module, inputs: Any, output: Any) -> None:
    tokens = output[0] if isinstance(output, tuple) else output  # [B, T, D]
    taken[level] = tokens[:, 0]


def prepare(teacher: Teacher, device: torch.device) -> Teacher:
    """The teacher on its device.

    On a GPU the matrices are stored in the precision of autocast, which rounds them anew in every pass otherwise (it
    keeps only those that are trained): the same bits for less work. On AMD's processors products go through oneDNN.
    """
    dtype, enabled = autocast_of(teacher, device)
    if enabled:
        cast_matrices(teacher, dtype)
    elif device.type == "cpu" and ONEDNN_PRODUCTS:
        multiply_with_onednn(teacher)
    return teacher.to(device)


def autocast_of(teacher: Teacher, device: torch.device) -> tuple[torch.dtype, bool]:
    """The dtype that a teacher is to run in, and whether autocast is needed for that: only on a GPU."""
    dtype: torch.dtype = getattr(torch, teacher.spec.precision)
    return dtype, device.type == "cuda" and dtype != torch.float32


def cast_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    """Store in `dtype` the weights that autocast rounds to it."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def multiply_with_onednn(model: nn.Module) -> None:
    """Have a model's linear layers multiply through oneDNN: up to twice as fast where MKL leaves AVX-512 unused."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            module.forward = partial(_linear, module)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return onednn_linear(x, layer.weight, layer.bias)
