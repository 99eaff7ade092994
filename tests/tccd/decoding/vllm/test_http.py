"""What a server's door lets pass: keys in their place, of their type, and of everybody else all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_test
from hypothesis import strategies as st

from tccd.decoding.vllm.http import Door, refusal, suspicious
from tccd.decoding.vllm.settings import KEYS, QUOTED, settings
from tests.tccd.decoding.vllm.test_settings import BANKS

CHAT = "/v1/chat/completions"
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]


def wanted(extra: Any) -> Any:
    return settings(extra, BANKS)


def said(body: Any, path: str = CHAT) -> str | None:
    return refusal(path, body if isinstance(body, bytes) else json.dumps(body).encode(), wanted)


def chat(xargs: Any = None, **more: Any) -> dict[str, Any]:
    return {"messages": IMAGE} | ({} if xargs is None else {"vllm_xargs": xargs}) | more


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        chat({"tccd_alpha_cd": 0.5}),
        chat({"session_id": "tccd"}),
        chat({"tccd_alpha_cd": 0.5}, user="tccd_layer", metadata={"tccd run": "7"}),
        chat(messages=[{"role": "user", "content": "what is tccd_layer?", "tccd_layer": 1}]),
        chat(tools=[{"tccd_layer": 1}], response_format={"schema": {"tccd_layer": 1}}),
        {"messages": [], "vllm_xargs": {"tccd_alpha_cd": 0}},
        {"messages": [], "vllm_xargs": {"tccd_reference": "prompt", "tccd_prompt": '{"text": "tccd_layer"}'}},
        {"input": "and now?", "previous_response_id": "x", "vllm_xargs": {"tccd_alpha_cd": 1}},
        [1, "tccd_layer"],
        b"{tccd",
    ],
)
def test_what_passes(body):
    assert said(body) is None


@pytest.mark.parametrize(
    "path",
    [CHAT, CHAT + "/batch", "/v1/responses", "/v1/messages", "/at" + CHAT, CHAT + "/render"],
)
def test_addresses_with_extra_arguments(path):
    assert said(chat({"tccd_alpha_cd": 1}), path) is None
    assert "alpha_cd is True" in str(said(chat({"tccd_alpha_cd": True}), path))


def test_addresses_without():
    assert "this address takes none" in str(said(chat({"tccd_alpha_cd": 1}), "/cohere/v2/chat"))
    assert said(chat({"other": "tccd"}), "/cohere/v2/chat") is None
    body = {"sampling_params": {"extra_args": {"tccd_alpha_cd": 1}}}
    assert said(body, "/inference/v1/generate") is None
    assert "'sampling_params.extra_args'" in str(said({"tccd_alpha_cd": 1}, "/inference/v1/generate"))


@given(
    key=st.sampled_from(KEYS),
    spell=st.sampled_from(
        [str, str.upper, str.title, lambda k: k.replace("_", "-"), lambda k: k.replace("_", "")]
    ),
    above=st.lists(
        st.sampled_from(["extra_body", "metadata", "sampling_params", "extra", "vllm_xargs"]), max_size=3
    ),
)
def test_a_key_anywhere_but_in_its_place_is_refused(key, spell, above):
    body: Any = {spell(key): 1}
    for name in reversed(above):
        body = {name: body}
    if above == ["vllm_xargs"] and spell(key) == key:
        return
    message = said(chat() | body)
    assert message is not None
    assert spell(key) in message


@given(st.text(max_size=6), st.booleans())
def test_letters_written_as_escapes_are_read(value, upper):
    text = json.dumps({"tccd_layer": value, "messages": IMAGE})
    hidden = "".join(f"\\u{ord(c):04{'X' if upper else 'x'}}" for c in "tccd")
    for body in (text.replace("tccd", hidden).encode(), text.encode("utf-16"), text.encode("utf-32")):
        assert suspicious(body)
        assert "tccd_layer" in str(said(body))


LONG = st.one_of(
    st.text(min_size=1, max_size=4).map(lambda part: part * 2000),
    st.integers(1, 9).map(lambda digit: digit * 10**3000),
    st.integers(900, 999).map(lambda count: [0] * count),
)


@settings_of_test(max_examples=60)
@given(st.dictionaries(st.sampled_from([*KEYS, "tccd_x", "tccd_" + "x" * 5000]), LONG, min_size=1, max_size=3))
def test_messages_quote_little(xargs):
    message = said(chat(xargs))
    assert message is not None
    assert len(message) < 2 * QUOTED + 300


def test_a_body_in_pieces_reaches_the_app_as_it_was():
    pieces = [b'{"messages": [], "a": ', b'"tccd', b'"}']
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not seen or seen[-1].get("more_body"):
            seen.append(await receive())
        seen.append(await receive())

    async def run() -> None:
        queue = [{"type": "http.request", "body": p, "more_body": p is not pieces[-1]} for p in pieces]
        queue.append({"type": "http.disconnect"})

        async def receive() -> Any:
            return queue.pop(0)

        await Door(app, wanted)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, None)

    asyncio.run(run())
    assert b"".join(m.get("body", b"") for m in seen) == b"".join(pieces)
    assert seen[-1] == {"type": "http.disconnect"}
