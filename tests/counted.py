"""Solves whose blocks are counted where they are solved: in the workers, through a file.

A script that begins with `COUNTING` sends its workers `minimal.solved_block` in a wrapping that
appends a line to the file `blocks` of the script's working directory as each block begins and ends.
"""

from dataclasses import dataclass
from pathlib import Path

COUNTING = """
import hashlib, os, time
from pathlib import Path
from resfool.attacks import minimal

def counted(model, rows, solve=minimal.solved_block, noted=Path("blocks").resolve(),
            command=os.getpid(), **options):
    name = hashlib.sha256(rows.tobytes()).hexdigest()
    def note(what):
        line = os.open(noted, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(line, f"{command} {what} {name}\\n".encode())
        os.close(line)
    note("began")
    time.sleep(PAUSE)  # or a small network's solve would be over before it can be killed
    found = solve(model, rows, **options)
    note("ended")
    return found

minimal.solved_block = counted
"""


def counting(pause: float) -> str:
    """The beginning of a script, in which a block takes some seconds more."""
    return COUNTING.replace("PAUSE", repr(pause))


@dataclass(frozen=True)
class Blocks:
    """What the workers of one command have noted, in its order.

    Attributes:
        began: names of the blocks that were begun.
        ended: names of those that were solved.
    """

    began: list[str]
    ended: list[str]


def noted(folder: Path) -> list[Blocks]:
    """What is noted in a folder, by the commands in their order."""
    found: dict[str, Blocks] = {}
    path = folder / "blocks"
    for line in path.read_text().splitlines() if path.exists() else []:
        command, what, name = line.split()
        one = found.setdefault(command, Blocks([], []))
        (one.began if what == "began" else one.ended).append(name)
    return list(found.values())


def kept(folder: Path) -> int:
    """How many blocks an interrupted solve has kept in the usual place."""
    return len(list(folder.glob("checkpoints/solve-*/block-*.json")))
