"""Search by section: a Sphinx extension that puts sections in the place of Sphinx's index of pages.

Sphinx makes and writes its index as before, with its stop words and its stemmer, but what is in it
are sections, terms of the glossary and public names of the library, each with its text; the browser
counts their words (static/find.js) when somebody turns to a search box (static/search.js)."""
import json, re
from dataclasses import dataclass, field
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx import addnodes
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.search import IndexBuilder

SKIPPED = (nodes.title, nodes.comment, nodes.raw, nodes.math_block, nodes.image, nodes.meta,
           nodes.target, addnodes.index, addnodes.toctree, addnodes.desc_signature)
# What only Sphinx's own search needs, and what of it every page would load.
UNUSED = ('searchtools.js', 'base-stemmer.js', 'english-stemmer.js', 'sphinx_highlight.js',
          'doctools.js')

def words(text): return ' '.join(text.split())

SYMBOLS = dict(alpha='α', beta='β', chi='χ', gamma='γ', kappa='κ', mu='μ', pi='π', sigma='σ',
               xi='ξ', approx='≈', cdot='·', times='×', le='≤', ge='≥', infty='∞', to='→')

def formula(tex):
    "A formula in a line of text, as well as it goes."
    tex = re.sub(r'\\(?:text|mathrm|operatorname)\{([^{}]*)\}', r'\1', tex)
    tex = re.sub(r'\\d?frac\{([^{}]*)\}\{([^{}]*)\}', r'\1/\2', tex)
    tex = re.sub(r'\\sqrt\s*\{?', '√', tex).replace('^2', '²').replace('^3', '³')
    tex = re.sub(r'\\([A-Za-z]+)', lambda m: SYMBOLS.get(m[1], ''), tex)
    return re.sub(r'[{}$\\]|_(?=\w)', '', tex)

def text_of(node):
    "A paragraph's text."
    if isinstance(node, nodes.math): return formula(node.astext())
    if isinstance(node, nodes.Text): return node.astext()
    if isinstance(node, (nodes.raw, nodes.image)): return ''
    return ''.join(map(text_of, node.children))

@dataclass
class Place:
    "What is found: a section or an entry, with its prose and its code."
    anchor: str             # '' for a page
    heading: str
    prose: list = field(default_factory=list)
    code: list = field(default_factory=list)

    def row(self):
        "As the browser gets it: the prose can be shown; of the code, each word once."
        code = dict.fromkeys(re.findall(r'[^\W\d]\w+', ' '.join(self.code)))
        return [self.anchor, words(self.heading), words(' '.join(self.prose)), ' '.join(code)]

class Places(list):
    "Every section, term and documented name of a page, in their order."
    def enter(self, node, anchor, heading, *code):
        self.append(Place(anchor, heading, code=[*code]))
        self.read(node, self[-1])

    def read(self, node, place):
        "Give what stands below the node to the place, or to places of its own."
        for child in node.children:
            classes = child.get('classes', ()) if isinstance(child, nodes.Element) else ()
            if isinstance(child, SKIPPED) or 'lesson-links' in classes: continue
            if isinstance(child, nodes.section):
                anchor = child['ids'][0] if self else ''
                self.enter(child, anchor, text_of(child.next_node(nodes.title)))
            elif isinstance(child, addnodes.desc):
                signature = child.next_node(addnodes.desc_signature)
                anchor = signature['ids'][0]            # such as initnotes.Record.plot_dead
                name = anchor.partition('.')[2]
                if place and name in place.heading.split(', '): self.read(child, place)
                else: self.enter(child, anchor, name, signature.astext())
            elif isinstance(child, nodes.definition_list_item) and child[0]['ids']:
                names = [text_of(t) for t in child.children if isinstance(t, nodes.term)]
                self.enter(child[-1], child[0]['ids'][0], ', '.join(names))
            elif place is None: self.read(child, None)
            elif 'cell_output' in classes or isinstance(child, nodes.literal_block):
                place.code.append(shown(child))
            elif isinstance(child, nodes.TextElement): place.prose.append(text_of(child))
            else: self.read(child, place)

def shown(node):
    "The text of code, or of what a cell shows: tables too, pictures not."
    html = (r.astext() for r in node.findall(nodes.raw) if '<svg' not in r.astext())
    text = (t.astext() for t in node.findall(nodes.Text) if not isinstance(t.parent, nodes.raw))
    return ' '.join([*text, *(BeautifulSoup(h, 'html.parser').get_text(' ') for h in html)])

def whole(path):
    "A page that was written by hand, as one place."
    page = BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')
    for tag in page(['script', 'style', 'svg', 'option', 'noscript']): tag.decompose()
    meta = page.find('meta', attrs=dict(name='description'))
    text = [meta['content'] if meta else '', page.body.get_text(' ') if page.body else '']
    return [['', words(page.title.get_text()), words(' '.join(text)), '']]

class Sections(IndexBuilder):
    "Sphinx's index, of places instead of pages."
    def __init__(self, env, by_hand):
        super().__init__(env, env.config.language, {}, '')
        self.pages = {p.stem: whole(p) for p in map(Path, by_hand) if p.exists()}

    def feed(self, docname, filename, title, doctree):
        places = Places()
        places.read(doctree, None)
        self.pages[docname] = [p.row() for p in places]

    def prune(self, docnames): pass

    def dump(self, stream, format):
        found = json.dumps(sorted(self.pages.items()), ensure_ascii=False, separators=(',', ':'))
        stream.write(f'{format.PREFIX}{found}{format.SUFFIX}')

class Builder(StandaloneHTMLBuilder):
    def prepare_writing(self, docnames):
        super().prepare_writing(docnames)
        self.indexer = Sections(self.env, self.config.search_by_hand)

def lighten(app, page, template, context, doctree):
    "Take Sphinx's own scripts for searching off the page."
    context['script_files'] = [f for f in context['script_files'] if not f.filename
                               or f.filename.rpartition('/')[2] not in UNUSED]

def remove_unused(app, error):
    for name in UNUSED:
        (app.outdir/'_static'/name).unlink(missing_ok=True)

def setup(app):
    app.add_config_value('search_by_hand', [], 'html')      # pages that Sphinx does not make
    app.add_builder(Builder, override=True)
    app.add_js_file('search.js')
    app.add_css_file('search.css')
    app.connect('html-page-context', lighten, priority=950)
    app.connect('build-finished', remove_unused)
    return dict(parallel_read_safe=True, parallel_write_safe=False)
