"""The shapes of the networks: what a rule builds is settled and checked here."""

from collections.abc import Sequence
from dataclasses import dataclass

from resfool import paper
from resfool.errors import InputError
from resfool.parameters import Arch


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

    arch: Arch
    depth: int
    widths: tuple[int, ...]
    convs_per_unit: int = 1
    dropout: float = 0.0
    gate_bias: float = -1.0
    batch_norm: bool = True

    @property
    def name(self) -> str:
        """Architecture and depth, such as resnet-10."""
        return f"{self.arch}-{self.depth}"


def network(
    arch: Arch,
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
    if arch == "mlp":
        layers = paper.MLP_LAYERS if depth is None else depth
        widths = _widths(width, paper.MLP_WIDTH, layers)
    else:
        layers = paper.DEPTHS[0] if depth is None else depth
        widths = _widths(width, paper.WIDTH, paper.STAGES)
        if layers < 1 or layers % paper.STAGES:
            raise InputError(
                f"depth={layers} doesn't divide into five stages; "
                f"{arch} takes a multiple of 5, such as 10, 25 or 50"
            )
    if not batch_norm and arch != "convnet":
        raise InputError(f"batch_norm=false is for the plain convnet only, not for {arch}")
    if convs_per_unit != 1:
        _check_convs_per_unit(arch, layers, convs_per_unit)
    if arch in ("resnet", "highway") and list(widths) != sorted(widths):
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


def _check_convs_per_unit(arch: Arch, depth: int, convs_per_unit: int) -> None:
    if arch not in ("resnet", "highway"):
        raise InputError(
            f"convs_per_unit={convs_per_unit} is for resnet and highway, not for {arch}"
        )
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
    if network.arch == "mlp":
        return float(sum(a * b for a, b in zip(network.widths, network.widths[1:], strict=False)))
    total, before = 0.0, network.widths[0]
    layers = network.depth // paper.STAGES
    for stage, width in enumerate(network.widths):
        if network.arch == "multiresnet":
            inputs = [before + i * width for i in range(layers)]
        else:
            inputs = [before] + [width] * (layers - 1)
        gates = 2 if network.arch == "highway" else 1
        total += gates * sum(inputs) * width / 4**stage
        before = width
    return total
