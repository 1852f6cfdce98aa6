"""Renew the README's tables and picture from the notebooks' stored outputs: `python tools/readme.py [--check]`.

What stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is made here. With --check nothing is
written, and the exit code is 1 when something is not what the notebooks say."""
import ast, base64, json, re, sys
from pathlib import Path

from instep import module_of, source
from notebooks import ledgers, outputs, show, text

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {'nbs/images/depth.png': ('03_why_sqrt5', 'fig-depth')}  # file: notebook and label of the cell that draws it

def read_notebooks(): return {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in sorted((ROOT/'nbs').glob('*.ipynb'))}

def course(notebooks):
    "A row for each lesson: notebook, its question, and the public names that it exports."
    rows = ['| lesson | its question | what it exports |', '|---|---|---|']
    for name, nb in notebooks.items():
        opening = source(next(c for c in nb['cells'] if c['cell_type'] == 'markdown'))
        question = re.search(r'^> (.*)$', opening, re.M)[1]
        exports = re.search(r'^__all__ = (\[.*?\])', (ROOT/'initnotes'/f'{module_of(nb)}.py').read_text(encoding='utf-8'), re.M | re.S)[1]
        names = ', '.join(f'`{x}`' for x in ast.literal_eval(exports))
        rows.append(f'| [`{name}`](nbs/{name}.ipynb) | {question} | {names} |')
    return '\n'.join(rows)

def figures(notebooks):
    "A row for each figure of a source, of all ledgers."
    rows = [(name, r) for name, nb in notebooks.items() for l in ledgers(nb) for r in l['rows'] if r['source']]
    inside = sum(r['reproduced'] for _, r in rows)
    out = [f'{inside} of {len(rows)} figures are reproduced; each of the others has its reason beside it.', '',
           '<details><summary>All of them</summary>', '', '| lesson | what | printed | predicted | measured | inside? |', '|---|---|---|---|---|---|']
    out += [f"| {name[:2]} | {r['what']} | {r['source']} | {show(r['predicted'])} | {show(r['measured'])} | {'✓' if r['reproduced'] else '✗ ' + r['why']} |" for name, r in rows]
    return '\n'.join(out + ['', '</details>'])

def picture(nb, label):
    "PNG of the cell that says `#| label: …`."
    for i, o in outputs(nb):
        if f'#| label: {label}\n' in source(nb['cells'][i]) and 'image/png' in o.get('data', {}): return base64.b64decode(text(o['data']['image/png']))
    raise SystemExit(f'no stored picture labelled {label}')

def renew(readme, name, body):
    new, n = re.subn(rf'(<!-- begin {name} -->\n).*?(<!-- end {name} -->)', lambda m: m[1] + body + '\n' + m[2], readme, flags=re.S)
    if n != 1: raise SystemExit(f'README.md: expected one block <!-- begin {name} --> … <!-- end {name} -->, found {n}')
    return new

def main():
    notebooks = read_notebooks()
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    for make in (course, figures): readme = renew(readme, make.__name__, make(notebooks))
    wanted = {ROOT/'README.md': readme.encode()} | {ROOT/f: picture(notebooks[nb], label) for f, (nb, label) in PICTURES.items()}
    stale = [f for f, content in wanted.items() if not f.exists() or f.read_bytes() != content]
    if '--check' in sys.argv:
        for f in stale: print(f'{f.relative_to(ROOT)}: not what the notebooks say; run `make store`')
        if not stale: print("README's tables and picture are what the notebooks say")
        return bool(stale)
    for f in stale: f.parent.mkdir(exist_ok=True); f.write_bytes(wanted[f]); print(f'wrote {f.relative_to(ROOT)}')

if __name__ == '__main__': sys.exit(main())
