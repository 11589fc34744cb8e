"""Seconds and memory to prepare MIMIC-IV at its full size: `l2d build`'s reading against plain pandas, same labels.

    python benchmarks/mimic_preparation.py [--patients 299712] [--drugs 36] [--folder FOLDER]

Made-up files of MIMIC-IV 2.2's size (431,000 visits, 5 million diagnoses, 15 million prescriptions) are written to
FOLDER once (a temporary one by default). Each way then runs in a process of its own, which reports its peak resident
memory (imports included) and a digest of ids and labels; the digests have to be equal. pandas reads the columns that
are needed and no other, which is as good as it gets without a stream; reading all columns is `--whole`.

Prints a table and one line of JSON: how many times ours is as fast as pandas, and peaks in MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REQUIRE = ["diagnoses", "procedures", "prescriptions"]
LIMIT = 4096  # MiB


def ours(folder: Path, **settings) -> list[tuple[str, int, int]]:
    """Visit, death at the next, category of stay, by :func:`l2d.data.sources.mimic4.reader.load_mimic4`."""
    from l2d.data.sources.mimic4.reader import Mimic4Config, load_mimic4

    dataset = load_mimic4(Mimic4Config(path=folder, require=REQUIRE, **settings), "benchmark")
    return list(zip(dataset.ids, dataset.target_cla.tolist(), dataset.target_reg.astype(int).tolist(), strict=True))


def paper(folder: Path) -> list[tuple[str, int, int]]:
    """Ours with the paper's settings: balanced, clusters by the elbow, SVD features."""
    return ours(folder, negatives=1.0747, clusters={"count": "elbow", "largest": 12}, features={})


def plain_pandas(folder: Path, columns: bool = True) -> list[tuple[str, int, int]]:
    """The same in pandas: read, group the codes of each visit into lists, sort by time, shift, encode the lists."""
    import numpy as np
    import pandas as pd

    def read(table: str, names: list[str]) -> pd.DataFrame:
        types = {"icd_code": "str", "hadm_id": "int64"}
        return pd.read_csv(folder / "hosp" / f"{table}.csv.gz", usecols=names if columns else None, dtype=types)

    visits = read("admissions", ["subject_id", "hadm_id", "admittime", "dischtime", "hospital_expire_flag"])
    for column in ("admittime", "dischtime"):
        visits[column] = pd.to_datetime(visits[column])
    visits = visits.sort_values(["subject_id", "admittime", "dischtime", "hadm_id"])
    visits["died"] = visits.groupby("subject_id")["hospital_expire_flag"].shift(-1)
    lists = {}
    for table in ("diagnoses_icd", "procedures_icd"):
        rows = read(table, ["hadm_id", "seq_num", "icd_code", "icd_version"]).sort_values(["hadm_id", "seq_num"])
        rows["code"] = rows["icd_version"].astype(str) + ":" + rows["icd_code"]
        lists[table] = rows.groupby("hadm_id")["code"].agg(list)
    drugs = read("prescriptions", ["hadm_id"])["hadm_id"].unique()
    kept = visits[visits["died"].notna()]
    for ids in (lists["diagnoses_icd"].index, lists["procedures_icd"].index, drugs):
        kept = kept[kept["hadm_id"].isin(ids)]
    for found in lists.values():
        codes = found.loc[kept["hadm_id"]].explode()
        codes.groupby(level=0, sort=False).agg(list), pd.factorize(codes)
    days = np.maximum((kept["dischtime"] - kept["admittime"]).dt.days, 0)
    stay = np.select([days <= 7, days <= 14], [days, 8], 9)
    return list(zip(kept["hadm_id"].astype(str), kept["died"].astype(int), stay.tolist(), strict=True))


WAYS: dict[str, tuple[str, Callable]] = {
    "l2d": ("l2d, all visits", ours),
    "paper": ("l2d, the paper's: balanced, elbow over 12, SVD", paper),
    "pandas": ("pandas, needed columns", plain_pandas),
    "whole": ("pandas, all columns", lambda folder: plain_pandas(folder, columns=False)),
}


def run(way: str, folder: Path) -> None:
    """In a process of its own: prints seconds, peak and digest."""
    start = time.perf_counter()
    rows = WAYS[way][1](folder)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    digest = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:16]
    print(json.dumps({"seconds": seconds, "peak": peak, "samples": len(rows), "digest": digest}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=299_712)
    parser.add_argument("--drugs", type=float, default=36.0, help="prescriptions a visit")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--whole", action="store_true", help="also pandas with all columns: tens of GiB at full size")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run(options.way, options.folder)
        return
    from l2d.data.sources.mimic4.generator import write_mimic4

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "mimic"
        start = time.perf_counter()
        if write_mimic4(folder, patients=options.patients, drugs_per_visit=options.drugs):
            print(f"files written in {time.perf_counter() - start:.0f} s")
        sizes = {file.name: file.stat().st_size / 2**20 for file in sorted((folder / "hosp").iterdir())}
        print(", ".join(f"{name} {size:.0f} MiB" for name, size in sizes.items()), end="\n\n")
        found = {}
        for way in WAYS if options.whole else ("l2d", "paper", "pandas"):
            command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
            found[way] = json.loads(done.stdout)
    print("| | samples | seconds | peak memory, MiB |\n| --- | ---: | ---: | ---: |")
    for way, row in found.items():
        print(f"| {WAYS[way][0]} | {row['samples']:,} | {row['seconds']:.1f} | {row['peak']:,.0f} |")
    if found["l2d"]["digest"] != found["pandas"]["digest"]:
        raise SystemExit("the labels differ")
    if max(found["l2d"]["peak"], found["paper"]["peak"]) > LIMIT:
        raise SystemExit(f"more than {LIMIT} MiB")
    print("\nlabels of l2d and pandas are equal")
    ratios = {"times as fast as pandas": found["pandas"]["seconds"] / found["l2d"]["seconds"]}
    print(json.dumps({**ratios, "peaks": {way: row["peak"] for way, row in found.items()}}))


if __name__ == "__main__":
    main()
