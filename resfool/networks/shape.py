"""The shapes of the networks: what their rules build is settled and checked here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from resfool import paper
from resfool.errors import InputError, UsageError, unknown
from resfool.parameters import Known, Parameters
from resfool.values import Counts, FiniteFloat, Fraction, PositiveCount, listed


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


ARCHITECTURES: dict[str, Architecture] = {
    "convnet": Architecture(may_lack_norm=True),
    "resnet": Architecture(spans_two=True, widens_only=True),
    "highway": Architecture(spans_two=True, widens_only=True, gated=True),
    "multiresnet": Architecture(dense=True),
    "mlp": Architecture(
        depth=paper.MLP_LAYERS,
        width=paper.MLP_WIDTH,
        tried_depths=(2, 3, 5, 7),
        tried_widths=(50, 100, 200),
        stages=0,
    ),
}

Arch = Annotated[str, Known(ARCHITECTURES)]


@dataclass(frozen=True, kw_only=True)
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
    batch_norm: Annotated[bool, "false leaves the normalisation out of the plain convnet."] = True
    gate_bias: Annotated[FiniteFloat, "initial bias of the highway's transform gate."] = -1.0
    dropout: Annotated[
        Fraction, "share of the activations that is dropped in each unit, from 0 to below 1."
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
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
        """The network's shape, checked, defaults filled in.

        Raises:
            InputError: the values don't go together.
        """
        return network(self.arch, **{n: v for n, v in self.shared(Shape).items() if n != "arch"})


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
    """

    arch: str
    depth: int
    widths: tuple[int, ...]
    convs_per_unit: int = 1
    dropout: float = 0.0
    gate_bias: float = -1.0
    batch_norm: bool = True

    @property
    def architecture(self) -> Architecture:
        """What is known of its architecture."""
        return ARCHITECTURES[self.arch]

    @property
    def name(self) -> str:
        """Architecture and depth, such as resnet-10."""
        return f"{self.arch}-{self.depth}"


def network(
    arch: str,
    *,
    depth: int | None = None,
    width: Sequence[int] | None = None,
    convs_per_unit: int = 1,
    dropout: float = 0.0,
    gate_bias: float = -1.0,
    batch_norm: bool = True,
) -> Network:
    """Check the parameters that shape a network against each other.

    Args:
        arch: architecture name.
        depth: a multiple of 5, or None for the default (10; `mlp` 5 layers, any number allowed).
        width: one width for all stages or five; None for the paper's (64; `mlp` 100).
        convs_per_unit: 1, or 2 where depth / 5 is even (`resnet` and `highway`).
        dropout: in [0, 1).
        gate_bias: initial transform-gate bias (`highway`).
        batch_norm: False leaves the normalisation out of `convnet`.

    Returns:
        The network's shape.

    Raises:
        InputError: a value is out of range or doesn't fit the architecture.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(str(unknown("arch", arch, ARCHITECTURES)))
    kind = ARCHITECTURES[arch]
    layers = kind.depth if depth is None else depth
    if kind.stages and (layers < 1 or layers % kind.stages):
        raise InputError(
            f"depth={layers} doesn't divide into five stages; "
            f"{arch} takes a multiple of 5, such as 10, 25 or 50"
        )
    widths = _widths(width, kind.width, kind.stages or layers)
    if not batch_norm and not kind.may_lack_norm:
        raise InputError(f"batch_norm=false is for the plain convnet only, not for {arch}")
    if convs_per_unit != 1:
        _check_convs_per_unit(arch, layers, convs_per_unit)
    if kind.widens_only and list(widths) != sorted(widths):
        raise InputError(
            f"width={','.join(map(str, widths))} narrows from one stage to the next; "
            f"{arch}'s shortcuts are padded with zeros, so its widths may only grow"
        )
    return Network(arch, layers, widths, convs_per_unit, dropout, gate_bias, batch_norm)


def _widths(width: Sequence[int] | None, default: int, parts: int) -> tuple[int, ...]:
    widths = tuple(width) if width is not None else (default,)
    if min(widths, default=0) < 1:
        raise InputError(f"width={','.join(map(str, widths))} must be at least 1 everywhere")
    if len(widths) == 1:
        return widths * parts
    if len(widths) != parts:
        given = ",".join(map(str, widths))
        raise InputError(f"width={given} has {len(widths)} numbers; give one or {parts}")
    return widths


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


def multiplications(network: Network) -> float:
    """Those of a forward pass in the convolutions of the stages, up to a common factor.

    Closed forms for one image, per pixel of the first stage; `mlp` counts its hidden layers.

    Args:
        network: its shape.

    Returns:
        A number that is proportional to the work, within one kind of network.
    """
    kind = network.architecture
    if not kind.stages:
        return float(sum(a * b for a, b in zip(network.widths, network.widths[1:], strict=False)))
    total, before = 0.0, network.widths[0]
    layers = network.depth // kind.stages
    for stage, width in enumerate(network.widths):
        if kind.dense:
            inputs = [before + i * width for i in range(layers)]
        else:
            inputs = [before] + [width] * (layers - 1)
        total += (1 + kind.gated) * sum(inputs) * width / 4**stage
        before = width
    return total
