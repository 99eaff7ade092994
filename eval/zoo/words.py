"""The words that the zoo's models know, as a tokenizer and a chat template."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tccd.data.easy_vqa import COLORS, SHAPES

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
# Answers; easy-VQA's questions; those about digits; the paper's harvest prompt ("Describe what you see in this
# image.\nAnswer:"); lettered choices. Training shows neither of the last two.
WORDS = (
    *("yes", "no", *SHAPES, *COLORS, *map(str, range(10)), "even", "odd", "left", "right"),
    *("?", "a", "color", "contain", "does", "image", "in", "is", "not", "of", "present", "shape", "the"),
    *("there", "what", "are", "digit", "digits", "how", "it", "larger", "many", "or", "smaller", "which"),
    *("describe", "you", "see", "this", ".", "answer", ":"),
    *("b", "c", "d", "(", ")", "choose", "letter", "option", "options", "question", "with", "from", "given"),
)
# BOS comes from the template and not from the tokenizer: rendering and tokenizing in one step or two, here or
# in vLLM, then gives the same ids.
_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- 'IMAGE' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)


def chat_template(image: str) -> str:
    """The chat template: BOS, then what is said, an image as `image`; EOS after each answer."""
    return _TEMPLATE.replace("IMAGE", image)


def tokenizer(marks: dict[str, str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, punctuation apart, unknown words `<unk>`, padding on the left.

    Args:
        marks: a family's tokens around and in place of an image, by the name transformers gives them.
    """
    specials = [PAD, BOS, EOS, UNK, *marks.values()]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*specials, *WORDS])}, unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens=marks,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
