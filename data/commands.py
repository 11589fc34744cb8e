"""Commands on a cost cache as it is, and the data to practise with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2d.data.errors import UsageError
from l2d.data.terminal.options import CacheArgument, Format, FormatOption, LocalCacheArgument, reads_stores
from l2d.data.terminal.progress import Bars, quote, say


@reads_stores
def status(cache: CacheArgument, format: FormatOption = Format.table):
    """What a cache holds: agents, parts done and missing, mean raw costs by split.

    Examples:

        l2d status support2.cache

        l2d status support2.cache --format json
    """
    from l2d.data.library import status as read_status
    from l2d.data.terminal.render import print_rows

    found = read_status(cache)
    for line in found.notes:
        say(line)
    print_rows(found.rows(), format.value)
    found.cache.require_complete()


@reads_stores
def verify(
    cache: CacheArgument,
    signed: Annotated[
        Path | None, typer.Option(help="A file of allowed signers (ssh-keygen's): one must have signed it.")
    ] = None,
    format: FormatOption = Format.table,
):
    """Read everything back: page checksums, samples, rows, seals. Exit 3 names the file that is wrong.

    Examples:

        l2d verify support2.cache

        l2d verify support2.cache && echo safe to train on

        l2d verify support2.cache --signed allowed_signers
    """
    from l2d.data.library import verify as read_back
    from l2d.data.terminal.render import print_rows

    parts = read_back(cache, signed=signed)
    if format == Format.table:
        print(f"{cache}: {parts} parts are as they were written")
    else:
        print_rows([{"cache": str(cache), "parts": parts, "sound": True}], format.value)


def sign(
    cache: LocalCacheArgument,
    key: Annotated[Path, typer.Option("--key", "-k", help="A private SSH key, or a public one that an agent holds.")],
):
    """Sign a complete cache with an SSH key: over its records and seals, so over every byte. It travels with the cache.

    Examples:

        l2d sign support2.cache --key ~/.ssh/id_ed25519

        l2d verify support2.cache --signed allowed_signers
    """
    from l2d.data.library import sign as sign_cache

    print(sign_cache(cache, key.expanduser()))
    say(f"next: l2d push {quote(cache)} URL; others run l2d verify CACHE --signed ALLOWED_SIGNERS")


@reads_stores
def audit(
    cache: CacheArgument,
    group: Annotated[
        list[str] | None, typer.Option(help="A kept column that should not be in two splits; may be repeated.")
    ] = None,
    format: FormatOption = Format.table,
):
    """Leakage: ids, groups or inputs in two splits; agents that know the training samples.

    Examples:

        l2d audit support2.cache

        l2d audit my.cache --group patient --format json
    """
    from l2d.data.library import audit as run_audit
    from l2d.data.terminal.render import print_result

    found = run_audit(cache, groups=group or ())
    print_result(found, format.value)
    count = "1 warning" if found.warnings == 1 else f"{found.warnings} warnings"
    say(f"{count}: figures on test may be too good" if found.warnings else "no warning")


@reads_stores
def describe(cache: CacheArgument):
    """Describe a complete cache in Croissant 1.0 (JSON-LD): files, columns, units, licence. `l2d push` does, too.

    Examples:

        l2d describe support2.cache > croissant.json
    """
    from l2d.data.library import describe as describe_cache
    from l2d.data.terminal.render import print_json

    print_json(describe_cache(cache))


def push(
    cache: LocalCacheArgument,
    url: Annotated[str, typer.Argument(help="s3://…, gs://…, a folder: what fsspec has a driver for.", metavar="URL")],
    read_back: Annotated[
        bool, typer.Option("--read-back", help="Read all files there already, though the store knows their checksums.")
    ] = False,
):
    """Copy a complete cache to an object store or a folder, as plain Parquet. The same command goes on, and repairs.

    Examples:

        l2d push support2.cache s3://bucket/support2.cache

        l2d push support2.cache /mnt/shared/support2.cache

        l2d push support2.cache s3://bucket/support2.cache --read-back
    """
    from l2d.data.library import push as push_cache

    with Bars() as bars:
        copied = push_cache(cache, url, read_back=read_back, progress=bars.start("pushing", None, "files"))
    files = "1 file" if copied == 1 else f"{copied:,} files"
    say(f"copied {files}, the others were there; next: l2d fetch {quote(url)} --out CACHE")


def fetch(
    url: Annotated[str, typer.Argument(help="Where `l2d push` has put a cache.", metavar="URL")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the local copy.")],
    format: FormatOption = Format.table,
):
    """Copy a cache from an object store or a folder and verify every byte. The same command goes on, and repairs.

    Examples:

        l2d fetch s3://bucket/support2.cache --out support2.cache
    """
    from l2d.data.library import fetch as fetch_cache
    from l2d.data.library import status as read_status
    from l2d.data.terminal.render import print_rows

    with Bars() as bars:
        cache = fetch_cache(url, out, progress=bars.start("fetching", None, "files"))
    print_rows(read_status(cache).rows(), format.value)
    say(f"next: l2d train {quote(out)} --out RUN")


def digits(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder to make, in Pascal VOC's layout; or a .parquet or .csv file: a row a digit."
        ),
    ],
    images: Annotated[float, typer.Option(min=0.01, help="How many scenes, as a multiple of the usual.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
):
    """Compose real handwritten digits into scenes with boxes: a semi-synthetic detection set in Pascal VOC's layout.

    Examples:

        l2d data digits --out VOCdevkit

        l2d build digits --data VOCdevkit --out digits.cache

        l2d data digits --out digits.parquet
    """
    from l2d.data.sources.digits import IMAGES, write_digit_table, write_digits

    if out.suffix.lower() in (".parquet", ".csv"):
        if images != 1.0 or seed:
            raise UsageError("--images and --seed are for scenes; a table has the digits as they are", hint="drop them")
        written = write_digit_table(out)
        print(out)
        say("1,797 digits of 8 x 8 pixels" + ("" if written else "; the file was there already"))
        say(f"next: l2d build mozannar_sontag_digits --data {quote(out)} --out digits.cache")
        return
    counts = {name: max(1, round(images * count)) for name, count in IMAGES.items()}
    written = write_digits(out, images=counts, seed=seed)
    print(out)
    numbers = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    say(f"scenes: {numbers}" + ("" if written else "; they were there already"))
    say(f"next: l2d build digits --data {quote(out)} --out digits.cache")


def prompts(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make, with prompts.csv and new_prompts.csv.")],
    rows: Annotated[int, typer.Option(min=20, max=1_000_000, help="How many prompts with scores.")] = 4_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
):
    """Draw made-up prompts with scores and prices of four made-up language models, in RouterBench's layout.

    Examples:

        l2d data prompts --out prompts

        l2d import scores prompts/prompts.csv --id id --text prompt --out prompts.cache
    """
    from l2d.data.sources.made_up_prompts import write_prompts

    written = write_prompts(out, rows=rows, seed=seed)
    print(out)
    say(f"made-up prompts: {rows:,}" + ("" if written else "; they were there already"))
    say(f"next: l2d import scores {quote(out / 'prompts.csv')} --id id --text prompt --out prompts.cache")


def mimic(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make, in MIMIC-IV's layout.")],
    patients: Annotated[int, typer.Option(min=1, help="299712 is the size of MIMIC-IV 2.2: 431,000 visits.")] = 40_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
):
    """Draw made-up patients in MIMIC-IV's layout, their risk known: to try the experiment, and to check its answer.

    Examples:

        l2d data mimic --out mimic

        l2d build mimic4 --data mimic --out mimic.cache
    """
    from l2d.data.sources.mimic4.generator import write_mimic4

    written = write_mimic4(out, patients=patients, seed=seed)
    print(out)
    say(f"made-up patients: {patients:,}" + ("" if written else "; they were there already"))
    say(f"next: l2d build mimic4 --data {quote(out)} --out mimic.cache")
