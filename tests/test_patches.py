"""Patch dropout: a ViT sees fewer tokens in training, and all of them in evaluation."""

import logging

import pytest
import torch
from transformers import PreTrainedModel

from pipeline.network import model
from pipeline.params import Model
from pipeline.training import patches

SMALL = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def tokens(network: PreTrainedModel, pictures: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    network.base_model.embeddings.register_forward_hook(lambda *found: seen.append(found[-1].detach()))
    network(pixel_values=pictures)
    return seen[-1]


@pytest.mark.parametrize(("kind", "first"), [("vit", 1), ("deit", 2)])
def test_half_of_the_patches_are_left_out_while_it_trains(kind: str, first: int):
    network, _ = model.build(Model(name=kind, init="scratch", config=SMALL | {"hidden_dropout_prob": 0.0}))
    pictures = torch.randn(3, 3, 32, 32)
    network.eval()
    whole = tokens(network, pictures)
    patches.drop_patches(network, 0.5)
    assert torch.equal(tokens(network, pictures), whole) and whole.shape[1] == first + 16
    network.train()
    seen = tokens(network, pictures)
    assert seen.shape[1] == first + 8 and torch.equal(seen[:, :first], whole[:, :first])
    places = [[int((whole[row] == token).all(-1).nonzero()) for token in seen[row, first:]] for row in range(3)]
    assert places[0] == places[1] == places[2] == sorted(places[0])
    assert not torch.equal(tokens(network, pictures), seen)


def test_a_network_that_needs_all_patches_keeps_them_and_says_so(caplog: pytest.LogCaptureFixture):
    config = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    network, _ = model.build(Model(name="swin", init="scratch", config=config))
    with caplog.at_level(logging.INFO):
        patches.drop_patches(network, 0.5)
    assert "does nothing for swin" in caplog.text
    assert network.train()(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape == (2, 2)
