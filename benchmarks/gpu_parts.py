"""The parts of gpu.py: what is measured and checked. Each is a generator of lines, see :class:`gpu.Line`."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch

from l2d.rejector.training.stack import Stack

Line = dict[str, object]  # what, value, unit, asked, state
RIGHT, WRONG, REACHED, MISSED, FACT = "right", "WRONG", "reached", "missed", ""


@dataclass(frozen=True)
class Setting:
    """Where parts run and how much they do: on a GPU, or in the rehearsal."""

    device: str
    rehearsal: bool

    def size(self, full: int, small: int) -> int:
        return small if self.rehearsal else full

    @property
    def gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def peak(self) -> int:
        """Most bytes that tensors have taken since :meth:`restart`; of a CPU what the process has ever taken."""
        if self.gpu:
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def wait(self) -> None:
        """For what the device has been given to do."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def memory(self) -> int:
        """All there is, in bytes."""
        if self.gpu:
            return torch.cuda.get_device_properties(self.device).total_memory
        return psutil.virtual_memory().total

    def restart(self) -> int:
        """Forget the most so far; returns what is taken now."""
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        return self.peak()


def fact(what: str, value: float | str, unit: str = "") -> Line:
    return {"what": what, "value": value, "unit": unit, "asked": "", "state": FACT}


def goal(setting: Setting, what: str, value: float, least: float, unit: str = "x") -> Line:
    """A speed to be reached; on a CPU there is none to reach."""
    state = FACT if setting.rehearsal else REACHED if value >= least else MISSED
    return {"what": what, "value": value, "unit": unit, "asked": f">= {least:g}", "state": state}


def check(what: str, difference: float, most: float, unit: str = "") -> Line:
    """A difference from the reference; one that is not a number is wrong as well."""
    state = RIGHT if difference <= most else WRONG
    return {"what": what, "value": float(difference), "unit": unit, "asked": f"<= {most:g}", "state": state}


