"""Renew what README and index say of the lessons, from the lessons: `python tools/readme.py [--check]`.

What stands between `<!-- begin NAME -->` and `<!-- end NAME -->`, in README.md and in a Markdown cell of nbs/index.ipynb,
is made here. With --check nothing is written, and the exit code is 1 when something is not what the notebooks say."""
import ast, base64, json, re, sys
from pathlib import Path

from instep import module_of, source
from notebooks import dumps, ledgers, outputs, show, text

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {'images/depth.png': ('04_why_sqrt5', 'fig-depth')}  # file in nbs/: notebook and label of the cell that draws it

def read_notebooks(nbs=ROOT/'nbs'):
    "The numbered lessons, in order."
    return {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in sorted(nbs.glob('[0-9]*.ipynb'))}

def is_workshop(stem): return bool(re.match(r'\d\d[a-z]_', stem))

def question(nb): return re.search(r'^> (.*)$', source(next(c for c in nb['cells'] if c['cell_type'] == 'markdown')), re.M)[1]

def minutes(nb):
    "Reading time, to five minutes: 150 words or 15 lines of code a minute, and half a minute for each prediction."
    prose = [source(c) for c in nb['cells'] if c['cell_type'] == 'markdown']
    lines = sum(len(source(c).splitlines()) for c in nb['cells'] if c['cell_type'] == 'code')
    return 5*round((sum(len(p.split()) for p in prose)/150 + lines/15 + sum(p.count('**Predict') for p in prose)/2)/5)

def exports(nb):
    module = (ROOT/'initnotes'/f'{module_of(nb)}.py').read_text(encoding='utf-8')
    return ast.literal_eval(re.search(r'^__all__ = (\[.*?\])', module, re.M | re.S)[1])

def course(notebooks):
    "A row for each lesson: notebook, its question, reading time, and the public names that it exports."
    rows = ['| lesson | its question | minutes | what it exports |', '|---|---|---|---|']
    rows += [f"| [`{name}`](nbs/{name}.ipynb) | {question(nb)} | {minutes(nb)} | {', '.join(f'`{x}`' for x in exports(nb))} |" for name, nb in notebooks.items()]
    return '\n'.join(rows)

def lessons(notebooks):
    "The same for the index: without the names."
    rows = ['| lesson | its question | minutes |', '|---|---|---|']
    return '\n'.join(rows + [f'| [{name}](nbs/{name}.ipynb) | {question(nb)} | {minutes(nb)} |' for name, nb in notebooks.items()])

def sourced(notebooks): return [(name, r) for name, nb in notebooks.items() for l in ledgers(nb) for r in l['rows'] if r['source']]

def count(rows): return f"{sum(r['reproduced'] for _, r in rows)} of {len(rows)} figures are reproduced; each of the others has its reason beside it."

def verdict(r): return '✓' if r['reproduced'] else '✗ ' + r['why']

def table(rows):
    "A row for each figure of a source, of all ledgers."
    return '\n'.join(['| lesson | what | printed | predicted | measured | inside? |', '|---|---|---|---|---|---|'] + [
        f"| {name.partition('_')[0]} | {r['what']} | {r['source']} | {show(r['predicted'])} | {show(r['measured'])} | {verdict(r)} |" for name, r in rows])

def figures(notebooks):
    rows = sourced(notebooks)
    return '\n'.join([count(rows), '', '<details><summary>All of them</summary>', '', table(rows), '', '</details>'])

def figures_page(notebooks):
    "A page of the site: all rows of all ledgers, after what the README says of the sources."
    about = re.search(r'## The figures it reproduces\n(.*?)<!-- begin figures -->', (ROOT/'README.md').read_text(encoding='utf-8'), re.S)[1]
    rows = [(name, r) for name, nb in notebooks.items() for l in ledgers(nb) for r in l['rows']]
    own = ['| lesson | what | predicted | measured | tolerance |', '|---|---|---|---|---|'] + [
        f"| {name.partition('_')[0]} | {r['what']} | {show(r['predicted'])} | {show(r['measured'])} | {r['tolerance']} |" for name, r in rows if not r['source']]
    page = '\n'.join(['# Figures reproduced', about, count(sourced(notebooks)), '', table(sourced(notebooks)), '',
                      "## The course's own claims", '', 'Rows of the same ledgers that nobody printed before.', '', *own])
    return re.sub(r'^\| (\d\d\w?) \|', lambda m: f"| [{m[1]}]({next(n for n in notebooks if n.startswith(m[1] + '_'))}.ipynb) |", page, flags=re.M)

def answer(notebooks):
    "The course's answer to its first question, as the index words it."
    index = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    return next(p for c in index['cells'] for p in source(c).split('\n\n') if p.startswith('**Why √5?**'))

def picture(notebooks):
    "The course's one picture, and what it shows."
    (file, (nb, label)), = PICTURES.items()
    cell = labelled(notebooks[nb], label)
    return f"![{re.search(r'^#[|] fig-alt: (.*)$', source(cell), re.M)[1]}](nbs/{file})"

def labelled(nb, label):
    "The cell that says `#| label: …`."
    for c in nb['cells']:
        if f'#| label: {label}\n' in source(c): return c
    raise SystemExit(f'no cell labelled {label}')

def png(cell):
    for o in cell['outputs']:
        if 'image/png' in o.get('data', {}): return base64.b64decode(text(o['data']['image/png']))
    raise SystemExit(f"no picture is stored in cell {cell['id']}")

def renew(text, blocks, where, notebooks):
    "The text with each of these blocks made anew."
    for make in blocks:
        text, n = re.subn(rf'(<!-- begin {make.__name__} -->\n).*?(<!-- end {make.__name__} -->)', lambda m: f'{m[1]}\n{make(notebooks)}\n\n{m[2]}', text, flags=re.S)
        if n != 1: raise SystemExit(f'{where}: expected one block <!-- begin {make.__name__} --> … <!-- end {make.__name__} -->, found {n}')
    return text

def renewed_index(notebooks, path):
    index = json.loads(path.read_text(encoding='utf-8'))
    for block in (lessons, picture):
        cell = next((c for c in index['cells'] if f'<!-- begin {block.__name__} -->' in source(c)), None)
        if not cell: raise SystemExit(f'{path.name}: expected a cell with <!-- begin {block.__name__} -->')
        cell['source'] = renew(source(cell), [block], path.name, notebooks).replace('](nbs/', '](').splitlines(keepends=True)
    return dumps(index)

def main():
    notebooks, index = read_notebooks(), ROOT/'nbs'/'index.ipynb'
    readme = renew((ROOT/'README.md').read_text(encoding='utf-8'), (answer, picture, course, figures), 'README.md', notebooks)
    wanted = {ROOT/'README.md': readme.encode(), index: renewed_index(notebooks, index).encode()}
    wanted |= {ROOT/'nbs'/f: png(labelled(notebooks[nb], label)) for f, (nb, label) in PICTURES.items()}
    stale = [f for f, content in wanted.items() if not f.exists() or f.read_bytes() != content]
    if '--check' in sys.argv:
        for f in stale: print(f'{f.relative_to(ROOT)}: not what the notebooks say; run `make store`')
        if not stale: print("README, index and picture are what the notebooks say")
        return bool(stale)
    for f in stale: f.parent.mkdir(exist_ok=True); f.write_bytes(wanted[f]); print(f'wrote {f.relative_to(ROOT)}')

if __name__ == '__main__': sys.exit(main())
