"""``graphopt doctor``: what is installed, what works, what clashes, and the line that mends it."""

from __future__ import annotations

import click

from .options import as_json, verbose


@click.command(short_help="What is installed, what works, what clashes.")
@as_json
@verbose
def command(json_: bool) -> int:
    """Check this installation by running it. Exit 6 if something that is needed does not work.

    \b
    graphopt doctor
    """
    from graphopt import diagnosis

    from .output import console, print_json, table

    findings = diagnosis.examine()
    broken = any(finding.state == "broken" for finding in findings)
    if json_:
        print_json([finding.model_dump(mode="json") for finding in findings])
        return 6 if broken else 0
    out = console()
    signs = {"ok": "ok", "absent": "-", "broken": "BROKEN"}
    out.print(table(("", "what", "found"), [(signs[f.state], f.what, f.found) for f in findings], numbers_from=3))
    for finding in findings:
        if finding.mend:
            out.print(f"{finding.what}: {finding.mend}", markup=False)
    return 6 if broken else 0
