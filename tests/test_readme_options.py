"""The README's table of the authors' options names things that exist."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import typer

import transform
from bench import zoo
from bench.zoo.data.spec import NAMES, parse_spec
from passes.dynamic.pruning_steps import PruningSteps
from passes.dynamic.walk import Walk
from passes.methods.energy_projection import EnergyProjection
from passes.methods.joint import Joint
from passes.methods.tied import TiedWeights
from transform.cli.app import app

README = Path(__file__).parents[1] / "README.md"
CONFIGS = {
    "TrainConfig": transform.TrainConfig,
    "EnergyProjection": EnergyProjection,
    "Joint": Joint,
    "Distill": transform.Distill,
    "SparseTraining": transform.SparseTraining,
    "PruningSteps": PruningSteps,
    "Walk": Walk,
    "TiedWeights": TiedWeights,
}
# What the README of the energy paper's code lets its users set.
REQUIRED = [
    "--budget",
    "--exp_bdecay",
    "--proj_int",
    "--distill",
    "--nodp",
    "--input_mask",
    "--xlr",
    "--xl2wd",
    "--skip1",
    "--randinit",
    "--pretrain",
    "--eval",
    "--test_interval",
    "--save_interval",
    "--log_interval",
    "--seed",
    "--num_workers",
]
# What the two programs of the joint paper let their users set.
REQUIRED_JOINT = [
    "--nnz_budget",
    "--bit_budget",
    "--prune",
    "--quant",
    "--projint",
    "--dualint",
    "--rho",
    "--prox",
    "--fixedbits",
    "--bits_epoch",
    "--bwlb",
    "--weightbits",
    "--kdtemp",
    "--gclip",
    "--lr_sched",
    "--warmupT",
    "--wd",
    "--dropout",
]
# What the program of dynamic sparse reparameterization lets its users set.
REQUIRED_DYNAMIC = [
    "--rewire",
    "--initial-sparsity-conv",
    "--initial-sparsity-fc",
    "--threshold-prune",
    "--rewire-scaling",
    "--n-prune-params",
    "--rewire-fraction",
    "--stop-rewire-epoch",
    "--big-new-weights",
    "--sub-kernel-granularity",
    "--conv-group-lasso",
    "--L1-loss-coeff",
    "--copy-mask-from",
    "--resume",
    "--sparse-resnet-downsample",
    "--DeepR_eta",
    "--rescale-tied-gradient",
    "--prune-iterations",
    "--prune-epoch-frequency",
    "--start-pruning-after-epoch",
    "--post-prune-epochs",
    "--cubic-prune-schedule",
    "--no-batch-norm",
    "--validate-set",
]


def rows():
    section = README.read_text().split("## From the authors' options to ours")[1].split("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    named = [(theirs.strip(), ours.strip()) for theirs, ours, *_ in cells]
    return [row for row in named if row[0] != "the authors' option"]


def exists(name):
    """Whether a counterpart is there: a field, an argument, an option or a key of a SPEC."""
    if match := re.fullmatch(r"(\w+)\.(\w+)", name):
        return match[2] in {field.name for field in dataclasses.fields(CONFIGS[match[1]])}
    if match := re.fullmatch(r"compress\((\w+)\)", name):
        return match[1] in inspect.signature(transform.compress).parameters
    if match := re.fullmatch(r"joint_budget\((\w+)\)", name):
        return match[1] in inspect.signature(transform.joint_budget).parameters
    if match := re.fullmatch(r"transform (\w+) (--[\w-]+)", name):
        command = typer.main.get_command(app).commands[match[1]]
        return match[2] in {option for parameter in command.params for option in parameter.opts}
    if match := re.fullmatch(r"(\w+):(\w+)=(\d+)", name):
        return match[2] in NAMES[match[1]]
    if match := re.fullmatch(r"bench\.zoo:(\w+)", name):
        return callable(getattr(zoo, match[1], None))
    return False


@pytest.mark.parametrize(("theirs", "ours"), rows())
def test_the_counterpart_exists(theirs, ours):
    assert exists(ours.strip("`"))


def test_every_option_of_the_authors_is_in_the_table():
    named = set(re.findall(r"--[\w-]+", " ".join(theirs for theirs, _ in rows())))
    assert {*REQUIRED, *REQUIRED_JOINT, *REQUIRED_DYNAMIC} <= named


@pytest.mark.parametrize(
    "name", ["TrainConfig.nope", "compress(nope)", "transform compress --nope", "mnist:nope=1", "x"]
)
def test_a_name_that_is_not_there_is_noticed(name):
    assert not exists(name)


def test_the_keys_of_data_are_understood():
    assert parse_spec("mnist:batch=64").batch == 64
