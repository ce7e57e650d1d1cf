"""`evo doctor`: what this machine can run, and how to mend what it cannot."""

import typer


def doctor() -> None:
    """Check this machine: Python, packages, GPU, memory, disk; which models run and what is in the way.

    One line a finding on stdout: `ok`, `note` or `problem`, what was found, and for a problem how to mend it. Exits 1
    if there is a problem. Nothing is downloaded or changed.

    \b
    Examples:
      evo doctor
      evo doctor | grep -v ^ok
    """
    from evo_cli.checkup import Finding, Level, check_machine

    def show(finding: Finding) -> None:
        typer.echo(f"{finding.level}\t{finding.subject}\t{finding.text}")
        if finding.mend:
            typer.echo(f"\tmend\t{finding.mend}")

    findings = list(check_machine())
    for finding in findings:
        show(finding)
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    if problems:
        typer.secho(f"{problems} problem{'s' if problems > 1 else ''} found", fg="red", err=True)
        raise typer.Exit(1)
    typer.secho("no problems found", fg="green", err=True)
