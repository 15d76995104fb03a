"""What every backbone promises, over one small instance of each family, with random weights."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from keepsight.adapters.adaptformer import AdaptFormerConfig
from keepsight.adapters.blocks import check_gradients, chosen_blocks, switched_off
from keepsight.adapters.kept import KeptAdapters
from keepsight.adapters.lora import LoraConfig, add_lora, check_lora_gradients
from keepsight.adapters.orthogonal import OftConfig, add_oft
from keepsight.adapters.prompts import VptConfig
from keepsight.backbones import TimmBackbone, build_backbone, load_backbone
from keepsight.backbones.cut import can_cut, prefix, resume
from keepsight.core import Backbone, Readout, UserError

TRANSFORMER = {"embed_dim": 32, "depth": 3, "num_heads": 2}


@dataclass(frozen=True)
class Case:
    """One architecture, how it is made small, and the figures it should have."""

    architecture: str
    size: int
    depth: int
    grids: tuple[int, ...]
    """Side of the grid of each block."""
    other_size: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    block_modules: tuple[str, ...] = ("blocks",)
    """Where the network keeps its blocks: a list of modules, or one module after another."""
    two_blocks: int = 2
    """How many of these run for the first two blocks; a CNN's first block may be its stem."""
    files: dict[str, Any] = field(default_factory=dict)
    """Descriptions in JSON that say what the model is, where it is not a timm name; `architecture` is then a label."""
    has_attention: bool = True
    """Whether LoRA finds query and value projections."""


def transformer(architecture: str, size: int, patch: int, other_size: int | None, **args: Any) -> Case:
    return Case(architecture, size, 3, (size // patch,) * 3, other_size, TRANSFORMER | args)


CASES = [
    Case("test_vit", 64, 6, (4,) * 6, 96),
    transformer("vit_small_patch14_dinov2", 56, 14, 84),
    transformer("vit_small_patch14_reg4_dinov2", 56, 14, 84),
    transformer("vit_small_patch16_dinov3", 64, 16, 96),
    transformer("vit_base_patch32_clip_224", 64, 32, 128),
    transformer("vit_base_patch16_siglip_224", 64, 16, 96),
    transformer("eva02_tiny_patch14_224", 56, 14, 84),
    transformer("beit_base_patch16_224", 64, 16, None),
    transformer("vit_base_patch16_radio_v3", 64, 16, 96),
    transformer("naflexvit_base_patch16_siglip", 64, 16, 96),
    Case(
        "swin_tiny_patch4_window7_224",
        56,
        4,
        (14, 7, 4, 2),
        None,
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
        ("layers",),
    ),
    Case(
        "swinv2_tiny_window8_256",
        64,
        4,
        (16, 8, 4, 2),
        None,
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
        ("layers",),
    ),
    Case("xcit_nano_12_p16_224", 64, 3, (4,) * 3, None, {"depth": 3, "embed_dim": 32, "num_heads": 2}),
    Case("test_convnext", 64, 4, (16, 8, 4, 2), 96, block_modules=("stages",), has_attention=False),
    Case(
        "test_resnet",
        64,
        5,
        (32, 16, 8, 4, 2),
        96,
        block_modules=("layer1", "layer2", "layer3", "layer4"),
        two_blocks=1,
        has_attention=False,
    ),
    Case("mobilenetv3_small_050", 64, 5, (32, 16, 8, 4, 2), 96, two_blocks=1, has_attention=False),
    Case("tf_efficientnet_lite0", 64, 6, (32, 16, 8, 4, 2, 2), 96, has_attention=False),
    Case("test_efficientnet", 64, 6, (32, 16, 8, 4, 2, 2), 96, has_attention=False),
]


def open_clip(label: str, **vision: Any) -> Case:
    """A small image tower, described as open_clip describes models."""
    vision = {"image_size": 64} | vision
    timm_depth = {"test_vit": 6, "test_convnext": 4}
    grids = (16, 8, 4, 2) if label.endswith("convnext") else (4,) * timm_depth.get(vision.get("timm_model_name", ""), 3)
    model = {
        "embed_dim": 24,
        "vision_cfg": vision,
        "text_cfg": {"width": 32, "heads": 2, "layers": 1, "vocab_size": 50},
    }
    description = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    paths = {"test_vit": ("trunk.blocks",), "test_convnext": ("trunk.stages",)}
    return Case(
        f"open_clip {label}",
        64,
        len(grids),
        grids,
        block_modules=paths.get(vision.get("timm_model_name", ""), ("transformer.resblocks",)),
        files={"open_clip_config.json": description},
        has_attention=not label.endswith("convnext"),
    )


def hugging_face(kind: str, blocks: str, **settings: Any) -> Case:
    """A small vision model, described as transformers describes models."""
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}, "resample": 3}
    cnn = kind.startswith("convnext")
    description = {"model_type": kind} | ({} if cnn else {"image_size": 64, "patch_size": 16} | small) | settings
    return Case(
        f"hf {kind}",
        64,
        4 if cnn else 3,
        (16, 8, 4, 2) if cnn else (4,) * 3,
        96,
        block_modules=(blocks,),
        files={"config.json": description, "preprocessor_config.json": processor},
        has_attention=not cnn,
    )


