"""`evo train`: from sequences, or a token store, to a model."""

from pathlib import Path
from typing import Annotated, Any

import typer


def _flag(name: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=text, metavar=metavar, show_default=False)


Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="INPUT",
        help="FASTA, GenBank or EMBL files; or token stores (.h5), each with a weight if they are mixed: STORE=WEIGHT.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.")]
Preset = Annotated[str | None, _flag("--preset", "Shape of the model; `evo models` lists them.")]
Ablation = Annotated[
    str | None, _flag("--ablation", "Vary the preset, at its parameters; `evo models --ablations PRESET` lists how.")
]
From = Annotated[
    str | None,
    _flag("--from", "Begin from the weights of a model: a folder, a file or a name, as for --model.", "MODEL"),
]
ExtendBy = Annotated[
    str | None,
    _flag(
        "--extend-by",
        "Extend the context of --from to --length: rotary positions by interpolation, another base, or both.",
        "METHOD",
    ),
]
Config = Annotated[Path | None, _flag("--config", "TOML file with [model], [train] and [data]; flags win over it.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of RUN.")]
TensorBoardFlag = Annotated[
    bool, typer.Option("--tensorboard", help="Also write TensorBoard events to RUN/tensorboard.")
]

# the fields of TrainConfig, each with its default in brackets
Steps = Annotated[int | None, _flag("--steps", "Updates in the whole run.")]
BatchSize = Annotated[int | None, _flag("--batch-size", "Windows in one forward pass. [8]")]
Accumulation = Annotated[int | None, _flag("--accumulation", "Forward passes an update. [1]")]
Length = Annotated[int | None, _flag("--length", "Length of a window in bp. [1024]")]
Lr = Annotated[float | None, _flag("--lr", "Learning rate at the end of the warm-up. [0.001]")]
MinLrFraction = Annotated[float | None, _flag("--min-lr-fraction", "Last learning rate, as a part of --lr. [0.1]")]
WarmupFraction = Annotated[float | None, _flag("--warmup-fraction", "Part of the steps that is warm-up. [0.05]")]
Betas = Annotated[tuple[float, float] | None, _flag("--betas", "Decay rates of AdamW's two averages. [0.9 0.95]")]
Eps = Annotated[float | None, _flag("--eps", "Added to the denominator of AdamW. [1e-08]")]
WeightDecay = Annotated[
    float | None, _flag("--weight-decay", "Decay of the linear layers' matrices, of nothing else. [0.1]")
]
Clip = Annotated[float | None, _flag("--clip", "Largest global norm of the gradient, 0 for any. [1.0]")]
PrecisionFlag = Annotated[
    str | None, _flag("--precision", "bf16 or fp32; weights are fp32. [bf16 on a GPU, else fp32]")
]
Seed = Annotated[int | None, _flag("--seed", "Decides the first weights and the order of windows. [0]")]
ValidEvery = Annotated[int | None, _flag("--valid-every", "Steps between validations, 0 for one at the end. [100]")]
ValidWindows = Annotated[int | None, _flag("--valid-windows", "Held-out windows that a validation scores. [64]")]
SaveEvery = Annotated[int | None, _flag("--save-every", "Steps between checkpoints, 0 for one at the end. [100]")]
KeepLast = Annotated[int | None, _flag("--keep-last", "Checkpoints kept besides the best. [2]")]
LogEvery = Annotated[int | None, _flag("--log-every", "Steps between lines of progress. [10]")]
ResetDocuments = Annotated[
    bool | None, _flag("--reset-documents/--no-reset-documents", "Start every record from an empty state. [no]")
]
LowerCaseWeight = Annotated[
    float | None, _flag("--lower-case-weight", "Weight of a soft-masked base in the loss. [0.1]")
]
ReverseComplement = Annotated[
    bool | None, _flag("--reverse-complement/--no-reverse-complement", "Also read the other strand. [yes]")
]
Freeze = Annotated[
    list[str] | None,
    _flag(
        "--freeze",
        "What is not trained: embedding, mixers, feed_forward, filters, norms or a pattern such as 'blocks.0.*';"
        " more than once for more. []",
        "PART",
    ),
]
LoraRank = Annotated[
    int | None, _flag("--lora-rank", "Train adapters of this rank beside the weights of --from; 0 for the weights. [0]")
]
LoraAlpha = Annotated[float | None, _flag("--lora-alpha", "Adapters' products are scaled by it over the rank. [16.0]")]
LoraTargets = Annotated[
    list[str] | None,
    _flag("--lora-targets", "Layers to adapt, one each time. [input output gate up down]", "LAYER"),
]
Device = Annotated[str | None, _flag("--device", "auto, cpu, cuda or cuda:N. [auto]")]
ParallelFlag = Annotated[
    str | None, _flag("--parallel", "How processes share a run: dp=4,tp=2,cp=2 (windows, channels, lengths). [dp]")
]
CpMethod = Annotated[
    str | None,
    _flag("--cp-method", "Convolutions over cp: state, a2a, a2a-pipelined, p2p, p2p-overlapped or p2p-fft. [state]"),
]
CpAttention = Annotated[str | None, _flag("--cp-attention", "Attention over cp: ring or a2a. [ring]")]
CpSharding = Annotated[
    str | None, _flag("--cp-sharding", "A process's part of a window: contiguous, or zigzag. [contiguous]")
]
Threads = Annotated[int | None, _flag("--threads", "CPU threads. [as many as torch finds]")]
Backend = Annotated[str | None, _flag("--backend", "auto, triton or reference, as in `evo score`. [auto]")]
Compile = Annotated[bool | None, _flag("--compile/--no-compile", "Start slower, by torch.compile, to run faster. [no]")]

