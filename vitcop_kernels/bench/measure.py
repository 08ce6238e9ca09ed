"""One case: is the answer right, how long does each way take, and how far is that from the floor."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ..testing.judge import verify
from ..testing.op import Case
from .floor import Rates
from .sampling import Samples, Way, clock_for, paired_ratio, sample, times
from .statistics import summary

OURS, REFERENCE, COMPILED = "vitcop", "reference", "compiled reference"
Row = dict[str, Any]  # JSON
Check = Callable[[Any], None]


class WrongAnswer(AssertionError):
    """Our answer is wrong, so that its time means nothing."""


def gate(case: Case) -> Any:
    """Our answer, after comparing it with the float64 reference. Raises WrongAnswer."""
    answer = case.run()
    try:
        verify(case.op, case.args, case.kwargs, answer)
    except AssertionError as error:
        raise WrongAnswer(f"{case.name}: {error}") from None
    return answer


def measure(
    case: Case,
    *,
    compiled: bool = True,
    reference: bool = True,
    others: Mapping[str, tuple[Way, Check | None]] | None = None,
    skipped: Mapping[str, str] | None = None,
    rounds: int = 31,
    seconds: float | None = None,
    check: Callable[[Case], Any] = gate,
    tell: Callable[[str], None] = lambda what: None,
) -> Row:
    """A row: every way's times and the ratio of ours to it. A wrong answer of ours refuses the row, untimed.

    `others`: name -> what to time, and a check of its answer (None: it answers another question); one that fails or
    gives a wrong answer is a way that was not run, with the reason, as are the `skipped`.
    """
    row: Row = {"op": case.op, "dims": case.dims, "dtype": case.dtype_name, "device": str(case.device)}
    ways: dict[str, Row] = {name: {"not_run": reason} for name, reason in (skipped or {}).items()}
    tell("checking the answer")
    try:
        answer = check(case)
    except WrongAnswer as error:
        return row | {"refused": str(error), "ways": ways, "ratios": {}}
    row |= {"bytes": case.bytes(answer), "flops": case.flops}

    runs: dict[str, Way] = {OURS: case.run}
    if reference:
        runs[REFERENCE] = case.reference
    if compiled:
        tell("compiling the reference")
        _admit(runs, ways, COMPILED, case.compiled_reference(), None)
    for name, (way, accept) in (others or {}).items():
        tell(f"trying {name}")
        _admit(runs, ways, name, way, accept)
    tell(f"timing {', '.join(runs)}")
    samples = sample(runs, rounds, clock=clock_for(case.device), budget=seconds)
    ways |= {name: described(samples, name) for name in runs}
    ratios = {name: asdict(paired_ratio(samples, OURS, name)) for name in runs if name != OURS}
    return row | {"ways": ways, "ratios": ratios}


def add_floor(row: Row, rates: Rates) -> None:
    """Known only when the run is over: the machine's best counts, whenever it was."""
    if "refused" not in row:
        row["floor_s"] = rates.floor(row["bytes"], row["flops"], row["dtype"])


def _admit(runs: dict[str, Way], ways: dict[str, Row], name: str, way: Way, accept: Check | None) -> None:
    """Into `runs` if it works and its answer is right, else into `ways` with the reason."""
    try:
        answer = way()
        if accept is not None:
            accept(answer)
    except Exception as error:  # whatever a compiler or a peer raises is the reason why it was not run
        first = next(iter(str(error).strip().splitlines()), "")
        ways[name] = {"not_run": f"{type(error).__name__}: {first}"[:200]}
    else:
        runs[name] = way


def described(samples: Samples, name: str) -> Row:
    found = summary(times(samples, name))
    return {f"{key}_s" if key != "count" else key: value for key, value in asdict(found).items()} | {
        "samples_s": {str(round_): seconds for round_, seconds in samples[name].items()}
    }
