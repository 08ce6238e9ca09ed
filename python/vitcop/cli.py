"""The command line: `vitcop run`, `vitcop prefill`, `vitcop bench`, `vitcop eval`, `vitcop doctor`.

The commands are in `commands.py`, which needs typer and rich. Without them `vitcop doctor` prints plain text.
"""

import sys
from collections.abc import Sequence

from . import doctor

INSTALL = "pip install 'vitcop[cli]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `vitcop` command. Raises SystemExit; code 2 means a usage error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show an arrow is no reason to stop
    missing = doctor.missing_extras("typer", "rich")
    if not missing:
        from .commands import app

        app(args=arguments, prog_name="vitcop")
    elif arguments[:1] == ["doctor"] and set(arguments[1:]) <= {"--json"}:
        results = doctor.checks()
        print(doctor.as_json(results) if "--json" in arguments else doctor.as_text(results))
        sys.exit(0)
    else:
        what = f"`vitcop {arguments[0]}`" if arguments else "the vitcop command"
        print(f"vitcop: {what} needs {' and '.join(missing)}: {INSTALL}", file=sys.stderr)
        sys.exit(2)