VIT = {"width": 32, "layers": 3, "head_width": 16, "patch_size": 16}

CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}

OTHER_CASES = [
    Case("vit_s14_imgfocus", 56, 12, (4,) * 12, 84),
    open_clip("vit", **VIT),
    open_clip("vit that pools the mean", **VIT, pool_type="avg", no_ln_pre=True, final_ln_after_pool=True),
    open_clip("coca", **VIT, attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4, output_tokens=True),
    open_clip("timm vit", timm_model_name="test_vit", timm_pool="map", timm_proj=None),
    open_clip("timm convnext", timm_model_name="test_convnext", timm_pool="", timm_proj="linear"),
    hugging_face("vit", "layers"),
    hugging_face("vit_mae", "layers"),
    hugging_face("deit", "layers"),
    hugging_face("beit", "layers"),
    hugging_face("dinov2", "encoder.layer"),
    hugging_face("dinov2_with_registers", "encoder.layer"),
    hugging_face("dinov3_vit", "model.layer", num_register_tokens=2),
    hugging_face("clip_vision_model", "encoder.layers"),
    hugging_face("siglip_vision_model", "encoder.layers"),
    hugging_face("convnext", "encoder.stages", **CONVNEXT),
    hugging_face("convnextv2", "encoder.stages", **CONVNEXT),
]

ALL_CASES = [*CASES, *OTHER_CASES]

FOLDERS: dict[str, Path] = {}
"""Where the descriptions of a case are."""


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    for number, case in enumerate(OTHER_CASES):
        FOLDERS[case.architecture] = folder = tmp_path_factory.mktemp(f"model{number}")
        for name, content in case.files.items():
            (folder / name).write_text(json.dumps(content))


def make(case: Case) -> Backbone:
    torch.manual_seed(0)
    name = str(FOLDERS[case.architecture]) if case.files else case.architecture
    return load_backbone(name, weights="random", size=case.size, timm_args=case.args)


@pytest.fixture(scope="module", params=ALL_CASES, ids=lambda case: case.architecture)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def backbone(case: Case) -> Backbone:
    return make(case)


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@contextmanager
def counted_calls(modules: list[nn.Module]) -> Iterator[list[int]]:
    """The indices of the modules that run."""
    calls: list[int] = []
    hooks = [m.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, m in enumerate(modules)]
    yield calls
    for hook in hooks:
        hook.remove()


def test_features_of_every_block_have_the_promised_shape(case: Case, backbone: Backbone) -> None:
    assert backbone.depth == case.depth
    with torch.no_grad():
        outputs = backbone(images(case.size), tuple(range(1, case.depth + 1)))
    for features, side in zip(outputs, case.grids, strict=True):
        assert features.grid == (side, side)
        assert features.patches.shape[:2] == (2, side * side)
        assert features.cls.shape[0] == 2
        assert torch.isfinite(features.cls).all()
        assert torch.isfinite(features.patches).all()
        # two different images give different features
        assert not torch.equal(features.patches[0], features.patches[1])
        assert not torch.equal(features.cls[0], features.cls[1])


@pytest.mark.parametrize(
    ("flexible", "size"),
    [(c, c.other_size) for c in ALL_CASES if c.other_size],
    ids=[c.architecture for c in ALL_CASES if c.other_size],
)
def test_other_sizes_at_forward_time(flexible: Case, size: int) -> None:
    with torch.no_grad():
        (features,) = make(flexible)(images(size), (flexible.depth,))
    assert features.grid[0] == flexible.grids[-1] * size // flexible.size


