"""`evo plan` of a model that is split over devices, or streamed from the host's memory: the memory of each."""

from collections.abc import Iterator
from dataclasses import fields

import torch

from evo_cli.inference import memory_bytes, resolve_devices, say
from evo_cli.model_choice import model_config
from evo_cli.planning import Line, Request, described, gib, numbers_for, speeds_for, time_lines
from sh2.devices.placement import parse_devices
from sh2.errors import Sh2Error
from sh2.planning.plan import Plan, Task, longest, predict_seconds, total_flops
from sh2.planning.speeds import KNOWN_DEVICES, KnownDevice
from sh2.planning.split import Share, Split, split


def predict_split(request: Request) -> tuple[list[Line], str | None]:
    """Answer a request whose device is several, joined by `+`: lines of the table, and why it does not fit.

    Raises:
        Sh2Error: as `evo_cli.planning.predict`, or the weights do not fit, or it is training.
    """
    if request.task == Task.TRAIN:
        raise Sh2Error(f"training is not split over `{request.device}`: that is for inference")
    config, stored = model_config(request.model)
    devices, elsewhere = _devices(request.device)
    here = str(devices[0])
    gpu = devices[0].type == "cuda"
    rooms = [_room(request, device, elsewhere) for device in devices]
    whole = Plan(
        config=config,
        task=Task(request.task),
        length=request.length,
        batch=request.batch,
        prompt=request.prompt,
        numbers=numbers_for(request, config, stored, here, elsewhere),
        kv_dtype=request.kv_dtype,
        room=0,
        gpu=gpu,
    )
    say(described(request.model, whole, request.device))
    found = split(whole, devices, rooms)
    most = longest(found.plan, lambda plan: split(plan, devices, rooms).fits)
    lines = [line for share in found.shares for line in _share_lines(share)]
    lines += list(_whole_lines(found, most))
    if short := next((share for share in found.shares if not share.fits), None):
        return lines, _why_not(found, short, most)
    speeds = speeds_for(found.plan, here, elsewhere, request.backend)
    return lines + list(time_lines(found.plan, predict_seconds(found.plan, speeds) if speeds else None)), None


def _devices(text: str) -> tuple[tuple[torch.device, ...], KnownDevice | None]:
    """The devices of a text, and what they are where they need not be here: one kind, or one and the host."""
    names = [name.strip() for name in text.split("+")]
    kinds = {name for name in names if name in KNOWN_DEVICES}
    if not kinds:
        resolve_devices(text)
        return parse_devices(text), None
    if len(kinds) > 1 or set(names) - kinds - {"cpu"}:
        raise Sh2Error(f"`{text}` mixes devices that are here with others").hint("use h100+h100, or h100+cpu")
    numbered = [name if name == "cpu" else f"cuda:{place}" for place, name in enumerate(names)]
    return parse_devices("+".join(numbered)), KNOWN_DEVICES[kinds.pop()]


def _room(request: Request, device: torch.device, elsewhere: KnownDevice | None) -> int | None:
    if device.type == "cpu" and elsewhere:
        return None
    if request.memory is not None and (device.type == "cuda" or not elsewhere):
        return request.memory
    return elsewhere.memory_bytes if elsewhere else memory_bytes(str(device))


def _share_lines(share: Share) -> Iterator[Line]:
    where = f"[{share.device}]"
    yield f"blocks{where}", str(share.blocks), ""
    for field in fields(share.memory):
        if value := getattr(share.memory, field.name):
            yield f"{field.name}{where}", gib(value), "GiB"
    yield f"total{where}", gib(share.memory.total), "GiB"
    if share.room is not None:
        yield f"room{where}", gib(share.room), "GiB"


def _whole_lines(found: Split, most: int) -> Iterator[Line]:
    if found.plan.streamed:
        yield "streamed", gib(found.plan.streamed), "GiB a pass"
    yield "fits", "yes" if found.fits else "no", ""
    yield "longest", str(most), "tokens"
    yield "chunk", str(found.plan.chunk), "tokens"
    yield "arithmetic", f"{total_flops(found.plan) / 1e12:.4g}", "TFLOP"


def _why_not(found: Split, share: Share, most: int) -> str:
    need, room = gib(share.memory.total), gib(share.room or 0)
    plan = found.plan
    return (
        f"{plan.task} of {plan.length:,} tokens, {plan.batch} at once, takes {need} GiB of {room} on `{share.device}`;"
        f" {f'{most:,} tokens would fit' if most else 'no length fits'}"
    )
