"""Build the course's site: `python tools/website.py [FOLDER]`, by default into _site.

Executes and downloads nothing. From the notebooks, with their stored outputs, from what the package
says of itself, and from nbs/glossary.md and nbs/references.bib, a source tree is made in
_build/site; Sphinx makes the pages of it."""
import html, json, re, shutil, sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

import apidoc, pages, readme
from instep import code, directives, guess_of, module_of, source
from notebooks import GUESS, LEDGER, OWN, text

ROOT = Path(__file__).resolve().parent.parent
CFG = ConfigParser(delimiters=['='])
CFG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CFG['DEFAULT']

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')

# ---- a lesson's page -------------------------------------------------------------------------

def markdown(text):
    "A cell as MyST wants it: a displayed formula is a paragraph of its own."
    return nbformat.v4.new_markdown_cell(
        re.sub(r'(?<!\n)\n(?=\$\$.+\$\$$)', '\n\n', text, flags=re.M))

def code_cell(cell, in_solution):
    "The cell as it is shown: directives are tags, a figure's text is where myst-nb looks for it."
    said = directives(cell)
    tags = {'hide-input': 'code-fold' in said and not in_solution, 'exported': 'export' in said}
    meta = dict(tags=[t for t, on in tags.items() if on])
    if said.get('fig-alt'):
        meta['mystnb'] = dict(image=dict(alt=said['fig-alt']))
    return {**cell, 'metadata': meta, 'source': code(cell).strip('\n'),
            'outputs': [shown(o) for o in cell['outputs']]}

def shown(output):
    "An output as it is shown: without what only tools read; of a ledger, a table that is folded."
    data = output.get('data', {})
    if LEDGER in data:
        table = readme.folded(data[LEDGER]['rows'], text(data['text/markdown']))
        return {**output, 'data': {'text/markdown': table}}
    if not data: return output
    return {**output, 'data': {k: x for k, x in data.items() if not k.startswith(OWN)}}

def question_box(cell, measuring):
    "Where the site asks for a guess: what is asked, and what was measured in the next code cell."
    kind, n, choices = guess_of(cell)
    found = [o['data'] for o in measuring['outputs'] if GUESS in o.get('data', {})]
    if len(found) != 1:
        raise SystemExit(f'{source(cell)!r}: the next code cell must end with led.guess(…)')
    asked = dict(what=cell['id'], kind=kind, n=n, choices=choices, **found[0][GUESS])
    said = html.escape(json.dumps(asked, ensure_ascii=False))
    return nbformat.v4.new_markdown_cell(f'<div class="guess" data-asked="{said}"></div>')

SOLUTION = re.compile(r'^\*\*(\d+)\.\*\* ', re.M)

def fold_solutions(text, is_open):
    """Text in which each `**1.** …` begins a folded block, and whether one is open at its end.

    The next solution, a heading or `**To read on` ends the block."""
    out = []
    for line in text.split('\n'):
        begins = SOLUTION.match(line)
        if is_open and (begins or re.match(r'#+ |\*\*To read on', line)):
            out += ['</details>', '']
            is_open = False
        if begins:
            out += ['<details class="solution">', f'<summary>Solution {begins[1]}</summary>', '']
            line, is_open = line[begins.end():], True
        out.append(line)
    return '\n'.join(out), is_open

def opening(text, stem, nb, library):
    "A lesson's first text: its number before the title, a line of links below its question."
    links = [f'{{download}}`the notebook </notebooks/{stem}.ipynb>` to run']
    if page := apidoc.page_of(module_of(nb), library):
        links.append(f'its calls in {{doc}}`the library </{page}>`')
    if stem[0].isdigit():
        text = text.replace('# ', f'# {readme.number_of(stem)} · ', 1)
        links.insert(0, f'about {readme.minutes(nb)} minutes')
    if url := CFG['git_url']:
        links.append(f"[its source]({url}/blob/{CFG['branch']}/nbs/{stem}.ipynb)")
    line = '\n\n{.lesson-links}\n' + ' · '.join(links)
    return re.sub(r'^> .*$', lambda m: m[0] + line, text, count=1, flags=re.M)

EXPLORER = re.compile(r'\[([^][]+)\]\(((?:\.\./)?explorer\.html[^)\s]*)\)')

