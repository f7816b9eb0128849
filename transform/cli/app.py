"""The command line `transform`.

The standard output carries the result and nothing else; progress and errors go to the standard
error stream. Exit codes: see `transform.cli.shell`.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from energy_model.budget import Budget
from energy_model.errors import ArgumentError
from energy_model.hardware import load_hardware
from passes.methods.base import MethodSpec
from passes.methods.registry import methods as all_methods
from transform import __version__
from transform.analyze import analyze as cost_model
from transform.choice import automatic
from transform.cli import compare as compare_command
from transform.cli import options
from transform.cli import plot as plot_command
from transform.cli import run as run_command
from transform.cli import search_stats as search_command
from transform.cli import sensitivity as sensitivity_command
from transform.cli import structure as structure_command
from transform.cli import train as train_command
from transform.cli import unpack as unpack_command
from transform.cli.config import configure, defaults, layer_rules, training
from transform.cli.data import load_data
from transform.cli.model import example_inputs, load_model
from transform.cli.progress import counted_steps, progress_mode
from transform.cli.shell import EXIT_CODES, Command, Commands
from transform.compress import compress as compress_model
from transform.progress import Progress
from transform.storage import load

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The result is printed on stdout, progress and errors on stderr. Naming a MODEL runs "
    f"its code.\n\n{EXIT_CODES}",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"transform {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Fit a PyTorch model into an energy, size or latency budget, and prove it."""


@app.command(
    cls=Command,
    epilog="""
Examples:
  transform analyze torchvision.models:alexnet --input 1,3,224,224
  transform analyze mymodels:bert --input 1,128:int64 --json
""",
)
def analyze(
    model: options.Model,
    inputs: options.Inputs,
    hardware: options.Hardware = "eyeriss",
    as_json: options.AsJson = False,
) -> None:
    """Print what every weighted layer of a model costs, per sample.

    MACs, weights, nonzeros, and the modelled energy in multiples of the energy of one MAC: "exact"
    counts padding exactly, "relaxed" is the upper bound that budgets are held against. Nothing is
    written.
    """
    show = Progress(progress_mode())
    profile, examples = load_hardware(hardware), example_inputs(inputs)
    with show.stage(f"building {model}"):
        built = load_model(model)
    with show.stage("analyzing"):
        table = cost_model(built, examples, profile)
    print(_json(table.to_dict()) if as_json else table)


@app.command(
    cls=Command,
    epilog=f"""
Examples:
  transform compress bench.zoo:lenet5 --input 1,1,32,32 \\
      --budget "energy<=25%" --out small
  transform compress mymodels:net --weights net.pt --data mymodels:batches \\
      --budget "energy<=25%, nonzeros<=20k" \\
      --method energy --set min_density=0.01 --out small
  transform compress bench.zoo:lenet5 --weights weights/mnist_lenet5.pt \\
      --data mnist:size=32 --data-root data --budget "energy<=17%" \\
      --epochs 5 --train-set lr=0.001 --train-set distill=0.5 --out small
  transform compress bench.zoo:resnet20 --weights weights/cifar10_resnet20_jpeg.pt \\
      --data cifar10-jpeg:normalize=imagenet --data-root data --one-shot \\
      --budget "weight_bits<=25%" --method quantize --out small

{EXIT_CODES}
""",
)
def compress(
    model: options.Model,
    budget: options.Limits,
    out: options.ResultFolder,
    inputs: options.OptionalInputs = None,
    data: options.DataSpec = None,
    weights: options.Weights = None,
    method: options.MethodName = "auto",
    settings: options.Settings = None,
    train: options.Train = None,
    epochs: options.Epochs = None,
    train_settings: options.TrainSettings = None,
    layers: options.LayerRules = None,
    reconstruct: options.Reconstruct = None,
    keep_shapes: options.KeepShapes = False,
    data_root: options.DataRoot = None,
    resume: options.Resume = True,
    hardware: options.Hardware = "eyeriss",
    seed: options.Seed = 0,
    device: options.Device = None,
) -> None:
    """Compress a model until it fits a budget; write ONNX and a certificate.

    The budget is met exactly, or no result is written and the exit code says why; a latency whose
    noise covers its limit is said to be undecidable. With labelled
    data the model is trained under the budget. Without, or with --one-shot, nothing is trained: the
    weights that stay are as they were.
    """
    show = Progress(progress_mode())
    # What can be refused at once is refused before a large model is built.
    if not inputs and data is None:
        raise ArgumentError(
            "nothing says what the model is called with",
            where=model,
            remedy="Give --input 1,3,224,224 (the shape of an example), or --data.",
        )
    limits, chosen = Budget.parse(budget), configure(method, settings or [])
    how, rules = training(train, epochs, train_settings or []), layer_rules(layers)
    profile, examples = load_hardware(hardware), example_inputs(inputs) if inputs else None
    with show.stage(f"building {model}"):
        built = load_model(model, weights, seed)
    if all(part.training for part in built.modules()):
        # A result is in the mode of its original, and who loads it wants to run it. Where the
        # author has frozen parts, training must know which.
        built.eval()
    loaded = load_data(data, seed, data_root) if data is not None else None
    result = compress_model(
        built,
        limits,
        loaded.train if loaded else None,
        valid=loaded.valid if loaded else None,
        example_inputs=examples,
        method=chosen,
        layers=rules,
        reconstruct=reconstruct,
        keep_shapes=keep_shapes,
        hardware=profile,
        train=how,
        out=out,
        resume=resume,
        device=device,
        seed=seed,
        progress=progress_mode(),
    )
    print(repr(result))
    names = ", ".join(sorted(path.name for path in out.iterdir()))
    print(f"written to {out}: {names}", file=sys.stderr)


