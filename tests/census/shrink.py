"""A config of transformers, made tiny: every size by the name that it goes by, in any family."""

from __future__ import annotations

from typing import Any

from tests.families import BOS, END, EOS, HIDDEN, IMAGE, PAD, START, VIDEO, VOCAB

LAYERS = 5
WINDOW = 6
HEAD = 16
TOWER = 32

#: Names of a config's parts that are no language model.
_TOWERS = ("vision", "audio", "vq_", "sam_", "qformer", "encoder", "high_res", "perceiver", "tower", "resampler")

#: Name -> size in the language model, and in every other part.
_SIZES: dict[str, tuple[int, int]] = {
    "vocab_size": (VOCAB, VOCAB),
    "num_hidden_layers": (LAYERS, 2),
    "num_layers": (LAYERS, 2),
    "num_decoder_layers": (LAYERS, 2),
    "encoder_layers": (2, 2),
    "decoder_layers": (2, 2),
    "layers": (LAYERS, 2),
    "n_layers": (LAYERS, 2),
    "d_model": (HIDDEN, TOWER),
    "d_ff": (96, 48),
    "d_kv": (HEAD, HEAD),
    "embed_dim": (HIDDEN, TOWER),
    "vocab_size_per_layer_input": (VOCAB, VOCAB),
    "depth": (LAYERS, 2),
    "max_position_embeddings": (512, 64),
    "head_dim": (HEAD, HEAD),
    "sliding_window": (WINDOW, WINDOW),
    "image_size": (16, 16),
    "patch_size": (4, 4),
    "spatial_merge_size": (2, 2),
    "temporal_patch_size": (2, 2),
    "num_position_embeddings": (64, 64),
    "out_hidden_size": (HIDDEN, HIDDEN),
    "projection_dim": (HIDDEN, HIDDEN),
    "first_k_dense_replace": (1, 1),
    "kv_lora_rank": (16, 16),
    "q_lora_rank": (24, 24),
    "qk_nope_head_dim": (8, 8),
    "qk_rope_head_dim": (8, 8),
    "v_head_dim": (HEAD, HEAD),
}
#: Ends of names -> the same, where no name of `_SIZES` fits.
_ENDS: dict[str, tuple[int, int]] = {
    "intermediate_size": (96, 48),
    "ffn_dim": (96, 48),
    "mlp_dim": (96, 48),
    "hidden_size": (HIDDEN, TOWER),
    "attention_heads": (4, 2),
    "num_heads": (4, 2),
    "key_value_heads": (2, 2),
    "num_experts": (4, 4),
    "local_experts": (4, 4),
    "routed_experts": (4, 4),
    "shared_experts": (1, 1),
    "experts_per_tok": (2, 2),
}
_IDS: dict[str, int] = {
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
    "vision_start_token_id": START,
    "image_start_token_id": START,
    "boi_token_id": START,
    "boi_token_index": START,
    "vision_end_token_id": END,
    "image_end_token_id": END,
    "eoi_token_id": END,
    "eoi_token_index": END,
}
_DROP = ("transformers_version", "architectures", "dtype", "id2label", "label2id", "per_layer_config")


def shrink(config: dict[str, Any], tower: bool = False) -> dict[str, Any]:
    """The settings of a config, tiny; what has no size of its own stays.

    Args:
        config: from `to_dict()`.
        tower: whether it is of a part that is no language model.
    """
    made = {}
    for name, value in config.items():
        if name in _DROP or (name == "model_type" and not value):
            continue
        if isinstance(value, dict) and (name.endswith("_config") or "model_type" in value):
            made[name] = shrink(value, tower or name.startswith(_TOWERS))
        elif name == "rope_parameters" and isinstance(value, dict):
            made[name] = _rope(value, HEAD)
        elif name in ("layer_types", "mlp_layer_types") and value:
            kinds = list(dict.fromkeys(value))
            made[name] = (kinds * LAYERS)[: 2 if tower else LAYERS]
        else:
            made[name] = _small(name, value, tower)
    return made


def _small(name: str, value: Any, tower: bool) -> Any:
    if name in _IDS:
        return _IDS[name]
    if name in ("image_size", "patch_size") and isinstance(value, list) and len(value) == 2:
        return [_SIZES[name][tower]] * 2
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name in _SIZES:
        return min(value, _SIZES[name][tower])
    for end, sizes in _ENDS.items():
        if name.endswith(end):
            return min(value, sizes[tower])
    if name.endswith(("token_id", "token_index")):
        return FREE
    return value


#: A token that stands for whatever else a config names.
FREE = END + 1


def _rope(rope: dict[str, Any], head: int) -> dict[str, Any]:
    made = {name: _rope(value, head) if isinstance(value, dict) else value for name, value in rope.items()}
    if "mrope_section" in made:
        half = int(head * made.get("partial_rotary_factor", 1)) // 2
        made["mrope_section"] = [half - 2 * (half // 4), half // 4, half // 4]
    return made


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested changes; a change to `...` takes the setting out."""
    made = dict(base)
    for name, value in changes.items():
        if value is ...:
            made.pop(name, None)
        elif isinstance(value, dict) and isinstance(made.get(name), dict):
            made[name] = merged(made[name], value)
        else:
            made[name] = value
    return made
