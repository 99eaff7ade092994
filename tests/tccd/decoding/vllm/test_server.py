"""A real server on loopback, an OpenAI client, many requests at once: every answer is its solo answer."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import re
from dataclasses import dataclass
from typing import Any

import pytest

from tests.tccd.decoding.vllm.serving import MODEL

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

REQUESTS, AT_ONCE = 240, 16
XARGS: list[dict[str, Any] | None] = [
    None,
    {"tccd_layer": 2, "tccd_alpha_cd": 1.0, "tccd_alpha_interp": 0.4},
    {"tccd_layer": 1, "tccd_alpha_cd": 2.0, "tccd_beta": 0.1},
    {"tccd_layer": 2, "tccd_gate": "margin", "tccd_tokens": "first"},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"tccd_alpha": 1.0}, "unknown TCCD parameters tccd_alpha"),
    ({"tccd_layer": 2, "tccd_alpha_cd": "much"}, "alpha_cd is 'much'"),
    ({"tccd_layer": 2, "tccd_alpha_interp": 2.0}, "alpha_interp is 2"),
    ({"tccd_bank": "../x"}, "tccd_bank is '../x'"),
    ({"tccd_layer": 2, "tccd_alpha_cd": float("nan")}, "nan"),
]


@dataclass(frozen=True)
class Kind:
    """One request of the mix; asked often, answered the same each time."""

    question: str
    image: str | None
    xargs: int
    tokens: int

    def body(self, xargs: dict[str, Any] | None = None) -> dict[str, Any]:
        extra = XARGS[self.xargs] if xargs is None else xargs
        content: list[dict[str, Any]] = [{"type": "text", "text": self.question}]
        if self.image:
            content.insert(0, {"type": "image_url", "image_url": {"url": self.image}})
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.tokens,
            "logprobs": True,
            "top_logprobs": 3,
            "extra_body": {"ignore_eos": True, **({"vllm_xargs": extra} if extra else {})},
        }


def kinds() -> list[Kind]:
    from tccd.data import load_samples

    found = []
    for i, sample in enumerate(load_samples("easy-vqa", split="test", limit=12, seed=3)):
        data = io.BytesIO()
        sample.image.save(data, "PNG")
        image = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        found.append(Kind(sample.prompt, image, i % len(XARGS), 3 + 5 * (i % 3)))
        if i % 4 == 0:
            found.append(Kind(sample.prompt, None, 0, 6))
    return found


def answer(response: Any) -> list[tuple[str, float]]:
    """Tokens with their log-probabilities."""
    return [(entry.token, entry.logprob) for entry in response.choices[0].logprobs.content]


def same(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> bool:
    return [t for t, _ in found] == [t for t, _ in wanted] and all(
        abs(a - b) < 1e-3 for (_, a), (_, b) in zip(found, wanted, strict=True)
    )


def counted(url: str, name: str) -> float:
    import urllib.request

    text = urllib.request.urlopen(url + "/metrics").read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))


def test_many_requests_at_once(server):
    from openai import AsyncOpenAI, BadRequestError

    client = AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=300)
    mix = kinds()
    rng = random.Random(0)
    outcome = {"answered": 0, "cancelled": 0, "refused": 0}
    tccd_requests = tccd_tokens = 0

    async def ask(kind: Kind) -> list[tuple[str, float]]:
        nonlocal tccd_requests, tccd_tokens
        got = answer(await client.chat.completions.create(**kind.body()))
        tccd_requests += kind.xargs > 0
        tccd_tokens += len(got) * (kind.xargs > 0)
        return got

    async def one(i: int, solo: dict[Kind, list], gate: asyncio.Semaphore) -> None:
        kind = rng.choice(mix)
        async with gate:
            if i % 10 == 3:  # the client goes away in the middle
                stream = await client.chat.completions.create(**(kind.body() | {"stream": True, "max_tokens": 40}))
                async for _ in stream:
                    break
                await stream.close()
                outcome["cancelled"] += 1
            elif i % 10 == 7:
                xargs, said = BAD[(i // 10) % len(BAD)]
                with pytest.raises((BadRequestError, ValueError)) as caught:
                    await client.chat.completions.create(**kind.body(xargs))
                if isinstance(caught.value, BadRequestError):
                    assert caught.value.status_code == 400
                    assert said in str(caught.value)
                else:
                    assert "nan" in said  # JSON has no such number; the client refuses it
                outcome["refused"] += 1
            else:
                assert same(await ask(kind), solo[kind]), kind
                outcome["answered"] += 1

    async def everything() -> tuple[int, int]:
        solo = {kind: await ask(kind) for kind in mix}
        for kind in mix:  # settled: what is cached now is cached
            assert same(await ask(kind), solo[kind])
        before = server.resident()
        gate = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(one(i, solo, gate) for i in range(REQUESTS)))
        for kind in mix:
            assert same(await ask(kind), solo[kind])
        return before, server.resident()

    before, after = asyncio.run(everything())
    assert outcome == {"answered": 192, "cancelled": 24, "refused": 24}
    assert after - before < 100 * 2**20, f"resident memory grew by {(after - before) / 2**20:.0f} MiB"
    assert counted(server.url, "tccd_requests_total") >= tccd_requests > 100
    assert counted(server.url, "tccd_generation_tokens_total") >= tccd_tokens > 500


def test_a_prompt_without_an_image_gets_400(server):
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    kind = next(k for k in kinds() if k.image is None)
    with pytest.raises(BadRequestError, match="has no image") as caught:
        client.chat.completions.create(**kind.body(XARGS[1]))
    assert caught.value.status_code == 400
