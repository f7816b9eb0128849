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
        help='Upper limits, a comma means and: "energy<=25%, nonzeros<=20k", "macs<=50%", '
        '"latency<=3 ms", "sparsity>=90%". Percentages are relative to the original dense '
        "model. kB is 1000 bytes, KiB 1024; k, M, G are powers of 1000; times are in us, ms or s.",
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
        help=f"Data: {KINDS} that returns (train, valid, test). With labels the model is "
        "trained on train, unless --one-shot; the accuracy before and after is measured on valid. "
        "Without data it is not measured.",
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
    str,
    typer.Option(
        metavar="NAME",
        help="A name out of `transform methods`, or auto; several with commas between work one "
        "after another.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Option of the method; may be repeated. See `transform methods`. With several methods "
        "write METHOD.KEY=VALUE.",
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
KeepShapes = Annotated[
    bool,
    typer.Option(
        "--keep-shapes", help="Leave channels in place that are dead when the method is finished."
    ),
]
Reconstruct = Annotated[
    bool | None,
    typer.Option(
        "--reconstruct/--no-reconstruct",
        help="Fit every layer's outputs to those of the original on some batches of --data, in "
        "closed form, without labels. By default only where the data has none.",
    ),
]
Form = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="How weights are stored: auto (of what keeps the budget the form that was measured to "
        "be fastest), dense (ordinary floats; zeros stay in the file), qdq (integers, for "
        "quantized models), sparse (gaps and values; smaller, not faster), sparse_initializers, "
        "column_groups (only the columns that each group of rows keeps), or packed (an archive, "
        "the smallest; `transform unpack` gives the ONNX file back).",
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
TrainingData = Annotated[
    str,
    typer.Option(metavar="SPEC", help=f"Data: {KINDS} that returns (train, valid, test)."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of data sets and weights; by default what the environment variable "
        "TRANSFORM_DATA names, or shared/data beside the repository.",
    ),
]
Train = Annotated[
    bool | None,
    typer.Option(
        "--train/--one-shot",
        help="Whether to train under the budget. By default, if the data have labels, or --epochs "
        "or --train-set is given.",
        show_default=False,
    ),
]
Epochs = Annotated[int | None, typer.Option(min=0, help="Passes over the data; by default 10.")]
TrainSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--train-set",
        metavar="KEY=VALUE",
        help="Field of the training; may be repeated: lr=0.01, optimizer=adam, schedule=cosine, "
        'distill=0.5, \'schedule={"0": 0.1, "80": 0.01}\'. An unknown key lists them all.',
    ),
]
LayerRules = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="JSON",
        help='Rules for single layers: \'{"features.0": false, "classifier.*": {"max_sparsity": '
        "0.9}}'. Names may hold wildcards; false leaves a layer alone.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume/--restart", help="Go on from the checkpoints of a killed run in DIR."),
]
TrainedFolder = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        help="New folder for weights.safetensors and train.json. It must not exist, be empty, or "
        "hold only the checkpoints of a killed run.",
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, or one that comes with the compiler, such as digits-energy; an unknown "
        "name lists them all.",
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the cells' folders, which may hold finished ones; by default runs/RECIPE.",
    ),
]
Matrix = Annotated[bool, typer.Option("--matrix", help="Run every cell of the matrix.")]
Select = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Run only cell N of the matrix.")
]
ListCells = Annotated[
    bool, typer.Option("--list", help="Print the cells and what they cost; run nothing.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="One step on random numbers, with untrained weights; saves no model."
    ),
]
Results = Annotated[
    list[str],
    typer.Argument(
        metavar="FOLDER_OR_RECIPE...",
        help="Folders that `transform run` wrote, searched for result.json; a recipe is run first, "
        "its whole matrix.",
    ),
]
ComparisonFolder = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        help="Folder for comparison.csv, .json, .md, .tex and .png; existing ones are replaced. "
        "Recipes are run in DIR/runs.",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL",
        help="The method that every other is tested against; by default the first whose label "
        'begins with "magnitude".',
    ),
]
