"""`mlflow run . -e tune`: search for the settings that the paper left untuned."""

import functools

from resfool import commands

main = functools.partial(commands.run, "tune")

if __name__ == "__main__":
    main()
