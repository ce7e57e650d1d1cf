"""Llama of the package transformers at a model's size, trained as its own users do: a Transformer that is not ours."""

# B batch, L length

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sh2.config import ModelConfig
from sh2.train.config import Precision, TrainConfig
from sh2.train.loader import HostBatch

NAME = "llama (transformers)"


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("transformers") is not None


def make_llama(config: ModelConfig, length: int, device: torch.device) -> nn.Module:
    """A Llama with the width, depth, heads and MLP of a configuration, with random weights in float32.

    Its parameters are those of the `-transformer` of that configuration, but for biases.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=length,
        tie_word_embeddings=config.tied_embeddings,
        use_cache=False,
    )
    with device:
        model: nn.Module = LlamaForCausalLM(settings)
    return model.float().train()


def make_update(model: Any, config: TrainConfig) -> Callable[[HostBatch], None]:
    """A function that makes one update: forward, cross-entropy, backward, clipping, AdamW."""
    device = torch.device(config.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    if config.compile:
        model.compile(dynamic=False)
    bf16 = torch.autocast(device.type, torch.bfloat16) if config.precision is Precision.BF16 else nullcontext()

    def update(batch: HostBatch) -> None:
        tokens = batch.tokens.to(device, torch.int64, non_blocking=True)
        for rows_BL in tokens.split(config.batch_size):
            with bf16:
                logits_BLV = model(input_ids=rows_BL[:, :-1]).logits
            loss = F.cross_entropy(logits_BLV.float().flatten(0, 1), rows_BL[:, 1:].flatten())
            (loss / config.accumulation).backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update
