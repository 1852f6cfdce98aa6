"""Renew what README and index say of the lessons: `python tools/readme.py [--check]`.

What stands between `<!-- begin NAME -->` and `<!-- end NAME -->`, in README.md and in a Markdown
cell of nbs/index.ipynb, is made here from the lessons. With --check nothing is written, and the
exit code is 1 when something is not what the notebooks say."""
import ast, base64, re, sys
from pathlib import Path

from instep import directives, guess_of, module_of, read, source
from notebooks import dumps, ledgers, outputs, text

ROOT = Path(__file__).resolve().parent.parent
# By file in nbs/: the notebook, and the label of the cell, that draws it.
PICTURES = {'images/depth.png': ('04_why_sqrt5', 'fig-depth')}

def readme_text(): return (ROOT/'README.md').read_text(encoding='utf-8')

def read_notebooks(nbs=ROOT/'nbs'):
    "The numbered lessons, in order."
    return {p.stem: read(p) for p in sorted(nbs.glob('[0-9]*.ipynb'))}

def exporting(notebooks):
    "Those that export a module."
    return {stem: nb for stem, nb in notebooks.items() if module_of(nb)}

def is_workshop(stem):
    "A lettered notebook that asks for no guess: the machinery behind a lesson."
    return bool(re.match(r'\d\d[a-z]_', stem)) and not any(
        map(guess_of, read(ROOT/'nbs'/f'{stem}.ipynb')['cells']))

def is_appendix(stem): return stem.startswith('99')

def is_lesson(stem): return not (is_workshop(stem) or is_appendix(stem))

def number_of(stem): return stem.partition('_')[0]

def table(head, rows):
    "A Markdown table; cells are parted by ` | `, in the head as in a row."
    rule = '|---'*(head.count('|') + 1) + '|'
    return '\n'.join([f'| {head} |', rule, *(f'| {r} |' for r in rows)])

# ---- of a lesson -----------------------------------------------------------------------------

def question(nb):
    head = next(c for c in nb['cells'] if c['cell_type'] == 'markdown')
    return re.search(r'^> (.*)$', source(head), re.M)[1]

def minutes(nb):
    """Reading time, to five minutes.

    150 words or 15 lines of code a minute, and half a minute for each guess."""
    words = sum(len(source(c).split()) for c in nb['cells'] if c['cell_type'] == 'markdown')
    lines = sum(len(source(c).splitlines()) for c in nb['cells'] if c['cell_type'] == 'code')
    guesses = sum(bool(guess_of(c)) for c in nb['cells'])
    return 5*round((words/150 + lines/15 + guesses/2)/5)

def exports(nb):
    "Public names; of a lesson that exports nothing, none."
    if not module_of(nb): return []
    module = (ROOT/'initnotes'/f'{module_of(nb)}.py').read_text(encoding='utf-8')
    return ast.literal_eval(re.search(r'^__all__ = (\[.*?\])', module, re.M | re.S)[1])

def labelled(nb, label):
    "The cell that says `#| label: …`."
    for c in nb['cells']:
        if directives(c).get('label') == label: return c
    raise SystemExit(f'no cell labelled {label}')

def png(cell):
    for o in cell['outputs']:
        if 'image/png' in o.get('data', {}):
            return base64.b64decode(text(o['data']['image/png']))
    raise SystemExit(f"no picture is stored in cell {cell['id']}")

# ---- of all ledgers --------------------------------------------------------------------------

def figure_rows(notebooks):
    "Every row of every ledger, with the name of its notebook."
    return [(name, r) for name, nb in notebooks.items() for l in ledgers(nb) for r in l['rows']]

def show(x):
    "A ledger's figure as the ledger itself shows it."
    if isinstance(x, str): return x
    return f'{x:,.0f}' if x == round(x) and abs(x) < 1e7 else f'{x:.4g}'

