"What is changed on each page of the site after Sphinx has made it: sidebar, head and images."
import html, re

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.util.images import get_image_size

# ---- the sidebar -----------------------------------------------------------------------------

CURRENT = re.compile(r'(<li class="[^"]*\bcurrent-page\b[^"]*"><a )(.*?</a>)', re.S)
ON_THIS_PAGE = (
    '<p class="caption" role="heading"><span class="caption-text">On this page</span></p>')

def sections(toc):
    "The sections of a page as a list of links; furo's script marks the one that is being read."
    found = BeautifulSoup(toc or '', 'html.parser').select_one('li > ul')
    return f'<div class="toc-tree toc-scroll">{found}</div>' if found else ''

def sidebar(context):
    "The page that is being read says so, and has its sections below it, at every width."
    tree, here = context.get('furo_navigation_tree', ''), sections(context.get('toc'))
    tree, n = CURRENT.subn(lambda m: f'{m[1]}aria-current="page" {m[2]}{here}', tree)
    if here and not n:      # the index has no entry of its own
        tree = ON_THIS_PAGE + here + tree
    # Furo's captions say that they are headings, but not of which level.
    tree = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    context |= dict(furo_navigation_tree=tree, furo_hide_toc=True)

# ---- the head --------------------------------------------------------------------------------

# The pages that Sphinx writes by itself.
MADE = dict(search=('Search', 'Search the course and the library.'),
            genindex=('Index', 'Every name of the library, and where it is described.'))
GROUNDS = dict(light='#ffffff', dark='#131416')      # furo's

def shortened(text, most=200):
    "The text on one line, cut between two words where it is long."
    text = ' '.join(text.split())
    return text if len(text) <= most else text[:most].rpartition(' ')[0].rstrip('.,;:') + ' …'

def about(context, doctree):
    "A page's title, and what stands first below it: a lesson's question, or a paragraph."
    title = BeautifulSoup(context['title'], 'html.parser').get_text()
    prose = (n.astext() for n in doctree.findall(nodes.paragraph)
             if not isinstance(n.parent, nodes.entry))     # of a table
    return title, shortened(next(prose, f'{title}, of a course on how neural networks start.'))

def head(page, context, doctree):
    "What a list of results, or a message with a link, shows of the page; the color of its frame."
    title, said = MADE.get(page) or about(context, doctree)
    tags = [f'<meta {kind}="{name}" content="{html.escape(text)}">' for kind, name, text in (
        ('name', 'description', said), ('property', 'og:type', 'article'),
        ('property', 'og:title', title), ('property', 'og:description', said))]
    tags += [f'<meta name="theme-color" content="{color}" media="(prefers-color-scheme: {theme})">'
             for theme, color in GROUNDS.items()]
    context['metatags'] = '\n'.join(tags)

# ---- what a page shows -----------------------------------------------------------------------

def wrap(app, doctree):
    "What a cell printed is marked as sentences, which may be wrapped, where it has no columns."
    for block in doctree.findall(nodes.literal_block):
        if 'output' in block['classes'] and not re.search(r'\S {2,}\S', block.astext()):
            block['classes'].append('prose')

IMAGE = re.compile(r'(<img [^>]*?)(src="(?:\.\./)*_images/([^"]+)")')

def images(app, context):
    "Each image says its size, so that nothing moves when it comes; it comes when it is near."
    files = {name: app.srcdir/uri for uri, (_, name) in app.env.images.items()}
    def sized(m):
        width, height = get_image_size(files[m[3]])
        return f'{m[1]}width="{width}" height="{height}" loading="lazy" decoding="async" {m[2]}'
    if 'body' in context: context['body'] = IMAGE.sub(sized, context['body'])

def finish(app, page, template, context, doctree):
    sidebar(context)
    head(page, context, doctree)
    images(app, context)
