"""A model, a bank and a picture for the commands; no test changes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from eval.zoo.build import FAMILIES, save
from tccd.centroids.bank import CentroidBank
from tccd.loading import load_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The zoo's model before its training: right in shape, random in what it says."""
    torch.manual_seed(0)
    family = FAMILIES["llava"]
    model, processor = family.build()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # else all answers are alike
    folder = tmp_path_factory.mktemp("zoo") / "untrained"
    save(family, model, processor, folder)
    return folder


@pytest.fixture(scope="session")
def loaded(model_dir):
    return load_model(str(model_dir))


@pytest.fixture(scope="session")
def bank_file(loaded, tmp_path_factory):
    """Random centroids, text at layers 1 and 3, vision at layer 2; and a random vision mean."""
    draw = np.random.default_rng(0)
    arrays = {
        (modality, layer): draw.standard_normal((8, 128)).astype(np.float32)
        for modality, layer in (("text", 1), ("text", 3), ("vision", 2))
    }
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    mean = draw.standard_normal((6, 128)).astype(np.float32)
    CentroidBank.from_arrays(loaded.model, arrays, mean, data="drawn at random").save(file)
    return file


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (64, 64), "red").save(file)
    return file
