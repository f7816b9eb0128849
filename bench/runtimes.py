"""The runtimes that files are measured on, behind one small face: ONNX Runtime and OpenVINO.

The measuring process imports this module: it holds nothing but numpy until a runtime is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DEFAULT = "onnxruntime-cpu"
OPENVINO = "openvino-cpu"
INSTALL = MappingProxyType(
    {
        DEFAULT: ("onnxruntime", "pip install onnxruntime"),
        OPENVINO: ("openvino", "pip install 'transform-compiler[openvino]'"),
    }
)
"""The package of each runtime, and how to get it."""

_PROVIDER = "CPUExecutionProvider"
_QUIET = 3  # ONNX Runtime's log level for errors only
_OPENVINO_TYPES = MappingProxyType(
    {
        "f16": "tensor(float16)",
        "f32": "tensor(float)",
        "f64": "tensor(double)",
        "boolean": "tensor(bool)",
        **{
            f"{k}{b}": f"tensor({n}int{b})" for k, n in (("i", ""), ("u", "u")) for b in (8, 16, 32)
        },
        "i64": "tensor(int64)",
        "u64": "tensor(uint64)",
    }
)


class Input(NamedTuple):
    """An input of an opened model.

    Attributes:
        name: Its name.
        type: As ONNX Runtime writes it: `"tensor(float)"`.
        shape: Its sizes; anything but an integer is dynamic.
    """

    name: str
    type: str
    shape: Sequence[Any]


class Runner(Protocol):
    """An opened model."""

    name: str
    inputs: Sequence[Input]

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """All outputs for inputs by name."""


class Profile(NamedTuple):
    """What ONNX Runtime is to write down beside its results.

    Attributes:
        prefix: Of the path of the times of every kernel; a file `PREFIX_DATE.json` appears.
        optimized: Path of the graph that really runs.
    """

    prefix: str
    optimized: str


class OnnxRuntime:
    """A session on the CPU with spinning off.

    Args:
        path: The ONNX file.
        threads: Threads inside an operator; operators run one after another.
        options: Session configuration, e.g. `{"session.disable_quant_qdq": "1"}`.
        profile: Where to write the times of kernels; `finish` ends it.
    """

    def __init__(
        self,
        path: str,
        threads: int,
        options: Mapping[str, str] = MappingProxyType({}),
        profile: Profile | None = None,
    ) -> None:
        onnxruntime = import_package(DEFAULT)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        # Threads that spin while idle would slow the models measured beside this one.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        for key, value in options.items():
            settings.add_session_config_entry(key, value)
        if profile is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile.prefix
            settings.optimized_model_filepath = profile.optimized
            settings.log_severity_level = _QUIET  # it warns that such a graph fits this machine
        self.session = onnxruntime.InferenceSession(path, settings, providers=[_PROVIDER])
        self.name = f"onnxruntime {onnxruntime.__version__} {self.session.get_providers()[0]}"
        self.inputs: Sequence[Input] = [
            Input(i.name, i.type, i.shape) for i in self.session.get_inputs()
        ]

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """All outputs for inputs by name."""
        outputs: list[Array] = self.session.run(None, dict(feed))
        return outputs

    def finish(self) -> str:
        """End the profile and return the path of its file."""
        return str(self.session.end_profiling())


class OpenVino:
    """A compiled model on the CPU, one stream, float layers in float32; shapes stay dynamic.

    Args:
        path: The ONNX file.
        threads: Threads inside an operator.
        options: Properties of the compiled model; they win over those above.
    """

    def __init__(
        self, path: str, threads: int, options: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        core, version = openvino_core()
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        model = core.read_model(path)
        self.compiled = core.compile_model(model, "CPU", properties | dict(options))
        self.request = self.compiled.create_infer_request()
        self.name = f"openvino {version} CPU"
        self.inputs: Sequence[Input] = [_openvino_input(item) for item in self.compiled.inputs]

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """All outputs for inputs by name; as in ONNX Runtime inputs are read where they lie."""
        found = self.request.infer(dict(feed), share_inputs=True)
        return [np.asarray(found[output]) for output in self.compiled.outputs]

    def kernels(self) -> dict[str, int]:
        """How often each kind of layer is executed in each type, e.g. `{"Convolution u8": 19}`.

        Constants are left out. The type is the precision that OpenVINO reports: of the data that
        flow in, or of the weights where only these are quantized.
        """
        counted: Counter[str] = Counter()
        for node in self.compiled.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            kind, precision = (facts[k].astype(str) for k in ("layerType", "runtimePrecision"))
            if kind not in ("Const", "Input", "Output"):
                counted[f"{kind} {precision}"] += 1
        return dict(sorted(counted.items()))


def import_package(runtime: str) -> Any:
    """The package of a known runtime, imported.

    Raises:
        ImportError: It is not installed.
    """
    # OpenVINO's converter, which its package imports, reports its use if this module is there.
    # Nothing here may report anything, so the import of it fails, which OpenVINO provides for.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    # The same for ONNX Runtime; `export.quiet_runtime` would load other packages than a runtime.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(INSTALL[runtime][0])


@cache
def openvino_core() -> tuple[Any, str]:
    """The one core of OpenVINO in this process, and its version.

    A core's CPU plugin gives the calling thread a stack for its signals, and unmaps it at its end.
    Where two have lived at a time, the thread is left with one that is unmapped: the next signal
    kills the process without a word, or writes over what lies there now, as when a child process
    ends and a data loader with workers has been used.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    openvino = import_package(OPENVINO)
    return openvino.Core(), openvino.__version__.partition("-")[0]


def _openvino_input(item: Any) -> Input:
    kind = item.get_element_type().get_type_name()
    dims = [dim.get_length() if dim.is_static else None for dim in item.get_partial_shape()]
    return Input(item.get_any_name(), _OPENVINO_TYPES.get(kind, kind), dims)


_RUNNERS: Mapping[str, Callable[..., Runner]] = MappingProxyType(
    {DEFAULT: OnnxRuntime, OPENVINO: OpenVino}
)


def open_runner(
    runtime: str, path: Path | str, threads: int = 1, options: Mapping[str, str] | None = None
) -> Runner:
    """Open a file in a runtime.

    Args:
        runtime: A key of `INSTALL`.
        path: The ONNX file.
        threads: Threads inside an operator.
        options: Session options or properties, by their own names in that runtime.

    Raises:
        KeyError: Unknown runtime; `require_runtime` says so in words.
        Exception: Whatever the runtime raises when it refuses the file or an option.
    """
    return _RUNNERS[runtime](str(path), threads, options or {})


def installed(runtime: str) -> bool:
    """Whether the package of a known runtime can be imported."""
    return importlib.util.find_spec(INSTALL[runtime][0]) is not None


def require_runtime(runtime: str) -> None:
    """Raise unless a runtime is known and installed.

    Raises:
        ArgumentError: It is neither; says how to install it.
    """
    from energy_model.errors import ArgumentError  # not needed in the measuring process

    if runtime not in INSTALL:
        raise ArgumentError(
            f"unknown runtime {runtime!r}", where="runtime", remedy=f"One of {', '.join(INSTALL)}."
        )
    if not installed(runtime):
        package, command = INSTALL[runtime]
        raise ArgumentError(
            f"{package} is not installed, so {runtime!r} cannot run anything",
            where="runtime",
            remedy=f"Install it ({command}), or take {DEFAULT!r}.",
        )
