"""deadiff bench: fair statistics, the same U-Net for every variant and untouched afterwards, sane figures."""

import json
from contextlib import contextmanager

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from deadiff.adapter import Tokens
from deadiff.apps import cli
from deadiff.attention import JointAttnProcessor
from deadiff.benchmarking import children, picture, run, timing
from deadiff.benchmarking import variants as v
from deadiff.benchmarking.arithmetic import count_operations
from deadiff.benchmarking.models import SIZES, build_adapter, build_unet, build_vision
from deadiff.benchmarking.picture import RELEASED, Parts, Recipe, propose
from deadiff.benchmarking.report import heading, seconds, tables
from deadiff.benchmarking.run import Options, benchmark
from deadiff.errors import ConfigError, DEADiffError
from deadiff.routes import cross_attention_layers

CPU, FP32 = torch.device("cpu"), torch.float32
SMALL = SIZES["small"]


class Machine:
    """A clock that only steps move; each variant costs what `cost(name, call)` says."""

    def __init__(self, cost):
        self.now, self.calls, self.cost, self.entered = 0.0, [], cost, []

    def variants(self, *names):
        def make(name):
            @contextmanager
            def enter():
                self.entered.append(name)
                self.now += 100  # swapping is slow, and must not be timed

                def step():
                    self.calls.append(name)
                    self.now += self.cost(name, len(self.calls))

                yield step

            return enter

        return {name: make(name) for name in names}

    def clock(self):
        return self.now


def interleaved(machine, names, rounds):
    samples = timing.interleave(machine.variants(*names), rounds, clock=machine.clock, cpu_clock=lambda: machine.now / 2)
    return {name: [s.seconds for s in values] for name, values in samples.items()}, samples


# ---- statistics on synthetic timings ----


def test_every_round_times_every_variant_once_and_the_swap_is_not_timed():
    machine = Machine(lambda name, call: {"a": 3.0, "b": 4.0, "c": 5.0}[name])
    seconds_by_name, samples = interleaved(machine, "abc", 6)
    assert seconds_by_name == {"a": [3.0] * 6, "b": [4.0] * 6, "c": [5.0] * 6}
    assert samples["b"][0].cpu_seconds == 2.0
    rounds = [machine.entered[1:][i : i + 3] for i in range(0, 18, 3)]  # one warm-up: the first step was seen to be long
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)


def test_no_variant_always_follows_the_same_one():
    rounds = [timing.order("abc", i) for i in range(6)]
    assert all({r[place] for r in rounds} == set("abc") for place in range(3))
    followers = {(x, y) for r in rounds for x, y in zip(r, r[1:], strict=False)}
    assert followers == {(x, y) for x in "abc" for y in "abc" if x != y}


def test_fast_steps_are_warmed_up_and_called_until_a_sample_is_long_enough():
    machine = Machine(lambda name, call: 0.1)
    seconds_by_name, _ = interleaved(machine, "ab", 2)
    assert seconds_by_name["a"] == pytest.approx([0.1, 0.1])
    warm, timed = 2 * (1 + 2), 2 * 2 * 3  # 3 calls of 0.1 s make 0.25 s
    assert len(machine.calls) == warm + timed


def test_a_slow_drift_of_the_machine_hardly_moves_the_paired_ratio():
    machine = Machine(lambda name, call: (3.0 if name == "plain" else 3.06) * 1.05**call)  # 5 % slower at every step
    drifting, _ = interleaved(machine, ["plain", "ours"], 8)
    ratio = timing.paired_ratio(drifting["ours"], drifting["plain"])
    assert ratio.median == pytest.approx(1.02, abs=0.005)
    assert drifting["ours"][-1] > 1.9 * drifting["ours"][0]


def test_the_interval_holds_the_median_and_narrows_with_more_rounds():
    generator = torch.Generator().manual_seed(0)
    noisy = (1 + 0.05 * torch.randn(200, generator=generator)).tolist()
    few, many = timing.paired_ratio(noisy[:5], [1.0] * 5), timing.paired_ratio(noisy, [1.0] * 200)
    for ratio in (few, many):
        assert ratio.least <= ratio.low <= ratio.median <= ratio.high <= ratio.greatest
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert timing.paired_ratio(noisy, [1.0] * 200) == many  # seeded


def test_one_slow_sample_does_not_move_the_median():
    summary = timing.summarize([1.0, 1.0, 1.0, 50.0, 1.0])
    assert (summary.median, summary.q1, summary.q3, summary.greatest) == (1.0, 1.0, 1.0, 50.0)


def test_what_cannot_be_paired_is_refused():
    for numerator, denominator in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ConfigError):
            timing.paired_ratio(numerator, denominator)
    with pytest.raises(ConfigError):
        timing.interleave({}, 0)