def played(text):
    """Text whose links to the explorer are HTML, since Sphinx does not know that page.

    One that is a paragraph of its own is of the class that site.js makes a frame of."""
    def link(m): return f'<a href="{html.escape(m[2])}">{m[1]}</a>'
    text = re.sub(rf'^{EXPLORER.pattern}$', lambda m: f'<p class="explorer">{link(m)}</p>', text,
                  flags=re.M)
    return EXPLORER.sub(link, text)

def lesson(stem, nb, bib, library):
    "The notebook as Sphinx shall see it: nothing hidden, no directive line, solutions folded."
    cells, in_solution = [], False
    for k, c in enumerate(nb['cells']):
        if c['cell_type'] == 'markdown':
            text = played(anchored(source(c), bib))
            if in_solution or '\n## Solutions' in '\n' + text:
                text, in_solution = fold_solutions(text, in_solution)
            cells.append(markdown(text))
        elif not {'hide', 'default_exp'} & directives(c).keys():
            cells.append(code_cell(c, in_solution))
            if guess_of(c):
                later = (x for x in nb['cells'][k + 1:] if x['cell_type'] == 'code')
                cells.append(question_box(c, next(later, dict(outputs=[]))))
    if in_solution: cells.append(markdown('</details>'))
    head = next(c for c in cells if c['cell_type'] == 'markdown')
    head['source'] = opening(head['source'], stem, nb, library)
    return {**nb, 'cells': cells}

# ---- references and glossary -----------------------------------------------------------------

def bibliography(text):
    "Entries of a BibTeX file: by key, a dict of its fields."
    entries = re.findall(r'^@\w+\{(\w+),\n(.*?)^\}', text, re.M | re.S)
    return {key: dict(re.findall(r'^\s*(\w+)\s*=\s*\{(.*)\},?$', body, re.M))
            for key, body in entries}

def reference(key, e):
    "One entry as Markdown, with an anchor that lessons link to."
    *others, last = (' '.join(reversed(n.split(', '))) for n in e['author'].split(' and '))
    who = ', '.join(others) + ' and '*bool(others) + last
    places = (e.get(k) for k in ('journal', 'booktitle', 'publisher', 'howpublished'))
    where = next(filter(None, places), '')
    where += f" {e['volume']}" if 'volume' in e else ''
    where += f", {e['pages']}" if 'pages' in e else ''
    arxiv = f"[arXiv {e['eprint']}](https://arxiv.org/abs/{e['eprint']})" if 'eprint' in e else ''
    parts = filter(None, [who, f"*{e['title']}*", where, e.get('year'), arxiv])
    return f'({key.lower()})=\n' + '. '.join(parts).replace('--', '–') + '.\n'

def citations(text, bib):
    "Text whose links to arXiv pages of entries are `](references.bib#KEY)`, which Lab can open."
    keys = {e['eprint']: key for key, e in bib.items() if 'eprint' in e}
    def link(m):
        return f'](references.bib#{keys[m[1]]})' if m[1] in keys else m[0]
    return re.sub(r'\]\(https://arxiv\.org/abs/([\d.]+)\)', link, text)

CITATION = re.compile(r'\]\((?:\.\./)?references\.bib#(\w+)\)')

def anchored(text, bib):
    return CITATION.sub(lambda m: f'](#{m[1].lower()})', citations(text, bib))

def cited(nb, bib):
    "The keys of all entries to which the notebook's prose links."
    return [key for c in nb['cells'] if c['cell_type'] == 'markdown'
            for key in CITATION.findall(citations(source(c), bib))]

def terms(glossary):
    "Every spelling of the glossary, with the first spelling of its entry."
    block = re.search(r'^```\{glossary\}\n(.*?)^```', glossary, re.M | re.S)[1]
    entries = re.findall(r'((?:^(?![ `]).+\n)+)(?:  .*\n|\n)+', block, re.M)
    return {spelling: entry.splitlines()[0] for entry in entries for spelling in entry.splitlines()}

# ---- what Sphinx does while it reads ---------------------------------------------------------

NOT_PROSE = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.download_reference,
             nodes.FixedTextElement, nodes.literal, nodes.math, nodes.table, nodes.raw,
             nodes.block_quote)

