"""Refusals at a server's door: a request's JSON is read before vLLM makes anything of it.

Later vLLM has turned `true` into 1 and dropped the keys it doesn't know, has noted the images as sent, and has
begun to stream with HTTP 200.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from tccd.decoding.vllm.settings import KEYS, NO_IMAGE, Settings, asked, listed, meant, nearest

#: Addresses that hand a request's `vllm_xargs` on.
XARGS = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
)
#: The address that takes sampling parameters as they are.
TOKENS = "/inference/v1/generate"
#: Parts of a body whose keys are the client's own.
_TEXTS = ("messages", "input", "prompt", "system", "text", "documents")
_SCHEMAS = ("tools", "functions", "tool_choice", "response_format", "structured_outputs", "logit_bias")
_DEPTH = 4
#: What a body with a TCCD key has in it: `tccd`, or a letter of it written as an escape, or UTF-16's zero bytes.
_ESCAPED = re.compile(rb"\\u00[4-7]")

Wanted = Callable[[dict[str, Any]], "Settings | None"]


def suspicious(body: bytes) -> bool:
    """Whether a body has to be read; the others may pass unread."""
    return b"tccd" in body.lower() or b"vllm_xargs" in body or b"\0" in body or bool(_ESCAPED.search(body))


def refusal(path: str, body: bytes, wanted: Wanted) -> str | None:
    """What is wrong with a request.

    Args:
        path: the address.
        body: JSON; what is not JSON is vLLM's to refuse.
        wanted: settings that keys ask for; raises ValueError where they can't be had.

    Returns:
        The message, or None.
    """
    if not suspicious(body):
        return None
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    try:
        check(path.removesuffix("/render"), request, wanted)
    except ValueError as error:
        return str(error)
    return None


def check(path: str, request: dict[str, Any], wanted: Wanted) -> None:
    """Refuse misplaced keys, wrong values, beam search and prompts without an image.

    Raises:
        ValueError: says what and where.
    """
    place: tuple[str, ...] = next((("vllm_xargs",) for known in XARGS if path.endswith(known)), ())
    if path.endswith(TOKENS):
        place = ("sampling_params", "extra_args")
    found = check_keys(request, place, wanted)
    if found is None or found.reference == "prompt" or place != ("vllm_xargs",) or _has_image(request):
        return
    raise ValueError(NO_IMAGE)


def check_keys(request: dict[str, Any], place: tuple[str, ...], wanted: Wanted) -> Settings | None:
    """What a request asks for.

    Args:
        request: its JSON.
        place: names that lead to the extra arguments; none where an address takes none.
        wanted: as for `refusal`.

    Raises:
        ValueError: TCCD's keys elsewhere, wrong values, or beam search.
    """
    stray = list(islice((where for where in _stray(request, ()) if where[:-1] != place), 20))
    if stray:
        there = f"put them under {'.'.join(place)!r}" if place else "this address takes none"
        raise ValueError(f"TCCD parameters in the wrong place: {listed('.'.join(w) for w in stray)}; {there}")
    extra: Any = request if place else None
    for name in place:
        extra = extra.get(name) if isinstance(extra, dict) else None
    if not isinstance(extra, dict) or not asked(extra):
        return None
    if request.get("use_beam_search"):
        raise ValueError("vLLM's beam search drops vllm_xargs: leave use_beam_search or tccd_* out")
    return wanted(extra)


def _stray(found: dict[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Where a request's own keys, and those a few levels below, are TCCD's."""
    for key, value in found.items():
        at = (*above, str(key)[:200])
        if meant(key) if not above or above[-1] in ("vllm_xargs", "extra_args") else _ours(key):
            yield at
        if isinstance(value, dict) and len(at) < _DEPTH and key not in (*_TEXTS, *_SCHEMAS):
            yield from _stray(value, at)


def _ours(key: Any) -> bool:
    """Deeper down a key may be somebody's label; it is ours where it is one of ours, or almost."""
    return key in KEYS or nearest(str(key)[:64]) is not None


def _has_image(request: dict[str, Any]) -> bool:
    """Whether the messages, or each of a batch's conversations, show a picture or a video, or may do so."""
    if request.get("previous_response_id"):
        return True  # vLLM holds what came before; what it lacks is refused once it is rendered
    messages = request.get("messages") or request.get("input")
    if isinstance(messages, list) and messages and all(isinstance(one, list) for one in messages):
        return all(_shows(one) for one in messages)
    return _shows(messages)


def _shows(messages: Any) -> bool:
    pending = [messages]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if any("image" in str(name) or "video" in str(name) for name in (*part, part.get("type"))):
                return True
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)
    return False


class Door:
    """ASGI middleware that answers a bad TCCD request with HTTP 400, streamed or not, and hands on all others.

    Args:
        app: what is behind it.
        wanted: as for `refusal`.
    """

    def __init__(self, app: Any, wanted: Wanted) -> None:
        self.app, self.wanted = app, wanted

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read a POST's body, then let it pass or not."""
        kind = dict(scope.get("headers") or ()).get(b"content-type", b"")
        if scope["type"] != "http" or scope["method"] != "POST" or kind.startswith(b"multipart/"):
            await self.app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
            messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        message = refusal(scope["path"], body, self.wanted)
        if message is not None:
            await _answer(message)(scope, receive, send)
            return
        replayed = iter(messages)

        async def again() -> Any:
            for held in replayed:
                return held
            return await receive()

        await self.app(scope, again, send)


def _answer(message: str) -> Any:
    from starlette.responses import JSONResponse
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    return JSONResponse(create_error_response(message).model_dump(), status_code=400)
