"""Bad requests at a real server, with a bank and without: HTTP 400, streamed or not, and nobody later suffers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tccd.decoding.vllm.settings import REFERENCES
from tests.tccd.decoding.vllm.conftest import SMALL
from tests.tccd.decoding.vllm.serving import MODEL, serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

GOOD = {"tccd_layer": 2, "tccd_alpha_cd": 1.0}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def bare(checkpoint):
    """A server without a bank."""
    pytest.importorskip("vllm")
    with serving(checkpoint("llava").folder, SMALL) as found:
        yield found


def image(number: int) -> str:
    """A picture that no other request has, as a data URL."""
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def chat(number: int, xargs: Any = None, picture: bool = True, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "what is the color"}]
    if picture:
        content.insert(0, {"type": "image_url", "image_url": {"url": image(number)}})
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 3, "temperature": 0}
    return body | ({} if xargs is None else {"vllm_xargs": xargs}) | more


#: name -> (extra arguments, more of the body, what a server with a bank says)
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no such bank": (GOOD | {"tccd_bank": "x"}, {}, "this server has 'default'"),
    "true": (GOOD | {"tccd_alpha_cd": True}, {}, "alpha_cd is True (bool)"),
    "false": (GOOD | {"tccd_beta": False}, {}, "beta is False (bool)"),
    "capitals": ({"TCCD_LAYER": 2}, {}, "did you mean tccd_layer"),
    "dashes": ({"tccd-layer": 2}, {}, "did you mean tccd_layer"),
    "misspelt": (GOOD | {"tccd_apha_cd": 1}, {}, "did you mean tccd_alpha_cd"),
    "misspelt before": ({"tcd_layer": 2}, {}, "did you mean tccd_layer"),
    "top": (None, GOOD, "put them under 'vllm_xargs'"),
    "extra_body": (None, {"extra_body": {"vllm_xargs": GOOD}}, "extra_body.vllm_xargs.tccd_layer"),
    "metadata": (None, {"metadata": {"tccd_layer": "2"}}, "metadata.tccd_layer"),
    "sampling_params": (None, {"sampling_params": {"Tccd_Layer": 2}}, "sampling_params.Tccd_Layer"),
    "a megabyte": (GOOD | {"tccd_gate": "x" * 2**20}, {}, "(1048576 characters)"),
    "a megabyte of key": (GOOD | {"tccd_" + "x" * 2**20: 1}, {}, "unknown TCCD parameters"),
    "beams": (GOOD, {"use_beam_search": True}, "beam search drops vllm_xargs"),
}


@pytest.mark.parametrize("with_bank", [True, False], ids=["bank", "none"])
def test_bad_requests_get_400_and_leave_nothing(request, with_bank):
    server = request.getfixturevalue("server" if with_bank else "bare")
    for number, (name, (xargs, more, said)) in enumerate(BAD.items(), 1000):
        for stream in (True, False):
            status, text = server.post(CHAT, chat(number, xargs, stream=stream, **more))
            assert status == 400, (name, stream, status, text[:300])
            assert len(text) < 1000, name
            message = json.loads(text)["error"]["message"]
            if with_bank or more:
                assert said in message, (name, message)
            else:
                assert "this engine runs without TCCD" in message, (name, message)
        status, text = server.post(CHAT, chat(number))
        assert status == 200, (name, text[:300])
    assert "Exception in ASGI application" not in server.log.read_text()  # which would close a shared connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_without_an_image_gets_400(server, stream):
    for path, body in (
        (CHAT, chat(0, GOOD, picture=False)),
        (TEXT, {"model": MODEL, "prompt": "what is", "max_tokens": 2, "vllm_xargs": GOOD}),
    ):
        status, text = server.post(path, body | {"stream": stream})
        assert (status, "has no image" in text) == (400, True)


def test_bodies_that_hide_their_keys(server):
    plain = json.dumps(chat(2000, GOOD | {"tccd_beta": True}))
    escaped = plain.replace("tccd_", "\\u0074\\u0063cd_")
    for body in (escaped, plain.encode("utf-16")):
        status, text = server.post(CHAT, body)
        assert (status, "beta is True" in text) == (400, True)
    status, text = server.post(CHAT, json.dumps(chat(2001, GOOD)).replace("1.0", "NaN"))
    assert (status, "alpha_cd is nan" in text) == (400, True)


def test_good_requests_of_every_kind_pass(server):
    for number, more in enumerate(({}, {"stream": True}, {"n": 2, "temperature": 1}, {"user": "tccd fan"}), 3000):
        status, text = server.post(CHAT, chat(number, GOOD, **more))
        assert status == 200, text[:300]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"tccd_layer": {}}}}}]
    status, text = server.post(CHAT, chat(3010, GOOD, tools=tools, tool_choice="none"))
    assert status == 200, text[:300]


def test_a_batch_is_decoded_with_tccd_or_refused(server):
    from tests.tccd.decoding.vllm.test_server import counted

    before = counted(server.url, "tccd_requests_total")
    two = [chat(3011)["messages"], chat(3012)["messages"]]
    status, text = server.post(CHAT + "/batch", chat(3011, GOOD) | {"messages": two})
    assert status == 200, text[:300]
    assert counted(server.url, "tccd_requests_total") == before + 2
    two[1] = chat(0, picture=False)["messages"]
    status, text = server.post(CHAT + "/batch", chat(3013, GOOD) | {"messages": two})
    assert (status, "has no image" in text) == (400, True)


def test_one_line_says_what_is_served(server):
    lines = [line for line in server.log.read_text().splitlines() if "TCCD is on" in line]
    assert len(lines) == 1
    centroids = "text centroids at layers 1, 2 and vision centroids at layers 2"
    assert f"bank 'default' of llava-competing with {centroids} (digest " in lines[0]
    assert lines[0].endswith("references " + ", ".join(REFERENCES))


def test_counters_exist_from_the_start(server):
    for name in ("tccd_requests_total", "tccd_generation_tokens_total"):
        for reference in REFERENCES:
            assert f'{name}{{model_name="{MODEL}",reference="{reference}"}} 0.0' in server.first


def test_without_a_bank_there_are_no_counters(bare):
    assert "tccd_" not in bare.metrics()
