"""A server of vLLM, started as docs/serving.md says, and a client that asks it."""

import asyncio
import base64
import contextlib
import functools
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from engines import Ask, picture

START_SECONDS = 180


class Server:
    """`with Server(model, options, log)`: an OpenAI-compatible server on a free port; what it says goes to `log`."""

    def __init__(self, model: Path, options: list[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{self.port}", log
        self._command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--served-model-name",
            "llava",
            *options,
        ]

    def __enter__(self) -> "Server":
        # Of its own session: the engine is a child of the server, and goes with it.
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.get("/health")
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-4000:]}") from None
                time.sleep(0.5)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return str(response.read().decode())

    def metric(self, name: str, label: str = "") -> float:
        """One of the server's own, of those with a label where it has several."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(f"vllm:{name}{{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if label in line)


@functools.cache
def data_url(number: int) -> str:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Reply:
    text: str
    prompt_tokens: int
    margin: float  # between the log-probabilities of the first and the second choice, the least of the answer


def body(ask: Ask, new: int, **options: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(number)}} for number in ask.pictures
    ]
    content.append({"type": "text", "text": ask.question})
    found = {
        "model": "llava",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": new,
        "add_special_tokens": True,
        **options,
    }
    if ask.tokens is not None:
        found["mm_processor_kwargs"] = {"vitcop_tokens": ask.tokens}
    return found


async def chat(session: aiohttp.ClientSession, server: Server, ask: Ask, new: int = 6) -> Reply:
    """Raises RuntimeError with what the server said, where that is not an answer."""
    asked = body(ask, new, logprobs=True, top_logprobs=2)
    async with session.post(f"{server.url}/v1/chat/completions", json=asked) as response:
        said = await response.text()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {said}")
    found = json.loads(said)
    choice = found["choices"][0]
    first_two = [[top["logprob"] for top in token["top_logprobs"]] for token in choice["logprobs"]["content"]]
    margin = min(a - b for a, b in first_two)
    return Reply(choice["message"]["content"], found["usage"]["prompt_tokens"], margin)


LONG = 400


async def give_up(session: aiohttp.ClientSession, server: Server, ask: Ask) -> None:
    """Ask for a long answer and hang up at its first word."""
    asked = body(ask, LONG, stream=True, ignore_eos=True)
    async with session.post(f"{server.url}/v1/chat/completions", json=asked) as response:
        async for _ in response.content:
            response.close()
            return


def once(server: Server, *asked: Ask, new: int = 6) -> list[Reply]:
    """One after the other."""

    async def run() -> list[Reply]:
        async with aiohttp.ClientSession() as session:
            return [await chat(session, server, ask, new) for ask in asked]

    return asyncio.run(run())
