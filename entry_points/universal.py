"""`mlflow run . -e universal`: one perturbation for all images, judged on held-out ones."""

import functools

from resfool import commands

main = functools.partial(commands.run, "universal")

if __name__ == "__main__":
    main()