def machine(setting: Setting) -> Iterator[Line]:
    """What it is, and whether its products are right."""
    device = torch.device(setting.device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        yield fact("device", properties.name)
        yield fact("its memory", round(properties.total_memory / 2**30, 1), "GiB")
        yield fact("compute capability", f"{properties.major}.{properties.minor}")
    else:
        yield fact("device", "CPU, a rehearsal")
    yield fact("torch", torch.__version__)
    yield fact("Python", sys.version.split()[0])
    size = setting.size(8192, 256)
    left, right = (torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = left[:64].double() @ right.double()
    left, right = left.to(device), right.to(device)
    found = (left[:64] @ right).double().cpu()
    yield check("product in float32, largest relative error", _relative(found, expected), 1e-4)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = left.to(dtype), right.to(dtype)
        seconds = _seconds(lambda a=a, b=b: a @ b, setting, repeats=10)
        yield fact(f"product of {size} x {size}, {str(dtype)[6:]}", round(2 * size**3 / seconds / 1e12, 2), "TFLOP/s")


def detectors(setting: Setting) -> Iterator[Line]:
    """Stage one against a bare loop over batches that are on the device already."""
    import detector_throughput as bench

    from l2d.cache_builder.recipe import load_recipe
    from l2d.data.sources import load_dataset

    names = ["fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
    batch, many = setting.size(16, 2), setting.size(128, 4)
    extra = 'autocast = "bfloat16"\n' + ("min_size = 96\n" if setting.rehearsal else "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench.write_photographs(folder / "VOCdevkit", setting.size(768, 12))
        for architecture in names[: setting.size(3, 1)]:
            file = folder / f"{architecture}.toml"
            weights = bench.write_weights(architecture, folder)
            settings = {"architecture": architecture, "weights": weights, "batch_size": batch, "autocast": extra}
            file.write_text(bench.RECIPE.format(**settings, build_batch=many))
            recipe = load_recipe(str(file))
            dataset = load_dataset(recipe.dataset, recipe.name)
            bare = bench.BareLoop(recipe, dataset, setting.device, time.perf_counter)
            before = bare.rate()
            ours, _ = bench.build_rate(recipe, folder / architecture, setting.device, time.perf_counter)
            plain = 2 / (1 / before + 1 / bare.rate())
            yield fact(f"{architecture}, bare loop", round(plain, 1), "images/s")
            yield goal(setting, f"{architecture}, build against it", round(ours / plain, 3), 0.95)
            del bare


def costs(setting: Setting) -> Iterator[Line]:
    """Costs of a detector with and without autocast, from the same weights: those of float32 on the CPU."""
    import numpy as np

    from l2d.cache_builder.agents import make_agent
    from l2d.cache_builder.recipe import load_recipe
    from l2d.data.costs.average_precision import average_precision, detection_cost
    from l2d.data.sources import load_dataset
    from l2d.data.sources.digits import write_digits

    recipe_text = """
[dataset]
kind = "voc"
path = "VOCdevkit"
classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
[dataset.sets]
fit = ["digits/fit"]
train = ["digits/train"]
test = ["digits/test"]
[costs.map]
[[agents]]
name = "model"
kind = "small_faster_rcnn"
min_size = 72
channels = [16, 32]
depth = 2
anchors = [8.0, 14.0, 26.0]
epochs = EPOCHS
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = {"fit": setting.size(800, 160), "train": setting.size(400, 60), "test": 20}
        write_digits(folder / "VOCdevkit", images=counts)
        (folder / "digits.toml").write_text(recipe_text.replace("EPOCHS", str(setting.size(12, 6))))
        recipe = load_recipe(str(folder / "digits.toml"))
        dataset = load_dataset(recipe.dataset, recipe.name)
        agent = make_agent(recipe.agents[0])
        start = time.perf_counter()
        frozen = agent.freeze(dataset, setting.device)
        yield fact("training a detector", round(time.perf_counter() - start, 1), "s")
        everything = dataset.batch(range(len(dataset)))

        def cost(device: str, autocast: str | None) -> np.ndarray:
            asked = make_agent(recipe.agents[0].model_copy(update={"autocast": autocast}))
            asked.load(frozen, dataset, device)
            answers = asked.ask(everything)
            if answers.failure is not None:
                raise AssertionError(f"no answer with {autocast} on {device}: {set(answers.failure)}")
            return detection_cost(average_precision(dataset.target_boxes, answers.boxes))

        expected = cost("cpu", None)
        yield fact("its mean cost, float32 on the CPU", round(float(expected.mean()), 4))
        if not 0.02 < expected.mean() < 0.98:
            raise AssertionError("the detector has learnt nothing, so its costs say nothing")
        kinds = [None, "bfloat16"] if setting.rehearsal else [None, "bfloat16", "float16"]
        for autocast in kinds:
            found = cost(setting.device, autocast)
            kind = autocast or "float32"
            yield check(f"{kind}, difference of mean costs", abs(float((found - expected).mean())), 0.02)
            yield check(f"{kind}, mean difference of a scene", float(np.abs(found - expected).mean()), 0.05)


def grid(setting: Setting) -> Iterator[Line]:
    """28 rejectors together: the same as a plain loop, and how much faster than one after another."""
    yield from _same_as_plain_loop(setting)
    yield from _grids(setting, betas=7, rows=setting.size(20_000, 512))


def many(setting: Setting) -> Iterator[Line]:
    """1,000 rejectors together, and what memory they take."""
    yield from _grids(setting, betas=setting.size(250, 12), rows=setting.size(10_000, 256))


def tokens(setting: Setting) -> Iterator[Line]:
    """28 token transformers: the same on CPU and device, and how much faster than PyTorch's own one by one."""
    import token_transformers as bench

    yield from _token_stack_is_the_same(setting)
    hidden, layers = setting.size(64, 8), setting.size(2, 1)
    features, raw = bench.made_up(setting.size(2048, 64))
    for batch in (64, setting.size(1024, 32)):
        where = {"device": setting.device}
        bench.grid(features[:batch], raw[:batch], batch, hidden, layers, **where)
        before = setting.restart()
        ours = bench.grid(features, raw, batch, hidden, layers, **where)
        yield fact(f"28 token transformers, batch {batch}", round(ours, 3), "s an epoch")
        yield fact(f"28 token transformers, batch {batch}, memory", _mib(setting.peak() - before), "MiB")
        make = partial(bench.Plain, hidden, layers)
        bench.one_by_one(make, features[:batch], raw[:batch], batch, loader=False, **where)
        plain = bench.one_by_one(make, features, raw, batch, loader=False, **where)
        yield goal(setting, f"28 token transformers against PyTorch's own, batch {batch}", round(plain / ours, 1), 20)


def nccl(setting: Setting) -> Iterator[Line]:
    """The calls that several processes make, with one: NCCL's on a GPU, gloo's in the rehearsal."""
    from l2d.rejector.training.distributed import Group

    class Alone(Group):
        """Takes part as one of two would, and has every row."""

        def share(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
            return rows

    backend = "nccl" if setting.gpu else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        if setting.gpu:
            torch.cuda.set_device(torch.device(setting.device))
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            group = Alone(rank=0, size=2, device=setting.device)
            yield check(f"{backend}, least of one", abs(group.least(7) - 7), 0)
            yield check(f"{backend}, what the first says", float(group.from_first(b"weights") != b"weights"), 0)
            alone, together = (_stack(setting.device, torch.float32) for _ in range(2))
            for step, (features, raw) in enumerate(_batches(setting.device, torch.float32, 20)):
                alone.step(features, raw, 1e-2 / (1 + step))
                together.step(features, raw, 1e-2 / (1 + step), total=features.shape[1], group=group)
            yield check(f"{backend}, 20 steps: parameters", _farthest(alone, together), 1e-5)
            values = torch.ones(setting.size(1 << 26, 1 << 16), device=setting.device)
            seconds = _seconds(lambda: group.add(values), setting, repeats=5)
            yield fact(f"{backend}, adding up {values.numel() * 4 >> 20} MiB", round(1e3 * seconds, 3), "ms")
        finally:
            torch.distributed.destroy_process_group()


# --- what they share --------------------------------------------------------------------------------------------------


def _grids(setting: Setting, *, betas: int, rows: int) -> Iterator[Line]:
    import grid_training as bench

    from l2d.rejector.settings import TrainConfig
    from l2d.rejector.training.waves import COPIES, SHARE

    for batch in (64, setting.size(1024, 128)):
        task = bench.Task(rows=rows, batch=batch, layers=2, betas=betas, device=setting.device)
        task = replace(task, hidden=setting.size(task.hidden, 16))
        name = f"{task.points:,} rejectors, batch {batch}"
        bench.grid(replace(task, rows=batch))
        before = setting.restart()
        ours = bench.grid(task)
        peak = setting.peak() - before
        yield fact(name, round(ours, 3), "s an epoch")
        bench.plain(replace(task, rows=batch), loader=False, models=1)
        plain = bench.plain(task, loader=False, models=2)
        yield goal(setting, f"{name}, against one after another", round(plain / ours, 1), 20)
        config = TrainConfig(network="mlp", hidden=task.hidden, layers=2, batch_size=batch)
        network = bench.make_network("mlp", task.width, task.agents, config.hidden, config.layers)
        reckoned = task.points * COPIES * 4 * sum(value.numel() for value in network.parameters())
        reckoned += rows * 4 * (task.width + task.agents)
        yield fact(f"{name}, memory", _mib(peak), "MiB")
        share = (peak - reckoned) / setting.memory()
        yield check(f"{name}, beyond what waves.py reckons, share of all memory", round(share, 4), 1 - SHARE)


def _stack(device: str, dtype, **settings: object):
    """Six points of two seeds."""
    from l2d.rejector.costs import CostWeights
    from l2d.rejector.grid import GridPoint
    from l2d.rejector.training.stack import AutogradStack

    weights = CostWeights((("cla", 1.0), ("reg", 0.5)))
    points = [
        GridPoint(run_id=f"{seed}-{nu}", method="multi-task", weights=weights, beta=0.1, query_costs=(0, 0.1, 0.2),
                  nu=nu, seed=seed)
        for seed in (3, 5)
        for nu in (0.5, 1.0, 1.5)
    ]  # fmt: skip
    given = {"network": "mlp", "width": 12, "num_agents": 3, "hidden": 32, "weight_decay": 0.05, **settings}
    return AutogradStack(points, torch.tensor([[1.0, 0.5]] * 6), device=device, dtype=dtype, **given)


def _batches(device: str, dtype, count: int) -> list[tuple]:
    """Features and raw costs of the stack's two seeds, the same on every device."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int):
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return [(drawn(2, 64, 12) * 2 - 1, drawn(2, 64, 3, 2)) for _ in range(count)]


def _same_as_plain_loop(setting: Setting) -> Iterator[Line]:
    """Steps in float64 against modules, autograd and AdamW; and against the CPU."""
    from l2d.rejector.losses import aggregated_costs
    from l2d.rejector.networks import make_network

    stack, given = _stack(setting.device, torch.float64), _batches(setting.device, torch.float64, setting.size(200, 40))
    for features, raw in given:
        stack.step(features, raw, 1e-2)
    worst = 0.0
    for position, point in enumerate(stack.points):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(point.seed)
            network = make_network("mlp", 12, 3, 32).to(setting.device, torch.float64)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.05)
        beta = torch.tensor(point.query_costs, device=setting.device, dtype=torch.float64)
        for features, raw in given:
            row = stack.seeds.index(point.seed)
            total = raw[row, ..., 0] + 0.5 * raw[row, ..., 1] + beta
            share = network(features[row]).softmax(dim=1)
            value = -share.log() if point.nu == 1 else (share ** (point.nu - 1) - 1) / (1 - point.nu)
            optimizer.zero_grad()
            (aggregated_costs(total) * value).sum(dim=1).mean().backward()
            optimizer.step()
        for name, value in network.named_parameters():
            worst = max(worst, float((value - stack.parameters[name][position]).detach().abs().max()))
    yield check(f"{len(given)} steps in float64 against a plain loop", worst, 1e-9)
    on_cpu = _stack("cpu", torch.float64)
    for features, raw in given:
        on_cpu.step(features.cpu(), raw.cpu(), 1e-2)
    yield check(f"{len(given)} steps in float64 against the CPU", _farthest(on_cpu, stack), 1e-9)
    risk = [s.risk(*(values[0].to(s.device) for values in given[0]), 1024).cpu() for s in (stack, on_cpu)]
    yield check("deferral risk against the CPU", float((risk[0] - risk[1]).abs().max()), 1e-9)


def _token_stack_is_the_same(setting: Setting) -> Iterator[Line]:
    """20 steps with dropout in float64, which draws by seed, step and row: the same on every device."""
    import token_transformers as bench

    from l2d.rejector.training.dropout import row_keys

    features, _ = bench.made_up(64)
    settings = {"network": "token_transformer", "sizes": bench.SIZES, "width": features.shape[1], "hidden": 16}
    stacks = [_stack(device, torch.float64, **settings, dropout=0.1) for device in ("cpu", setting.device)]
    raw = _batches("cpu", torch.float64, setting.size(20, 4))
    for stack in stacks:
        for step, (_, of_rows) in enumerate(raw):
            keys = row_keys(stack.seeds, step, 64, stack.device)
            rows = features.double().expand(2, -1, -1).to(stack.device)
            stack.step(rows, of_rows.to(stack.device), 3e-3, keys=keys)
    yield check(f"token transformers with dropout, {len(raw)} steps against the CPU", _farthest(*stacks), 1e-8)


def _farthest(one: Stack, other: Stack) -> float:
    """Largest difference of two stacks' parameters."""
    pairs = zip(one.parameters.values(), other.parameters.values(), strict=True)
    return max(float((a.cpu() - b.cpu()).abs().max()) for a, b in pairs)


def _seconds(call: Callable[[], object], setting: Setting, repeats: int) -> float:
    """Mean seconds of a call, after one that does not count."""
    call()
    setting.wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    setting.wait()
    return (time.perf_counter() - start) / repeats


def _relative(found, expected) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _mib(size: int) -> float:
    return round(size / 2**20, 1)
