"""Clients that ask one after the other, as many at once as told, and what each answer took."""

import asyncio
import base64
import io
import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

QUESTION = "What is on the table in this picture and what is behind it and who is there?"


@dataclass(frozen=True)
class Work:
    """What every request of a run is."""

    name: str
    images: int
    new: int  # tokens of the answer


WORKS = {work.name: work for work in (Work("short", 1, 8), Work("long", 1, 128), Work("text", 0, 8))}


@dataclass(frozen=True)
class Timing:
    first: float  # seconds to the first token
    whole: float
    prompt_tokens: int


class Pictures:
    """A picture that no cache has seen, each time: smooth noise, with its number in a corner."""

    def __init__(self, seed: int = 0, side: int = 336) -> None:
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        self._base = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).copy()
        self._numbers = itertools.count()

    def next(self) -> str:
        """As a data URL."""
        number = next(self._numbers)
        for bit in range(16):
            self._base[:16, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
        file = io.BytesIO()
        Image.fromarray(self._base).save(file, "JPEG", quality=90)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


async def ask(session: aiohttp.ClientSession, url: str, work: Work, pictures: Pictures) -> Timing:
    """Raises RuntimeError where the server gives no answer of the length that was asked for."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": pictures.next()}} for _ in range(work.images)
    ]
    content.append({"type": "text", "text": QUESTION})
    body = {
        "model": "llava", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": work.new,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    begin, first, usage = time.perf_counter(), 0.0, None
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "choices" not in event:
                raise RuntimeError(f"expected an answer, got {event}")
            if event["choices"] and not first and event["choices"][0]["delta"].get("content") is not None:
                first = time.perf_counter() - begin
            usage = event.get("usage") or usage
    if usage is None or usage["completion_tokens"] != work.new:
        raise RuntimeError(f"expected an answer of {work.new} tokens, got {usage}")
    return Timing(first, time.perf_counter() - begin, usage["prompt_tokens"])


def run(url: str, work: Work, clients: int, seconds: float, pictures: Pictures) -> dict[str, Any]:
    """Requests that began within `seconds`, from as many clients; the rate is that until the last answer."""

    async def client(session: aiohttp.ClientSession, end: float) -> list[Timing]:
        found = []
        while time.perf_counter() < end or not found:
            found.append(await ask(session, url, work, pictures))
        return found

    async def together() -> tuple[list[Timing], float]:
        timeout, connector = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=clients)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            begin = time.perf_counter()
            groups = await asyncio.gather(*(client(session, begin + seconds) for _ in range(clients)))
            return [timing for group in groups for timing in group], time.perf_counter() - begin

    timings, spent = asyncio.run(together())
    first = [timing.first for timing in timings]
    return {
        "requests": len(timings), "seconds": spent, "requests_per_second": len(timings) / spent,
        "tokens_per_second": len(timings) * work.new / spent, "first_token_p50": float(np.percentile(first, 50)),
        "first_token_p99": float(np.percentile(first, 99)), "prompt_tokens": timings[0].prompt_tokens,
    }  # fmt: skip
