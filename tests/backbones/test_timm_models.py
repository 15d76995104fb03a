from __future__ import annotations

from typing import Any

import peft
import pytest
import timm
import torch

from keepsight.backbones import load_backbone

EVA = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("architecture", "size", "args"),
    [
        ("eva02_tiny_patch14_224", 56, EVA),
        ("vit_small_patch16_dinov3_qkvb", 64, EVA),
        ("beit_base_patch16_224", 64, EVA),
        ("swinv2_tiny_window8_256", 64, {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}),
    ],
)
def test_biases_apart_from_qkv_change_nothing_and_make_lora_live(
    architecture: str, size: int, args: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(architecture, weights="random", size=size, timm_args=args)
    plain: Any = timm.create_model(architecture, pretrained=False, num_classes=0, img_size=size, **args).eval()
    state = backbone.network.state_dict()
    for name, tensor in state.items():
        if name.endswith(("q_bias", "v_bias")) or "norm" in name:  # zero at first: a wrong bias would not show
            tensor.copy_(torch.randn(tensor.shape))
    plain.load_state_dict(state)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(images), plain(images))

    config = peft.LoraConfig(target_modules=["qkv"], r=2, lora_alpha=4, init_lora_weights=False)
    peft.inject_adapter_in_model(config, backbone.network)
    (features,) = backbone(images, (backbone.depth,))
    features.patches.square().mean().backward()
    adapters = {n: p for n, p in backbone.network.named_parameters() if "lora_" in n}
    assert adapters
    for name, parameter in adapters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_siglip_gives_its_attention_pooling_on_the_last_block_only() -> None:
    backbone = load_backbone(
        "vit_base_patch16_siglip_224",
        weights="random",
        size=64,
        timm_args={"embed_dim": 32, "depth": 2, "num_heads": 2},
    )
    images = torch.randn(2, 3, 64, 64)
    network: Any = backbone.network
    with torch.no_grad():
        middle, last = backbone(images, (1, 2))
        torch.testing.assert_close(last.cls, network.attn_pool(last.patches))
    torch.testing.assert_close(middle.cls, middle.patches.mean(1))


@pytest.mark.parametrize(
    ("architecture", "summaries"),
    [
        ("vit_small_patch14_dinov2", 1),
        ("vit_small_patch14_reg4_dinov2", 1),
        ("vit_base_patch16_clip_224", 1),
        ("vit_base_patch16_radio_v3", 3),
        ("vit_base_patch16_radio_v3.c_radio", 3),
        ("vit_giant_patch16_radio_v3", 3),
        ("vit_so400m_patch16_radio_v4", 2),
        ("naflexvit_base_patch16_radio_v3", 3),
        ("naflexvit_huge_patch16_radio_v4", 2),
    ],
)
def test_class_tokens_of_the_backbones_of_the_paper(architecture: str, summaries: int) -> None:
    size = 56 if "patch14" in architecture else 64
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    backbone = load_backbone(architecture, weights="random", size=size, timm_args=args)
    images = torch.randn(2, 3, size, size)
    network: Any = backbone.network
    with torch.no_grad():
        middle, last = backbone(images, (1, 2))
        tokens = network.forward_features(images)
    assert middle.cls.shape == last.cls.shape == (2, 32 * summaries)
    torch.testing.assert_close(last.cls, tokens[:, :summaries].flatten(1))
    torch.testing.assert_close(last.patches, tokens[:, network.num_prefix_tokens :])
    assert last.patches.shape == (2, 16, 32)
