"""`mlflow run . -e attack`: fool one or several classifiers, log how easily, and print a table."""

import functools

from resfool import commands

main = functools.partial(commands.run, "attack")

if __name__ == "__main__":
    main()
