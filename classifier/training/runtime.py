"""What training needs of the process and the machine: signals, seeds, bfloat16 support, allocator settings."""

import ctypes
import hashlib
import signal
import sys

import torch
from accelerate import PartialState
from accelerate.utils import reduce

pass


def any_process(caught: bool) -> bool:
    """Whether any process was told to stop. All have to ask, and get the same answer."""
    state = PartialState()
    if state.num_processes == 1:
        return caught
    return bool(reduce(torch.tensor(float(caught), device=state.device), reduction="sum"))


def seeded_generator(seed: int, purpose: str, counter: int = 0) -> torch.Generator:
    """A CPU generator of its own for each (seed, purpose, counter): what makes any step repeatable by itself."""
    digest = hashlib.sha256(f"{seed} {purpose} {counter}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices in bfloat16 natively, so that autocast makes it faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


class StopSignal:
    """Within this context SIGINT and SIGTERM set `caught`, so that the step at hand is finished and saved."""

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
    """Tells glibc to keep freed blocks instead of handing them back to the kernel, where it is glibc.

    Activations are large blocks, which glibc maps and unmaps anew at each allocation; the page faults of that cost a
    fifth of a training step on the CPU. Costs nothing but a resident size that stays at its peak.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, -1)  # never; activations are more than the 2 GB that an int can say
