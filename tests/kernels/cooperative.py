"""A grid whose programs run at the same time, on a CPU: in the emulator, or in Triton's interpreter with a thread per
program.

The interpreter runs programs one after another, so a barrier among them would spin for ever. It uses private parts of
Triton: a tool of the tests, for Triton 3.6 to 3.9.
"""

import inspect
import random
import threading
import time
from typing import Any

from launchers import EMULATED, emulator
from triton.runtime import interpreter

from vitcop_kernels._triton import launch


class Deadlock(RuntimeError):
    """Programs were still waiting for others when the time was up."""


class _ThreadedBuilder(interpreter.InterpreterBuilder):
    _of_thread = threading.local()
    stop = threading.Event()

    @property
    def grid_idx(self) -> Any:
        return self._of_thread.index

    @grid_idx.setter
    def grid_idx(self, value: Any) -> None:
        self._of_thread.index = value

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any) -> Any:
        if val.data.size == 1 and val.data.reshape(-1)[0] == 0:  # a program waiting at a barrier
            if self.stop.is_set():
                raise Deadlock
            time.sleep(0.0005)
        return super().create_atomic_rmw(op, ptr, val, mask, sem, scope)


def run_together(
    kernel: Any, grid: tuple[int, ...], *args: Any, seconds: float = 120.0, skip: int = 0, **constants: Any
) -> None:
    """Run all programs of the grid at once, started in a shuffled order; the last `skip` never start.

    Raises Deadlock if some do not finish in time.
    """
    if EMULATED:
        _emulate_together(kernel, grid, *args, skip=skip, **constants)
        return
    shape = (*grid, 1, 1)[:3]
    function = kernel.rewrite()
    executor = interpreter.GridExecutor(function, kernel.arg_names, shape)
    known = inspect.getfullargspec(function).args
    builder = interpreter.interpreter_builder
    plain_class = type(builder)
    constants = {name: v for name, v in constants.items() if name in known}
    on_host, on_host_kw = executor._init_args_hst(args, constants)
    scope = interpreter._patch_lang(function)
    errors: list[BaseException] = []
    try:
        builder.__dict__.pop("grid_idx", None)
        builder.__class__ = _ThreadedBuilder
        _ThreadedBuilder.stop.clear()
        call = inspect.getcallargs(function, *on_host, **on_host_kw)
        call = {n: a if n in executor.constexprs else interpreter._implicit_cvt(a) for n, a in call.items()}
        builder.set_grid_dim(*shape)

        def program(index: tuple[int, int, int]) -> None:
            try:
                builder.set_grid_idx(*index)
                function(**call)
            except BaseException as error:
                errors.append(error)

        indices = [(x, y, z) for z in range(shape[2]) for y in range(shape[1]) for x in range(shape[0])]
        indices = indices[: len(indices) - skip]
        random.shuffle(indices)
        threads = [threading.Thread(target=program, args=(index,), daemon=True) for index in indices]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        waiting = sum(thread.is_alive() for thread in threads)
        _ThreadedBuilder.stop.set()
        for thread in threads:
            thread.join(10.0)
        if waiting:
            raise Deadlock(f"{waiting} of {len(threads)} programs were still waiting after {seconds:g} s")
        if errors:
            raise errors[0]
    finally:
        builder.__class__ = plain_class
        if scope is not None:
            scope.restore()
    executor._restore_args_dev(args, on_host, constants, on_host_kw)


def _emulate_together(kernel: Any, grid: tuple[int, ...], *args: Any, skip: int, **constants: Any) -> None:
    """A cooperative launch of the compiled kernel."""
    driver = emulator()
    config = driver.config
    kept = config.skip_ctas, config.max_instructions
    config.skip_ctas = skip
    if skip:
        config.max_instructions = 3_000_000
    try:
        launch(kernel, grid, *args, **constants, launch_cooperative_grid=True)
    except driver.EmulatorError as error:
        if "instruction limit" in str(error) or "deadlock" in str(error):
            raise Deadlock(str(error)) from error
        raise
    finally:
        config.skip_ctas, config.max_instructions = kept
