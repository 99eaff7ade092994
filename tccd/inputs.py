"""Images and prompts -> model inputs: the one place that formats a prompt, and says which prompts can't be asked.

A prompt can't be asked if it holds one of the tokens that stand for pictures in the model's own prompts, or if it
is longer than the model's context, the tokens of its pictures included. `check_samples` finds such prompts before
the first forward; `check_context` looks again at each batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from PIL.Image import Image

from tccd.errors import ConfigError, DataError

#: Names of tokens that have to do with pictures: in a processor, a config or a vocabulary.
_VISUAL = re.compile(r"image|img|vision|visual|video|boi_|eoi_", re.IGNORECASE)

#: Width and height of each of a prompt's pictures.
Sizes: TypeAlias = tuple[tuple[int, int], ...]

#: Room for so many times the tokens of the most extreme pictures is room for those of any other.
_ROOMY = 4

#: The prompt of the published fit (arXiv 2604.14363).
PAPER_PROMPT = "Describe what you see in this image.\nAnswer:"


def format_prompt(processor: Any, prompt: str, num_images: int = 1) -> str:
    """Put a question into the model's own format, image tokens included.

    The processor's chat template is used where it has one; else the image token stands before the prompt.

    Raises:
        DataError: the processor has neither a chat template nor an image token.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return processor.apply_chat_template(messages, add_generation_prompt=True)
    token = getattr(processor, "image_token", None)
    if num_images and not token:
        raise DataError(
            f"{type(processor).__name__} has neither a chat template nor an image_token, so the image's "
            "place in the prompt is unknown; set processor.chat_template"
        )
    return f"{token or ''}" * num_images + prompt


def encode(processor: Any, images: Sequence[Sequence[Image]], prompts: Sequence[str]) -> Any:
    """Encode a batch, left padded, ready for `model(**inputs)` or `model.generate(**inputs)`.

    Args:
        processor: a transformers processor.
        images: one sequence of PIL images a row; empty for a row without an image.
        prompts: one question a row, without image tokens.

    Returns:
        The processor's BatchFeature of torch tensors.

    Raises:
        DataError: images and prompts differ in number.
    """
    if len(images) != len(prompts):
        raise DataError(f"{len(images)} rows of images but {len(prompts)} prompts; expected as many")
    texts = [format_prompt(processor, p, len(row)) for p, row in zip(prompts, images, strict=True)]
    rows = [list(row) for row in images]
    # Most templates write the bos token themselves; the tokenizer must not add a second one.
    bos = getattr(processor.tokenizer, "bos_token", None)
    return processor(
        text=texts,
        images=rows if any(rows) else None,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=not (bos and texts and texts[0].startswith(bos)),
    )


def check_processor(processor: Any, config: Any) -> None:
    """Refuse a processor that can't put a picture before its model: it has to encode a question about a grey one.

    Args:
        processor: what `AutoProcessor` loaded.
        config: the model's config.

    Raises:
        DataError: it reads no pictures, it fails, or its prompt lacks the tokens that stand for the picture.
        ModalityError: the config names no such token.
    """
    from PIL.Image import new

    from tccd.modality import vision_token_ids

    kind = type(processor).__name__
    repair = "its files (processor_config.json, chat_template.jinja) may be damaged: download or copy them again"
    if not hasattr(processor, "tokenizer"):
        raise DataError(f"{kind} is no processor of pictures and text; {repair}")
    try:
        inputs = encode(processor, [[new("RGB", (64, 64), "grey")]], ["?"])
    except DataError:
        raise
    except Exception as error:  # jinja's own kinds, what a template raises by itself, and each processor's own
        cause = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"{kind} can't put a question about a picture ({cause}); {repair}") from error
    wanted = vision_token_ids(config)
    if not set(wanted) & set(inputs["input_ids"].flatten().tolist()):
        raise DataError(
            f"{kind} puts a question about a picture without the model's vision tokens {list(wanted)}; {repair}, "
            "and so may config.json"
        )


def vision_tokens(processor: Any, config: Any = None) -> tuple[str, ...]:
    """The tokens that stand for pictures in a model's prompts, or mark where they begin and end.

    Args:
        processor: a transformers processor; its own tokens and the special ones of its vocabulary are read.
        config: a transformers model config, whose token ids are read besides.

    Returns:
        Their texts, sorted.
    """
    tokenizer = processor.tokenizer
    named = {**tokenizer.special_tokens_map, **vars(processor)}
    found = {str(token) for token in _visual(named, "_token")}
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found |= {token.content for token in added if token.special and _VISUAL.search(token.content)}
    known = vars(config) if config is not None else {}
    ids = [i for suffix in ("_token_id", "_token_index") for i in _visual(known, suffix) if isinstance(i, int)]
    found |= {token for token in tokenizer.convert_ids_to_tokens([i for i in ids if i >= 0]) if token}
    return tuple(sorted(token for token in found if token))


