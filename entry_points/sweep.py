"""`mlflow run . -e sweep`: train a grid of networks in parallel, and compare them."""

import functools

from resfool import commands

main = functools.partial(commands.run, "sweep")

if __name__ == "__main__":
    main()