@pytest.mark.parametrize("fixed", [c for c in ALL_CASES if not c.other_size], ids=lambda c: c.architecture)
def test_other_sizes_at_load_time(fixed: Case) -> None:
    larger = dataclasses.replace(fixed, size=2 * fixed.size)
    with torch.no_grad():
        (features,) = make(larger)(images(larger.size), (fixed.depth,))
    assert features.grid[0] == pytest.approx(2 * fixed.grids[-1], abs=1)


def test_any_order_of_blocks_and_early_stop_give_what_a_full_run_gives(case: Case, backbone: Backbone) -> None:
    every = tuple(range(1, case.depth + 1))
    with torch.no_grad():
        full = backbone(images(case.size), every)
        for block in every:
            (alone,) = backbone(images(case.size), (block,))
            assert torch.equal(alone.patches, full[block - 1].patches)
            assert torch.equal(alone.cls, full[block - 1].cls)
        second, first = backbone(images(case.size), (2, 1))
    assert torch.equal(second.patches, full[1].patches)
    assert torch.equal(first.patches, full[0].patches)


def test_blocks_after_the_highest_are_not_run(case: Case, backbone: Backbone) -> None:
    modules = [backbone.network.get_submodule(name) for name in case.block_modules]
    if len(modules) == 1:
        modules = list(modules[0].children())
    with torch.no_grad(), counted_calls(modules) as calls:
        backbone(images(case.size), (2, 1))
    assert calls == list(range(case.two_blocks))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.architecture)
def test_last_block_is_what_the_networks_own_head_gets(case: Case) -> None:
    backbone = make(case)
    assert isinstance(backbone, TimmBackbone)
    with torch.no_grad():
        (features,) = backbone(images(case.size), (case.depth,))
        network: Any = backbone.network
        final = network.forward_features(images(case.size))
        embedding = network.forward_head(final, pre_logits=True)
    if isinstance(final, dict):  # NaFlexViT
        final = final["patches"]
    has_fc_norm = isinstance(getattr(network, "norm", None), nn.Identity) and "fc_norm" in dict(
        network.named_children()
    )
    if final.ndim == 3 and not has_fc_norm:
        prefix = network.num_prefix_tokens
        torch.testing.assert_close(features.patches, final[:, prefix:])
        if prefix:
            torch.testing.assert_close(features.cls, final[:, 0])
    if not getattr(network, "num_prefix_tokens", 0):
        torch.testing.assert_close(features.cls, embedding)


def test_gradients_reach_the_first_block_and_eval_is_deterministic(case: Case) -> None:
    backbone = make(case)
    assert not backbone.training
    (features,) = backbone(images(case.size), (case.depth,))
    (again,) = backbone(images(case.size), (case.depth,))
    assert torch.equal(features.cls, again.cls)
    (features.cls.square().mean() + features.patches.square().mean()).backward()
    first = next(p for n, p in backbone.network.named_parameters() if p.ndim == 4)
    assert first.grad is not None
    assert first.grad.abs().max() > 0


def test_weights_hash_changes_with_one_weight(case: Case) -> None:
    backbone = make(case)
    before = backbone.weights_hash()
    assert before == backbone.weights_hash() == make(case).weights_hash()
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1e-3
    assert backbone.weights_hash() != before


