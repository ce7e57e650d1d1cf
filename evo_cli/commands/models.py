"""`evo models`: the presets, what they cost, and where they come from."""

from typing import Annotated

import typer


def models(
    layout: Annotated[bool, typer.Option("--layout", help="Add the layout, one letter a block.")] = False,
    ablations: Annotated[
        str | None,
        typer.Option(
            "--ablations", metavar="PRESET", help="List the ablations of a preset instead, at its parameters."
        ),
    ] = None,
) -> None:
    """List the model presets as TSV: parameters, shape, context, memory.

    `weights_gib` is the memory of the weights in bf16; `cache_gib` what one sequence of the full context adds to it in
    the attention layers (the convolutions' state does not grow); `training_gib` is weights, gradients and Adam's state
    in fp32, before activations. Published presets are the Evo 2 models; the others are for training. Ablations are the
    paper's: other layouts, other filter groups, Hyena-SE as feed-forward layer; `evo train --ablation` takes them.

    \b
    Examples:
      evo models
      evo models --layout | column -t
      evo models --ablations 25m --layout | column -t
      evo train genome.fa --preset nano --steps 1000 -o run/
    """
    from sh2.ablations import ABLATIONS, ablate
    from sh2.planning.accounting import count_parameters, kv_cache_bytes, training_bytes, weight_bytes
    from sh2.presets import HUB, PRESETS, preset

    listed = PRESETS if ablations is None else {name: ablate(preset(ablations), name) for name in ABLATIONS}

    header = ["name", "parameters", "width", "layers", "context", "weights_gib", "cache_gib", "training_gib", "source"]
    typer.echo("\t".join([*header, *(["layout"] if layout else [])]))
    for name, config in listed.items():
        sizes = weight_bytes(config, "bf16"), kv_cache_bytes(config, config.context, "bf16"), training_bytes(config)
        row = [name, count_parameters(config), config.width, config.num_layers, config.context]
        row += [f"{size / 2**30:.3f}" for size in sizes]
        row += [HUB[name].repository if name in HUB else "trainable", *([config.layout] if layout else [])]
        typer.echo("\t".join(str(cell) for cell in row))
