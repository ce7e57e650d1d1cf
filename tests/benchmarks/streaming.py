"""Time a model whose weights in bf16 do not all fit the GPU, or that lies on several, made at random; one JSON line.

python tests/benchmarks/streaming.py --preset evo2_40b --device cuda:0+cpu --room 79
python tests/benchmarks/streaming.py --preset evo2_40b --device cuda --fp8-weights --tokens 64

A pass over each length with its state, then single tokens. Weights are made as they are placed: neither a file nor
memory for all of them is needed.
"""

import argparse
import json
import sys
import time

import torch

from sh2.checkpoint import Model
from sh2.checkpoint.loading import build
from sh2.checkpoint.tensors import LazyTensor, stays_float32
from sh2.config import ModelConfig
from sh2.devices.placement import free_bytes, parse_devices
from sh2.fp8 import precision_of
from sh2.model import StripedHyena2
from sh2.presets import preset


def random_source(config: ModelConfig, maker: torch.device) -> Model:
    """Tensors in bf16, made on a device whenever they are read."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in StripedHyena2(config).state_dict().items()}
    return Model(config, {name: _random(name, shape, maker) for name, shape in shapes.items()})


def _random(name: str, shape: tuple[int, ...], maker: torch.device) -> LazyTensor:
    dtype = torch.float32 if stays_float32(name) else torch.bfloat16

    def read() -> torch.Tensor:
        if name.endswith(".scale"):
            return torch.ones(shape, dtype=dtype, device=maker)
        if name.endswith("log_poles"):
            return -torch.rand(shape, dtype=dtype, device=maker)
        return torch.randn(shape, dtype=dtype, device=maker) * 0.02

    return LazyTensor(shape, dtype, read)


def synchronize(devices: tuple[torch.device, ...]) -> None:
    """Wait for all GPUs of the model."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="evo2_40b")
    parser.add_argument("--device", default="cuda:0+cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192])
    parser.add_argument("--tokens", type=int, default=8, help="single tokens to run after the passes")
    parser.add_argument("--room", type=float, help="GiB of the first GPU to use; the rest of what is free is held")
    parser.add_argument("--fp8-weights", action="store_true", help="keep the weights of linear layers in FP8")
    options = parser.parse_args()
    devices = parse_devices(options.device)
    ballast = 0
    if options.room is not None:
        ballast = max(0, free_bytes(devices[0]) - int(options.room * 2**30))
        held = torch.empty(ballast, dtype=torch.uint8, device=devices[0])  # noqa: F841, kept to the end
    begin = time.perf_counter()
    source = random_source(preset(options.preset), devices[0])
    model = build(source, devices, label=options.preset, fp8_weights=options.fp8_weights)
    row = {"preset": options.preset, "precision": precision_of(model), "device": options.device}
    row["load_seconds"] = round(time.perf_counter() - begin, 1)
    row["blocks_on"] = [str(block.mixer_norm.scale.device) for block in model.blocks]
    state = None
    for length in options.lengths:
        ids_BL = torch.randint(0, 256, (1, length), generator=torch.Generator().manual_seed(0)).to(devices[0])
        seconds = []
        for _ in range(3):  # the first compiles
            synchronize(devices)
            begin = time.perf_counter()
            _, state = model(ids_BL)
            synchronize(devices)
            seconds.append(time.perf_counter() - begin)
        row[f"forward_tokens_per_second_{length}"] = round(length / min(seconds))
    _, state = model.step(ids_BL[:, 0], state)  # compiles
    synchronize(devices)
    begin = time.perf_counter()
    for _ in range(options.tokens):
        _, state = model.step(ids_BL[:, 0], state)
    synchronize(devices)
    row["decode_tokens_per_second"] = round(options.tokens / (time.perf_counter() - begin), 2)
    if devices[0].type == "cuda":
        row["peak_gib"] = round((torch.cuda.max_memory_allocated(devices[0]) - ballast) / 2**30, 2)
        row["gpu"] = torch.cuda.get_device_name(devices[0])
        row["room_gib"] = options.room
    row |= {"torch": torch.__version__, "command": " ".join(sys.argv)}
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