# ---- the variants ----


@pytest.fixture(scope="module")
def models():
    unet = build_unet(SMALL, FP32, CPU)
    inputs = v.make_inputs(SMALL, FP32, CPU)
    adapter = build_adapter(SMALL, unet, FP32, CPU)
    ip = v.IPAdapterPlus(SMALL, unet, FP32, CPU)
    image_embeds = v.ip_read(build_vision(SMALL.ip_vision, FP32, CPU), inputs.picture)
    tokens = adapter.encode(inputs.picture, inputs.picture)
    return unet, inputs, adapter, ip, image_embeds, tokens


def test_the_ip_adapter_really_reads_sixteen_image_tokens_in_every_layer(models):
    unet, inputs, _, ip, image_embeds, _ = models
    seen = []
    with v.ip_adapter_variant(unet, inputs, ip, image_embeds)() as step:
        layers = cross_attention_layers(unet)
        assert all(isinstance(layer.processor, IPAdapterAttnProcessor2_0) for layer in layers.values())
        hooks = [
            layer.processor.to_k_ip[0].register_forward_hook(lambda _, x, y: seen.append((tuple(x[0].shape[-2:]), y.shape[-1])))
            for layer in layers.values()
        ]
        out = step()
        for hook in hooks:
            hook.remove()
    assert len(seen) == 16 == len(layers)
    assert {tokens for tokens, _ in seen} == {(16, SMALL.unet["cross_attention_dim"])}
    with v.plain_variant(unet, inputs)() as step:
        assert (out - step()).abs().max() > 1e-4  # and they matter
    assert out.isfinite().all()


def test_ours_reads_both_roles_and_differs_from_plain(models):
    unet, inputs, adapter, _, _, tokens = models
    with v.plain_variant(unet, inputs)() as step:
        plain = step()
    with v.deadiff_variant(unet, inputs, adapter, tokens)() as step:
        assert all(isinstance(layer.processor, JointAttnProcessor) for layer in cross_attention_layers(unet).values())
        ours = step()
    for changed in (Tokens(tokens.style * 2, tokens.content), Tokens(tokens.style, tokens.content * 2)):
        with v.deadiff_variant(unet, inputs, adapter, changed)() as step:
            assert (step() - ours).abs().max() > 1e-6
    assert (ours - plain).abs().max() > 1e-4
    assert ours.isfinite().all()


def test_after_the_variants_the_unet_is_as_it_was(models):
    unet, inputs, adapter, ip, image_embeds, tokens = models

    def state():
        weights = {k: t.clone() for k, t in unet.state_dict().items()}
        config = (dict(unet.config), unet.config.encoder_hid_dim_type, unet.encoder_hid_proj, "encoder_hid_proj" in unet._modules)
        return weights, {k: id(p) for k, p in unet.attn_processors.items()}, config

    before = state()
    entered = (v.deadiff_variant(unet, inputs, adapter, tokens), v.ip_adapter_variant(unet, inputs, ip, image_embeds))
    for enter in (*entered, *entered):
        with enter() as step:
            step()
        with pytest.raises(ZeroDivisionError), enter():  # an error inside restores it too
            raise ZeroDivisionError
    after = state()
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert before[1:] == after[1:]


def test_the_full_size_step_takes_less_than_two_percent_more_arithmetic_and_less_than_the_ip_adapter():
    operations = count_operations(SIZES["sd15"])
    assert 1.6e12 < operations[v.PLAIN] < 1.62e12  # Stable Diffusion 1.5 at 512 px: about 0.8 tera-operations a row
    assert operations[v.PLAIN] < operations[v.DEADIFF] < 1.002 * operations[v.PLAIN]
    assert operations[v.DEADIFF] < operations[v.IP_ADAPTER]


def test_models_are_made_in_their_dtype_and_the_default_comes_back():
    unet = build_unet(SMALL, torch.bfloat16, CPU)
    adapter = build_adapter(SMALL, unet, torch.bfloat16, CPU)
    dtypes = {p.dtype for m in (unet, adapter) for p in m.parameters()}
    assert dtypes == {torch.bfloat16}
    assert torch.get_default_dtype() == FP32


# ---- pictures ----


def test_a_picture_is_its_parts_and_the_steps_of_its_recipe():
    assert Recipe(scheduler="ddim", steps=50, dtype="fp32") == RELEASED
    parts = Parts(text=0.5, reference=1.0, decode=8.5)
    assert parts.picture(RELEASED, 15.0) == 0.5 + 1.0 + 50 * 15.0 + 8.5
    assert parts.picture(Recipe(scheduler="dpm++", steps=20, dtype="bf16"), 7.0) == 150.0


