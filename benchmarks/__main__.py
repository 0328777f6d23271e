"""Run with `make bench`; `make bench ARGS=--quick` for one round of everything."""

import argparse
import datetime
import logging
import re
import warnings
from importlib.metadata import version
from pathlib import Path

from benchmarks import families, probes, shelf, throughput
from benchmarks.measure import machine
from lightning_depth.runs.provenance import PACKAGES, git_commit

SECTIONS = {
    "Training throughput (CIFAR-sized images, crop and flip)": throughput.rows,
    "Families beside a bare loop (SGD with momentum, mean squared error)": families.rows,
    "Making data": families.making,
    "What the probes cost (validation of 10,000 images; an epoch has 25,000)": probes.cost_in_an_epoch,
    "What every probe of the shelf costs (the same validation)": probes.cost_of_the_shelf,
    "Against the definitions": probes.against_definitions,
    "Spectra of weights, against WeightWatcher": shelf.weight_spectra,
    "Effective rank of features, against a RankMe callback": shelf.feature_rank,
    "Operator norms": shelf.operator_norms,
    "Norms of Jacobians": shelf.jacobian_norms,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="one round of everything; writes nothing")
    parser.add_argument("words", nargs="*", help="only the sections whose titles have one of these words in them")
    arguments = parser.parse_args()
    quick, words = arguments.quick, [word.lower() for word in arguments.words]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    said = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    today = datetime.date.today().isoformat()
    path = Path(__file__).parent / f"{re.sub(r'[^a-z0-9]+', '-', machine().lower()).strip('-')}.md"
    opening = f"# {machine()}\n\nRatios are taken round by round within one run: median (smallest-largest).\n"
    written = path.read_text() if path.is_file() else ""
    # Sections that are not measured now stay as they are, with the day and the commit of their own.
    kept = {text.split("\n")[0]: text for text in written.split("\n## ")[1:]}
    for title, section in SECTIONS.items():
        if words and not any(word in title.lower() for word in words):
            continue
        print(f"{title} …", flush=True)
        found = section(quick)
        print("\n".join(found), flush=True)
        provenance = f"*{today}, commit {git_commit()}; {said}.*"
        kept[title] = "\n".join([title, "", provenance, "", *found, ""])
        if not quick:  # after each section: a run that is broken off has not measured for nothing
            path.write_text("\n## ".join([opening, *(kept[t] for t in SECTIONS if t in kept)]))


main()
