"""The server answers about pictures with the tokens asked for: alone, refused, given up, and under load."""

import asyncio
import os
import random
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm", reason="vLLM is another installation: make test-vllm")

import aiohttp
from client import LONG, Reply, Server, chat, give_up, once
from engines import QUESTIONS, TINY, TOLERANCE, Ask, HuggingFace

CLIENTS = 64
SECONDS = float(os.environ.get("VITCOP_LOAD_SECONDS", "120"))
OPTIONS = [
    "--hf-overrides",
    '{"vitcop": {"tokens": 64}}',
    "--dtype",
    "float32",
    "--max-model-len",
    "512",
    "--enforce-eager",
    "--trust-request-mm-kwargs",
    "--limit-mm-per-prompt",
    '{"image": 2}',
    "--max-num-seqs",
    "32",
    "--kv-cache-memory-bytes",
    str(128 << 20),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(TINY, OPTIONS, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


def words(ask: Ask) -> int:
    """Tokens of a prompt's text: its words and the first token."""
    return 1 + len(ask.question.split())


def test_round_trip(server: Server) -> None:
    truth = HuggingFace(TINY)
    asked = [Ask(QUESTIONS[0], (1,)), Ask(QUESTIONS[1], (2, 3), 16), Ask(QUESTIONS[2], ()), Ask(QUESTIONS[0], (1,), 1)]
    for ask, reply in zip(asked, once(server, *asked), strict=True):
        tokens = ask.tokens or 64
        assert reply.prompt_tokens == words(ask) + tokens * len(ask.pictures)
        ids = truth.ask(Ask(ask.question, ask.pictures, tokens), new=6).ids
        assert reply.text.split() == truth.processor.decode(ids, skip_special_tokens=False).split("<eos>")[0].split()


def test_too_many_tokens_are_a_bad_request(server: Server) -> None:
    with pytest.raises(RuntimeError, match=r"400: .*vitcop_tokens: expected a number from 1 to 64"):
        once(server, Ask(QUESTIONS[0], (1,), 65))
    assert once(server, Ask(QUESTIONS[0], (1,), 64))[0].prompt_tokens == words(Ask(QUESTIONS[0])) + 64


def test_a_client_that_hangs_up_leaves_nothing_behind(server: Server) -> None:
    async def hang_up() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(give_up(session, server, Ask(QUESTIONS[3], (n,), 64)) for n in range(8)))

    before = server.metric("generation_tokens_total")
    asyncio.run(hang_up())
    assert idle(server)
    assert server.metric("generation_tokens_total") - before < 8 * LONG / 2  # nobody answered on for those who left
    asked = Ask(QUESTIONS[0], (1,))
    assert once(server, asked) == once(server, asked)


def test_64_clients_get_the_answers_that_one_gets(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """For two minutes, with pictures, budgets and texts mixed, and some who hang up: nothing lost, no answer moved."""
    draw = random.Random(0)
    cases = [
        Ask(draw.choice(QUESTIONS), tuple(draw.sample(range(48), pictures)), draw.choice((None, 4, 16, 33, 64)))
        for pictures in [1] * 30 + [2] * 12
    ]
    cases += [Ask(question, ()) for question in QUESTIONS]
    alone = dict(zip(cases, once(server, *cases), strict=True))
    # Where the first two words are as likely, rounding may choose either.
    asked = [case for case in cases if alone[case].margin > 10 * TOLERANCE]
    assert len(asked) > 0.9 * len(cases)
    answered, given_up = asyncio.run(load(server, asked, alone))
    with capsys.disabled():
        print(f" [{answered} answers, {answered / SECONDS:.0f} a second; {given_up} hung up]", end="")
    assert answered > 2 * CLIENTS and given_up > 0
    assert idle(server)
    again = once(server, *asked[:5])
    assert [(r.text, r.prompt_tokens) for r in again] == [(alone[a].text, alone[a].prompt_tokens) for a in asked[:5]]


async def load(server: Server, asked: list[Ask], alone: dict[Ask, Reply]) -> tuple[int, int]:
    """(answers, requests given up); raises where an answer is missing or differs."""
    end = time.monotonic() + SECONDS
    answered = given_up = 0

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        nonlocal answered, given_up
        draw = random.Random(number)
        while time.monotonic() < end:
            ask = draw.choice(asked)
            if draw.random() < 0.05:
                await give_up(session, server, ask)
                given_up += 1
                continue
            reply = await chat(session, server, ask)
            expected = alone[ask]
            assert (reply.text, reply.prompt_tokens) == (expected.text, expected.prompt_tokens), ask
            answered += 1

    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(client(number, session) for number in range(CLIENTS)))
    return answered, given_up


def idle(server: Server) -> bool:
    """Whether the engine soon has nothing to do, and holds no blocks of the cache for anyone."""
    for _ in range(100):
        if not any(server.metric(f"num_requests_{state}") for state in ("running", "waiting")):
            return server.metric("kv_cache_usage_perc") == 0
        time.sleep(0.1)
    return False
