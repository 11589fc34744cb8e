"""Commands for a router at work: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2d.data.terminal.options import RunArgument
from l2d.data.terminal.progress import say

SERVER, LOG, LIMITS = "Server", "Decisions and their log", "Limits"


def serve(
    run: RunArgument,
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
    keep_inputs: Annotated[
        bool, typer.Option("--keep-inputs", help="Write inputs down too, not only digests.", rich_help_panel=LOG)
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="A file of `l2d policy --save`: allocate by its prices.", rich_help_panel=LOG),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of what is drawn. Default: another each time.", rich_help_panel=LOG)
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more get 503.", rich_help_panel=LIMITS)
    ] = 256,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that one may wait.", rich_help_panel=LIMITS)] = 2.0,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.", rich_help_panel=LIMITS)] = 1 << 20,
    max_batch: Annotated[int, typer.Option(min=1, help="Inputs of a request.", rich_help_panel=LIMITS)] = 1000,
):
    """Serve a run over HTTP: decisions about single inputs, and feedback on them. Listens on this machine alone.

    POST /route, /route/batch, /feedback, /reload; GET /health, /metrics (Prometheus), /docs (OpenAPI). SIGHUP, too,
    opens the run again, without dropping a request. Where L2D_API_KEY is set, clients have to send that key.
    Needs the extra `serve`: pip install 'l2d[serve]'.

    Examples:

        l2d serve run --log decisions --explore 0.02

        l2d serve run --log decisions --shadow new_run --port 9000
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
        queue=queue,
        timeout=timeout,
        max_body=max_body,
        max_batch=max_batch,
        say=say,
    )
