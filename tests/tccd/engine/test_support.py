"""Layers that can't have an erased stream beside them are found before the first token, with the true reason."""

import pytest

from tccd.decoder import find_decoder
from tccd.engine.support import check_twin
from tccd.errors import UnsupportedModelError
from tests.census.architectures import architecture


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mllama", r"layers \[3\] \(MllamaCrossAttentionDecoderLayer\) reach the image by cross-attention"),
        ("idefics", r"\(IdeficsGatedCrossAttentionLayer\) reach the image by cross-attention"),
        ("gemma4:shared keys", r"layers \[3, 4\] \(Gemma4TextDecoderLayer\) take their keys from another layer"),
        ("lfm2_vl:convolutions", r"layers \[0, 2, 3\] \(Lfm2DecoderLayer\) convolve over the sequence"),
        ("qwen3_5", r"layers \[0, 2, 4\] \(Qwen3_5DecoderLayer\) convolve over the sequence"),
        ("nemotron_h_omni", r"layers \[0\] \(NemotronHBlock\) convolve over the sequence"),
        ("minimax_m3_vl:sparse attention", r"decoder layers of kind \['minimax_m3_sparse'\]; TCCD is exact with"),
    ],
)
def test_what_mixes_positions_otherwise_is_refused(name, message):
    with pytest.raises(UnsupportedModelError, match=message):
        check_twin(find_decoder(architecture(name).build()))


@pytest.mark.parametrize("name", ["gemma4", "lfm2_vl", "llama4", "minimax_m3_vl"])
def test_the_same_models_without_it_are_not(name):
    check_twin(find_decoder(architecture(name).build()))
