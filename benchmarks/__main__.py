"""Run with `make bench`; `make bench ARGS=--quick` for one round of everything."""

import argparse
import datetime
import logging
import re
import warnings
from pathlib import Path

from benchmarks import probes, shelf, throughput
from benchmarks.measure import machine
from lightning_depth.runs.record import git_commit, versions

SECTIONS = {
    "Training throughput (CIFAR-sized images, crop and flip)": throughput.rows,
    "What the probes cost (validation of 10,000 images; an epoch has 25,000)": probes.cost_in_an_epoch,
    "Against the definitions": probes.against_definitions,
    "Spectra of weights, against WeightWatcher": shelf.weight_spectra,
    "Effective rank of features, against a RankMe callback": shelf.feature_rank,
    "Operator norms": shelf.operator_norms,
    "Norms of Jacobians": shelf.jacobian_norms,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="one round of everything; writes nothing")
    quick = parser.parse_args().quick
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    today = datetime.date.today().isoformat()
    lines = [f"# {machine()}", "", f"`make bench`, {today}, commit {git_commit()}; {said}.", ""]
    path = Path(__file__).parent / f"{re.sub(r'[^a-z0-9]+', '-', machine().lower()).strip('-')}.md"
    lines += ["Ratios are taken round by round within this run: median (smallest-largest).", ""]
    for title, section in SECTIONS.items():
        print(f"{title} …", flush=True)
        found = section(quick)
        print("\n".join(found), flush=True)
        lines += [f"## {title}", "", *found, ""]
        if not quick:  # after each section: a run that is broken off has not measured for nothing
            path.write_text("\n".join(lines))


main()
