"""`mlflow run . -e mnist`: the case study of section VI.C, on digits that come with a package."""

import functools

from resfool import commands

main = functools.partial(commands.run, "mnist")

if __name__ == "__main__":
    main()
