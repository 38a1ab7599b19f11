"""Generate, embed, filter and pair on a local Ray cluster of two workers, one of them killed in the middle: the same result."""

import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

from deadiff.data import generate  # noqa: E402
from deadiff.data.pairs import PairConfig, make_pairs  # noqa: E402
from deadiff.data.plan import PlanConfig  # noqa: E402
from deadiff.data.ray_stages import run_on_ray  # noqa: E402
from deadiff.data.shard_jobs import run_here  # noqa: E402
from deadiff.data.vocabulary import StyleWord, SubjectWord  # noqa: E402
from deadiff.errors import DataError  # noqa: E402
from noise_painter import CONFIG, SPEC, draw_all  # noqa: E402

SUBJECTS = [SubjectWord(word=f"thing {number}", group=f"group {number % 4}") for number in range(24)]
STYLES = [StyleWord(words=f"style {number}", kind="medium", frame="{style} of {subject}") for number in range(5)]
PLAN = PlanConfig(styles_per_subject=3, unseen_styles=0.0, unseen_combinations=0.0)


class SlowJob(generate.GenerateJob):
    """A shard drawn by noise; whoever draws it says who it is, and takes a moment."""

    def run(self) -> None:
        from noise_painter import slow_noise

        (self.out / f".worker-{os.getpid()}").touch()
        self.draw(slow_noise)


class Hopeless:
    """A job that the input makes impossible."""

    def done(self) -> bool:
        return False

    def run(self) -> None:
        raise DataError("this shard is broken")


class Elsewhere(Hopeless):
    """A job whose file this machine does not see."""

    def run(self) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> Path:
    """The same work on this machine, one part after the other."""
    folder = tmp_path_factory.mktemp("here")
    generate.prepare(folder, SUBJECTS, STYLES, PLAN, SPEC, CONFIG)
    draw_all(folder)
    make_pairs(folder, config=PairConfig(looks_quantile=1.0), run=run_here())
    return folder


def parquet_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.filterwarnings("ignore")
def test_a_worker_killed_in_the_middle_changes_nothing(tmp_path, by_hand):
    generate.prepare(tmp_path, SUBJECTS, STYLES, PLAN, SPEC, CONFIG)
    _, shards = generate.plan_size(tmp_path)
    jobs = [SlowJob(out=tmp_path, shard=shard, painter=SPEC, config=CONFIG) for shard in range(shards)]
    killed = []

    def kill_one(what: str, done: int, total: int) -> None:
        found = sorted(tmp_path.glob(".worker-*"))
        if done and not killed and found:  # a shard is there, another one is being drawn
            killed.append(int(found[-1].name.rpartition("-")[2]))
            os.kill(killed[0], signal.SIGKILL)

    run_on_ray(2)("drawing shards", jobs, kill_one)
    assert killed and len(list(tmp_path.glob(".worker-*"))) >= 2
    assert generate.counts(tmp_path) == {"drawn": 72, "failed": 0}
    assert parquet_bytes(tmp_path / "pictures") == parquet_bytes(by_hand / "pictures")


@pytest.mark.filterwarnings("ignore")
def test_embedding_and_pairing_on_ray_give_the_same_index(tmp_path, by_hand):
    shutil.copytree(by_hand / "pictures", tmp_path / "pictures")
    make_pairs(tmp_path, config=PairConfig(looks_quantile=1.0), run=run_on_ray(2))
    assert parquet_bytes(tmp_path / "pairs") == parquet_bytes(by_hand / "pairs")
    assert (tmp_path / "pairs" / "pairs.json").read_text() == (by_hand / "pairs" / "pairs.json").read_text()
    assert json.loads((tmp_path / "pairs" / "pairs.json").read_text())["statistics"]["stre"]["pairs"] > 0


@pytest.mark.filterwarnings("ignore")
def test_an_error_of_a_job_arrives_as_it_is_and_a_lost_file_is_noticed():
    with pytest.raises(DataError, match="^this shard is broken$"):
        run_on_ray(1)("breaking", [Hopeless()], lambda *_: None)
    with pytest.raises(DataError, match="1 of 1 parts left no file that this machine sees"):
        run_on_ray(1)("losing", [Elsewhere()], lambda *_: None)
