"""FSDP2 on two CPU processes (gloo): LoRA and two-phase training end as on one process, and checkpoints carry whole tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launching import launch

SCRIPT = """
import copy, os, sys, torch
from pathlib import Path
from training_parts import SGD, Adversarial, batches
import numpy as np
from keepsight.backbones.load import load_backbone
from keepsight.core import Readout, processes
from keepsight.data.arrays import ArrayImages
from keepsight.data.streams import Stream
from keepsight.features.device import start_processes
from keepsight.heads.linear import LinearHead
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.adapters.lora import LoraConfig
from keepsight.train import ImageBatches, OptimConfig, TrainConfig, load_trained_state, train

out, sharding = Path(sys.argv[1]), sys.argv[2]
start_processes()
readout = Readout(blocks=(3,), pools=("mean",))
arguments = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}
vit = load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=arguments)
rng = np.random.default_rng(0)
labels = np.arange(24) % 2
images = ArrayImages((rng.integers(0, 120, (24, 28, 28)) + 100 * labels[:, None, None]).astype(np.uint8))
source = ImageBatches(images, labels, Stream(np.arange(24), 8, 0), None, vit.preprocessing, None, 0)


def lora():
    torch.manual_seed(0)
    head = LinearHead(features=32, classes=2)
    torch.nn.init.normal_(head.weight_KF, std=0.1)
    return Finetune(copy.deepcopy(vit), readout, head, "lora", FinetuneConfig(lora=LoraConfig(rank=2)))


def config(**over):
    optim = OptimConfig(name=over.pop("rule", "sgd"), lr=0.05, momentum=0.0, weight_decay=0.0, warmup=0.0)
    return TrainConfig(optim=optim, sharding=sharding, **over)


def save(name, state):
    if processes.is_main():
        torch.save(state, out / f"{name}.pt")


method = lora()
save("lora", train(method, source, 5, config(), out / "lora").state)

adam = lora()
straight = train(adam, source, 9, config(rule="adamw", checkpoint_steps=4, ema=0.5), out / "straight")
save("straight", straight.state)


def every_step():
    return config(rule="adamw", checkpoint_steps=4, ema=0.5, validate_every=1, patience=0)


class Stop(Exception):
    pass


killed = lora()
try:
    def validate():
        if killed.seen == 6:
            raise Stop
        killed.seen += 1
        return 0.0
    killed.seen = 0
    train(killed, source, 9, every_step(), out / "resumed", validate)
except Stop:
    pass
killed.seen = -100
resumed = lora()
train(resumed, source, 9, every_step(), out / "resumed", lambda: 0.0)
checkpointed = sorted((out / "resumed").glob("step-*"))
assert checkpointed and checkpointed[-1].name == "step-00000008", checkpointed

whole = lora()
load_trained_state(whole, straight.state)
whole.encoder.merge()
save("merged", whole.encoder.backbone.network.state_dict())

two = Adversarial()
save("adversarial", train(two, batches(unlabelled=True), 5, SGD.model_copy(update={"sharding": sharding}), out / "two").state)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    launch(SCRIPT, folder / "one", 1, str(folder / "one"), "none")
    launch(SCRIPT, folder / "two", 2, str(folder / "two"), "fsdp")
    return folder


@pytest.mark.parametrize("name", ["lora", "straight", "merged", "adversarial"])
def test_every_tensor_equals_one_process(ended: Path, name: str) -> None:
    one, two = (torch.load(ended / n / f"{name}.pt", weights_only=True) for n in ("one", "two"))
    assert one.keys() == two.keys()
    if name == "lora":
        assert sum(".lora_" in key for key in one) == 12  # A and B of q and v in three blocks
        assert all(tensor.any() for key, tensor in one.items() if ".lora_B" in key)  # all have moved
    for key, expected in one.items():
        # Adam divides by the gradient's size: where it is nearly zero, rounding decides the sign of the step.
        torch.testing.assert_close(two[key], expected, atol=2e-4 if name in ("straight", "merged") else 1e-5, rtol=0)


def test_checkpoints_hold_whole_tensors(ended: Path) -> None:
    one, two = (load_file(ended / n / "resumed" / "step-00000008" / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for key, expected in one.items():
        assert two[key].shape == expected.shape
        torch.testing.assert_close(two[key], expected, atol=2e-4, rtol=0)


def test_resumed_into_shares_equals_uninterrupted(ended: Path) -> None:
    straight, resumed = (
        load_file(ended / "two" / kind / "step-00000008" / "model.safetensors") for kind in ("straight", "resumed")
    )
    for key, expected in straight.items():
        torch.testing.assert_close(resumed[key], expected, atol=1e-6, rtol=0)
