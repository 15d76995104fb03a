from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from keepsight.backbones.text import MiniLM, load_open_clip_pair, load_text_tower
from keepsight.core import UserError

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")

VIT = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 16, "image_size": 64}
TEXT = {"width": 32, "heads": 2, "layers": 2, "context_length": 12}


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    tower = load_text_tower("minilm_l6")
    assert isinstance(tower, MiniLM)
    return tower.requires_grad_(False)


def test_minilm_gives_the_published_similarities(minilm: MiniLM) -> None:
    # From the documentation of sentence-transformers, for all-MiniLM-L6-v2.
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    embeddings = minilm.encode(texts)
    assert embeddings.shape == (3, minilm.width) == (3, 384)
    torch.testing.assert_close(embeddings @ embeddings.T, expected, rtol=0, atol=1e-4)


def test_minilm_puts_related_sentences_closer(minilm: MiniLM) -> None:
    e = minilm.encode(["a photo of a cat", "a picture of a kitten", "the annual report of a bank", "quarterly figures"])
    similarity = e @ e.T
    assert similarity[0, 1] > similarity[0, 2:].max() + 0.2
    assert similarity[2, 3] > similarity[:2, 3].max() + 0.1


def test_minilm_does_not_depend_on_the_batch(minilm: MiniLM) -> None:
    texts = ["one", "a much longer text with many more words than the first one has", "", "Ünïcode 漢字"]
    together = minilm.encode(texts)
    assert torch.equal(together, minilm.encode(texts))
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(row, minilm.encode([text])[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    assert minilm.encode([]).shape == (0, 384)


def test_minilm_says_once_that_it_cuts(caplog: pytest.LogCaptureFixture) -> None:
    tower = load_text_tower("minilm_l6").requires_grad_(False)
    with caplog.at_level(logging.WARNING, logger="keepsight"):
        tower.encode(["word " * 254])  # and two tokens around them: just fits
        assert not caplog.records
        long = tower.encode(["word " * 300, "short"])
        tower.encode(["word " * 400])
    assert [r.getMessage() for r in caplog.records] == [
        "minilm_l6: 1 of 2 texts are longer than 256 tokens and were cut"
    ]
    torch.testing.assert_close(long[0], tower.encode(["word " * 254])[0])


def test_hash_changes_with_a_weight() -> None:
    tower = load_text_tower("minilm_l6")
    before = tower.weights_hash()
    assert before == load_text_tower("minilm_l6").weights_hash()
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-3
    assert tower.weights_hash() != before


def saved(folder: Path, kind: str = "CLIP", **text: Any) -> Any:
    """A small CLIP as open_clip saves it; the model."""
    torch.manual_seed(4)
    network = getattr(open_clip, kind)(embed_dim=24, vision_cfg=VIT, text_cfg=TEXT | text).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT | text, "custom_text": kind == "CustomTextCLIP"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return network


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
def test_a_pair_is_open_clips_own_model(kind: str, tmp_path: Path) -> None:
    network = saved(tmp_path, kind)
    image, text = load_open_clip_pair(str(tmp_path))
    texts, pictures = ["a cat", "two dogs in the rain"], torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = text.encode(texts)
        expected = network.encode_text(open_clip.SimpleTokenizer(context_length=12)(texts), normalize=True)
        torch.testing.assert_close(found, expected)
        embedded = image.project(image(pictures, (image.depth,))[0].cls)
        torch.testing.assert_close(embedded, network.encode_image(pictures), rtol=1e-5, atol=1e-5)
    assert (text.width, text.logit_scale()) == (24, pytest.approx(float(network.logit_scale.detach().exp())))
    alone = load_text_tower(str(tmp_path))
    assert alone.weights_hash() == text.weights_hash()
    assert not text.training
    assert not any(".visual" in name or name.startswith("visual") for name in text.network.state_dict())


def test_the_weights_of_a_pair_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    from keepsight.backbones import open_clip_names

    read, calls = open_clip_names.read_weights, []
    monkeypatch.setattr(open_clip_names, "read_weights", lambda path: calls.append(path) or read(path))
    load_open_clip_pair(str(tmp_path))
    assert len(calls) == 1


def test_old_names_and_missing_text_towers(tmp_path: Path) -> None:
    network = saved(tmp_path, "CustomTextCLIP")
    expected = load_text_tower(str(tmp_path)).weights_hash()
    old = {name.removeprefix("text."): tensor for name, tensor in network.state_dict().items()}
    save_file(old, tmp_path / "open_clip_model.safetensors")
    assert load_text_tower(str(tmp_path)).weights_hash() == expected
    save_file(network.visual.state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="fill only 0 of"):
        load_text_tower(str(tmp_path), allow_partial=True)


def test_open_clip_says_once_that_it_cuts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path)
    text = load_text_tower(str(tmp_path), weights="random").requires_grad_(False)
    with caplog.at_level(logging.WARNING, logger="keepsight"):
        text.encode(["a " * 10])  # and two tokens around them: just fits
        assert not caplog.records
        text.encode(["a " * 11, "b", "c " * 30])
        text.encode(["a " * 11])
    (record,) = caplog.records
    assert "2 of 3 texts are longer than 12 tokens and were cut" in record.getMessage()


def test_names_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no text tower called 'minilm'"):
        load_text_tower("minilm")
    with pytest.raises(UserError, match="leave out weights=random"):
        load_text_tower("minilm_l6", weights="random")
    with pytest.raises(UserError, match="did you mean ViT-B-32"):
        load_text_tower("open_clip:ViT-B-23/openai")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(UserError, match=r"has no complete open_clip_config.json"):
        load_text_tower(str(tmp_path))
