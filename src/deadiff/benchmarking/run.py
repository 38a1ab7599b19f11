"""The benchmark: which parts, in which order, into one plain-data report."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from deadiff.benchmarking import children
from deadiff.benchmarking import variants as v
from deadiff.benchmarking.arithmetic import count_operations
from deadiff.benchmarking.machine import describe
from deadiff.benchmarking.models import SIZES, Size, build_adapter, build_unet, build_vision
from deadiff.benchmarking.picture import RELEASED, Painter, Parts, Recipe, propose
from deadiff.benchmarking.timing import Tick, interleave, paired_ratio, quickest, summarize
from deadiff.errors import CheckpointError, ConfigError
from deadiff.loading import DTYPES, find_device, model_folder

PARTS = ("start", "memory", "steps", "picture")  # in the order in which they run; picture is computed from steps
LIMIT = 1.02  # our step may cost this much of the plain one
STARTS = 3  # cold starts


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    small: bool = False  # the reduced model instead of the full-size one
    parts: tuple[str, ...] = PARTS
    device: str | None = None  # default: CUDA, then MPS, then CPU
    dtypes: tuple[str, ...] = ()  # default: fp32, and bf16 on a CPU, fp16 elsewhere
    rounds: int | None = None  # default: the size's
    threads: int | None = None  # of torch; default: torch's own choice
    seed: int = 0  # of weights, inputs and the bootstrap
    full_picture: bool = False  # draw the whole pictures besides computing their time

    def __post_init__(self) -> None:
        for name, given, allowed in (("parts", self.parts, PARTS), ("dtypes", self.dtypes, tuple(DTYPES))):
            if unknown := sorted(set(given) - set(allowed)):
                raise ConfigError(f"unknown {name} {', '.join(unknown)}: expected some of {', '.join(allowed)}")
        for name in ("rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: expected at least 1")
        if not self.parts:
            raise ConfigError(f"nothing to measure: expected some of {', '.join(PARTS)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}: expected 0 to 2**63 - 1")
        if self.full_picture and "picture" not in self.parts:
            raise ConfigError("whole pictures were asked for without the part 'picture': expected both, or neither")

    @property
    def size_name(self) -> str:
        return "small" if self.small else "sd15"


def benchmark(options: Options, tick: Tick = lambda what: None) -> dict[str, Any]:
    """Measure. `tick` is told what comes next, before each step or so. Returns plain data, as written to JSON."""
    device = find_device(options.device)
    dtypes = options.dtypes or default_dtypes(device)
    threads_before = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        report: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": describe(device),
            "options": {**asdict(options), "device": str(device), "dtypes": list(dtypes), "parts": list(options.parts)},
        }
        if "start" in options.parts:
            report["start"] = measure_start(device, tick)
        if "memory" in options.parts:
            report["memory"] = measure_memory(options, device, dtypes, tick)
        if "steps" in options.parts or "picture" in options.parts:
            report |= measure_steps_and_picture(options, device, dtypes, tick)
        return report
    finally:
        torch.set_num_threads(threads_before)


def default_dtypes(device: torch.device) -> tuple[str, str]:
    """The released recipe's dtype and the one to propose."""
    return "fp32", "bf16" if device.type == "cpu" else "fp16"


def planned(options: Options) -> int:
    """About how many ticks a run has, for a progress bar."""
    dtypes = len(options.dtypes or ("fp32", "bf16"))
    rounds = [options.rounds or SIZES[name].rounds for name in [options.size_name] * dtypes + ["icons"]]
    steps = sum(3 + 6 + 3 * n for n in rounds) if {"steps", "picture"} & set(options.parts) else 0
    picture = 3 * dtypes + 70 * options.full_picture if "picture" in options.parts else 0
    memory = 3 * dtypes if "memory" in options.parts else 0
    return steps + picture + memory + STARTS * ("start" in options.parts)


# ---- steps and pictures ----


