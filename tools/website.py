"""Build the course's site: `python tools/website.py [FOLDER]`, by default into _site. Executes and downloads nothing.

From the notebooks, with their stored outputs, from what the package says of itself, and from nbs/glossary.md and
nbs/references.bib, a source tree is made in _build/site; Sphinx makes the pages of it."""
import json, re, shutil, sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

import apidoc, readme
from instep import DIRECTIVE, directives, module_of, source
from notebooks import LEDGER

ROOT = Path(__file__).resolve().parent.parent
CFG = ConfigParser(delimiters=['='])
CFG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CFG['DEFAULT']

# ---- a lesson's page -------------------------------------------------------------------------

def markdown(text):
    "A cell as MyST wants it: a displayed formula is a paragraph of its own."
    return nbformat.v4.new_markdown_cell(re.sub(r'(?<!\n)\n(?=\$\$.+\$\$$)', '\n\n', text, flags=re.M))

def code_cell(cell, in_solution):
    "The cell as it is shown: directives become tags, a figure's alternative text goes where myst-nb looks for it."
    said = directives(cell)
    tags = [t for t, on in (('hide-input', 'code-fold' in said and not in_solution), ('exported', 'export' in said)) if on]
    meta = dict(tags=tags) | (dict(mystnb=dict(image=dict(alt=said['fig-alt']))) if said.get('fig-alt') else {})
    shown = [{**o, 'data': {mime: x for mime, x in o['data'].items() if mime != LEDGER}} if 'data' in o else o for o in cell['outputs']]  # a ledger is Markdown too
    return {**cell, 'metadata': meta, 'source': DIRECTIVE.sub('', source(cell)).strip('\n'), 'outputs': shown}

SOLUTION = re.compile(r'^\*\*(\d+)\.\*\* ', re.M)

def fold_solutions(text, is_open):
    "Text in which each `**1.** …` begins a folded block, and the next one, a heading or `**To read on` ends it; is one open at the end?"
    out = []
    for line in text.split('\n'):
        begins = SOLUTION.match(line)
        if is_open and (begins or re.match(r'#+ |\*\*To read on', line)): out += ['</details>', '']; is_open = False
        if begins: out += ['<details class="solution">', f'<summary>Solution {begins[1]}</summary>', '']; line = line[begins.end():]; is_open = True
        out.append(line)
    return '\n'.join(out), is_open

def lesson(stem, nb, bib):
    "The notebook as Sphinx shall see it: no hidden cell, no directive line, solutions folded, a line of links below its question."
    cells, in_solution = [], False
    for c in nb['cells']:
        if c['cell_type'] == 'markdown':
            text = anchored(source(c), bib)
            if in_solution or '\n## Solutions' in '\n' + text: text, in_solution = fold_solutions(text, in_solution)
            cells.append(markdown(text))
        elif not {'hide', 'default_exp'} & directives(c).keys(): cells.append(code_cell(c, in_solution))
    if in_solution: cells.append(markdown('</details>'))
    head = next(c for c in cells if c['cell_type'] == 'markdown')
    module, number = module_of(nb), stem.partition('_')[0] if stem[0].isdigit() else ''
    links = [f'{{download}}`the notebook <notebooks/{stem}.ipynb>` to run'] + ([f'its {{doc}}`library page <api/{module}>`'] if module else [])
    if number: head['source'] = head['source'].replace('# ', f'# {number} · ', 1); links.insert(0, f'about {readme.minutes(nb)} minutes')
    if CFG['git_url']: links.append(f"[its source]({CFG['git_url']}/blob/{CFG['branch']}/nbs/{stem}.ipynb)")
    head['source'] = re.sub(r'^(> .*)$', lambda m: m[1] + '\n\n{.lesson-links}\n' + ' · '.join(links), head['source'], count=1, flags=re.M)
    return {**nb, 'cells': cells}

# ---- references and glossary -----------------------------------------------------------------

def bibliography(text):
    "Entries of a BibTeX file: by key, a dict of its fields."
    return {key: dict(re.findall(r'^\s*(\w+)\s*=\s*\{(.*)\},?$', body, re.M)) for key, body in re.findall(r'^@\w+\{(\w+),\n(.*?)^\}', text, re.M | re.S)}

def reference(key, e):
    "One entry as Markdown, with an anchor that lessons link to."
    names = [' '.join(reversed(n.split(', '))) for n in e['author'].split(' and ')]
    who = names[0] if len(names) == 1 else ', '.join(names[:-1]) + ' and ' + names[-1]
    where = e.get('journal') or e.get('booktitle') or e.get('publisher') or e.get('howpublished', '')
    where += f" {e['volume']}" if 'volume' in e else ''
    where += f", {e['pages']}" if 'pages' in e else ''
    parts = [who, f"*{e['title']}*", where, e.get('year'), f"[arXiv {e['eprint']}](https://arxiv.org/abs/{e['eprint']})" if 'eprint' in e else '']
    return f'({key.lower()})=\n' + '. '.join(p for p in parts if p).replace('--', '–') + '.\n'

