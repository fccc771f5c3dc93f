"""A parallel run is the run that one process would make, and exchanges what docs/scale.md says; the lines of that page work."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import parallel_runs
import pytest
import torch
import yaml
from commands import tensors

import ebmcore
from ebmcore.cli.options import parse
from ebmcore.testing.processes import process_group
from ebmcore.training.order import StepBatches

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/scale.md").read_text()
LOSSES = ("cd", "pcd", "fpcd", "ptcd")

# Mean and standard deviation of `parallel_runs.curve` over 200 seeds (1000 to 1199), as one process.
GOLDEN = torch.tensor([-11.0608, -10.6020, -10.3913, -10.3370, -10.2958], dtype=torch.float64)
SPREAD = torch.tensor([0.0416, 0.0408, 0.0496, 0.0813, 0.1333], dtype=torch.float64)
N_GOLDEN, SEEDS = 200, range(8)
# Of two curves with five values each, one is further away than 4 standard errors with a probability of at most 0.001, as a
# Student t of 199 degrees of freedom is with a probability of 0.00009.
BOUND = 4.0


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """What each loss exchanges in a run of two processes, as both count it."""
    return count(tmp_path_factory, "ddp")


@pytest.fixture(scope="module")
def counted_shards(tmp_path_factory):
    return count(tmp_path_factory, "fsdp")


def count(tmp_path_factory, strategy):
    first, second = process_group(parallel_runs.count, 2, LOSSES, str(tmp_path_factory.mktemp(strategy)), strategy)
    for name in LOSSES:
        assert first[name]["step"] == second[name]["step"]
    return first


def in_words(found):
    """The collectives ``[(name, bytes), ...]`` as the page writes them."""
    words = {
        "allgather_base": "all-gather", "all_gather_into_tensor": "all-gather", "allreduce": "all-reduce",
        "broadcast": "broadcast", "reduce_scatter_base": "reduce-scatter",
    }  # fmt: skip
    counts = Counter(words[name] for name, _ in found)
    return ", ".join(f"{n} {name}{'s' * (n > 1)}" for name, n in sorted(counts.items()))


@pytest.mark.parametrize("loss", LOSSES)
def test_step_exchanges_what_the_page_says(counted, loss):
    """A step sums the gradients once, and fpcd its fast weights twice more; the table has the counted figures."""
    found = counted[loss]
    _, rebuilding, *steps = found["step"]
    assert all(step == steps[0] for step in steps)
    assert [one for one in rebuilding if one not in steps[0]] == [("broadcast", 28), ("broadcast", 4)]  # DDP's, once
    n_bytes = sum(size for _, size in steps[0])
    times = 3 if loss == "fpcd" else 1
    assert n_bytes == times * 4 * found["parameters"]
    assert len(steps[0]) == (1 if loss != "fpcd" else 2 + found["tensors"])
    assert f"| `{loss}` | `ddp` | {in_words(steps[0])} | {n_bytes:,} | " in PAGE
    assert f"{found['parameters']:,} parameters in {found['tensors']} tensors" in PAGE


@pytest.mark.parametrize("loss", LOSSES)
def test_step_of_shards_exchanges_what_the_page_says(counted_shards, loss):
    """A step gathers the parameters and scatters the gradient once, whatever the number of transitions."""
    _, _, *steps = counted_shards[loss]["step"]
    assert all(step == steps[0] for step in steps)
    names = [name for name, _ in steps[0]]
    assert (names.count("allgather_base"), names.count("reduce_scatter_base")) == (1, 1)
    n_bytes = sum(size for _, size in steps[0])
    assert f"| `{loss}` | `fsdp` | {in_words(steps[0])} | {n_bytes:,} | " in PAGE


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_exchanged_between_steps_unless_due(counted, loss):
    """Steps that do not log or save exchange nothing more; a log averages 8 bytes for each metric, and 4 say whether to end."""
    found = counted[loss]
    assert len(found["nothing"]) == 4
    assert [after for after, _ in found["nothing"] if after] == []
    for after, n_metrics in found["log"][:2]:
        assert after == [("barrier", 1), ("allreduce", 8 * n_metrics), ("allreduce", 4)]
    for after, _ in found["save"]:
        assert f"{len(after)} small collectives" in PAGE


def test_batches_of_the_ranks_are_one_batch():
    """At each step the batches of all ranks are the batch that one process of their size would take."""
    ranks = [iter(StepBatches(48, 4, seed=3, rank=r, world=3)) for r in range(3)]
    alone = iter(StepBatches(48, 12, seed=3))
    for _ in range(10):
        assert sorted(row for rank in ranks for row in next(rank)) == sorted(next(alone))


def test_gradient_of_two_processes_is_that_of_one():
    """Given the same negatives, the mean of two processes' gradients is the gradient of the whole batch, to 1e-6."""
    whole = parallel_runs.gradients_of_given_negatives(None, LOSSES)
    for halves in process_group(parallel_runs.gradients_of_given_negatives, 2, LOSSES):
        for name in LOSSES:
            assert whole[name].abs().max() > 0.01
            torch.testing.assert_close(halves[name], whole[name], atol=1e-6, rtol=0)