def is_prose(node):
    while node := node.parent:
        if isinstance(node, NOT_PROSE): return False
    return True

def link(kind, target, text):
    return addnodes.pending_xref(
        '', nodes.inline(text, text), refdomain='std', reftype=kind, reftarget=target,
        refexplicit=True, refwarn=True)

def link_prose(doctree, doc, spellings, stems):
    "Links in a lesson's prose: a term's first use, each mention of a lesson."
    by_lower = {s.lower(): (s, entry) for s, entry in spellings.items()}
    number = r'(?:(?<=lesson )|(?<=lessons )|(?<=[,)] )|(?<= and ))[01]\d\b'
    longest_first = sorted(map(re.escape, spellings), key=len, reverse=True)
    pattern = re.compile(
        '|'.join([number, *(rf'\b{s}s?\b' for s in longest_first)]), re.I)
    linked = set()
    for node in list(doctree.findall(nodes.Text)):
        if not is_prose(node): continue
        text, new, at = node.astext(), [], 0
        for m in pattern.finditer(text):
            if m[0].isdecimal():
                target = next((s for s in stems if s.startswith(m[0]) and s != doc), None)
                ref = target and link('doc', '/' + target, m[0])
            else:
                word = m[0].lower()
                spelling, entry = by_lower.get(word) or by_lower[word.removesuffix('s')]
                ref = entry not in linked and link('term', spelling, m[0])
                linked.add(entry)
            if ref:
                new += [nodes.Text(text[at:m.start()]), ref]
                at = m.end()
        if new: node.parent.replace(node, [*new, nodes.Text(text[at:])])

# ---- the site --------------------------------------------------------------------------------

def contents(notebooks, others, tasks):
    "The site's tables of contents, which stand in the index."
    howto = [page for page in others if page.startswith('howto/')]
    parts = {'The course': notebooks, 'How to': howto,
             'The library': ['library', *(f'api/{t}' for t in tasks)],
             'To look up': ['summary', 'claims', 'measured', 'glossary', 'references',
                            'genindex']}
    return ''.join(f'```{{toctree}}\n:hidden:\n:caption: {name}\n\n' + '\n'.join(docs) + '\n```\n'
                   for name, docs in parts.items() if docs)

def write_sources(src, root):
    "Everything that Sphinx reads, into the folder `src`; return its notebooks, library, terms."
    nbs = root/'nbs'
    notebooks, others = readme.read_notebooks(nbs), readme.read_pages(nbs)
    bib = bibliography((nbs/'references.bib').read_text(encoding='utf-8'))
    glossary = (nbs/'glossary.md').read_text(encoding='utf-8')
    library = others.pop('library')
    tasks = apidoc.tasks(library)
    for stem, nb in {**notebooks, **others}.items():
        page = lesson(stem, nb, bib, library)
        if stem == 'index': page['cells'].append(markdown(contents(notebooks, others, tasks)))
        write(src/f'{stem}.ipynb', json.dumps(page))
    overview = markdown(apidoc.overview(library))
    write(src/'library.ipynb', json.dumps({**library, 'cells': [overview]}))
    for task, cells in tasks.items():
        cells = [code_cell(c, False) if c['cell_type'] == 'code' else c
                 for c in apidoc.page(cells, notebooks)]
        write(src/'api'/f'{task}.ipynb', json.dumps({**library, 'cells': cells}))
    write(src/'claims.md', readme.claims_page(notebooks))
    entries = '\n'.join(reference(k, e) for k, e in bib.items())
    write(src/'references.md', '# References\n\n' + entries)
    write(src/'glossary.md', anchored(glossary, bib))
    for page in ('summary.md', 'measured.md'): shutil.copy(nbs/page, src)
    shutil.copytree(nbs, src/'notebooks')
    shutil.copytree(nbs/'images', src/'images')
    shutil.copytree(ROOT/'tools'/'static', src/'_static')
    mathjax = Path(find_spec('sphinx-mathjax-offline').submodule_search_locations[0])
    shutil.copy(mathjax/'static'/'mathjax'/'tex-svg.js', src/'_static')
    return {**notebooks, **others}, library, terms(glossary)

