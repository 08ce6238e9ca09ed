"""compute-sanitizer over the small matrix, where the tool exists: each of its tools in a process of its own."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from .processes import command, environment, start, stop

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PLACES = ("/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/extras/compute-sanitizer/compute-sanitizer")


def find() -> str | None:
    return shutil.which("compute-sanitizer") or next((p for p in PLACES if os.access(p, os.X_OK)), None)


class Sanitizer:
    """Starts the tools side by side; nothing is timed while they run."""

    def __init__(self, dry_run: bool, tool: str | None = None) -> None:
        self.why = ""
        self._running: dict[str, tuple[subprocess.Popen, Path]] = {}
        tool = tool or find()
        if dry_run and tool is None:
            self.why = "dry run: there is no GPU to watch"
        elif tool is None:
            self.why = "compute-sanitizer not found"
        if self.why:
            return
        # Without its cache every tensor of torch is an allocation of its own, whose ends the tool knows.
        env = environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        for name in TOOLS:
            path = Path(tempfile.mkstemp(suffix=f"-{name}.txt")[1])
            with path.open("w") as log:
                line = [str(tool), "--tool", name, "--error-exitcode", "9", "--print-limit", "20"]
                line += command("--only-launch", dry_run=dry_run)
                process = start(line, env=env, stdout=log, stderr=subprocess.STDOUT)
            self._running[name] = process, path

    def finish(self, seconds: float) -> list[dict[str, Any]]:
        """Wait at most so long; what is still running is stopped and says so."""
        if self.why:
            return [{"tool": name, "status": "skipped", "why": self.why} for name in TOOLS]
        records = []
        end = time.monotonic() + seconds
        for name, (process, path) in self._running.items():
            try:
                code: int | None = process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = None
            stop(process)
            text = path.read_text(errors="replace")
            path.unlink()
            records.append(read(name, code, text))
        return records


def read(name: str, code: int | None, text: str) -> dict[str, Any]:
    """What one tool's log says."""
    launched = len(re.findall(r"^ok ", text, re.MULTILINE))
    record: dict[str, Any] = {"tool": name, "items": launched}
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", text)
    if code is None:
        begun = re.findall(r"^begin (.*)$", text, re.MULTILINE)
        return record | {"status": "not measured", "why": f"time; last begun: {begun[-1] if begun else 'nothing'}"}
    wrong = [line for line in re.findall(r"^wrong (.*)$", text, re.MULTILINE) if ": NotImplementedError" not in line]
    if code == 0 and summary and int(summary[-1]) == 0 and launched and not wrong:
        return record | {"status": "passed", "summary": "0 errors"}
    return record | {"status": "failed", "why": f"exit code {code}, {wrong[:3]}", "log": text[-3000:]}
