"""What a training run would take, before it is started: its configuration, and nothing of its data or folder."""

from pathlib import Path

from evo_cli.inference import BackendName, memory_bytes, say
from evo_cli.planning import Line, answer, described
from evo_cli.training.config import Flags, RunConfig, merge, read_tables
from evo_cli.training.run import resolved
from sh2.errors import Sh2Error
from sh2.planning.accounting import Numbers
from sh2.planning.plan import Plan, Task
from sh2.planning.speeds import KNOWN_DEVICES
from sh2.train.config import Precision


def plan_run(flags: Flags, *, config: Path | None) -> tuple[list[Line], str | None]:
    """Predict the memory and the time of an update on one device, which need not be here.

    Returns:
        lines of a table, and why the run does not fit, if it does not.

    Raises:
        Sh2Error: the configuration does not allow it.
    """
    tables = merge(*([read_tables(config)] if config else []), flags=flags)
    train = tables["train"]
    elsewhere = KNOWN_DEVICES.get(str(train.get("device")))
    if elsewhere is not None:
        train |= {"device": "cpu", "precision": train.get("precision", Precision.BF16.value)}
    run = RunConfig.from_tables(resolved({**tables, "train": {"steps": 1} | train}, one_of_many=False))
    train_less = {"parallel": run.train.parallel != "dp", "freeze": run.train.freeze}
    if given := [f"--{name}" for name, value in train_less.items() if value]:
        counted = "one process that trains every weight, or adapters"
        raise Sh2Error(f"--plan counts {counted}, not {' or '.join(given)}").hint(
            "leave these out: with them each process takes less"
        )
    where, backend = run.train.device, BackendName(run.train.backend)
    gpu = elsewhere is not None or where != "cpu"
    numbers = Numbers(dtype=run.train.precision, fused=gpu and backend is not BackendName.REFERENCE)
    plan = Plan(
        config=run.model,
        task=Task.TRAIN,
        length=run.train.length,
        batch=run.train.batch_size,
        accumulation=run.train.accumulation,
        recompute=run.train.recompute,
        lora=run.train.lora,
        numbers=numbers,
        room=elsewhere.memory_bytes if elsewhere else memory_bytes(where),
        gpu=gpu,
    )
    say(described("the model", plan, elsewhere.name if elsewhere else where))
    if plan.lora is not None:
        say(f"trained: {plan.trained:,} parameters of adapters")
    if run.train.compile or run.train.fp8_linears:
        say("without torch.compile and FP8, which take less of both")
    return answer(plan, where, elsewhere, backend)