def _visual(named: Mapping[str, Any], suffix: str) -> Iterator[Any]:
    """What has to do with pictures by its name, and a name that ends so."""
    for name, value in named.items():
        if name.endswith(suffix) and _VISUAL.search(name) and value is not None:
            yield value


def check_prompts(processor: Any, prompts: Sequence[str], names: Iterable[str], config: Any = None) -> None:
    """Refuse prompts that hold a token which stands for a picture.

    Args:
        processor: a transformers processor.
        prompts: as `encode` takes them.
        names: what to call each in an error, as in `sample 7`.
        config: the model's config; its tokens are looked for besides the processor's.

    Raises:
        DataError: there is such a prompt; names the first and the token.
    """
    tokens = vision_tokens(processor, config)
    if not tokens:
        return
    match = re.compile("|".join(map(re.escape, tokens)))
    for prompt, name in zip(prompts, names, strict=True):
        found = match.search(prompt)
        if found:
            raise DataError(
                f"{name}: the prompt holds {found[0]!r}, which stands for a picture in this model's prompts; "
                "expected words alone. The picture is put in for you: take the token out"
            )


def context_length(config: Any) -> int | None:
    """The most tokens that a model reads, pictures and answer included; None where its config names no limit."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def check_context(config: Any, inputs: Mapping[str, Any], names: Sequence[str], new_tokens: int = 0) -> None:
    """Refuse an encoded batch with a row that is longer than the model's context.

    Args:
        config: the model's config.
        inputs: what `encode` returned.
        names: what to call each row in an error, as in `sample 7`.
        new_tokens: tokens that each answer may have.

    Raises:
        DataError: a row doesn't fit, the tokens of its pictures included; names the first.
        ConfigError: a row fits, but not with its answer.
    """
    for length, name in zip(_row_lengths(inputs), names, strict=True):
        _check_length(config, length, name, new_tokens, "with its picture")


def _row_lengths(inputs: Mapping[str, Any]) -> list[int]:
    mask = inputs.get("attention_mask")
    rows, width = inputs["input_ids"].shape
    return [width] * rows if mask is None else mask.sum(-1).tolist()


def _check_length(config: Any, length: int, name: str, new_tokens: int, counted: str) -> None:
    limit = context_length(config)
    if limit is None or length + new_tokens <= limit:
        return
    found = f"{name}: the prompt has {length} tokens {counted}"
    if length > limit:
        raise DataError(f"{found}, but the model reads at most {limit}; expected a shorter prompt")
    raise ConfigError(
        f"{found} and the answer up to {new_tokens} more, but the model reads at most {limit} in all; expected a "
        "shorter prompt or a shorter answer"
    )


def check_samples(
    model: Any, processor: Any, samples: Sequence[Any], prompt: str | None = None, new_tokens: int = 0
) -> None:
    """Refuse prompts that can't be asked, before the first is.

    How many tokens a picture takes depends on its size, which is read from its file's header. Where samples have
    no `size`, a prompt that is too long only with its picture is left to `check_context`.

    Args:
        model: a transformers vision-language model.
        processor: its processor.
        samples: have `id`, `prompt` and `size`, as `tccd.data.Sample` does.
        prompt: asked about every picture instead of the samples' own.
        new_tokens: tokens that each answer may have.

    Raises:
        DataError: a prompt holds a token that stands for a picture, or is longer than the model's context; or a
            picture's header can't be read. Names the first sample that has it.
        ConfigError: a prompt fits, but not with its answer.
    """
    if prompt is not None:
        asked = {prompt: "the prompt for every picture"}
    else:
        asked = {}
        for sample in samples:
            asked.setdefault(sample.prompt, f"sample {sample.id}")
    check_asked(model.config, processor, asked, new_tokens)
    if context_length(model.config) is None:
        return
    told = [sample for sample in samples if hasattr(sample, "size")]
    shown = [Shown(f"sample {s.id}", s.prompt if prompt is None else prompt, (s.size,)) for s in told]
    check_shown(model.config, processor, shown, new_tokens)


def check_asked(config: Any, processor: Any, asked: Mapping[str, str], new_tokens: int = 0) -> None:
    """`check_samples` for prompts whose pictures are not there yet: each is taken for one token.

    Args:
        config: the model's config.
        processor: its processor.
        asked: each distinct prompt -> what to call it in an error.
        new_tokens: tokens that each answer may have.

    Raises:
        DataError: a prompt holds a token that stands for a picture, or is longer than the model's context.
        ConfigError: a prompt fits, but not with its answer.
    """
    check_prompts(processor, list(asked), asked.values(), config)
    if context_length(config) is None:
        return
    lengths = _Lengths(processor)
    for prompt, name in asked.items():
        _check_length(config, lengths.text(prompt, 1), name, new_tokens, "without its picture")


class Shown(NamedTuple):
    """A prompt with the sizes of its pictures: width and height of each. `name` is what errors call it."""

    name: str
    prompt: str
    sizes: Sizes


def check_shown(config: Any, processor: Any, shown: Sequence[Shown], new_tokens: int = 0) -> None:
    """Refuse prompts that are longer than the model's context with their pictures, before a picture is read.

    A short prompt is encoded for each distinct size, with a grey picture. Where the context has room for several
    times the tokens of the pictures with the most extreme sizes, no others are.

    Args:
        config: the model's config.
        processor: its processor.
        shown: the prompts.
        new_tokens: tokens that each answer may have.

    Raises:
        DataError: a prompt doesn't fit, or the processor fails at a picture of its size; names the first.
        ConfigError: a prompt fits, but not with its answer.
    """
    limit = context_length(config)
    if limit is None or not shown:
        return
    lengths = _Lengths(processor)
    named = {one.sizes: one.name for one in reversed(shown)}
    most = max(lengths.pictures(sizes, named[sizes]) for sizes in _extremes(named))
    text = max(lengths.text(one.prompt, len(one.sizes)) for one in shown)
    if text + _ROOMY * most + new_tokens <= limit:
        return
    for one in shown:
        length = lengths.text(one.prompt, len(one.sizes)) + lengths.pictures(one.sizes, one.name)
        _check_length(config, length, one.name, new_tokens, "with its picture")


def _extremes(found: Iterable[Sizes]) -> set[Sizes]:
    """The most pictures; the longest, thinnest and most square; the most pixels, as they are and scaled down."""
    found = list(found)
    shapes: list[Callable[[Sizes], float]] = [
        len,
        lambda sizes: sum(width * height for width, height in sizes),
        lambda sizes: max(map(max, sizes), default=0),
        lambda sizes: max((max(size) / min(size) for size in sizes), default=0),
        lambda sizes: max((min(size) / max(size) for size in sizes), default=0),
    ]
    shapes += [partial(_scaled_pixels, longest) for longest in (256, 512, 1024, 2048)]
    return {max(found, key=shape) for shape in shapes}


def _scaled_pixels(longest: int, sizes: Sizes) -> float:
    return sum(width * height * min(1, longest / max(width, height)) ** 2 for width, height in sizes)


class _Lengths:
    """Counts tokens: of a text once for each prompt, of pictures once for each size."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._texts: dict[tuple[str, int], int] = {}
        self._pictures: dict[Sizes, int] = {}

    def text(self, prompt: str, pictures: int) -> int:
        """Tokens of a formatted prompt, where each picture is one."""
        if (prompt, pictures) not in self._texts:
            text = format_prompt(self._processor, prompt, pictures)
            ids = self._processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            self._texts[prompt, pictures] = len(ids)
        return self._texts[prompt, pictures]

    def pictures(self, sizes: Sizes, name: str) -> int:
        """Tokens that pictures of such sizes add to that, whatever the prompt; `name` is for errors."""
        from PIL.Image import new

        if sizes not in self._pictures:
            try:
                inputs = encode(self._processor, [[new("RGB", size, "grey") for size in sizes]], ["?"])
            except Exception as error:  # each processor's own
                told = ", ".join(f"{width} x {height}" for width, height in sizes)[:200]
                raise DataError(
                    f"{name}: {type(self._processor).__name__} fails at a picture of {told} pixels "
                    f"({type(error).__name__}: {str(error)[:200]}); expected one of another size"
                ) from error
            self._pictures[sizes] = _row_lengths(inputs)[0] - self.text("?", len(sizes))
        return self._pictures[sizes]
