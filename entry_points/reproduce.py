"""`mlflow run . -e reproduce`: make what the paper's tables and figures need, and compare."""

import functools

from resfool import commands

main = functools.partial(commands.run, "reproduce")

if __name__ == "__main__":
    main()