def test_noiseless_run_of_two_processes_is_that_of_one():
    """Without noise, two processes end with the parameters of one after 24 clipped steps, to rounding."""
    alone = parallel_runs.noiseless(None)
    first, second = process_group(parallel_runs.noiseless, 2)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, atol=1e-12, rtol=0)


def distances(curves):
    """Differences from the golden curve, in standard errors."""
    curves = torch.tensor(curves, dtype=torch.float64)
    return (curves.mean(0) - GOLDEN).abs() / (SPREAD * (1 / len(curves) + 1 / N_GOLDEN) ** 0.5)


def test_curves_agree_with_the_golden_one():
    """The exact likelihood of an RBM rises as recorded, in one process and in two with half the batch each."""
    alone = [parallel_runs.curve(seed) for seed in SEEDS]
    parallel = process_group(parallel_runs.curves, 2, SEEDS)[0]
    assert distances(alone).max() < BOUND
    assert distances(parallel).max() < BOUND


def test_a_sum_of_gradients_is_not_the_golden_curve():
    """Twice the gradient, which ranks that add instead of averaging would follow, is caught."""
    assert distances([parallel_runs.curve(seed, lr=2 * parallel_runs.LR) for seed in SEEDS[:2]]).max() > 2 * BOUND


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A directory with the file that the page's lines read."""
    configuration = next(block for block in blocks("yaml") if "energy:" in block)
    (tmp_path / "run.yaml").write_text(configuration)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lines_of_the_page_train_the_same(configured):
    """Processes that ebmcore starts and those of torchrun end with the same parameters and chains, bit for bit."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": os.pathsep.join(places)}
    lines = "".join(blocks("bash")).splitlines()
    for line in lines:
        done = subprocess.run(line, shell=True, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    first, second = (tensors(Path(re.search(r"--out (\S+)", line)[1])) for line in lines)
    assert len(first["loss.chains.id"].unique()) == 256
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def launched_lines():
    """The lines for machines that are not here."""
    jobs = [job for block in blocks("yaml") for job in yaml.safe_load_all(block) if job.get("kind") == "Job"]
    containers = [c for job in jobs for c in job["spec"]["template"]["spec"]["containers"]]
    shell = [line for block in blocks("console") + blocks("sh") for line in block.replace("\\\n", "").splitlines()]
    lines = [line for line in shell if line.startswith(("torchrun", "srun"))]
    return lines + [" ".join(container["args"]) for container in containers]


@pytest.mark.parametrize("line", launched_lines())
def test_lines_for_other_machines_are_understood(configured, line):
    """torchrun and ebmcore take every option of the lines that cannot run here."""
    launcher, *arguments = shlex.split(line, comments=True)
    start = arguments.index("train")
    options = arguments[start + 1 :]
    if launcher == "torchrun":
        found = importlib.import_module("torch.distributed.run").get_args_parser().parse_args(arguments)
        assert (found.module, found.training_script) == (True, "ebmcore")
        assert found.nnodes == "2"
    else:
        assert arguments[start - 1] == "ebmcore"
    if "--resume" in options:
        at = options.index("--resume")
        assert options[at : at + 2] == ["--resume", "auto"]
        del options[at : at + 2]
    assert parse("ebmcore train", options)["loss"]["name"] == "pcd"


def test_table_of_predictions_is_that_of_the_model(monkeypatch):
    """The page has the figures that the model of a step's cost gives with the constants of its code."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    scale = importlib.import_module("scale")
    assert "\n".join(scale.predictions()) in PAGE
    monkeypatch.delitem(sys.modules, "scale")


def test_streams_are_the_ones_on_the_page():
    """A stream's seed is the documented function."""
    digest = hashlib.blake2b(b"7/sampler/12/3", digest_size=8).digest()
    assert ebmcore.random.stream_seed(7, "sampler", step=12, rank=3) == int.from_bytes(digest, "big") // 2
    source = "".join(path.read_text() for path in (ROOT / "ebmcore").rglob("*.py"))
    streams = set(re.findall(r'stream_(?:seed|generator)\((?:config\.get\("seed", 0\)|[^",]*), f?"(\w+)', source))
    table = PAGE.partition("**Streams.**")[2].partition("**Chains.**")[0]
    assert streams == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