def claims_page(notebooks):
    "A page of the site: what every ledger of the course predicted and measured."
    rows = table('lesson | what | predicted | measured | tolerance', (
        f"[{number_of(name)}]({name}.ipynb) | {r['what']} | {show(r['predicted'])} | "
        f"{show(r['measured'])} | {r['tolerance']}"
        for name, r in figure_rows(notebooks) if not is_appendix(name)))
    return f'# Every claim\n\nWhat the lessons predicted and measured, by ledger.\n\n{rows}'

# ---- the blocks, by name ---------------------------------------------------------------------

def course(notebooks):
    "A row for each lesson: its question, reading time, and the public names that it exports."
    return table('lesson | its question | minutes | what it exports', (
        f"[`{name}`](nbs/{name}.ipynb) | {question(nb)} | {minutes(nb)} | "
        + ', '.join(f'`{x}`' for x in exports(nb)) for name, nb in notebooks.items()))

def lessons(notebooks):
    "The same for the index: without the names."
    return table('lesson | its question | minutes', (
        f'[{name}](nbs/{name}.ipynb) | {question(nb)} | {minutes(nb)}'
        for name, nb in notebooks.items()))

def figures(notebooks):
    "How many of the write-ups' figures are consistent with theory, and where they stand."
    (stem, rows), = ((n, [r for l in ledgers(nb) for r in l['rows'] if r['source']])
                     for n, nb in notebooks.items() if is_appendix(n))
    return (f"Of the {len(rows)} figures printed in the five write-ups that the course grew from, "
            f"{sum(r['reproduced'] for r in rows)} are consistent with theory; how little each of "
            f'them proves is in [the appendix](nbs/{stem}.ipynb).')

def answer(notebooks):
    "The course's answer to its first question, as the index words it."
    cells = read(ROOT/'nbs'/'index.ipynb')['cells']
    return next(p for c in cells for p in source(c).split('\n\n') if p.startswith('**Why √5?**'))

def picture(notebooks):
    "The course's one picture, and what it shows."
    (file, (nb, label)), = PICTURES.items()
    return f"![{directives(labelled(notebooks[nb], label))['fig-alt']}](nbs/{file})"

# ---- renewing --------------------------------------------------------------------------------

def renew(text, blocks, where, notebooks):
    "The text with each of these blocks made anew."
    for make in blocks:
        begin, end = f'<!-- begin {make.__name__} -->', f'<!-- end {make.__name__} -->'
        text, n = re.subn(rf'({begin}\n).*?({end})',
                          lambda m: f'{m[1]}\n{make(notebooks)}\n\n{m[2]}', text, flags=re.S)
        if n != 1:
            raise SystemExit(f'{where}: expected one block {begin} … {end}, found {n}')
    return text

def renewed_index(notebooks, path):
    index = read(path)
    old = '\0'.join(map(source, index['cells']))
    new = renew(old, (lessons, picture), path.name, notebooks).replace('](nbs/', '](')
    for c, text in zip(index['cells'], new.split('\0'), strict=True):
        c['source'] = text.splitlines(keepends=True)
    return dumps(index)

def main():
    notebooks, index = read_notebooks(), ROOT/'nbs'/'index.ipynb'
    readme = renew(readme_text(), (answer, picture, course, figures), 'README.md', notebooks)
    wanted = {ROOT/'README.md': readme.encode(), index: renewed_index(notebooks, index).encode()}
    wanted |= {ROOT/'nbs'/f: png(labelled(notebooks[nb], label))
               for f, (nb, label) in PICTURES.items()}
    stale = [f for f, new in wanted.items() if not f.exists() or f.read_bytes() != new]
    if '--check' in sys.argv:
        for f in stale:
            print(f'{f.relative_to(ROOT)}: not what the notebooks say; run `make store`')
        if not stale:
            print('README, index and picture are what the notebooks say')
        return bool(stale)
    for f in stale:
        f.parent.mkdir(exist_ok=True)
        f.write_bytes(wanted[f])
        print(f'wrote {f.relative_to(ROOT)}')

if __name__ == '__main__': sys.exit(main())
