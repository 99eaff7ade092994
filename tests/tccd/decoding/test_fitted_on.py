"""A bank of the base, used with a rewritten copy: only when asked for by the base's name."""

import pytest
import torch

from tccd.centroids.bank import CentroidBank
from tccd.decoding.huggingface import TCCD
from tccd.errors import BankMismatchError
from tests.tiny import tiny


def test_a_copy_decodes_only_by_the_name_of_its_base():
    base, copy = tiny("llava"), tiny("llava")
    base.config._name_or_path = "owner/base"
    with torch.no_grad():
        for parameter in copy.get_decoder().layers.parameters():
            parameter.mul_(16).round_().div_(16)  # as coarse weights
    bank = CentroidBank.from_arrays(base, {("text", 2): torch.randn(4, 64)})
    assert TCCD(base, bank).fitted_on is None
    assert TCCD(base, bank, fitted_on="owner/base").fitted_on is None
    with pytest.raises(BankMismatchError, match="say --fitted-on owner/base"):
        TCCD(copy, bank)
    with pytest.raises(
        BankMismatchError, match=r"was fitted on 'owner/base', but --fitted-on .* says 'owner/other'"
    ):
        TCCD(copy, bank, fitted_on="owner/other")
    assert TCCD(copy, bank, fitted_on="owner/base", alpha_cd=1.0).fitted_on == "owner/base"
