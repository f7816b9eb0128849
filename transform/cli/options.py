"""Arguments and options of the command line, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from transform.cli.data import KINDS
from transform.cli.model import DTYPES

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:callable; called without arguments, it returns a torch.nn.Module. "
        "torchvision.models:alexnet, bench.zoo:lenet5, or mymodels:net for ./mymodels.py.",
    ),
]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        metavar="SHAPE[:TYPE]",
        help="Shape of an example input, the batch first: 1,3,224,224; any batch does. Repeat it "
        f"for a model of several inputs. Types: {', '.join(DTYPES)}; those that are no floats are "
        "zeros.",
    ),
]
OptionalInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE[:TYPE]",
        help="Shape of an example input, as for `transform analyze`. By default the first batch "
        "of --data.",
    ),
]
Hardware = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE", help="Profile of the energy model: a name or the path of a YAML file."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Limits = Annotated[
    str,
    typer.Option(
        metavar="LIMITS",
        help='Upper limits, a comma means and: "energy<=25%", "energy<=25%, nonzeros<=20k", '
        '"sparsity>=90%". Percentages are relative to the original dense model. kB is 1000 bytes, '
        "KiB 1024; k, M, G are powers of 1000; times are in us, ms or s.",
    ),
]
ResultFolder = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        help="New folder for the result: model.onnx, model.certificate.json, report.txt, and what "
        "`transform export` and transform.load read (compressed.json, weights.safetensors). It "
        "must not exist, or be empty.",
    ),
]
DataSpec = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help=f"Data: {KINDS} that returns (train, valid, test). The accuracy before and after is "
        "measured on valid; without data it is not measured.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Trained weights: .safetensors, or a .pt file of a state dict (loaded with "
        "weights_only). Without it the weights are what MODEL returns.",
    ),
]
MethodName = Annotated[
    str, typer.Option(metavar="NAME", help="A name out of `transform methods`, or auto.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Option of the method; may be repeated. See `transform methods`.",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, help="Seed of random weights, of the data, and of the method.")
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="Where to work: cpu, cuda, cuda:1, mps.")
]
SavedFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder that `transform compress` wrote.")
]
OnnxFile = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="The .onnx file; an existing one is replaced. Its certificate goes beside it as "
        "NAME.certificate.json.",
    ),
]
Form = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="How weights are stored: auto or dense (ordinary floats; zeros stay in the file).",
    ),
]
OriginalModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="package.module:callable of the original model; needed only if it has layers that "
        "are not of torch or torchvision.",
    ),
]
OnnxFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="A.onnx [B.onnx ...]", help="The models; all are compared with the first."
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads inside an operator.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples in one inference.")]
Rounds = Annotated[
    int, typer.Option(min=1, help="Turns of each model; a conclusion needs at least 6.")
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also plot the latencies: .png, .svg or .pdf.")
]
DemoFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="New folder for the files; by default ./demo-output, or the next free of "
        "./demo-output-2, -3, ...",
    ),
]
