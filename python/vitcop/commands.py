"""The typer commands. They call bench.py, compare.py, doctor.py, prefill.py, tables.py and visualize.py."""

import contextlib
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import __version__, doctor

app = typer.Typer(
    name="vitcop",
    help="Visual token pruning for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
NEEDED = ("transformers", "pillow", "matplotlib")


class Semantics(StrEnum):
    paper = "paper"
    released = "released"


class Name(StrEnum):
    """The names in `methods.METHODS`, without importing torch for `--help`."""

    vitcop = "vitcop"
    fastv = "fastv"
    pyramiddrop = "pyramiddrop"
    sparsevlm = "sparsevlm"
    visionzip = "visionzip"
    divprune = "divprune"
    vision_only = "vision_only"
    random = "random"
    uniform = "uniform"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual token pruning for vision-language models."""


@app.command("doctor")
def doctor_command(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show which backends and models work on this machine."""
    results = doctor.checks()
    if json:
        print(doctor.as_json(results))
        return
    from .tables import doctor_table

    Console().print(doctor_table(results))


@app.command("run")
def run_command(
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face checkpoint: a folder or a hub id. 'random': LLaVA-1.5's geometry, narrow, with random "
            "weights. (default: vitcop-tiny, a small model of digits and shapes)"
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image file. (default: one that ships with vitcop)")] = None,
    prompt: Annotated[str | None, typer.Option(help="Question. (default: one about that image)")] = None,
    retain: Annotated[
        int | None, typer.Option(help="Visual tokens to keep, averaged over the layers. (default: 64)")
    ] = None,
    retention: Annotated[float | None, typer.Option(help="Share of the visual tokens to keep, in (0, 1].")] = None,
    method: Annotated[Name, typer.Option(help="Pruning method.")] = Name.vitcop,
    semantics: Annotated[
        Semantics | None,
        typer.Option(help="ViTCoP as in the paper, or as in the authors' code. (default: paper)"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer.")] = 24,
    dtype: Annotated[
        Dtype | None, typer.Option(help="(default: the checkpoint's; bfloat16 for float16 on a CPU)")
    ] = None,
    device: Annotated[str | None, typer.Option(help="(default: cuda if there is one, else cpu)")] = None,
    out: Annotated[Path, typer.Option(help="Output folder for stages.png and report.json.")] = Path("vitcop-run"),
    seed: Annotated[int | None, typer.Option(help="Seed of the weights, for --model random.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Number of measurements; the median is shown.")] = 3,
) -> None:
    """Answer a question about an image with and without pruning; print token counts, times, FLOPs and memory."""
    missing = doctor.missing_extras(*NEEDED)
    if missing:
        _fail(f"`vitcop run` needs {', '.join(missing)}: pip install 'vitcop[cli]'")
    from .compare import PHOTOGRAPH, PHOTOGRAPH_PROMPT, TINY_PICTURE, TINY_PROMPT, UserError

    picture, question = (TINY_PICTURE, TINY_PROMPT) if model is None else (PHOTOGRAPH, PHOTOGRAPH_PROMPT)
    console = Console()
    try:
        _run(
            console, model=model, image=picture if image is None else Path(image),
            prompt=question if prompt is None else prompt, retain=retain,
            retention=retention, name=method.value, semantics=None if semantics is None else semantics.value,
            max_new_tokens=max_new_tokens,
            dtype=None if dtype is None else dtype.value, device=device, out=out, seed=seed, repeats=repeats,
        )  # fmt: skip
    except UserError as error:
        _fail(str(error))


@app.command("prefill")
def prefill_command(
    layers: Annotated[int, typer.Option(min=3, help="Decoder layers.")] = 8,
    width: Annotated[int, typer.Option(min=128, help="Hidden size of the decoder, a multiple of 128.")] = 2048,
    retain: Annotated[int, typer.Option(min=1, help="Visual tokens to keep, averaged over the layers.")] = 64,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the model.")] = Dtype.float32,
    device: Annotated[str | None, typer.Option(help="(default: cuda if there is one, else cpu)")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds; fewer on a slow machine.")] = 3,
) -> None:
    """Time a prefill of LLaVA-1.5's sequence length (576 visual and 57 text tokens) with and without ViTCoP.

    The model has random weights, so only the times are meaningful.
    """
    missing = doctor.missing_extras("transformers")
    if missing:
        _fail(f"`vitcop prefill` needs {', '.join(missing)}: pip install 'vitcop[hf]'")
    if width % 128:
        _fail(f"--width: expected a multiple of 128, got {width}")
    import torch
    import transformers

    from . import prefill
    from .compare import UserError
    from .loading import DTYPES, pick_device
    from .tables import prefill_table

    transformers.utils.logging.set_verbosity_error()
    try:
        where = pick_device(device)
        result = prefill.measure(
            layers=layers, width=width, retain=retain, device=where, dtype=DTYPES[dtype.value], rounds=rounds
        )
    except (UserError, ValueError) as error:
        _fail(str(error))
    except torch.OutOfMemoryError:
        _fail(f"not enough memory on {where}; try a smaller --width")
    console = Console()
    console.print()
    console.print(
        f"Prefill of {prefill.VISUAL_TOKENS} visual and {prefill.TEXT_TOKENS} text tokens, as in LLaVA-1.5\n"
        f"random weights, {layers} decoder layers of width {width}, {dtype.value} on {where}, "
        f"{torch.get_num_threads()} threads, median of {len(result.pruned)}",
        highlight=False,
    )
    console.print(prefill_table(result))


@app.command("bench")
def bench_command(
    op: Annotated[str | None, typer.Argument(help="Name of an op, such as vic_cluster. (default: every op)")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens per sample.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels per token.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Clusters per sample.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Channels per head.")] = None,
    queries: Annotated[int | None, typer.Option(help="Number of query rows.")] = None,
    keep: Annotated[int | None, typer.Option(help="Number of tokens to keep.")] = None,
    budget: Annotated[int | None, typer.Option(help="Number of tokens after merging.")] = None,
    text: Annotated[int | None, typer.Option(help="Number of text tokens in the prompt.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the inputs.")] = Dtype.float32,
    device: Annotated[str | None, typer.Option(help="(default: cuda if there is one, else cpu)")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. (default: torch's)")] = None,
    rounds: Annotated[int, typer.Option(min=5, help="Number of rounds; each times every implementation once.")] = 31,
    seconds: Annotated[float, typer.Option(min=0, help="Time limit per op; reduces the number of rounds.")] = 10.0,
    compile: Annotated[bool, typer.Option(help="Also time the compiled reference.")] = True,
    save: Annotated[Path | None, typer.Option(help="JSON file for the results with all samples.")] = None,
) -> None:
    """Check an op against its reference, then time it at your shapes and compare it with this machine's roofline.

    The exit code is 1 if a result is wrong.
    """
    import torch

    from . import bench
    from .compare import UserError
    from .loading import pick_device

    given = {"tokens": tokens, "batch": batch, "width": width, "clusters": clusters, "heads": heads,
             "head_dim": head_dim, "queries": queries, "keep": keep, "budget": budget, "text": text}  # fmt: skip
    console = Console()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        dims = {name: size for name, size in given.items() if size is not None}
        todo = bench.cases_for(op, dims, dtype.value, pick_device(device))
        with _step(console, "measuring") as tell:
            found = bench.bench(todo, compiled=compile, rounds=rounds, seconds=seconds, tell=tell)
        for row in found["rows"]:
            console.print(bench.table(row))
        if save is not None:
            bench.save(save, found)
            console.print(f"result: {save}", highlight=False, markup=False, soft_wrap=True)
    except UserError as error:
        _fail(str(error))
    if any("refused" in row for row in found["rows"]):
        raise typer.Exit(1)


@app.command("eval")
def eval_command(
    model: Annotated[str, typer.Option(help="Hugging Face checkpoint: a folder or a hub id.")],
    tasks: Annotated[str, typer.Option(help="lmms-eval tasks, separated by commas.")],
    method: Annotated[list[str], typer.Option(help="Pruning method; repeat to compare several.")] = ["vitcop"],  # noqa: B006
    retain: Annotated[list[int] | None, typer.Option(help="Visual tokens to keep; repeat for several budgets.")] = None,
    retention: Annotated[
        list[str] | None, typer.Option(help="Share of the visual tokens to keep, such as 1/9.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Method option, such as semantics=released; repeat for several.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per batch.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of questions per task.")] = None,
    chat: Annotated[bool, typer.Option(help="Use chat messages where a task has them.")] = False,
    include: Annotated[Path | None, typer.Option(help="Folder with your own tasks.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="(default: the checkpoint's)")] = None,
    device: Annotated[str | None, typer.Option(help="(default: cuda if there is one, else cpu)")] = None,
    out: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("vitcop-eval/results.json"),
) -> None:
    """Score methods on lmms-eval tasks, compared with the unpruned model."""
    missing = doctor.missing_extras("transformers", "lmms_eval")
    if missing:
        _fail(f"`vitcop eval` needs {', '.join(missing)}: pip install 'vitcop[eval]'")
    from .compare import UserError
    from .evaluation import study

    console = Console()
    try:
        options = dict(_pair(text) for text in option or [])
        names = [name for name in tasks.split(",") if name]
        settings = study.settings_for(method, retain or [], [_share(text) for text in retention or []], options)
        rows = study.evaluate(
            model, names, settings, batch_size=batch_size, limit=limit, device=device,
            dtype=None if dtype is None else dtype.value, include=include, chat=chat,
            tell=lambda what: console.print(what, highlight=False, markup=False),
            keep=lambda rows: study.save(
                out, rows, {"model": model, "tasks": names, "limit": limit, "vitcop": __version__}
            ),
        )  # fmt: skip
    except (UserError, NotImplementedError, ValueError) as error:
        _fail(str(error))
    if not rows:
        return
    console.print(study.table(rows))
    console.print(f"results: {out}", highlight=False, markup=False, soft_wrap=True)


def _check_text(option: str, text: str) -> None:
    """Bytes that are not UTF-8 come from the shell as lone surrogates, which no tokenizer takes."""
    from .compare import UserError

    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{option}: expected text in UTF-8, got {text!a}") from None


def _share(text: str) -> float:
    from .compare import UserError
    from .evaluation.settings import number

    value = number(text)
    if not isinstance(value, int | float):
        raise UserError(f"--retention: expected a share of the visual tokens, such as 0.1 or 1/9, got {text!r}")
    return float(value)


def _pair(text: str) -> tuple[str, str]:
    from .compare import UserError

    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UserError(f"--option: expected name=value, got {text!r}")
    return name, value


def _run(
    console: Console, *, model: str | None, image: Path, prompt: str, retain: int | None, retention: float | None,
    name: str, semantics: str | None, max_new_tokens: int, dtype: str | None, device: str | None, out: Path,
    seed: int | None, repeats: int,
) -> None:  # fmt: skip
    import vitcop_kernels

    from .compare import UserError, as_json, compare, encode, open_photograph, seen_photo

    _check_text("--prompt", prompt)
    photograph = open_photograph(image)
    method = _method(name, retain, retention, semantics)
    _make_folder(out)

    with _step(console, "importing transformers"):
        import torch
        import transformers

        from .loading import RANDOM, TINY_NAME, load_checkpoint, load_embedded, load_tiny, pick_device

        transformers.utils.logging.set_verbosity_error()
        where = pick_device(device)
    if model is None:
        transformers.utils.logging.disable_progress_bar()  # there before it could be drawn
        with _step(console, f"loading {TINY_NAME} (no download)"):
            loaded = load_tiny(where, dtype)
    elif model == RANDOM:
        with _step(console, "building the random LLaVA (no download)"):
            loaded = load_embedded(where, dtype, seed)
    else:
        with _step(console, f"loading {model}", spin=False):
            loaded = load_checkpoint(model, where, dtype)
    with _step(console, "preparing the image and the prompt"):
        inputs = encode(loaded, photograph, prompt)
    with _step(console, "answering") as tell:
        try:
            result = compare(loaded, inputs, method, max_new_tokens=max_new_tokens, repeats=repeats, progress=tell)
        except (ValueError, NotImplementedError) as error:
            raise UserError(" ".join(str(error).split())) from None
        except torch.OutOfMemoryError:
            raise UserError(f"not enough memory on {where}; try --dtype bfloat16 or --max-new-tokens 1") from None

    from . import tables, visualize

    report = result.report
    if not report.stages:
        raise UserError(f"{loaded.name} got no visual tokens, so nothing was pruned")
    extra = {
        "device": str(where), "dtype": str(loaded.model.dtype).removeprefix("torch."), "seed": seed, "repeats": repeats,
        "threads": torch.get_num_threads(), "native_error": vitcop_kernels.native_error,
        "versions": {"vitcop": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    document = as_json(loaded, result, image=str(image), prompt=prompt, method=method, extra=extra)
    (out / "report.json").write_text(document, encoding="utf-8")
    picture = out / "stages.png"
    if visualize.square_side(report) is None:
        drawn = f"no picture: the {report.visual_tokens[0]} visual tokens are not one square image"
    else:
        with _step(console, "drawing"):
            title, subtitle = headline(loaded, result, type(method).__name__)
            visualize.save_stages(picture, seen_photo(loaded, inputs), report, title=title, subtitle=subtitle)
        drawn = f"picture: {picture}"

    console.print()
    console.print(
        f"[bold]{loaded.name}[/bold], {extra['dtype']} on {where}, {extra['threads']} threads", highlight=False
    )
    console.print(f"prompt: {prompt!r}", highlight=False, markup=False)
    console.print(f"method: {type(method).__name__}", highlight=False, markup=False)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(tables.stages_table(result))
    console.print(tables.costs_table(result))
    console.print(tables.answers(loaded, result))
    console.print(drawn, highlight=False, markup=False, soft_wrap=True)
    console.print(f"numbers: {out / 'report.json'}", highlight=False, markup=False, soft_wrap=True)


def _method(name: str, retain: int | None, retention: float | None, semantics: str | None) -> Any:
    from .compare import UserError
    from .methods import METHODS

    options: dict[str, Any] = {"retain": 64 if retain is retention is None else retain, "retention": retention}
    if semantics is not None:
        if name != "vitcop":
            raise UserError(f"--semantics: expected with --method vitcop alone, got it with --method {name}")
        options["semantics"] = semantics
    try:
        return METHODS[name](**options)
    except ValueError as error:
        raise UserError(str(error)) from None


def headline(loaded: Any, result: Any, method: str) -> tuple[str, str]:
    """Title and subtitle of the picture."""
    from .embedded import LABEL

    arrow = " \N{RIGHTWARDS ARROW} "
    tokens = [result.report.visual_tokens[0], *(row.tokens_out for row in result.stages)]
    what = f"embedded LLaVA, {LABEL}" if loaded.random_weights else loaded.name
    return f"{method}: {arrow.join(map(str, tokens))} visual tokens", what


@contextlib.contextmanager
def _step(console: Console, what: str, *, spin: bool = True) -> Iterator[Any]:
    """Print a step and its duration. Yields a function that shows what the step is doing."""
    start = time.perf_counter()
    if spin and console.is_terminal:
        with console.status(
            f"{what} ...", refresh_per_second=4
        ) as status:  # seldom: it takes time from what is measured
            yield lambda now: status.update(f"{what}: {now} ...")
    else:
        console.print(f"{what} ...", highlight=False, markup=False)
        yield lambda now: console.print(f"  {now} ...", highlight=False, markup=False)
    console.print(f"{what}: {time.perf_counter() - start:.1f} s", highlight=False, markup=False)


def _make_folder(out: Path) -> None:
    from .compare import UserError

    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".vitcop-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out: cannot write into {out} ({error.strerror})") from None


def _fail(sentence: str) -> None:
    Console(stderr=True).print(f"vitcop: {sentence}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(2)
