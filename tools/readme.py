"""Renew what README and index say of the lessons: `python tools/readme.py [--check]`.

What stands between `<!-- begin NAME -->` and `<!-- end NAME -->`, in README.md and in a Markdown
cell of nbs/index.ipynb, is made here from the notebooks, and so is each reading time in the index
(see `timed`). With --check nothing is written, and the exit code is 1 when something is not what
the notebooks say."""
import ast, base64, html, re, sys
from pathlib import Path

from instep import directives, guess_of, module_of, notebooks_in, read, source
from notebooks import dumps, ledgers, outputs, text

ROOT = Path(__file__).resolve().parent.parent
# By file in nbs/: the notebook, and the label of the cell, that draws it.
PICTURES = {'images/depth.png': ('04_why_sqrt5', 'fig-depth')}
# The pages for practitioners, in the order in which they are offered.
HOWTO = ('which_start', 'loss_is_nan', 'deep_net', 'decoder', 'gpt', 'batchnorm', 'own_loop',
         'several_gpus', 'own_tests')

def readme_text(): return (ROOT/'README.md').read_text(encoding='utf-8')

def read_notebooks(nbs=ROOT/'nbs'):
    "The numbered lessons, in order."
    return {p.stem: read(p) for p in sorted(nbs.glob('[0-9]*.ipynb'))}

def read_pages(nbs=ROOT/'nbs'):
    """The notebooks that have no number, by the address of their page: 'index', 'howto/gpt'.

    Those of howto/ in the order in which the index first links to them."""
    index = (nbs/'index.ipynb').read_text(encoding='utf-8')
    found = {p.relative_to(nbs).with_suffix('').as_posix(): read(p) for p in notebooks_in(nbs)
             if not p.name[0].isdigit()}
    return dict(sorted(found.items(), key=lambda page: index.find(f'({page[0]}.ipynb')))

def exporting(notebooks):
    "Those that export a module."
    return {stem: nb for stem, nb in notebooks.items() if module_of(nb)}

def is_workshop(stem):
    "A lettered notebook that exports a module, or says 'this workshop'; any other is a lesson."
    if not re.match(r'\d\d[a-z]_', stem): return False
    nb = read(ROOT/'nbs'/f'{stem}.ipynb')
    return bool(module_of(nb) or 'this workshop' in source(opening_cell(nb)).lower())

def is_appendix(stem): return stem.startswith('99')

def is_lesson(stem): return not (is_workshop(stem) or is_appendix(stem))

def number_of(stem): return stem.partition('_')[0]

def table(head, rows):
    "A Markdown table; cells are parted by ` | `, in the head as in a row."
    rule = '|---'*(head.count('|') + 1) + '|'
    return '\n'.join([f'| {head} |', rule, *(f'| {r} |' for r in rows)])

# ---- of a lesson -----------------------------------------------------------------------------

def opening_cell(nb): return next(c for c in nb['cells'] if c['cell_type'] == 'markdown')

def question(nb):
    return re.search(r'^> (.*)$', source(opening_cell(nb)), re.M)[1]

def title(nb):
    return re.search(r'^# (.*)$', source(opening_cell(nb)), re.M)[1]

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

def bounds(row):
    "Lowest and highest value that a row of a ledger allows, as far as it prints them."
    span = next((x for x in (row['predicted'], row['tolerance']) if ' … ' in str(x)), None)
    if span:
        lo, hi = map(float, span.split(' … '))      # of four digits
        return lo - 5e-4*abs(lo), hi + 5e-4*abs(hi)
    allowed = float(row['tolerance'].removeprefix('±').partition(' ')[0])       # of two digits
    off = 1.05*allowed + 1e-8*abs(row['predicted'])
    return row['predicted'] - off, row['predicted'] + off

def verdict(rows):
    "How many checks a ledger holds, and which of them lie outside, in a few words."
    def inside(row):
        lo, hi = bounds(row)
        return lo <= row['measured'] <= hi
    outside = [r['what'] for r in rows if not inside(r)]
    if outside: found = f"{len(outside)} outside: {', '.join(outside)}"
    else: found = 'all inside' if len(rows) > 1 else 'inside'
    return f'{len(rows)} check' + 's'*(len(rows) > 1) + f', {found}'

def folded(rows, markdown, name=''):
    "The table of a ledger behind a line that says how it came out."
    return (f'<details class="ledger">\n<summary>{html.escape(name + verdict(rows))}</summary>\n\n'
            f'{markdown}\n\n</details>')

def claims_page(notebooks):
    "A page of the site: what every ledger of the course predicted and measured."
    parts, n = [], 0
    for name, nb in notebooks.items():
        rows = [r for l in ledgers(nb) for r in l['rows']]
        if not rows or is_appendix(name): continue
        claims = table('what | predicted | measured | tolerance', (
            f"{r['what']} | {show(r['predicted'])} | {show(r['measured'])} | {r['tolerance']}"
            for r in rows))
        parts.append(folded(rows, f'{claims}\n\nFrom [lesson {number_of(name)}]({name}.ipynb).',
                            f'{number_of(name)} · {title(nb)}: '))
        n += len(rows)
    return '\n\n'.join(['# Every claim', f'The {n} numbers that the lessons predict and measure, '
                        'lesson by lesson: open one to see its ledger.', *parts])