@app.command(
    cls=Command,
    epilog="""
Examples:
  transform export small --out small.onnx
  transform export small --model mymodels:net --out small.onnx
""",
)
def export(
    folder: options.SavedFolder,
    out: options.OnnxFile,
    form: options.Form = "auto",
    model: options.OriginalModel = None,
) -> None:
    """Export a saved result as ONNX, and prove that the file agrees.

    The file is run in ONNX Runtime against torch, its weights are counted again, and a certificate
    is written beside it.
    """
    show = Progress(progress_mode())
    with show.stage(f"loading {folder}"):
        result = load(folder, load_model(model) if model is not None else None)
    with show.stage("exporting"):
        written = result.export(out, form)
    print(f"file            {written.path} ({written.form})")
    print(f"size            {written.bytes:,} bytes, {written.bytes_zstd:,} as zstd")
    print(f"largest error   {written.max_abs_error:.3g} of any output, against torch")
    if written.top1_agreement is not None:
        print(f"same top class  {written.top1_agreement:.2%} of the probe's rows")
    for mode, error in written.modes.items():
        print(f"  {mode:<18}{error:.3g}")
    if written.census:
        counted = ", ".join(f"{count} {name}" for name, count in sorted(written.census.items()))
        print(f"runs as         {counted}")
    for note in written.notes:
        print(f"note            {note}")
    print(f"certificate     {written.certificate}")


@app.command(
    cls=Command,
    epilog="""
Examples:
  transform bench original.onnx small/model.onnx
  transform bench original.onnx small/model.onnx --batch 8 --plot latency.png
""",
)
def bench(
    files: options.OnnxFiles,
    threads: options.Threads = 1,
    batch: options.BatchSize = 1,
    rounds: options.Rounds = 7,
    as_json: options.AsJson = False,
    plot: options.Plot = None,
) -> None:
    """Measure ONNX models side by side in ONNX Runtime.

    Each model has its own process; they take turns, so that a drift of the machine meets all alike.
    Prints the time of one inference (ms, median and spread), CPU time, memory and file sizes, and
    says so when the machine is too noisy to conclude. Joules appear only where counters exist.
    """
    from bench.measure import measure
    from bench.plots import plot_latency

    with counted_steps(progress_mode()) as steps:
        report = measure(files, threads=threads, batch=batch, rounds=rounds, progress=steps)
    print(_json(report.to_dict()) if as_json else report)
    if plot is not None:
        print(f"plotted {plot_latency(report, plot)}", file=sys.stderr)


@app.command(cls=Command)
def methods(as_json: options.AsJson = False) -> None:
    """List the methods, their options, the limits that they serve, and where they come from.

    First what `auto` takes for which limit.

    Choose one with `transform compress --method NAME`; set its options with --set KEY=VALUE.
    """
    specs = all_methods().values()
    if as_json:
        print(_json({"methods": [_described(spec) for spec in specs]}))
        return
    taken = automatic()
    print("auto")
    for name in dict.fromkeys(taken.values()):
        print(f"  {name:<10}for {', '.join(key for key in taken if taken[key] == name)}")
    for spec in specs:
        fields = ", ".join(f"{key}={value!r}" for key, value in defaults(spec.config).items())
        print(spec.name)
        print(f"  config  {spec.config.__name__}({fields})")
        print(f"  limits  {', '.join(sorted(spec.serves))}")
        print(f"  source  {spec.source}")


def _described(spec: MethodSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "config": spec.config.__name__,
        "options": defaults(spec.config),
        "limits": sorted(spec.serves),
        "source": spec.source,
    }


app.command(cls=Command, epilog=train_command.EPILOG)(train_command.train)
app.command(cls=Command, epilog=run_command.EPILOG)(run_command.run)
app.command(cls=Command, epilog=compare_command.EPILOG)(compare_command.compare)
app.command(cls=Command, epilog=plot_command.EPILOG)(plot_command.plot)
app.command("search-stats", cls=Command, epilog=search_command.EPILOG)(search_command.search_stats)
app.command(cls=Command, epilog=sensitivity_command.EPILOG)(sensitivity_command.sensitivity)
app.command(cls=Command, epilog=structure_command.EPILOG)(structure_command.structure)
app.command(cls=Command, epilog=unpack_command.EPILOG)(unpack_command.unpack)


@app.command(cls=Command)
def demo(out: options.DemoFolder = None) -> None:
    """Train a small CNN, compress it to 25 % of its energy, export and measure it.

    Uses the handwritten digits that come with scikit-learn; about half a minute on 2 cores. Writes
    both ONNX files, the certificate, the saved result, plots and the printed report.
    """
    from transform.demo import run_demo

    print(run_demo(out, progress_mode()))


def _json(values: Any) -> str:
    return json.dumps(values, indent=1, allow_nan=False)


def main() -> None:
    """Run the command line; `transform --help` documents the exit codes."""
    app(prog_name="transform")