def test_the_proposed_recipe_takes_the_dtype_that_is_faster_on_this_machine():
    assert propose("cpu", {"fp32": 15.0, "bf16": 7.0}) == Recipe(scheduler="dpm++", steps=20, dtype="bf16")
    assert propose("cpu", {"fp32": 15.0, "bf16": 60.0}).dtype == "fp32"  # a processor without bf16 arithmetic


# ---- the whole ----


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 0.0)


def test_the_small_benchmark_reports_sane_figures(quick, monkeypatch):
    monkeypatch.setattr(run, "RELEASED", Recipe(scheduler="ddim", steps=5, dtype="fp32"))  # drawn for real: five steps, not fifty
    monkeypatch.setitem(picture.PROPOSED, "cpu", Recipe(scheduler="dpm++", steps=3, dtype="bf16"))
    ticks = []
    options = Options(small=True, parts=("steps", "picture"), device="cpu", rounds=2, full_picture=True, threads=1)
    threads = torch.get_num_threads()
    report = benchmark(options, ticks.append)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(report)) == report
    assert [(row["size"], row["dtype"]) for row in report["steps"]] == [("small", "fp32"), ("small", "bf16"), ("icons", "fp32")]
    for row in report["steps"]:
        assert set(row["seconds"]) == set(v.VARIANTS)
        assert all(len(spread["samples"]) == 2 and 0 < spread["least"] <= spread["median"] for spread in row["seconds"].values())
        pairs = zip(row["seconds"]["deadiff"]["samples"], row["seconds"]["plain"]["samples"], strict=True)
        assert row["ratios"]["deadiff/plain"]["samples"] == pytest.approx([a / b for a, b in pairs])
        assert row["kept"]["at most 1.02 x plain"] == (row["ratios"]["deadiff/plain"]["median"] <= 1.02)
    released = report["picture"]["released"]
    assert released["computed"] == pytest.approx(5 * released["step"] + sum(released["parts"].values()))
    assert released["drawn"] > 0 and report["picture"]["proposed"]["drawn"] > 0
    steps_drawn = [tick for tick in ticks if "ddim 5 fp32" in tick]
    assert len(steps_drawn) == 5  # every step really ran
    text = heading(report) + "".join(str(table) for table in tables(report))
    assert "deadiff 0" in text


def test_peak_memory_is_the_childs_own():
    ballast = torch.ones(2**28)  # 1 GiB in the parent must not count
    told = children.ask("memory", "small", v.DEADIFF, "fp32", "cpu", "1", "0")
    assert ballast.sum() > 0
    assert 100 < told["libraries"] < told["peak"] < 1000  # MiB


def test_a_child_that_fails_says_why_in_one_line():
    with pytest.raises(DEADiffError, match="ended with 1: KeyError: 'weather'") as caught:
        children.ask("weather")
    assert "\n" not in str(caught.value)


def test_importing_the_package_is_timed_before_torch_is_loaded():
    told = children.ask("start", "", "cpu", "1")
    assert 0 < told["import"] < 0.3 <= 100 * told["process"]
    assert "load" not in told


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0567, "56.7 ms"), (1.2345, "1.23 s"), (119.0, "119 s"), (723.0, "12 min 3 s")]
)
def test_seconds_are_written_for_people(value, text):
    assert seconds(value) == text


# ---- the command ----


def test_the_command_writes_json_and_prints_tables_and_says_what_it_could_not_compute(quick, tmp_path, capsys):
    path = tmp_path / "bench.json"
    asked = ["bench", "--small", "--part", "picture", "--device", "cpu", "--dtype", "bf16", "--rounds", "1", "--json", str(path)]
    assert not cli.run(asked)
    report = json.loads(path.read_text())
    assert report["options"]["rounds"] == 1 and report["picture"]["proposed"]["computed"] > 0
    assert report["picture"]["released"]["computed"] is None
    out = capsys.readouterr().out
    assert "proposed: dpm++ 20, bf16" in out and "fp32 was not measured" in out
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--part", "train2"], "unknown parts train2"),
        (["--dtype", "fp8"], "unknown dtypes fp8"),
        (["--device", "toaster"], "toaster"),
        (["--rounds", "0"], "rounds"),
        (["--threads", "0"], "threads"),
        (["--seed", "-1"], "seed"),
        (["--json", "."], "is a folder"),
        (["--json", "/no/such/folder/x.json"], "cannot be written"),
        (["--part", "steps", "--full-image"], "without the part 'picture'"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(arguments, expected, capsys):
    assert cli.run(["bench", "--small", *arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1 and expected in lines[0]
