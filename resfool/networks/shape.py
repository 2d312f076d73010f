"""The shapes of the networks: what their rules build is settled and checked here."""

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from resfool import paper
from resfool.declarations import Known
from resfool.errors import InputError
from resfool.parameters import Parameters
from resfool.values import Counts, Fraction, PositiveCount, Real, listed, show


@dataclass(frozen=True)
class Architecture:
    """What the rest must know of an architecture; `architectures.STAGE_RULES` has its rule.

    Attributes:
        depth: layers, where nothing else is asked for.
        width: of each stage or layer, where nothing else is asked for.
        tried_depths: that a search tries.
        tried_widths: that a search tries.
        stages: into which its layers are divided; 0 for a fully connected network.
        spans_two: whether a shortcut may span two convolutions.
        widens_only: whether its shortcuts are padded with zeros, so that widths may only grow.
        may_lack_norm: whether it can do without batch normalisation.
        gated: whether its units have gates, each with a convolution of its own.
        dense: whether a layer sees all outputs before it in its stage.
        keras_layers: of Keras that one of its layers is made of, one after the other.
    """

    depth: int = paper.DEPTHS[0]
    width: int = paper.WIDTH
    tried_depths: tuple[int, ...] = (10, 15, 20, 25)
    tried_widths: tuple[int, ...] = (16, 32, 64)
    stages: int = paper.STAGES
    spans_two: bool = False
    widens_only: bool = False
    may_lack_norm: bool = False
    gated: bool = False
    dense: bool = False
    keras_layers: int = 4

    @property
    def takes(self) -> tuple[str, ...]:
        """The parameters that it reads and others don't."""
        own = {
            "gate_bias": self.gated,
            "downsample": bool(self.stages) and not self.dense,
            "batch_norm_statistics": bool(self.stages),
        }
        return tuple(name for name, reads in own.items() if reads)


_MOST_KERAS_LAYERS = 880  # in a row: Keras goes through them by a function that calls itself

ARCHITECTURES: dict[str, Architecture] = {
    "convnet": Architecture(may_lack_norm=True, keras_layers=3),
    "resnet": Architecture(spans_two=True, widens_only=True),
    "highway": Architecture(spans_two=True, widens_only=True, gated=True, keras_layers=6),
    "multiresnet": Architecture(dense=True),
    "mlp": Architecture(
        depth=paper.MLP_LAYERS,
        width=paper.MLP_WIDTH,
        tried_depths=(2, 3, 5, 7),
        tried_widths=(50, 100, 200),
        stages=0,
        keras_layers=2,
    ),
}

Downsample = Literal["stride", "pool"]
Arch = Annotated[str, Known(ARCHITECTURES)]


class Layers(Parameters):
    """What the layers of a network are like."""

    width: Annotated[
        Counts | None,
        "feature maps of every stage, or five numbers such as 16,32,64,64,128; none is 64 (mlp: "
        "nodes of each layer, none is 100).",
    ] = None
    convs_per_unit: Annotated[
        PositiveCount,
        "convolutions that a shortcut spans: 1 as in the paper, 2 as in He et al. (resnet, "
        "highway).",
    ] = 1
    downsample: Annotated[
        Downsample,
        "how the maps shrink from one stage to the next: stride, inside the first unit, or pool, "
        "by average pooling before it, as in the multiresnet.",
    ] = "stride"
    batch_norm: Annotated[bool, "false leaves the normalisation out of the plain convnet."] = True
    gate_bias: Annotated[Real, "initial bias of the highway's transform gate."] = -1.0
    dropout: Annotated[
        Fraction, "share of the activations that is dropped in each unit, from 0 to below 1."
    ] = 0.0


