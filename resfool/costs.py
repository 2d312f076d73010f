"""What work takes at least: estimates that need no data, no network and no time.

They are far too low on purpose. What is refused by them can't be done on any machine.
"""

from dataclasses import dataclass

RATE = 1e15  # multiplications a second, more than any device does
PASS = 1e-5  # seconds of an image's pass through a network, beside its multiplications
START = 0.1  # seconds of a training, beside its steps
STEP = 1e-4  # seconds of a step that can't begin before the one before it has ended
PROCESS = 1e8  # bytes of a worker's process
ENTRY = 1e3  # bytes of what is kept of each training
MOST_WORKERS = 10_000  # of a cluster
_DAY = 86_400.0


@dataclass(frozen=True)
class Data:
    """What is known of the images.

    Attributes:
        images: that there are.
        pixels: of each, of one channel.
    """

    images: int = 1
    pixels: int = 64  # 8x8, as small as they come

    @property
    def memory(self) -> float:
        """Bytes of the images in float32."""
        return 4.0 * self.images * self.pixels


UNKNOWN = Data()


@dataclass(frozen=True)
class Cost:
    """What work takes at least.

    Attributes:
        seconds: from its beginning to its end.
        memory: bytes of this machine, at a time.
    """

    seconds: float = 0.0
    memory: float = 0.0

    @property
    def days(self) -> float:
        """The same as its seconds."""
        return self.seconds / _DAY

    def __add__(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        return Cost(self.seconds + other.seconds, max(self.memory, other.memory))