RecomputeFlag = Annotated[
    str | None, _flag("--recompute", "none, selective, full or nested: slower, for longer windows. [none]")
]
Fp8Linears = Annotated[bool | None, _flag("--fp8-linears/--no-fp8-linears", "Products in FP8. [no]")]
PeakTflops = Annotated[float | None, _flag("--peak-tflops", "What MFU is a part of; 0 times a matrix product. [0.0]")]
FilterStatistics = Annotated[
    int | None, _flag("--filter-statistics", "Steps between lines of RUN/filters.jsonl, 0 for none. [0]")
]
PlanFlag = Annotated[
    bool, typer.Option("--plan", help="Print what an update would take, as `evo plan`; start nothing, write nothing.")
]
Profile = Annotated[int | None, _flag("--profile", "A step to write a trace of, 0 for none. [0]")]


def train(
    ctx: typer.Context,
    output: Output,
    inputs: Inputs = None,
    preset: Preset = None,
    ablation: Ablation = None,
    start: From = None,
    extend_by: ExtendBy = None,
    config: Config = None,
    resume: Resume = False,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulation: Accumulation = None,
    length: Length = None,
    lr: Lr = None,
    min_lr_fraction: MinLrFraction = None,
    warmup_fraction: WarmupFraction = None,
    betas: Betas = None,
    eps: Eps = None,
    weight_decay: WeightDecay = None,
    clip: Clip = None,
    precision: PrecisionFlag = None,
    seed: Seed = None,
    reset_documents: ResetDocuments = None,
    lower_case_weight: LowerCaseWeight = None,
    reverse_complement: ReverseComplement = None,
    valid_every: ValidEvery = None,
    valid_windows: ValidWindows = None,
    save_every: SaveEvery = None,
    keep_last: KeepLast = None,
    log_every: LogEvery = None,
    freeze: Freeze = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = None,
    device: Device = None,
    parallel: ParallelFlag = None,
    cp_method: CpMethod = None,
    cp_attention: CpAttention = None,
    cp_sharding: CpSharding = None,
    threads: Threads = None,
    backend: Backend = None,
    compile: Compile = None,
    recompute: RecomputeFlag = None,
    fp8_linears: Fp8Linears = None,
    peak_tflops: PeakTflops = None,
    filter_statistics: FilterStatistics = None,
    profile: Profile = None,
    tensorboard: TensorBoardFlag = False,
    plan: PlanFlag = False,
) -> None:
    """Train a model on DNA: the model is RUN/model, the curve RUN/loss.png.

    Sequences are prepared on their own into RUN/data.h5. A run that was stopped, even by a kill, goes on with
    `--resume`; on a CPU its numbers are then the same, byte for byte, as if it had never stopped. SIGTERM and Ctrl-C
    save and end it.

    Examples:

      evo train genome.fa.gz --preset nano --steps 500 -o run/

      evo train -o run/ --resume

      evo prepare genomes/ -o store.h5 && evo train store.h5 --preset 25m --steps 5000 --length 8192 -o run/

      evo train near.h5=0.7 far.h5=0.3 --preset nano --ablation all-mr --steps 500 -o mr/

      evo train genome.fa --from run/model --length 4096 --extend-by both --steps 100 --lr 1e-4 -o long/

      evo train genome.fa --from evo2_7b --lora-rank 8 --length 8192 --steps 200 --lr 1e-4 -o tuned/

      evo train genome.fa --config run/config.toml --lr 3e-4 -o other/

    Started by torchrun or srun, processes share the run, each on a GPU of its own; any number of them can resume it:

      torchrun --nproc-per-node 8 -m evo_cli train store.h5 --preset 1b --parallel dp=4,cp=2 --steps 5000 -o run/

    A configuration file has the same fields; RUN/config.toml is a complete one:

    \b
      [model]
      preset = "nano"
      layout = "SML*SML"
      [train]
      steps = 500
      batch_size = 16
    """
    import os
    from dataclasses import fields

    # of a process that is gone, torch would tell each of the others in a page; it reads this when it is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from evo_cli.training.config import Flags
    from evo_cli.training.model import absolute
    from evo_cli.training.run import train_run
    from sh2.train.config import TrainConfig

    given = {field.name: ctx.params[field.name] for field in fields(TrainConfig)}
    model = {"preset": preset, "ablation": ablation, "from": start and absolute(start), "extend_by": extend_by}
    flags = Flags(
        model={name: value for name, value in model.items() if value is not None},
        inputs=inputs or [],
        train={name: value for name, value in given.items() if value not in (None, [], ())},
    )
    if plan:
        from evo_cli.planning import print_answer
        from evo_cli.training.plan import plan_run

        print_answer(*plan_run(flags, config=config))
        return
    code = train_run(output, flags, config=config, resume=resume, tensorboard=tensorboard)
    if code:
        raise typer.Exit(code)
    typer.echo(output / "model")
