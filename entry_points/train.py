"""`mlflow run . -e train`: train one architecture, log it, and say where to look at it."""

import functools

from resfool import commands

main = functools.partial(commands.run, "train")

if __name__ == "__main__":
    main()