def test_spec_rebuilds_the_same_network_without_asking_anybody(
    case: Case, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    torch.manual_seed(1)  # other weights than those of `backbone`
    rebuilt = build_backbone(json.loads(json.dumps(backbone.spec())))
    assert not asked
    assert rebuilt.weights_hash() != backbone.weights_hash()
    rebuilt.load_state_dict(backbone.state_dict(), strict=True)
    assert rebuilt.weights_hash() == backbone.weights_hash()
    assert rebuilt.preprocessing == backbone.preprocessing
    assert (rebuilt.name, rebuilt.depth, rebuilt.training) == (backbone.name, backbone.depth, False)
    with torch.no_grad():
        (a,), (b,) = (m(images(case.size), (case.depth,)) for m in (backbone, rebuilt))
    assert torch.equal(a.patches, b.patches)


def test_blocks_that_are_not_there_are_refused(case: Case, backbone: Backbone) -> None:
    for blocks in ((), (0,), (case.depth + 1,)):
        with pytest.raises(ValueError, match="not among"):
            backbone(images(case.size), blocks)


def test_block_modules_give_what_the_blocks_are(case: Case, backbone: Backbone) -> None:
    modules = backbone.block_modules()
    if not modules:
        assert case.architecture.startswith(("swin", "test_resnet", "mobilenet", "tf_eff", "test_eff"))
        return
    outputs: list[Any] = []
    hooks = [m.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for m in modules]
    every = tuple(range(1, case.depth + 1))
    with torch.no_grad():
        features = backbone(images(case.size), every)
    for hook in hooks:
        hook.remove()
    assert len(outputs) == len(modules) == case.depth
    for output, block in zip(outputs[:-1], features[:-1], strict=True):
        assert isinstance(output, torch.Tensor)
        tokens = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
        assert torch.equal(tokens[:, -block.patches.shape[1] :], block.patches)


def test_lora_reaches_query_and_value_of_every_block(case: Case) -> None:
    backbone = make(case)
    with torch.no_grad():
        for parameter in backbone.parameters():  # Swin v2 starts with norms of zero, which no gradient passes
            parameter.add_(0.02 * torch.randn(parameter.shape))
        (before,) = backbone(images(case.size), (case.depth,))
    readout = Readout.parse("last:cls+mean").resolved(case.depth)
    if not case.has_attention:
        with pytest.raises(UserError, match="LoRA found nothing to adapt"):
            add_lora(backbone, readout, LoraConfig(rank=2))
        return
    adapted = add_lora(backbone, readout, LoraConfig(rank=2))
    (features,) = backbone(images(case.size), (case.depth,))
    torch.testing.assert_close(features.cls, before.cls, rtol=1e-4, atol=1e-5)
    (features.cls.square().mean() + features.patches.square().mean()).backward()
    check_lora_gradients(adapted)
    adapters = {name.partition(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert len(adapters) >= 2 * case.depth


KEPT: dict[str, dict[str, Any]] = {
    "adaptformer": {"adaptformer": AdaptFormerConfig(bottleneck=4)},
    "vpt": {"vpt": VptConfig(tokens=2)},
}


@pytest.mark.parametrize("kind", [*KEPT, "oft"])  # DoRA and OSF look for the same layers as OFT
def test_every_adapter_works_or_refuses_in_one_sentence(case: Case, kind: str) -> None:
    """Where it works: the shapes stay, everything trained is alive, and off it is the network it was, bit for bit."""
    backbone = make(case).requires_grad_(False)
    with torch.no_grad():
        for parameter in backbone.parameters():  # Swin v2 starts with norms of zero, which no gradient passes
            parameter.add_(0.02 * torch.randn(parameter.shape))
        before = backbone(images(case.size), (1, case.depth))
    readout = Readout.parse("last:cls+mean").resolved(case.depth)
    is_vit = bool(backbone.block_modules()) and case.has_attention
    try:
        if kind in KEPT:
            KeptAdapters(blocks=chosen_blocks(backbone, readout, 1), **KEPT[kind]).add(backbone)
            peft_model = None
        else:
            peft_model = add_oft(backbone, readout, OftConfig(block_size=4))
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.count(". ") == 0
        if kind in KEPT:
            assert not is_vit or ("vpt" in kind and case.architecture.startswith(("beit", "hf beit", "xcit")))
        else:
            assert not case.has_attention
        return
    assert is_vit if kind in KEPT else case.has_attention
    backbone.eval()
    found = backbone(images(case.size), (1, case.depth))
    for features, expected in zip(found, before, strict=True):
        assert features.grid == expected.grid
        assert features.patches.shape == expected.patches.shape
        assert features.cls.shape == expected.cls.shape
    if "vpt" not in kind:
        torch.testing.assert_close(found[1].cls, before[1].cls, rtol=1e-3, atol=2e-5)
    (found[1].cls.square().mean() + found[1].patches.square().mean()).backward()
    if peft_model is None:
        check_gradients(backbone)
    else:
        check_lora_gradients(peft_model)
    with switched_off(backbone) if peft_model is None else peft_model.disable_adapter():
        for features, expected in zip(backbone(images(case.size), (1, case.depth)), before, strict=True):
            assert torch.equal(features.patches, expected.patches)
            assert torch.equal(features.cls, expected.cls)


def test_going_on_from_the_middle_gives_what_a_full_run_gives(case: Case, backbone: Backbone) -> None:
    if not can_cut(backbone):
        assert not case.has_attention or case.architecture.startswith("swin")
        return
    every = tuple(range(1, case.depth + 1))
    with torch.no_grad():
        full = backbone(images(case.size), every)
        for block in (0, 1, case.depth - 1):
            state = prefix(backbone, images(case.size), block)
            for features, expected in zip(resume(backbone, state, block, every[block:]), full[block:], strict=True):
                torch.testing.assert_close(features.patches, expected.patches)
                torch.testing.assert_close(features.cls, expected.cls)
