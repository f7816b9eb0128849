"""The command line as a user meets it: results on stdout, errors and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

import transform
from bench.check_certificate import check
from energy_model.measures import MEASURES
from transform.cli.app import app
from transform.cli.shell import EXIT_CODES

ROOT = Path(transform.__file__).resolve().parent.parent
LENET = ["bench.zoo:lenet5", "--input", "1,1,32,32"]
COMMANDS = (
    "analyze",
    "compress",
    "export",
    "bench",
    "methods",
    "train",
    "run",
    "compare",
    "plot",
    "demo",
)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def failing(*arguments):
    """Run a command that fails with a typed error; its exit code and message."""
    result = run(*arguments)
    lines = result.stderr.splitlines()
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert lines[-1].startswith("error: ")
    return result.exit_code, lines[-1]


def squeezed(text):
    return " ".join(text.replace("│", " ").split())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A LeNet-5 compressed to 25 %, and what was printed."""
    folder = tmp_path_factory.mktemp("cli") / "small"
    result = run("compress", *LENET, "--budget", "energy<=25%", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result


def test_version_and_help():
    assert run("--version").stdout == f"transform {transform.__version__}\n"
    printed = run("--help").stdout
    assert squeezed(EXIT_CODES) in squeezed(printed)
    for name in COMMANDS:
        assert name in printed


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_explains_its_options(name):
    printed = run(name, "--help")
    assert printed.exit_code == 0
    assert len(squeezed(printed.stdout)) > 300
    if name not in ("methods", "demo"):
        assert f"transform {name} " in printed.stdout.partition("Examples:")[2]


def test_without_arguments_the_help_is_shown():
    assert "Usage: transform" in run().output.replace("root", "transform")


@pytest.mark.slow
def test_analyze_prints_the_table_of_python(saved):
    printed = run("analyze", *LENET)
    table = transform.analyze(load_lenet(), torch.zeros(1, 1, 32, 32))
    assert printed.stdout == f"{table}\n"
    assert json.loads(run("analyze", *LENET, "--json").stdout) == table.to_dict()


def load_lenet():
    from transform.cli.model import load_model

    return load_model("bench.zoo:lenet5")


def test_analyze_takes_a_profile(tmp_path):
    profile = transform.Hardware.from_dict({"name": "wide", "array_columns": 28})
    path = tmp_path / "wide.yaml"
    path.write_text(json.dumps(profile.to_dict()))
    found = json.loads(run("analyze", *LENET, "--json", "--hardware", path).stdout)
    assert found["hardware"]["array_columns"] == 28


def test_compress_prints_the_result_and_writes_the_folder(saved):
    folder, result = saved
    assert {path.name for path in folder.iterdir()} == {
        "compressed.json",
        "model.certificate.json",
        "model.onnx",
        "report.txt",
        "weights.safetensors",
    }
    assert result.stdout == (folder / "report.txt").read_text()
    assert f"written to {folder}: compressed.json" in result.stderr
    assert check(folder / "model.certificate.json") == []
    assert transform.load(folder).certificate.holds


def test_progress_is_plain_lines_in_a_log(saved):
    _, result = saved
    assert result.stderr.splitlines()[:2] == ["building bench.zoo:lenet5", "tracing the model"]
    assert "\x1b" not in result.stderr


DATA = """
from bench.zoo import digits_batches
def unlabelled():
    train, valid, test = digits_batches()
    return [x for x, _ in train], valid, test
"""


def test_compress_with_data_a_method_and_its_options(tmp_path, monkeypatch):
    (tmp_path / "cli_unlabelled.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    budget = ["--budget", "nonzeros<=10%", "--method", "magnitude", "--set", "scope=layer"]
    where = ["--data", "cli_unlabelled:unlabelled", "--out", tmp_path / "out"]
    result = run("compress", "bench.zoo:digits_cnn", *budget, *where)
    assert result.exit_code == 0, result.output
    assert "not measured" not in result.stdout
    loaded = transform.load(tmp_path / "out")
    assert loaded.config == transform.Magnitude(scope="layer").to_dict()
    assert loaded.costs.after.total.nonzeros <= 4708


@pytest.mark.slow
def test_weights_are_used(tmp_path, saved):
    model = load_lenet()
    with torch.no_grad():
        model.classifier[4].weight.zero_()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    where = ["--weights", tmp_path / "w.pt", "--out", tmp_path / "out"]
    run("compress", *LENET, "--budget", "energy<=50%", *where)
    after = transform.load(tmp_path / "out").costs.after
    assert after["classifier.4"].nonzeros == 0


@pytest.mark.slow
def test_export_writes_a_file_with_its_certificate(saved, tmp_path):
    folder, _ = saved
    result = run("export", folder, "--out", tmp_path / "a.onnx", "--form", "dense")
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(tmp_path / "a.onnx")
    assert check(tmp_path / "a.certificate.json") == []
    assert f"{(tmp_path / 'a.onnx').stat().st_size:,} bytes" in result.stdout
    assert str(tmp_path / "a.certificate.json") in result.stdout


@pytest.mark.slow
def test_bench_compares_and_plots(saved, tmp_path):
    file = saved[0] / "model.onnx"
    plot = tmp_path / "latency.svg"
    result = run("bench", file, file, "--rounds", 1, "--batch", 2, "--json", "--plot", plot)
    assert result.exit_code == 0, result.output
    measurements = json.loads(result.stdout)["measurements"]
    assert [item["batch"] for item in measurements] == [2, 2]
    assert "<svg" in plot.read_text()
    assert "round 1 of 1" in result.stderr


def test_bench_prints_a_table_and_keeps_it_when_the_plot_fails(saved):
    result = run("bench", saved[0] / "model.onnx", "--rounds", 1, "--plot", "latency.doc")
    assert result.exit_code == 1
    assert "one inference, median, ms" in result.stdout
    assert "Use .png, .svg or .pdf" in result.stderr


def test_methods_lists_what_python_lists():
    printed = run("methods").stdout
    assert printed.startswith(
        "auto\n  joint     for archive\n  energy    for energy, sparse_macs\n"
    )
    found = json.loads(run("methods", "--json").stdout)["methods"]
    assert [item["name"] for item in found] == list(transform.methods())
    for item, spec in zip(found, transform.methods().values(), strict=True):
        assert (item["config"], item["source"]) == (spec.config.__name__, spec.source)
        assert set(item["limits"]) == spec.serves
        assert f"{spec.name}\n  config  {spec.config.__name__}(" in printed
    assert "min_density=None" in printed


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "bench.zoo:lenet", "--input", "1"], "Did you mean lenet5"),
        (["analyze", "no_such.module:f", "--input", "1"], "no module 'no_such'"),
        (["analyze", *LENET, "--hardware", "eyris"], "Known profiles: eyeriss"),
        (["analyze", *LENET, "--hardware", "none.yaml"], "No such file"),
        (["analyze", *LENET[:2], "1,3,x"], "is not a shape"),
        (["analyze", *LENET[:2], "1,3,32,32"], "fails on the example inputs"),
        (["export", "no-such-folder", "--out", "a.onnx"], "no-such-folder"),
        (["bench", "missing.onnx"], "No such file"),
    ],
)
def test_requests_that_cannot_be_carried_out_exit_with_1(arguments, message):
    code, line = failing(*arguments)
    assert code == 1
    assert message in line


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--budget", "energy=<25%"], 1, "cannot read"),
        (["--budget", "size<=25 KB"], 1, 'Write "kB"'),
        (["--budget", "enrgy<=25%"], 1, "energy"),
        (["--budget", "energy<=1%"], 3, "the least that can be reached"),
        (["--budget", "energy<=50%", "--method", "magnitud"], 1, "Did you mean 'magnitude'"),
        (["--budget", "energy<=50%", "--set", "fill=true"], 1, "Choose one with --method"),
        (["--budget", "energy<=50%", "--data", "digitz"], 1, "Did you mean digits?"),
        (["--budget", "energy<=50%", "--weights", "none.pt"], 1, "none.pt"),
        (["--budget", "energy<=50%", "--device", "nowhere"], 1, "device"),
    ],
)
def test_bad_requests_to_compress_write_nothing(tmp_path, options, code, message):
    out = tmp_path / "out"
    found, line = failing("compress", *LENET, "--out", out, *options)
    assert (found, message in line) == (code, True), line
    assert not out.exists()


