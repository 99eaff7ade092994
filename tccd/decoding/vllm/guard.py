"""The front end, with a bank or without: a TCCD request that can't be decoded is refused before it is rendered.

vLLM renders a prompt (chat template, tokens, image processor), then hands it to the engine. While it renders, it
notes the images as sent, since the engine keeps them and need not get them twice. A request that is refused
later would leave its images noted but never sent, and the next request with the same image would fail. So
parameters are checked before the rendering, in each way by which requests come in, and where a refusal needs the
rendered prompt its images are forgotten again.

The guard is there without a bank too: `tccd_*` keys at an engine that would ignore them are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tccd.decoding.vllm import admission, banks, blank, http, joints, metrics, objects, pairs, promise, prompts
from tccd.decoding.vllm.refusals import vision_ids
from tccd.decoding.vllm.settings import Settings, asked, listed, settings
from tccd.errors import ConfigError, TCCDError


def install() -> None:
    """Stand in the ways by which requests come in: `LLM`, `AsyncLLM`, the HTTP servers and `vllm run-batch`.

    Raises:
        ConfigError: there is a bank, and this vLLM has other ways than those that were tested.
    """
    watch(AROUND)


def watch(around: Mapping[str, Callable[..., Any]]) -> None:
    """`joints.wrap`; without a bank a vLLM that does not fit is left as it is, with a warning.

    Raises:
        ConfigError: it does not fit, and there is a bank.
    """
    try:
        joints.wrap(around)
    except ConfigError as error:
        if banks.enabled():
            raise
        from vllm.logger import init_logger

        init_logger("vllm.plugins.tccd").warning("requests for TCCD may pass as plain ones: %s", error)


def settled(extra_args: dict[str, Any] | None) -> Settings | None:
    """The settings that a request asks for; None for plain decoding.

    Raises:
        ConfigError: a bad parameter, or this engine runs without TCCD.
    """
    keys = asked(extra_args)
    if not keys:
        return None
    if not banks.enabled():
        raise ConfigError(
            f"{listed(keys)}: this engine runs without TCCD; its operator turns it on by {banks.VARIABLE}"
        )
    if not joints.installed():
        raise ConfigError(f"{listed(keys)}: {promise.without_plugin()}")
    return settings(keys, banks.loaded())


def wanted(extra_args: dict[str, Any] | None) -> Settings | None:
    """`settled`, for vLLM's own code, whose servers answer its error with HTTP 400.

    Raises:
        VLLMValidationError: as `settled` says.
    """
    from vllm.exceptions import VLLMValidationError

    try:
        return settled(extra_args)
    except TCCDError as error:
        raise VLLMValidationError(str(error)) from error


def _process_inputs(
    original: Callable[..., Any],
    processor: Any,
    request_id: str,
    prompt: Any,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    extra = getattr(params, "extra_args", None)
    if not asked(extra):
        return original(processor, request_id, prompt, params, *args, **kwargs)
    request = None
    try:
        found = wanted(extra)
        request = original(processor, request_id, prompt, params, *args, **kwargs)
        if found is not None:
            if found.prompt is not None:
                _add_prompt(processor, request, found.prompt)
            if found.reference == "blank-image":
                _add_grey(processor, request)
            admission.check(request, found, vision_ids(processor.vllm_config), _room(processor.vllm_config))
            metrics.admitted(processor.model_config.served_model_name, found.reference)
    except Exception:
        _forget_images(processor.renderer.mm_processor_cache, prompt, request)
        raise
    return request


def _add_prompt(processor: Any, request: Any, description: str) -> None:
    """Give a request the tokens of its reference's prompt, which the engine could not make."""
    from vllm.exceptions import VLLMValidationError

    config = processor.vllm_config
    ids = request.prompt_token_ids or []
    spans = [
        ids[f.mm_position.offset : f.mm_position.offset + f.mm_position.length] for f in request.mm_features or ()
    ]
    try:
        marked = prompts.tokens(description, processor.tokenizer, config.model_config.get_vocab_size())
        tokens, places = prompts.with_images(marked, vision_ids(config), spans)
    except ConfigError as error:
        raise VLLMValidationError(str(error)) from error
    objects.give(request.sampling_params, pairs.TOKENS, {"tokens": tokens, "images": places})


def _add_grey(processor: Any, request: Any) -> None:
    """Give a request what a grey picture is to the image processor, which the engine has not."""
    from vllm.exceptions import VLLMValidationError

    if not request.mm_features:
        return  # which admission refuses
    try:
        grey = blank.look(processor.renderer.get_mm_processor())
    except ConfigError as error:
        raise VLLMValidationError(str(error)) from error
    objects.give(request.sampling_params, blank.KEY, grey)


def _room(config: Any) -> admission.Room:
    blocks = config.cache_config.num_gpu_blocks
    return admission.Room(
        config.model_config.max_model_len, int(blocks) if blocks else None, int(config.cache_config.block_size)
    )


def _render_and_add_requests(
    original: Callable[..., Any], llm: Any, prompts: Any, params: Any, **kwargs: Any
) -> Any:
    """`prompts` renders as it is read: all parameters are checked first."""
    for one in params:
        wanted(getattr(one, "extra_args", None))
    return original(llm, prompts, params, **kwargs)


async def _check_model(original: Callable[..., Any], serving: Any, request: Any) -> Any:
    """A request that comes by a file and not by HTTP has passed no door."""
    from vllm.exceptions import VLLMValidationError

    extra, xargs = getattr(request, "model_extra", None) or {}, getattr(request, "vllm_xargs", None)
    beams = {"use_beam_search": True} if getattr(request, "use_beam_search", False) else {}
    try:
        http.check_keys(extra | beams | ({"vllm_xargs": xargs} if xargs else {}), ("vllm_xargs",), settled)
    except ValueError as error:
        raise VLLMValidationError(str(error)) from error
    return await original(serving, request)


def _init_middleware(original: Callable[..., Any], args: Any, app: Any, *more: Any, **kwargs: Any) -> Any:
    app.add_middleware(http.Door, wanted=settled)  # the first one added is the innermost: behind the API key
    return original(args, app, *more, **kwargs)


def _forget_images(cache: Any, prompt: Any, request: Any) -> None:
    """Drop a refused request's images from the front end's shadow of the engine's cache.

    They were noted there when the prompt was rendered, but never reach the engine: the next request with the
    same image would be sent without it.
    """
    hashes = [feature.mm_hash for feature in (request.mm_features or ())] if request is not None else []
    if isinstance(prompt, dict):
        hashes += [one for held in (prompt.get("mm_hashes") or {}).values() for one in held]
    for one in hashes if cache is not None else ():
        if one is not None:
            cache.invalidate(one)


#: The front end's joints that refuse.
AROUND: dict[str, Callable[..., Any]] = {
    "request in": _process_inputs,
    "prompts in": _render_and_add_requests,
    "line in": _check_model,
    "server": _init_middleware,
}
