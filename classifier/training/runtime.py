"""What both training loops need: signals, seeds, bfloat16 support, allocator settings, batch norm of a small batch."""

import ctypes
import hashlib
import signal
import sys

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def any_process(caught: bool) -> bool:
    """Whether any process caught a signal; every process has to call this, and gets the same answer."""
    state = PartialState()
    if state.num_processes == 1:
        return caught
    return bool(reduce(torch.tensor(float(caught), device=state.device), reduction="sum"))


def seeded_generator(seed: int, purpose: str, counter: int = 0) -> torch.Generator:
    """A CPU generator for each (seed, purpose, counter), so that any step can be repeated by itself."""
    digest = hashlib.sha256(f"{seed} {purpose} {counter}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices in bfloat16 natively, so that autocast makes it faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def prepare_batch_norm(model: nn.Module, n: int) -> None:
    """Lets batch norm use the statistics of a batch of n images, or its running ones if n is 1: one has no variance."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train(n > 1)


class StopSignal:
    """Within this context SIGINT and SIGTERM set `caught`, so that the current step is finished and saved."""

    caught = False

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number, frame) -> None:
        self.caught = True


def keep_freed_memory() -> None:
    """Makes glibc, where it is used, keep freed blocks instead of returning them to the kernel.

    Activations are large blocks, which glibc maps and unmaps at each allocation; the page faults cost a fifth of a
    training step on the CPU. The price is a resident size that stays at its peak.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, -1)  # never: activations exceed the 2 GB that an int can hold
