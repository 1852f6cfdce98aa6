"""Search by section: a Sphinx extension that puts sections in the place of Sphinx's index of pages.

Sphinx makes and writes its index as before, with its stop words and its stemmer, but what is in it
are sections, terms of the glossary and public names of the library, each with its text; the browser
counts their words (static/search.js) when somebody begins to type."""
import json, re

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx import addnodes
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.search import IndexBuilder

SKIPPED = (nodes.title, nodes.comment, nodes.raw, nodes.math_block, nodes.image, nodes.meta,
           nodes.target, addnodes.index, addnodes.toctree, addnodes.desc_signature)
# What only Sphinx's own search needs, and what of it every page would load.
UNUSED = ('searchtools.js', 'base-stemmer.js', 'english-stemmer.js', 'sphinx_highlight.js',
          'doctools.js', 'documentation_options.js')

def words(text): return ' '.join(text.split())

GREEK = dict(alpha='α', beta='β', chi='χ', gamma='γ', kappa='κ', lambda_='λ', mu='μ', pi='π',
             sigma='σ', xi='ξ', approx='≈', cdot='·', times='×', le='≤', ge='≥', infty='∞')

def formula(tex):
    "A formula in a line of text, as well as it goes."
    tex = re.sub(r'\\sqrt\s*\{?(\w+)\}?', r'√\1', tex)
    tex = re.sub(r'\\([a-z]+)', lambda m: GREEK.get(m[1], ''), tex)
    return re.sub(r'[{}$\\]|_(?=\w)', '', tex)

def text_of(node):
    "A paragraph's text."
    if isinstance(node, nodes.math): return formula(node.astext())
    if isinstance(node, nodes.Text): return node.astext()
    if isinstance(node, (nodes.raw, nodes.image)): return ''
    return ''.join(map(text_of, node.children))

class Place:
    "What is found: a section or an entry; its prose to be shown, the words of its code."
    def __init__(self, anchor, heading):
        self.anchor, self.heading, self.prose, self.code = anchor, words(heading), [], []

    def entry(self):
        code = dict.fromkeys(re.findall(r'[^\W\d]\w+', ' '.join(self.code)))
        return [self.anchor, self.heading, words(' '.join(self.prose)), ' '.join(code)]

def places(doctree):
    "Every section, glossary term and documented name of a page, in their order."
    found = []
    def enter(node, anchor, heading):
        found.append(Place(anchor, heading))
        visit(node, found[-1])
    def visit(node, place):
        for child in node.children:
            if isinstance(child, nodes.section):
                title = text_of(child.next_node(nodes.title))
                enter(child, child['ids'][0] if found else '', title)
            elif isinstance(child, nodes.definition_list_item) and child.next_node(nodes.term)['ids']:
                terms = list(child.findall(nodes.term))
                enter(child[-1], terms[0]['ids'][0], ', '.join(map(text_of, terms)))
            elif isinstance(child, addnodes.desc):
                signature = child.next_node(addnodes.desc_signature)
                enter(child, signature['ids'][0], signature['ids'][0].split('.', 2)[-1])
                found[-1].code.append(signature.astext())
            elif isinstance(child, SKIPPED) or 'lesson-links' in child.get('classes', ()):
                pass
            elif 'cell_output' in child.get('classes', ()) or isinstance(child, nodes.literal_block):
                if place: place.code.append(shown(child))
            elif isinstance(child, nodes.TextElement):
                if place: place.prose.append(text_of(child))
            else: visit(child, place)
    visit(doctree, None)
    return [p.entry() for p in found]

def shown(node):
    "The text of code, or of what a cell shows: tables too."
    tables = (BeautifulSoup(t.astext(), 'html.parser').get_text(' ')
              for t in node.findall(nodes.raw) if '<svg' not in t.astext())
    return ' '.join([node.astext() if isinstance(node, nodes.literal_block) else '', *tables,
                     *(t.astext() for t in node.findall(nodes.Text)
                       if not isinstance(t.parent, nodes.raw))])

class Sections(IndexBuilder):
    "Sphinx's index, of places instead of pages."
    def __init__(self, *args):
        super().__init__(*args)
        self.pages = {}

    def feed(self, docname, filename, title, doctree):
        self.pages[docname] = places(doctree)

    def prune(self, docnames): pass

    def dump(self, stream, format):
        found = json.dumps(sorted(self.pages.items()), ensure_ascii=False, separators=(',', ':'))
        stream.write(f'{format.PREFIX}{found}{format.SUFFIX}')

class Builder(StandaloneHTMLBuilder):
    def prepare_writing(self, docnames):
        super().prepare_writing(docnames)
        self.indexer = Sections(self.env, self.config.language, {}, '')

def lighten(app, page, template, context, doctree):
    "Take Sphinx's own scripts for searching off the page."
    context['script_files'] = [f for f in context['script_files'] if not f.filename
                               or f.filename.rpartition('/')[2] not in UNUSED]

def remove_unused(app, error):
    for name in UNUSED:
        (app.outdir/'_static'/name).unlink(missing_ok=True)

def setup(app):
    app.add_builder(Builder, override=True)
    app.add_js_file('search.js')
    app.add_css_file('search.css')
    app.connect('html-page-context', lighten, priority=950)
    app.connect('build-finished', remove_unused)
    return dict(parallel_read_safe=True, parallel_write_safe=False)
