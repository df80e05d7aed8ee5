"""An untrained predictor of small batches, and pictures and texts that it tells apart.

Test modules take the fixtures by assignment, so that each names those it uses.
"""

import pytest
import torch
from tests.support import COLOURS, SHAPES, drawing, tiny_tokenizer

from opencoca import recipes
from opencoca.infer.predictor import Predictor
from opencoca.model.init import build

CONFIG, TOKENIZER = recipes.tiny.tiny(), tiny_tokenizer()
PICTURES = [drawing(colour, shape) for colour in COLOURS for shape in SHAPES][:11]
TEXTS = ["red square", "blue", "a green circle on the left of a picture", "pink bar", "\u00e9", "yellow triangle"]


@pytest.fixture(scope="module")
def model():
    return build(CONFIG.model, seed=2)


@pytest.fixture
def predictor(model):
    return Predictor(model, TOKENIZER, CONFIG, batch_size=4)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)
