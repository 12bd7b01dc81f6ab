"""The command line: one file per verb, `main` picks one.

Exit codes: 0 done, 1 failed, 2 bad usage or bad file; of `serve` also 3: another controller has taken over.
"""

from __future__ import annotations

import importlib
import sys

from supervisor.cli.args import parser
from supervisor.errors import FileError, NorayError, UsageError


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        # Read when it is asked for: what the others need takes half a second.
        code = importlib.import_module(f"supervisor.cli.{args.verb_file}").run(args)
        assert isinstance(code, int)
        return code
    except NorayError as error:
        sys.stderr.write(f"noray: {error}\n" + (f"       {error.hint}\n" if error.hint else ""))
        return 2 if isinstance(error, FileError | UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # else the interpreter complains about the same pipe once more
        return 141
