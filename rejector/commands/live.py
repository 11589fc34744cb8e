"""Commands for a router at work: serve, replay, watch, recalibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2d.data.errors import DataError
from l2d.data.terminal.options import Format, FormatOption, ReplaceOption, RunArgument
from l2d.data.terminal.progress import quote, say
from l2d.rejector.commands.setting import CalibrationOption

LogArgument = Annotated[Path, typer.Argument(help="A decision log: the folder of `l2d serve --log`.", metavar="LOG")]
SERVER, LOG, LIMITS = "Server", "Decisions and their log", "Limits"


def serve(
    run: Annotated[
        Path, typer.Argument(help="A run, or a policy that `l2d policy --ask … --save` made.", metavar="RUN")
    ],
    host: Annotated[
        str,
        typer.Option(help="To listen on. Another than the machine itself needs L2D_API_KEY.", rich_help_panel=SERVER),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.", rich_help_panel=SERVER)] = 8200,
    log: Annotated[
        Path | None, typer.Option(help="Folder of the decision log. Default: none.", rich_help_panel=LOG)
    ] = None,
    explore: Annotated[
        float, typer.Option(min=0, max=1, help="Share of decisions drawn at random, within caps.", rich_help_panel=LOG)
    ] = 0.0,
    shadow: Annotated[
        Path | None, typer.Option(help="A second run, which decides silently.", rich_help_panel=LOG)
    ] = None,
    guard: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=0.5,
            help="Fall back to the best constant agent when outcomes say that choosing costs more; the chance of doing "
            "so wrongly, such as 0.01. Needs --log and --explore.",
            rich_help_panel=LOG,
        ),
    ] = None,
    keep_inputs: Annotated[
        bool, typer.Option("--keep-inputs", help="Write inputs down too, not only digests.", rich_help_panel=LOG)
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="What `l2d policy --save` wrote: prices to allocate by, or whom to ask in turn.", rich_help_panel=LOG
        ),
    ] = None,
    calibration: CalibrationOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Of what is drawn. Default: another each time.", rich_help_panel=LOG)
    ] = None,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Send an OpenTelemetry span of each decision where OTEL_EXPORTER_OTLP_ENDPOINT says (extra `otel`).",
            rich_help_panel=LOG,
        ),
    ] = False,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more get 503.", rich_help_panel=LIMITS)
    ] = 256,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that one may wait.", rich_help_panel=LIMITS)] = 2.0,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.", rich_help_panel=LIMITS)] = 1 << 20,
    max_batch: Annotated[int, typer.Option(min=1, help="Inputs of a request.", rich_help_panel=LIMITS)] = 1000,
):
    """Serve a run over HTTP: decisions about single inputs, and feedback on them. Listens on this machine alone.

    POST /route, /route/batch, /next, /feedback, /reload; GET /health, /metrics (Prometheus), /docs (OpenAPI). SIGHUP,
    too, opens the run again, without dropping a request. Where L2D_API_KEY is set, clients have to send that key.
    Needs the extra `serve`: pip install 'l2d[serve]'.

    Examples:

        l2d serve run --log decisions --explore 0.02

        l2d serve run --log decisions --shadow new_run --port 9000

        l2d serve run --log decisions --calibration calibration.toml

        l2d serve run --policy asks_in_turn --log decisions
    """
    from l2d.rejector.serving.server import serve as run_server

    run_server(
        run,
        host=host,
        port=port,
        log=log,
        keep_inputs=keep_inputs,
        explore=explore,
        seed=seed,
        policy=policy,
        shadow=shadow,
        guard=guard,
        calibration=calibration,
        trace=trace,
        queue=queue,
        timeout=timeout,
        max_body=max_body,
        max_batch=max_batch,
        say=say,
    )


def replay(
    log: LogArgument,
    policy: Annotated[
        list[str],
        typer.Option(
            help="always:AGENT, greedy, uniform, shadow; a file of `l2d policy`, `route`, `recalibrate`. Repeatable."
        ),
    ],
    cache: Annotated[
        Path | None, typer.Option(help="Inputs that are its samples (by `id`) have known costs of every agent.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Beginning of the digest of the run, where several have decided.")
    ] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    format: FormatOption = Format.table,
):
    """What another policy would have cost, from logged decisions and their outcomes; or why the log cannot say.

    Estimates by inverse propensities, self-normalised, doubly robust and switch, each with an interval, and what each
    differs by from the policy in force without exploring. `effective` is what the log is worth for the policy, in
    decisions. Exit code 3 where the log can say nothing of any of them.

    Examples:

        l2d replay decisions --policy always:model

        l2d replay decisions --policy shadow --policy uniform --cache my.cache --format json
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.replay.replaying import replay as run_replay

    found = run_replay(log, policy, cache=cache, run=run, level=level)
    print_result(found, format.value)
    for line in found.notes():
        say(line)
    if all(one.refusal is not None for one in found.policies):
        raise DataError("the log cannot say what these policies cost", where=log, hint="log more, with --explore")


def watch(
    log: LogArgument,
    run: RunArgument,
    alpha: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Chance that something is said to have moved which has not.")
    ] = 0.01,
    calibration: CalibrationOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 where something has moved.")] = False,
    format: FormatOption = Format.table,
):
    """What has moved since the run was trained: inputs, shares, prices, and agents that behave otherwise.

    An agent's costs, less what was predicted, are compared with those on test samples by a sequential test: look as
    often as you like. Says what to do; trains nothing.

    Examples:

        l2d watch decisions run

        l2d watch decisions run --strict --format json
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.watch.watching import watch as run_watch

    found = run_watch(log, run, alpha=alpha, calibration=calibration)
    print_result(found, format.value)
    for line in found.notes():
        say(line)
    if strict and found.moved:
        raise DataError(f"--strict: {len(found.moved)} things have moved", where=log, hint="see above what to do")


def recalibrate(
    log: LogArgument,
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The calibration: a TOML file to review and edit.")],
    since: Annotated[
        str | None, typer.Option(help="Leave out decisions before this date or time (UTC).", metavar="TIME")
    ] = None,
    least: Annotated[int, typer.Option(min=2, help="Earlier outcomes of an agent, below which it is left alone.")] = 50,
    days: Annotated[float, typer.Option(min=0.001, help="For which the file is valid.")] = 90.0,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 where no improvement is shown; the file is written.")
    ] = False,
    overwrite: ReplaceOption = False,
    format: FormatOption = Format.table,
):
    """Correct predicted costs by logged outcomes: a file to review, with evidence and a date. It applies nothing.

    Each agent's correction is a line, fitted on the first two thirds of the outcomes and shrunk towards none; the last
    third judges: squared error, and what decisions would have cost. Where no improvement is shown, it advises against.

    Examples:

        l2d recalibrate decisions run --out calibration.toml

        l2d recalibrate decisions run --out calibration.toml --since 2026-11-01 --days 30

        l2d serve run --log decisions --calibration calibration.toml
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.recalibration.recalibrating import recalibrate as run_recalibrate

    found = run_recalibrate(log, run, out, since=since, least=least, days=days, level=level, overwrite=overwrite)
    print_result(found, format.value)
    for line in found.notes():
        say(line)
    until = found.calibration.valid_until.strftime("%Y-%m-%d")
    say(f"wrote {out}, valid until {until}; read it, then give it to route, serve, watch: --calibration {quote(out)}")
    if strict and not found.improves:
        raise DataError("--strict: no improvement is shown", where=out, hint="log more outcomes, or see the advice")
