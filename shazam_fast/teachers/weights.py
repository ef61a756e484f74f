"""Weights of teachers: from the hub, with the user's token, or from a local file; read without executing anything."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArchiveError, MismatchError, ShazamError
from ..runtime.files import open_regular
from ..runtime.tensors import read_tensors
from .spec import TeacherSpec

WRAPPERS = ("model", "state_dict", "teacher")  # keys under which checkpoints keep the weights
PREFIXES = ("module.", "backbone.")  # of DataParallel and of DINO checkpoints
LEFT_OUT = ("head.", "fc.", "mask_token")  # of a classifier or of pre-training: no part of the feature
NAMED = 5  # tensors that a message names


def fetch(spec: TeacherSpec, token: str | None) -> tuple[Path, str]:
    """The weights' file in the hub's cache, downloaded if need be, and the commit that it is from.

    Raises ShazamError when it cannot be downloaded; the message names the gate, the licence and what to do.
    """
    if spec.hub is None:
        raise ShazamError(
            f"teacher {spec.name!r} has no repository on the hub; give weights= a local file, or 'random'"
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise ShazamError(
            f"teacher {spec.name!r}: its download needs huggingface_hub: pip install 'shazam_fast[teachers]'"
        ) from None
    problem: Exception | None = None
    for name in spec.files:
        offline = isinstance(problem, LocalEntryNotFoundError)  # no network, and the file before is not in the cache
        try:
            path = Path(hf_hub_download(spec.hub, name, token=token, local_files_only=offline))
            return path, path.parent.name  # .../snapshots/<commit>/<file>
        except EntryNotFoundError as error:
            problem = problem if offline else error
        except (OSError, ValueError) as error:
            problem = error
            break
    raise ShazamError(_not_downloaded(spec, problem))


def load_weights(model: nn.Module, path: Path, spec: TeacherSpec) -> tuple[nn.Module, Path]:
    """The model filled from a file, or from a directory that holds one of `spec.files`; and the file.

    Raises ArchiveError when it is missing, corrupt or would execute code; MismatchError, naming the first tensors,
    when names or shapes are not the model's.
    """
    file = next((path / name for name in spec.files if (path / name).exists()), None) if path.is_dir() else path
    if file is None:
        raise ArchiveError(f"teacher {spec.name!r}: {path} holds no {' or '.join(spec.files)}", "missing")
    found = _bare(_read(file))
    if spec.library == "transformers":
        model, missing, extra, misfits = _fill_transformers(model, found)
    else:
        missing, extra, misfits = _compare(model.state_dict(), found)
    if missing or extra or misfits:
        parts = (_list("missing", missing), _list("unexpected", extra), _list("of another shape", misfits))
        raise MismatchError(f"{file}: not the weights of teacher {spec.name!r}: {'; '.join(filter(None, parts))}")
    if spec.library != "transformers":
        model.load_state_dict({name: found[name] for name in model.state_dict()})
    return model, file


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    open_regular(path).close()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArchiveError(
            f"{path}: refused: it holds more than tensors, and reading that could execute code; save its state_dict "
            f"as safetensors ({str(error).splitlines()[0]})",
            "unsupported",
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ArchiveError(f"{path}: truncated or corrupt: {error}") from None


def _bare(content: Any) -> dict[str, Tensor]:
    """The state_dict inside a checkpoint, without the prefixes of training wrappers."""
    wrapper = next((key for key in WRAPPERS if isinstance(content, Mapping) and key in content), None)
    tensors = content[wrapper] if wrapper is not None and isinstance(content[wrapper], Mapping) else content
    if not isinstance(tensors, Mapping):
        raise MismatchError(f"weights: a mapping of names to tensors expected, found {type(tensors).__name__}")
    found = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    for prefix in PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, unexpected, and of another shape."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted and not name.startswith(LEFT_OUT)]
    both = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    return missing, extra, [f"{name} {list(found[name].shape)}, not {list(wanted[name].shape)}" for name in both]


def _fill_transformers(model: nn.Module, found: dict[str, Tensor]) -> tuple[nn.Module, list[str], list[str], list[str]]:
    """The same through transformers, which renames the tensors of older releases."""
    filled, info = type(model).from_pretrained(  # type: ignore[attr-defined]
        None, config=model.config, state_dict=found, output_loading_info=True, ignore_mismatched_sizes=True
    )
    misfits = [f"{name} {list(is_)}, not {list(wanted)}" for name, is_, wanted in info["mismatched_keys"]]
    return filled, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), sorted(misfits)


def _list(what: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {what} ({', '.join(names[:NAMED])}{more})" if names else ""


def _not_downloaded(spec: TeacherSpec, problem: Exception | None) -> str:
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    gate = (
        f"it is gated: accept its terms ({spec.licence}) at https://huggingface.co/{spec.hub}, then `hf auth login` "
        "or give token="
        if spec.gated
        else f"it is open ({spec.licence}) at https://huggingface.co/{spec.hub}"
    )
    return (
        f"teacher {spec.name!r}: could not download {' or '.join(spec.files)} of {spec.hub} from Hugging Face "
        f"({reason}). "
        f"Online, {gate}. Without a network, fetch the file elsewhere and build it with weights= its path"
    )