def test_a_limit_that_no_method_serves_exits_with_4(tmp_path):
    served = {key for spec in transform.methods().values() for key in spec.serves}
    unserved = [key for key in MEASURES if key not in served]
    if not unserved:
        pytest.skip("every limit is served")
    code, line = failing(
        "compress", *LENET, "--budget", f"{unserved[0]}<=50%", "--out", tmp_path / "out"
    )
    assert code == 4
    assert unserved[0] in line


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    code, line = failing("compress", *LENET, "--budget", "energy<=50%", "--out", tmp_path)
    assert code == 1
    assert "nothing is overwritten" in line
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_compress_without_input_or_data_says_what_to_give(tmp_path):
    budget = ["--budget", "energy<=50%", "--out", tmp_path / "out"]
    code, line = failing("compress", "bench.zoo:lenet5", *budget)
    assert code == 1
    assert "Give --input" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["analyze", "bench.zoo:lenet5"],
        ["compress", *LENET, "--budget", "energy<=25%"],
        ["compress", *LENET, "--out", "x"],
        ["bench"],
        ["bench", "a.onnx", "--rounds", "0"],
        ["export", "a", "--seed", "1"],
    ],
)
def test_bad_usage_exits_with_2(arguments):
    assert run(*arguments).exit_code == 2


def start(folder, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "transform", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def take_interrupts():
    """What a shell starts in the background ignores interrupts, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_a_user_model_of_the_current_directory_in_a_process(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nprint('loud')\ndef net(): return nn.Linear(3, 4)\n"
    )
    process = start(tmp_path, "analyze", "mine:net", "--input", "1,3", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["total"]["macs"] == 12
    assert "loud" in err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_exits_with_130_and_no_traceback(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "def net():\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
    )
    process = start(tmp_path, "analyze", "slow:net", "--input", "1,3", preexec_fn=take_interrupts)
    seen = [line for line in iter(process.stderr.readline, "ready\n") if line]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert seen == ["building slow:net\n"]
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
