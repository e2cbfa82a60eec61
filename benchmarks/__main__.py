# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [NAME] [options]`` runs ``benchmarks.NAME.main(options)``; without a name, every benchmark."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks


def main(arguments: list[str]) -> None:
    names = sorted(
        module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")
    )
    chosen, options = (
        (names, arguments) if not arguments or arguments[0].startswith("-") else ([arguments[0]], arguments[1:])
    )
    if not set(chosen) <= set(names):
        sys.exit(f"no benchmark {chosen[0]!r}; there are: {', '.join(names)}")
    for name in chosen:
        print(f"# {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main(options)


if __name__ == "__main__":
    main(sys.argv[1:])