class Shape(Layers):
    """What shapes a network."""

    arch: Annotated[Arch, f"{listed(ARCHITECTURES)}."]
    depth: Annotated[
        PositiveCount | None,
        "3x3 convolutions of the five stages, a multiple of 5; none is 10 (mlp: hidden layers, "
        "none is 5).",
    ] = None

    @property
    def network(self) -> "Network":
        """The network's shape, defaults filled in.

        Raises:
            InputError: the values don't fit the architecture or each other.
        """
        arch, kind = self.arch, ARCHITECTURES[self.arch]
        layers = self.depth or kind.depth
        most = _MOST_KERAS_LAYERS // (kind.keras_layers + bool(self.dropout)) // 5 * 5
        if layers > most:
            raise InputError(
                f"depth={layers} is deeper than Keras can build; {arch} takes {most} at most"
            )
        if kind.stages and layers % kind.stages:
            raise InputError(
                f"depth={layers} doesn't divide into five stages; "
                f"{arch} takes a multiple of 5, such as 10, 25 or 50"
            )
        if not self.batch_norm and not kind.may_lack_norm:
            raise InputError(f"batch_norm=false is for the plain convnet only, not for {arch}")
        parts, widths = kind.stages or layers, self.width or (kind.width,)
        if len(widths) not in (1, parts):
            raise InputError(f"width={show(widths)} has {len(widths)} numbers; give one or {parts}")
        if kind.widens_only and list(widths) != sorted(widths):
            raise InputError(
                f"width={show(widths)} narrows from one stage to the next; "
                f"{arch}'s shortcuts are padded with zeros, so its widths may only grow"
            )
        convs = self.convs_per_unit
        if convs > 1:
            _check_convs_per_unit(arch, layers, convs)
        widths *= parts // len(widths)
        options = self.dropout, self.gate_bias, self.batch_norm, self.downsample
        return Network(arch, layers, widths, convs, *options)


def _check_convs_per_unit(arch: str, depth: int, convs_per_unit: int) -> None:
    if not ARCHITECTURES[arch].spans_two:
        fit = " and ".join(name for name, kind in ARCHITECTURES.items() if kind.spans_two)
        raise InputError(f"convs_per_unit={convs_per_unit} is for {fit}, not for {arch}")
    if convs_per_unit != 2:
        raise InputError(f"convs_per_unit={convs_per_unit} must be 1 or 2")
    if (depth // paper.STAGES) % 2:
        raise InputError(
            f"convs_per_unit=2 needs an even number of convolutions in each of the five stages; "
            f"depth={depth} gives {depth // paper.STAGES}"
        )


@dataclass(frozen=True)
class Network:
    """A network's shape, checked and with every default filled in.

    Attributes:
        arch: the block rule.
        depth: 3x3 convolutions of the five stages (not the stem); for `mlp` its hidden layers.
        widths: feature maps of each stage, five; for `mlp` nodes of each hidden layer.
        convs_per_unit: convolutions that one shortcut spans, 1 or 2.
        dropout: share of activations dropped before each convolution (`mlp`: after each layer).
        gate_bias: initial bias of the highway's transform gate.
        batch_norm: whether the plain `convnet` normalises.
        downsample: how the maps shrink between stages; `multiresnet` pools in any case.
    """

    arch: str
    depth: int
    widths: tuple[int, ...]
    convs_per_unit: int
    dropout: float
    gate_bias: float
    batch_norm: bool
    downsample: Downsample

    @property
    def architecture(self) -> Architecture:
        """What is known of its architecture."""
        return ARCHITECTURES[self.arch]

    @property
    def name(self) -> str:
        """Architecture and depth, such as resnet-10."""
        return f"{self.arch}-{self.depth}"


def network(arch: str, **options: Any) -> Network:
    """A network's shape; the options are those of `Shape`, and so are the refusals."""
    return Shape(arch=arch, **options).network


@dataclass(frozen=True)
class Size:
    """How large a network is, in its hidden layers.

    Attributes:
        weights: of its kernels.
        outputs: values of all layers, of one image.
        multiplications: of one image's forward pass.
    """

    weights: float
    outputs: float
    multiplications: float


_PIXELS = 32 * 32  # of what convolutional networks make of smaller images


def size(network: Network, pixels: int = _PIXELS) -> Size:
    """How large a network is for images of so many pixels, by closed forms."""
    kind = network.architecture
    if not kind.stages:
        weights = float(sum(a * b for a, b in itertools.pairwise(network.widths)))
        return Size(weights, sum(network.widths), weights)
    layers, area = network.depth // kind.stages, max(pixels, _PIXELS)
    before, weights, outputs, work = network.widths[0], 0.0, 0.0, 0.0
    for stage, width in enumerate(network.widths):
        inputs = layers * before if kind.dense else before
        inputs += width * (layers - 1) * layers // 2 if kind.dense else width * (layers - 1)
        kernels = 9.0 * (1 + kind.gated) * inputs * width
        weights += kernels
        outputs += layers * width * area / 4**stage
        work += kernels * area / 4**stage
        before = width
    return Size(weights, outputs, work)
