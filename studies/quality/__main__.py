"""Ask vitcop-tiny under every setting, and write down what came out.

python -m studies.quality run       asks what has no answer yet
python -m studies.quality report    writes tables and figures from committed answers
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from vitcop.loading import TINY

_study: Any = None  # of a process


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m studies.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ask every question under every setting that has no answers yet")
    run.add_argument("--split", choices=("validation", "test"), default="test")
    run.add_argument("--groups", default="", help="of settings.GROUPS, separated by commas (default: all)")
    run.add_argument("--checkpoint", type=Path, default=TINY)
    run.add_argument("--seed", type=int, default=0, help="that --checkpoint was trained with (default: 0, as shipped)")
    run.add_argument("--processes", type=int, default=2, help="each on one thread")
    commands.add_parser("report", help="write studies/results/quality.md and its figures from committed answers")
    options = parser.parse_args()
    if options.command == "report":
        from .document import write

        write()
        return
    ask_all(options)


def ask_all(options: argparse.Namespace) -> None:
    from .questions import ask
    from .run import keep, keep_questions
    from .settings import settings_of

    keep_questions(options.split, ask(options.split)[1])
    groups = [name for name in options.groups.split(",") if name]
    settings = settings_of(options.split, groups)
    missing = [name for name in settings if not _answered(options, name)]
    print(f"{len(settings) - len(missing)} of {len(settings)} settings are answered already", flush=True)
    begin = time.perf_counter()
    with ProcessPoolExecutor(
        options.processes, initializer=_start, initargs=(options.split, options.checkpoint, options.seed)
    ) as pool:
        jobs = [pool.submit(_ask, name, groups) for name in missing]
        jobs += [] if _answered(options, "looks") else [pool.submit(_look)]
        for number, job in enumerate(as_completed(jobs), start=1):
            spent = time.perf_counter() - begin
            name, found = job.result()
            keep(options.split, options.seed, name, found)
            print(f"{number}/{len(jobs)} {name} ({spent / 60:.1f} min)", flush=True)


def _answered(options: argparse.Namespace, name: str) -> bool:
    """By these weights."""
    import hashlib

    from .run import read

    weights = hashlib.sha256((options.checkpoint / "model.safetensors").read_bytes()).hexdigest()
    return bool(read(options.split, options.seed).get(name, {}).get("checkpoint_sha256") == weights)


def _start(split: str, checkpoint: Path, seed: int) -> None:
    global _study
    import torch
    import transformers

    from .run import Study

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    _study = Study(split, checkpoint, seed=seed)


def _ask(name: str, groups: list[str]) -> tuple[str, dict[str, Any]]:
    from .run import about, describe
    from .settings import settings_of

    method, pictures = settings_of(_study.split, groups)[name]
    return name, about(_study, name) | {"method": describe(method)} | _study.answers(method, pictures)


def _look() -> tuple[str, dict[str, Any]]:
    from .looks import looks
    from .run import about

    return "looks", about(_study, "looks") | looks(_study.answerer, _study.images, _study.items)


if __name__ == "__main__":
    main()