def citations(text, bib):
    "Text in which a link to an arXiv page is one to the entry of that number: `](references.bib#KEY)`, which JupyterLab can open."
    keys = {e['eprint']: key for key, e in bib.items() if 'eprint' in e}
    return re.sub(r'\]\(https://arxiv\.org/abs/([\d.]+)\)', lambda m: f'](references.bib#{keys[m[1]]})' if m[1] in keys else m[0], text)

def anchored(text, bib): return re.sub(r'\]\(references\.bib#(\w+)\)', lambda m: f'](#{m[1].lower()})', citations(text, bib))

def cited(nb, bib): return [key for c in nb['cells'] if c['cell_type'] == 'markdown' for key in re.findall(r'\]\(references\.bib#(\w+)\)', citations(source(c), bib))]

def terms(glossary):
    "Every spelling of the glossary, with the first spelling of its entry."
    entries = re.findall(r'((?:^(?![ `]).+\n)+)(?:  .*\n|\n)+', re.search(r'^```\{glossary\}\n(.*?)^```', glossary, re.M | re.S)[1], re.M)
    return {spelling: entry.splitlines()[0] for entry in entries for spelling in entry.splitlines()}

# ---- what Sphinx does while it reads ---------------------------------------------------------

NOT_PROSE = nodes.title, nodes.reference, addnodes.pending_xref, addnodes.download_reference, nodes.FixedTextElement, nodes.literal, nodes.math, nodes.table, nodes.raw, nodes.block_quote

def ancestors(node):
    while node := node.parent: yield node

def link(kind, target, text):
    return addnodes.pending_xref('', nodes.inline(text, text), refdomain='std', reftype=kind, reftarget=target, refexplicit=True, refwarn=True)

def link_prose(doctree, doc, spellings, stems):
    "In a lesson's prose, the first use of each glossary term, and every mention of another lesson or of the README's sources, become links."
    by_lower = {s.lower(): (s, entry) for s, entry in spellings.items()}
    number = r'(?<=lesson )0\d\b|(?<=lessons )0\d\b|(?<=[,)] )0\d\b|(?<= and )0\d\b'
    pattern = re.compile('|'.join([number, '(?-i:README)'] + [rf'\b{re.escape(s)}s?\b' for s in sorted(spellings, key=len, reverse=True)]), re.I)
    linked = set()
    for node in list(doctree.findall(nodes.Text)):
        if any(isinstance(a, NOT_PROSE) for a in ancestors(node)): continue
        text, new, at = node.astext(), [], 0
        for m in pattern.finditer(text):
            if m[0].isdecimal():
                target = next((s for s in stems if s.startswith(m[0]) and s != doc), None)
                ref = target and link('doc', '/' + target, m[0])
            elif m[0] == 'README': ref = link('doc', '/figures', m[0])
            else:
                spelling, entry = by_lower.get(m[0].lower()) or by_lower[m[0].lower().removesuffix('s')]
                ref = entry not in linked and link('term', spelling, m[0])
                linked.add(entry)
            if ref: new += [nodes.Text(text[at:m.start()]), ref]; at = m.end()
        if new: node.parent.replace(node, [*new, nodes.Text(text[at:])])

def mark_predictions(doctree):
    "A paragraph that asks for a prediction stands out."
    for p in doctree.findall(nodes.paragraph):
        if any(isinstance(c, nodes.strong) and re.match('Predict|Guess|Try it|What do you expect', c.astext()) for c in p.children): p['classes'].append('predict')

# ---- the site --------------------------------------------------------------------------------

def tree(name, docs): return f'```{{toctree}}\n:hidden:\n:caption: {name}\n\n' + '\n'.join(docs) + '\n```\n'