class StepBench:
    """One size in one dtype: a single U-Net, which the variants take in turn."""

    def __init__(self, size_name: str, dtype_name: str, device: torch.device, seed: int, tick: Tick) -> None:
        self.size_name, self.dtype_name, self.seed = size_name, dtype_name, seed
        self.size: Size = SIZES[size_name]
        self.sync = synchronize(device)
        self.tick: Tick = lambda what: tick(f"{size_name} {dtype_name}: {what}")
        self.tick("making the models")
        dtype = DTYPES[dtype_name]
        self.unet = build_unet(self.size, dtype, device, seed)
        self.inputs = v.make_inputs(self.size, dtype, device, seed)
        self.adapter = build_adapter(self.size, self.unet, dtype, device, seed)
        self.ip = v.IPAdapterPlus(self.size, self.unet, dtype, device, seed)

        self.tick("reading a reference")
        picture = self.inputs.picture
        image_encoder = build_vision(self.size.ip_vision, dtype, device, seed)  # dropped again: gigabytes
        self.tokens, self.image_embeds = self.adapter.encode(picture, picture), v.ip_read(image_encoder, picture)
        self.reading = {  # seconds: both roles of ours; the picture and the empty one of IP-Adapter
            v.DEADIFF: quickest(lambda: self.adapter.encode(picture, picture), self.sync),
            v.IP_ADAPTER: quickest(lambda: v.ip_read(image_encoder, picture), self.sync),
        }

    def steps(self, rounds: int | None) -> dict[str, Any]:
        """Seconds of a step by variant, ratios of the same round, and whether the promise is kept."""
        rounds = rounds or self.size.rounds
        self.tick("counting operations")
        variants = {
            v.PLAIN: v.plain_variant(self.unet, self.inputs),
            v.DEADIFF: v.deadiff_variant(self.unet, self.inputs, self.adapter, self.tokens),
            v.IP_ADAPTER: v.ip_adapter_variant(self.unet, self.inputs, self.ip, self.image_embeds),
        }
        samples = interleave(variants, rounds, sync=self.sync, tick=self.tick)
        pairs = ((v.DEADIFF, v.PLAIN), (v.IP_ADAPTER, v.PLAIN), (v.DEADIFF, v.IP_ADAPTER))
        wall = {name: [s.seconds for s in values] for name, values in samples.items()}
        cpu = {name: [s.cpu_seconds for s in values] for name, values in samples.items()}
        ratios = {f"{a}/{b}": paired_ratio(wall[a], wall[b], self.seed) for a, b in pairs}
        cpu_ratios = {f"{a}/{b}": paired_ratio(cpu[a], cpu[b], self.seed) for a, b in pairs}
        return {
            "size": self.size_name,
            "dtype": self.dtype_name,
            "latents": [2, *self.size.latents],
            "tokens": {"text": self.size.text_length, "image": v.NUM_TOKENS},
            "rounds": rounds,
            "seconds": {name: asdict(summarize(values)) for name, values in wall.items()},
            "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
            "cpu_seconds": {name: asdict(summarize(values)) for name, values in cpu.items()},  # the check on a busy machine
            "cpu_ratios": {name: asdict(ratio) for name, ratio in cpu_ratios.items()},
            "operations": count_operations(self.size),
            "resampler": quickest(lambda: self.ip.resample(self.image_embeds), self.sync),  # s, inside every IP-Adapter step
            "reading": self.reading,
            "kept": {
                f"at most {LIMIT} x plain": ratios[f"{v.DEADIFF}/{v.PLAIN}"].median <= LIMIT,
                "less than IP-Adapter": ratios[f"{v.DEADIFF}/{v.IP_ADAPTER}"].median < 1,
            },
        }

    def painter(self) -> Painter:
        return Painter(self.size, self.unet, self.adapter, self.inputs, self.sync, self.seed)


def measure_steps_and_picture(options: Options, device: torch.device, dtypes: tuple[str, ...], tick: Tick) -> dict[str, Any]:
    """Both need the same models, which are made once for each dtype and then dropped."""
    rows: list[dict[str, Any]] = []
    parts: dict[str, Parts] = {}
    for dtype in dtypes:
        bench = StepBench(options.size_name, dtype, device, options.seed, tick)
        rows.append(bench.steps(options.rounds))
        if "picture" in options.parts:
            parts[dtype] = bench.painter().parts(bench.tick)
        del bench
    report: dict[str, Any] = {}
    if "picture" in options.parts:
        seconds = {row["dtype"]: row["seconds"][v.DEADIFF]["median"] for row in rows}
        proposed = propose(device.type, seconds)
        report["picture"] = {
            "released": recipe_row(RELEASED, seconds, parts, options, device, tick),
            "proposed": recipe_row(proposed, seconds, parts, options, device, tick),
        }
    if "steps" in options.parts:
        rows.append(StepBench("icons", dtypes[0], device, options.seed, tick).steps(options.rounds))
    report["steps"] = rows
    return report


def recipe_row(
    recipe: Recipe, seconds: dict[str, float], parts: dict[str, Parts], options: Options, device: torch.device, tick: Tick
) -> dict[str, Any]:
    """One picture by a recipe: parts and one step are measured, the sum "computed"; "drawn" is measured whole, or None."""
    row: dict[str, Any] = {"recipe": asdict(recipe), "computed": None, "drawn": None}
    if recipe.dtype not in parts:
        return {**row, "why": f"{recipe.dtype} was not measured: add it to the dtypes"}
    row |= {"step": seconds[recipe.dtype], "parts": asdict(parts[recipe.dtype])}
    row["computed"] = parts[recipe.dtype].picture(recipe, seconds[recipe.dtype])
    if options.full_picture:
        bench = StepBench(options.size_name, recipe.dtype, device, options.seed, tick)
        row["drawn"] = bench.painter().draw(recipe, bench.tick)
    return row


def synchronize(device: torch.device) -> Callable[[], None]:
    """Waits until everything asked of the device is done."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


# ---- fresh processes ----


def measure_memory(options: Options, device: torch.device, dtypes: tuple[str, ...], tick: Tick) -> list[dict[str, Any]]:
    """Peak MiB by dtype and variant, each in a process of its own."""
    rows = []
    for dtype in dtypes:
        for variant in v.VARIANTS:
            tick(f"memory: {variant} {dtype}")
            told = children.ask(
                "memory", options.size_name, variant, dtype, str(device), str(torch.get_num_threads()), str(options.seed)
            )
            rows.append({"size": options.size_name, "dtype": dtype, "variant": variant, **told})
    return rows


def measure_start(device: torch.device, tick: Tick) -> dict[str, Any]:
    """Medians over fresh processes, with the files in the system's cache: `import deadiff`, loading icons, its first picture."""
    model = "icons"
    try:
        model_folder(model)
    except CheckpointError:  # an installation without the embedded model: the import alone is timed
        model = ""
    told = []
    for _ in range(STARTS):
        tick("cold start")
        told.append(children.ask("start", model, str(device), str(torch.get_num_threads())))
    return {"model": model or None, "seconds": {key: asdict(summarize([t[key] for t in told])) for key in told[0]}}