# Where the lessons were before version 0.2, and the library's first page.
MOVED = {
    'api/index': 'library',
    '00_core': '01_core', '01_data': '02_data', '02_foundations': '03_foundations',
    '03_why_sqrt5': '04_why_sqrt5', '04_kaiming': '05_kaiming', '05_training': '06_training',
    '06_hooks': '07_hooks', '07_lsuv': '09_lsuv'}

REDIRECT = '''<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Moved</title>
<link rel="canonical" href="{0}"><meta http-equiv="refresh" content="0; url={0}"></head>
<body><article><h1>Moved</h1><p>This page is now <a href="{0}">{1}</a>.</p></article></body>
</html>
'''

def moved(notebooks, library):
    "Old addresses and where they lead; of a module's page, to the library's or to the lesson."
    pages = {f'api/{module_of(nb)}': apidoc.page_of(module_of(nb), library) or stem
             for stem, nb in readme.exporting(notebooks).items()}
    return {old: new for old, new in {**MOVED, **pages}.items()
            if new in (*notebooks, 'library') or new.startswith('api/') and new != old}

def redirect(html, old_and_new):
    "Pages at the old addresses that lead to the new ones."
    for old, new in old_and_new.items():
        if (page := html/f'{old}.html').exists(): continue
        write(page, REDIRECT.format('../'*old.count('/') + f'{new}.html', new))

CONF = dict(
    project=CFG['lib_name'], author=CFG['author'], copyright=CFG['copyright'],
    version=CFG['version'], release=CFG['version'], language='en', root_doc='index',
    extensions=['myst_nb', 'sphinx.ext.mathjax', 'sphinx_copybutton', 'search'],
    exclude_patterns=['notebooks'], templates_path=[str(ROOT/'tools'/'templates')],
    search_by_hand=[ROOT/'nbs'/'explorer.html'],
    smartquotes_action='D', nb_execution_mode='off', nb_render_markdown_format='gfm',
    nb_code_prompt_show='Show the code', nb_code_prompt_hide='Hide the code', nb_merge_streams=True,
    myst_enable_extensions=['dollarmath', 'amsmath', 'colon_fence', 'fieldlist', 'attrs_block'],
    mathjax_path='tex-svg.js', mathjax3_config={'options': {}}, add_module_names=False,
    python_display_short_literal_types=True, toc_object_entries=False,
    html_theme='furo', html_title=CFG['title'], html_static_path=['_static'],
    html_css_files=['site.css'], html_js_files=['site.js', 'guess.js'], html_copy_source=False,
    html_favicon='_static/favicon.svg', html_domain_indices=False, html_show_sourcelink=False,
    html_theme_options=dict(top_of_page_buttons=[]),
    # Of code, not of what it printed; without the prompts.
    copybutton_selector=':not(.output) > div.highlight > pre',
    copybutton_prompt_text=r'>>> |\.\.\. |\$ ', copybutton_prompt_is_regexp=True)

def lightened(page):
    "The page without indentation and comments, which its readers need not load."
    return re.sub(r'^//.*\n', '', re.sub(r'^ +', '', page, flags=re.M), flags=re.M)

def build(out, root=ROOT, work=ROOT/'_build'/'site'):
    "Make the site in `out`; what Sphinx warns of is an error, and leaves `out` as it was."
    shutil.rmtree(work, ignore_errors=True)
    notebooks, library, spellings = write_sources(work/'source', root)
    def change(app, doctree):
        if (doc := app.env.docname) not in notebooks: return
        link_prose(doctree, doc, spellings, list(notebooks))
    with patch_docutils(), docutils_namespace():
        app = Sphinx(work/'source', None, work/'html', work/'doctrees', 'html', CONF, status=None,
                     warning=sys.stderr, warningiserror=True, freshenv=True)
        app.connect('doctree-read', change)
        app.connect('doctree-read', pages.wrap)
        app.connect('html-page-context', pages.finish, priority=900)   # after furo's
        app.build()
    if app.statuscode:
        raise SystemExit(f'Sphinx ended with status {app.statuscode}')
    redirect(work/'html', moved(notebooks, library))
    write(work/'html'/'explorer.html', lightened((root/'nbs'/'explorer.html').read_text('utf-8')))
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(work/'html', out)
    return app

if __name__ == '__main__':
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT/'_site'
    app = build(out)
    print(f'{len(app.env.all_docs)} pages: open {out/"index.html"}')
