"""torch.empty with a fill pattern and a redzone, so that uninitialised and out-of-bounds reads are detected."""

import ctypes
import weakref
from typing import Any

import numpy as np
import torch

REDZONE = 256  # bytes before and after


class Store:
    """Memory of one torch.empty: its pattern, and a map of the bytes that were written. Does not keep it alive."""

    def __init__(self, nbytes: int) -> None:
        raw = (ctypes.c_uint8 * (nbytes + 2 * REDZONE))()
        address = ctypes.addressof(raw)
        self.offset = -address % REDZONE or REDZONE
        self.base, self.nbytes = address + self.offset, nbytes
        self.raw = weakref.ref(raw)
        whole = np.frombuffer(raw, np.uint8)
        words = np.arange(len(whole) // 4 + 1, dtype=np.uint32) * np.uint32(2654435761) ^ np.uint32(0x7FC5A5A5)
        self.pattern = words.view(np.uint8)[: len(whole)].copy()
        whole[:] = self.pattern
        self.written = np.zeros(nbytes, np.uint8)
        self.array = whole[self.offset : self.offset + nbytes]  # taken by the caller

    def changed(self) -> np.ndarray:
        return np.frombuffer(self.raw(), np.uint8) != self.pattern

    def refresh(self) -> None:
        """Bytes of words that no longer have their pattern were written by the host."""
        changed = self.changed()
        words = np.zeros(-len(changed) % 4 + len(changed), bool)
        words[: len(changed)] = changed
        changed = np.repeat(words.reshape(-1, 4).any(1), 4)[: len(changed)]
        self.written |= changed[self.offset : self.offset + self.nbytes]

    def redzone_broken(self) -> bool:
        changed = self.changed()
        return bool(changed[: self.offset].any() or changed[self.offset + self.nbytes :].any())


_stores: dict[int, Store] = {}
_empty, _empty_like = torch.empty, torch.empty_like


def store_at(address: int) -> Store | None:
    found = _stores.get(address)
    if found is not None and found.raw() is None:
        del _stores[address]
        return None
    return found


def empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None, **rest: Any) -> torch.Tensor:
    if len(size) == 1 and not isinstance(size[0], int):
        size = tuple(size[0])
    dtype = dtype or torch.get_default_dtype()
    numel = int(np.prod(size, dtype=np.int64)) if size else 1
    unusual = {k for k, v in rest.items() if v not in (None, False) and not (k == "layout" and v is torch.strided)}
    if unusual or (device is not None and torch.device(device).type != "cpu") or numel == 0:
        return _empty(*size, dtype=dtype, device=device, **rest)
    store = Store(numel * dtype.itemsize)
    _stores[store.base] = store
    if len(_stores) > 4096:
        for address in [a for a, s in _stores.items() if s.raw() is None]:
            del _stores[address]
    return torch.from_numpy(store.__dict__.pop("array")).view(dtype).view(size)


def patch() -> None:
    """torch.empty, torch.empty_like and Tensor.new_empty give such memory from now on."""
    torch.empty = empty
    torch.empty_like = lambda t, **kw: (
        empty(*t.shape, **{"dtype": t.dtype, **kw}) if t.is_contiguous() else _empty_like(t, **kw)
    )
    torch.Tensor.new_empty = lambda t, *size, dtype=None, device=None, **kw: empty(*size, dtype=dtype or t.dtype)
