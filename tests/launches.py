"""What a GPU would launch, counted without one: kernels in Triton's interpreter, and operations of PyTorch's."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Neither computes nor copies anything.
NOTHING = {
    "view", "detach", "slice", "select", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze", "split",
    "alias", "split_with_sizes", "unbind", "as_strided", "_unsafe_view", "_reshape_alias", "empty", "empty_like",
    "new_empty", "empty_strided", "new_empty_strided", "resize_", "set_", "lift_fresh",
    "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip


class _Operations(TorchDispatchMode):
    """Adds the names of operations that launch at least one kernel on a GPU."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in NOTHING:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def recorded(monkeypatch):
    """The names of all that is launched within, in order."""
    from triton.runtime.interpreter import GridExecutor

    names, run = [], GridExecutor.__call__

    def note(self, *args, **kwargs):
        names.append(self.fn.__name__)
        with torch._C._DisableTorchDispatch():  # what the interpreter itself does is no launch
            return run(self, *args, **kwargs)

    with monkeypatch.context() as patch, _Operations(names):
        patch.setattr(GridExecutor, "__call__", note)
        yield names
