"""`l2d serve`: the application behind uvicorn."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2d.data.errors import L2DError, UsageError
from l2d.rejector.serving.log import DecisionLog
from l2d.rejector.serving.opening import load_router
from l2d.rejector.serving.router import Router
from l2d.rejector.serving.spans import exporting_provider

if TYPE_CHECKING:
    import uvicorn

KEY = "L2D_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def require_extra() -> None:
    """See that what the server needs is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f"serving needs the package {error.name}", hint="pip install 'l2d[serve]'") from error


def serve(
    run: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 8200,
    log: Path | str | None = None,
    keep_inputs: bool = False,
    explore: float = 0.0,
    seed: int | None = None,
    policy: Path | str | None = None,
    shadow: Any = None,
    guard: float | None = None,
    calibration: Path | str | None = None,
    trace: bool = False,
    queue: int = 256,
    timeout: float = 2.0,
    max_body: int = 1 << 20,
    max_batch: int = 1000,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve a run over HTTP until the process is told to end (SIGTERM, SIGINT); SIGHUP opens the run again.

    Args:
        run: a run, or its folder; or the folder of a policy that may ask several agents.
        host: to listen on; another than the machine itself takes a key.
        port: 0 for one that is free.
        log, keep_inputs, explore, seed, policy, shadow, guard, calibration: see
            :func:`l2d.rejector.serving.opening.load_router`.
        trace: send an OpenTelemetry span of each decision where the environment says, such as
            ``OTEL_EXPORTER_OTLP_ENDPOINT``. Needs the extra ``otel``.
        queue: requests that may wait.
        timeout: seconds that one may wait.
        max_body: bytes of a request.
        max_batch: inputs of one.
        say: told where it listens, and of reloads.

    Raises:
        UsageError: the extra is not installed, an argument is wrong, or the port is taken.
    """
    require_extra()
    import uvicorn

    from l2d.rejector.serving.app import make_app
    from l2d.rejector.serving.service import Service

    tell, key = say or (lambda text: None), os.environ.get(KEY) or None
    if host not in LOOPBACK and key is None:
        raise UsageError(
            f"--host {host}: others could ask this router, and write to its log",
            hint=f"set a key that they have to send, in the environment variable {KEY}",
        )
    if shadow is not None and log is None:
        raise UsageError("--shadow decides silently: without a log it is not heard", hint="give --log as well")
    provider = exporting_provider() if trace else None
    listening = _listen(host, port)
    book = None if log is None else DecisionLog(log, keep_inputs=keep_inputs)

    def open_router() -> Router:
        router = load_router(
            run,
            policy=policy,
            explore=explore,
            seed=seed,
            log=book,
            shadow=shadow,
            guard=guard,
            calibration=calibration,
            trace=provider,
            keep_inputs=keep_inputs,
        )
        if router.guard is not None:
            router.guard.say = tell
            if router.guard.fallen is not None:
                tell(router.guard.words)
        return router

    service = Service(open_router, log=book, queue=queue, timeout=timeout)
    app = make_app(service, key=key, max_body=max_body, max_batch=max_batch)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    name, bound = service.router.run.run_id, listening.getsockname()[1]
    tell(f"serving {name} at http://{host}:{bound} (what it understands: /docs); end it with Ctrl-C")
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_run(server, listening, service.reload, tell))
    finally:
        if provider is not None:
            provider.shutdown()


async def _run(
    server: uvicorn.Server, listening: socket.socket, reload: Callable[[], Any], tell: Callable[[str], None]
) -> None:
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def again() -> None:
        try:
            tell(f"opened again: {(await reload()).run.run_id}")
        except L2DError as error:
            tell(f"not opened again, the old run goes on: {error}")

    def hang_up() -> None:
        task = asyncio.create_task(again())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    await server.serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(1024)  # clients that connect from here on are answered when the run is open
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --port, or 0 for a free one",
        ) from error
    found.set_inheritable(True)
    return found
