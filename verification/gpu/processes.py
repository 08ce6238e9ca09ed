"""The checks in processes of their own: a kernel that hangs or crashes takes nobody with it."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def command(*more: str, dry_run: bool) -> list[str]:
    return [sys.executable, "-m", "verification.gpu.checks", *["--dry-run"] * dry_run, *more]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}


_RUNNING: set[subprocess.Popen[Any]] = set()


def start(line: list[str], **options: Any) -> subprocess.Popen[Any]:
    """A process in a session of its own: what it starts (a sanitizer's target, compilers) goes with it."""
    options = {"cwd": ROOT, "env": environment()} | options
    process = subprocess.Popen(line, start_new_session=True, **options)
    _RUNNING.add(process)
    return process


def stop(process: subprocess.Popen[Any]) -> None:
    """Kill what is left of it and of all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone, or only zombies left (macOS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _RUNNING.discard(process)


def stop_all() -> None:
    for process in tuple(_RUNNING):
        stop(process)


def run(line: list[str], seconds: float, stall: float = 60.0, attempts: int = 4) -> list[dict[str, str]]:
    """Records of all items; after a crash, or `stall` seconds without a word, the rest is tried in another process."""
    records: list[dict[str, str]] = []
    skip: list[str] = []
    end = time.monotonic() + seconds
    for _ in range(attempts):
        more = [word for name in skip for word in ("--skip", name)]
        lines, died = _listen([*line, *more], end, stall)
        begun = [text[6:] for text in lines if text.startswith("begin ")]
        for text in lines:
            if text.startswith("ok "):
                records.append({"item": text[3:], "status": "passed"})
                skip.append(text[3:])
            elif text.startswith("wrong "):
                name, _, why = text[6:].partition(": ")
                missing = why.startswith("NotImplementedError")
                records.append({"item": name, "status": "skipped" if missing else "failed", "why": why})
                skip.append(name)
        if not died:
            return records
        if died == "time":
            break
        culprit = begun[-1] if begun and begun[-1] not in skip else "start of the process"
        records.append({"item": culprit, "status": "failed", "why": died})
        skip.append(culprit)
        if culprit == "start of the process":
            return records
    records.append({"item": "the rest", "status": "not measured", "why": "time"})
    return records


def _listen(line: list[str], end: float, stall: float) -> tuple[list[str], str]:
    """(what a process printed, how it died or "")."""
    process = start(line, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    heard: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for text in process.stdout or ():
            heard.put(text.rstrip("\n"))
        heard.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    lines: list[str] = []
    try:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return lines, "time"
            try:
                text = heard.get(timeout=min(stall, left))
            except queue.Empty:
                if end - time.monotonic() <= 0:
                    return lines, "time"
                return lines, f"no word for {stall:g} s"
            if text is None:
                break
            lines.append(text)
        code = process.wait()
        return lines, "" if code == 0 else f"process ended with {code}: " + " ".join(lines[-12:])[-1500:]
    finally:
        stop(process)