def write_sources(src, root):
    "Everything that Sphinx reads, into the folder `src`."
    nbs = root/'nbs'
    notebooks, bib = readme.read_notebooks(nbs), bibliography((nbs/'references.bib').read_text(encoding='utf-8'))
    (src/'api').mkdir(parents=True); (src/'_static').mkdir()
    for stem, nb in {**notebooks, 'index': json.loads((nbs/'index.ipynb').read_text(encoding='utf-8'))}.items():
        page = lesson(stem, nb, bib)
        if stem == 'index':
            page['cells'].append(markdown(tree('The course', notebooks) + tree('The library', ['api/index', *(f'api/{module_of(n)}' for n in notebooks.values())])
                                          + tree('To look up', ['figures', 'glossary', 'references', 'genindex'])))
        (src/f'{stem}.ipynb').write_text(json.dumps(page), encoding='utf-8')
        (src/'notebooks').mkdir(exist_ok=True); shutil.copy(nbs/f'{stem}.ipynb', src/'notebooks')
    for stem, nb in notebooks.items(): (src/'api'/f'{module_of(nb)}.md').write_text(apidoc.page(stem, nb), encoding='utf-8')
    (src/'api'/'index.md').write_text('# The library\n\n' + apidoc.overview(notebooks), encoding='utf-8')
    (src/'figures.md').write_text(readme.figures_page(notebooks), encoding='utf-8')
    (src/'references.md').write_text('# References\n\n' + '\n'.join(reference(k, e) for k, e in bib.items()), encoding='utf-8')
    (src/'glossary.md').write_text(anchored((nbs/'glossary.md').read_text(encoding='utf-8'), bib), encoding='utf-8')
    shutil.copytree(nbs/'images', src/'images')
    for f in (ROOT/'tools'/'static').iterdir(): shutil.copy(f, src/'_static')
    shutil.copy(find_spec('sphinx-mathjax-offline').submodule_search_locations[0] + '/static/mathjax/tex-svg.js', src/'_static')
    return notebooks, terms((nbs/'glossary.md').read_text(encoding='utf-8'))

# Where the lessons were before version 0.2.
MOVED = {'00_core': '01_core', '01_data': '02_data', '02_foundations': '03_foundations', '03_why_sqrt5': '04_why_sqrt5',
         '04_kaiming': '05_kaiming', '05_training': '06_training', '06_hooks': '07_hooks', '07_lsuv': '09_lsuv'}

def redirect(html, notebooks):
    "Pages at the old addresses that lead to the new ones."
    for old, new in MOVED.items():
        if new not in notebooks: continue
        (html/f'{old}.html').write_text(f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Moved</title>'
            f'<link rel="canonical" href="{new}.html"><meta http-equiv="refresh" content="0; url={new}.html"></head>'
            f'<body><article><h1>Moved</h1><p>This lesson is now <a href="{new}.html">{new}</a>.</p></article></body></html>\n', encoding='utf-8')

def build(out, root=ROOT, work=ROOT/'_build'/'site'):
    "Make the site in `out`; anything that Sphinx warns of is an error, and leaves `out` as it was."
    shutil.rmtree(work, ignore_errors=True)
    notebooks, spellings = write_sources(work/'source', root)
    conf = dict(
        project=CFG['lib_name'], author=CFG['author'], copyright=CFG['copyright'], version=CFG['version'], release=CFG['version'], language='en',
        extensions=['myst_nb', 'sphinx.ext.mathjax'], exclude_patterns=['notebooks'], root_doc='index', smartquotes_action='D',
        nb_execution_mode='off', nb_render_markdown_format='gfm', nb_code_prompt_show='Show the code', nb_code_prompt_hide='Hide the code', nb_merge_streams=True,
        myst_enable_extensions=['dollarmath', 'amsmath', 'colon_fence', 'fieldlist', 'attrs_block'],
        mathjax_path='tex-svg.js', mathjax3_config={'options': {}}, add_module_names=False, python_display_short_literal_types=True, toc_object_entries_show_parents='hide',
        html_theme='furo', html_title=CFG['title'], html_static_path=['_static'], html_css_files=['site.css'], html_js_files=['site.js'],
        html_copy_source=False, html_domain_indices=False, html_show_sourcelink=False, html_theme_options=dict(top_of_page_buttons=[]))
    def read(app, doctree):
        doc = app.env.docname
        if doc in notebooks or doc == 'index': mark_predictions(doctree); link_prose(doctree, doc, spellings, list(notebooks))
    def level(app, page, template, context, doctree):   # furo's captions say that they are headings, and not of which level
        context['furo_navigation_tree'] = context.get('furo_navigation_tree', '').replace('role="heading"', 'role="heading" aria-level="2"')
    with patch_docutils(), docutils_namespace():
        app = Sphinx(work/'source', None, work/'html', work/'doctrees', 'html', conf, status=None, warning=sys.stderr, warningiserror=True, freshenv=True)
        app.connect('doctree-read', read)
        app.connect('html-page-context', level, priority=900)
        app.build()
    if app.statuscode: raise SystemExit(f'Sphinx ended with status {app.statuscode}')
    redirect(work/'html', notebooks)
    shutil.rmtree(out, ignore_errors=True); shutil.move(work/'html', out)
    return app

if __name__ == '__main__':
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT/'_site'
    app = build(out)
    print(f'{len(app.env.all_docs)} pages: open {out/"index.html"}')
