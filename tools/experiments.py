"""Train what the lessons' tables do not hold yet: `python tools/experiments.py [NAME …]`.

A lesson declares its experiments in a cell that begins with `#| label: experiments`. Each is
trained arm by arm into nbs/experiments/NAME.csv, which an interruption leaves whole; delete a
table, or lines of it, to train them anew."""
import sys
from pathlib import Path

import torch

from initnotes import experiments, trained
from instep import code, directives, read

ROOT = Path(__file__).resolve().parent.parent

def declared(nbs=ROOT/'nbs'):
    "Every experiment of the lessons, by name."
    found = {}
    for path in sorted(nbs.glob('*.ipynb')):
        for cell in read(path)['cells']:
            if directives(cell).get('label') != 'experiments': continue
            names = {**vars(experiments), **vars(trained)}
            exec(code(cell), names)
            found |= {e.name: e for e in names.values() if isinstance(e, experiments.Experiment)}
    return found

def main():
    known = declared()
    if unknown := [n for n in sys.argv[1:] if n not in known]:
        sys.exit(f"no experiment {unknown[0]!r}, expected some of {', '.join(known)}")
    torch.set_num_threads(1)    # on small nets more only wait for one another
    for name in sys.argv[1:] or known:
        e = known[name]
        rows = experiments.run(e, ROOT/'nbs'/'experiments'/f'{name}.csv', e.data())
        print(f'{name}: {len(rows):,} nets')

if __name__ == '__main__': main()