# ---- the blocks, by name ---------------------------------------------------------------------

def parts(notebooks):
    "The lessons of each part, by its title, as nbs/summary.md divides them."
    heads = re.findall(r'^## (Part .*) \(lessons? (\d\d)(?: (?:to|and) (\d\d))?\)$',
                       (ROOT/'nbs'/'summary.md').read_text(encoding='utf-8'), re.M)
    found = {title: {s: nb for s, nb in notebooks.items() if first <= s[:2] <= (last or first)}
             for title, first, last in heads}
    rest = notebooks.keys() - {s for part in found.values() for s in part}
    return found | {'Appendix': {s: nb for s, nb in notebooks.items() if s in rest}}

def hours(notebooks):
    "Their reading time, as in '9½ hours', or in minutes."
    total = sum(map(minutes, notebooks.values()))
    if total < 100: return f'{total} minutes'
    whole, half = divmod(round(total/30), 2)
    return f"{whole}{'½'*half} hours"

def questions(what, notebooks):
    return table(f'{what} | its question | minutes', (
        f'[{name}](nbs/{name}.ipynb) | {question(nb)} | {minutes(nb)}'
        for name, nb in notebooks.items()))

def lessons(notebooks):
    "The lessons by part, with question and reading time; the workshops folded below them."
    out = []
    for title, part in parts(notebooks).items():
        shops = {s: nb for s, nb in part.items() if is_workshop(s)}
        main = {s: nb for s, nb in part.items() if s not in shops}
        out += [f'### {title}', f'Reading time: {hours(main)}.', questions('lesson', main)]
        if shops:
            out += [f'<details><summary>{len(shops)} workshops behind it, {hours(shops)}</summary>',
                    questions('workshop', shops), '</details>']
    return '\n\n'.join(out)

def course(notebooks):
    "A row for each part of the course: its lessons, and their reading time."
    rows = []
    for title, part in parts(notebooks).items():
        main = {s: nb for s, nb in part.items() if not is_workshop(s)}
        links = ', '.join(f'[{number_of(s)}](nbs/{s}.ipynb)' for s in main)
        rows.append(f'{title} | {links} | {hours(main)}')
    return table('part | lessons | reading time', rows)

def howto(notebooks):
    "A row for each page for practitioners: its title, and the question that it answers."
    found = {p.stem: read(p) for p in notebooks_in(ROOT/'nbs') if p.parent.name == 'howto'}
    order = [*(n for n in HOWTO if n in found), *(n for n in found if n not in HOWTO)]
    return table('page | the question that it answers', (
        f'[{title(found[n])}](nbs/howto/{n}.ipynb) | {question(found[n])}' for n in order))

def peers(notebooks):
    "Of the table of audits in nbs/measured.md: what each tool found, missed and took."
    text = (ROOT/'nbs'/'measured.md').read_text(encoding='utf-8')
    block = re.search(r'<!-- begin audit -->\n\n(.*?)\n\n<!-- end', text, re.S)[1]
    head, _, *rows = [[c.strip(' *') for c in line.split('|')[1:-1]] for line in block.split('\n')]
    wanted = {'faults found': 'faults found', 'infos found': 'minor ones found',
              'healthy twins with an alarm': 'false alarms', 'median time, ms': 'median time, ms'}
    kept = {wanted[r[0]]: r[1:] for r in rows if r[0] in wanted}
    of = {what: f'{what} (of {row[0]})' if row[0] else what for what, row in kept.items()}
    return table(' | '.join(['tool', *of.values()]), (
        ' | '.join([tool, *(row[k] for row in kept.values())])
        for k, tool in enumerate(head[2:], 1)))

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

TIMED = re.compile(r'(\((\d\w+)\.ipynb\)(?: to \[[^]]*\]\((\d\w+)\.ipynb\))?, )[\d½]+ \w+')

def timed(text, notebooks):
    "Text with a new time behind `[…](00_start.ipynb), 30 minutes` and `[…](…) to […](…), 2 hours`."
    def time(m):
        span = {s: nb for s, nb in notebooks.items()
                if m[2] <= s <= (m[3] or m[2]) and (s == m[2] or not is_workshop(s))}
        return m[1] + hours(span)
    return TIMED.sub(time, text)

def renewed_index(notebooks, path):
    index = read(path)
    old = '\0'.join(map(source, index['cells']))
    new = renew(old, (howto, lessons, picture), path.name, notebooks).replace('](nbs/', '](')
    new = timed(new, notebooks)
    for c, text in zip(index['cells'], new.split('\0'), strict=True):
        c['source'] = text.splitlines(keepends=True)
    return dumps(index)

def main():
    notebooks, index = read_notebooks(), ROOT/'nbs'/'index.ipynb'
    readme = renew(readme_text(), (answer, picture, howto, peers, course, figures),
                   'README.md', notebooks)
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
