"""The library's pages, by task, from nbs/library.ipynb and from what the package says of itself.

A page for each `## ` of the notebook. Below the example of each `### ` stands what the source says
of the names in that heading: signature, argument comments, returns, errors, docstring. Sphinx's
own autodoc cannot read docments."""
import ast, importlib, inspect, re, sys, textwrap
from dataclasses import is_dataclass

import initnotes
from fastcore.docments import docments

from instep import code, module_of, nodes, source
from readme import exporting, table

def md(s):
    "Plain text as Markdown: a public name in backticks is a link; what has none is escaped."
    parts = re.split(r'(`[^`]*`)', s or '')
    parts[::2] = [re.sub(r'([\\*_<>\[\]$|~{}])', r'\\\1', p) for p in parts[::2]]
    parts[1::2] = [f'{{py:obj}}`.{p[1:]}' if p[1:-1] in initnotes.__all__ else p
                   for p in parts[1::2]]
    return ''.join(parts)

def plain(prose): return ' '.join(md(prose).split())

def tree_of(mod): return ast.parse(inspect.getsource(mod))

def tree(x): return ast.parse(textwrap.dedent(inspect.getsource(x))).body[0]

def public(x): return getattr(initnotes, getattr(x, '__name__', ''), None) is x

# ---- functions -------------------------------------------------------------------------------

def helpers(node, mod, classes):
    "The private functions of the module that a name or attribute may mean."
    name = getattr(node, 'id', None) or getattr(node, 'attr', None) or ''
    if not name.startswith('_') or name.startswith('__'): return
    for owner in [mod] if isinstance(node, ast.Name) else classes:
        f = vars(owner).get(name)
        if inspect.isfunction(f) and f.__module__ == mod.__name__: yield f

def errors(x):
    "The errors that `x` raises, by itself or through private helpers of its module."
    mod, found, seen, queue = sys.modules[x.__module__], set(), set(), [x]
    classes = [c for c in vars(mod).values()
               if isinstance(c, type) and c.__module__ == mod.__name__]
    while queue:
        f = queue.pop()
        if f in seen: continue
        seen.add(f)
        for node in ast.walk(tree(f)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.add(ast.unparse(node.exc.func))
            queue += helpers(node, mod, classes)
    return [e for name in sorted(found) if isinstance(e := getattr(mod, name, None), type)]

def signature(node):
    "Arguments as written, without their types, which the list below has."
    a = ast.parse(ast.unparse(node)).body[0].args
    for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]:
        if arg: arg.annotation = None
    a.args = a.args[1:] if a.args and a.args[0].arg in ('self', 'cls') else a.args
    return ast.unparse(a)

def kind_of(annotation): return f"`{ast.unparse(annotation)}`".replace("'", '')

def arguments(f, node):
    "Field list of a function's arguments and of what it returns, but for the type."
    a, docs = node.args, docments(f, full=True)
    for arg in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]:
        if arg is None or arg.arg in ('self', 'cls') or arg.arg not in docs: continue
        own_line = arg.lineno > node.lineno     # else the comment is one about the whole line
        comment = docs[arg.arg].docment if own_line else None
        if comment or arg.annotation: yield f':param {arg.arg}: {plain(comment)}'
        if arg.annotation: yield f':type {arg.arg}: {kind_of(arg.annotation)}'
    if what := docs['return'].docment: yield f':returns: {plain(what)}'

def paragraphs(x):
    "Of a docstring; one that begins with names and a colon is a list of such."
    for p in inspect.cleandoc(x.__doc__ or '').split('\n\n'):
        before, *items = re.split(r'^(?=\w+(?:, \w+)*: )', p, flags=re.M)
        yield plain(p) + '\n' if before else '\n'.join(f'- {plain(i)}' for i in items) + '\n'

def described(f, fields):
    "What stands below a signature: what it does, each argument, and what else there is to know."
    summary, *more = paragraphs(f)
    yield from ('', summary, *fields)
    for e in errors(f):
        said = (e.__doc__ or '').partition(':')[0].rstrip('.')
        yield f':raises {e.__name__}: {plain(said)}'
    yield from ('', *more)

def function(f, name, kind='function'):
    node = tree(f)
    returns = f' -> {kind_of(node.returns)[1:-1]}' if node.returns else ''
    return directive(f'py:{kind}', f'{name}({signature(node)}){returns}',
                     described(f, arguments(f, node)))

def directive(kind, argument, lines):
    "A MyST directive, in a fence longer than any in its content."
    content = '\n'.join(lines)
    inner = map(len, re.findall(r'^ *(`{3,})', content, re.M))
    fence = '`'*(1 + max(inner, default=2))
    return f'{fence}{{{kind}}} {argument}\n{content}\n{fence}\n'

# ---- classes and constants -------------------------------------------------------------------

def fields(c):
    "Signature of a dataclass or named tuple, and the field list: arguments, then other fields."
    listed, args = [], []
    src = textwrap.dedent(inspect.getsource(c)).splitlines()
    for n in (n for n in tree(c).body if isinstance(n, ast.AnnAssign)):
        name, given = n.target.id, 'init=False' not in ast.unparse(n)
        if given: args.append(name + (f'={ast.unparse(n.value)}' if n.value else ''))
        comment = src[n.end_lineno - 1].encode()[n.end_col_offset:].decode().strip(' #')
        what, of_type = ('param', 'type') if given else ('ivar', 'vartype')
        listed += [f':{what} {name}: {plain(comment)}',
                   f':{of_type} {name}: {kind_of(n.annotation)}']
    return ', '.join(args), listed

def ancestry(c):
    "A class with those of its bases that have no entry of their own; and the first base that has."
    own = [c]
    for base in c.__mro__[1:]:
        if public(base) or not base.__module__.startswith('initnotes'): return own, base
        own.append(base)

def members(c):
    "The entries of a class's public properties and methods that its base does not have."
    own, base = ancestry(c)
    for name, f in {k: f for b in reversed(own) for k, f in vars(b).items()}.items():
        f = getattr(f, '__func__', f)
        if name.startswith('_') or hasattr(base, name) or not f.__doc__: continue
        if isinstance(f, property): yield directive('py:property', name, ['', plain(f.__doc__)])
        elif inspect.isfunction(f): yield function(f, name, 'method')

def klass(c, name):
    init, args, listed = vars(c).get('__init__'), '', []
    if issubclass(c, initnotes.Report): pass    # nobody makes one of these by hand
    elif is_dataclass(c) or hasattr(c, '_fields'): args, listed = fields(c)
    elif inspect.isfunction(init):
        args, listed = signature(tree(init)), arguments(init, tree(init))
    base = ancestry(c)[1]
    kind = plain(f'Kind of `{base.__name__}`.') if base not in (object, tuple) else ''
    return directive('py:exception' if issubclass(c, BaseException) else 'py:class',
                     f'{name}({args})' if args else name,
                     ['', kind, '', *paragraphs(c), *listed, '', *members(c)])

def constant(name, mod):
    "A constant, and the comment behind it."
    node = next(n for n in tree_of(mod).body
                if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', None) == name)
    comment = inspect.getsource(mod).splitlines()[node.end_lineno - 1].partition('  # ')[2]
    return directive('py:data', name, ['', plain(comment)])

def home(name):
    "The module that defines a public name; of a constant, the one that it is imported from."
    x = inspect.unwrap(getattr(initnotes, name))
    if isinstance(x, type) or inspect.isfunction(x): return sys.modules[x.__module__]
    imports = (n for n in tree_of(initnotes).body if isinstance(n, ast.ImportFrom))
    found, = (n.module for n in imports if name in [a.name for a in n.names])
    return importlib.import_module(f'initnotes.{found}')

def record(f):
    "The class in what `f` returns that is the package's, and has no entry of its own."
    returns = tree(f).returns
    for name in re.findall(r'\w+', ast.unparse(returns) if returns else ''):
        c = vars(sys.modules[f.__module__]).get(name)
        if isinstance(c, type) and c.__module__.startswith('initnotes') and not public(c): return c

def entry(name):
    "What the package says of one of its public names, and of the record that it returns."
    x = inspect.unwrap(getattr(initnotes, name))
    if isinstance(x, type): return klass(x, name)
    if not inspect.isfunction(x): return constant(name, home(name))
    if not x.__module__.startswith('initnotes'):
        return directive('py:function', f'{name}({signature(tree(x))})',
                         ['', f"PyTorch's own `{x.__module__}.{x.__name__}`."])
    made = record(x)
    return function(x, name) + (klass(made, made.__name__) if made else '')

# ---- pages -----------------------------------------------------------------------------------

HEADING = re.compile(r'^### (`.*`)$', re.M)

def names(cell):
    "The public names in a cell's heading: the first has the example, the others come with it."
    heading = HEADING.search(source(cell)) if cell['cell_type'] == 'markdown' else None
    return re.findall(r'`(\w+)`', heading[1]) if heading else []

def tasks(library):
    "The notebook's cells by task: a list for each `## `, by that heading's first word."
    found = {}
    for c in library['cells']:
        if m := c['cell_type'] == 'markdown' and re.match(r'## (\w+)', source(c)):
            cells = found[m[1].lower()] = []
        if found: cells.append(c)
    return found

def entries(cells):
    "Of each heading among these cells: its names, its text, and its example."
    return [(names(c), c, example) for c, example in zip(cells, cells[1:]) if names(c)]

def explained(name, notebooks):
    "A line of links to the lesson and the workshop of a public name."
    stem = {f'initnotes.{module_of(nb)}': s for s, nb in exporting(notebooks).items()}.get(
        home(name).__name__)
    if not stem: return ''
    lesson = next((s for s in notebooks if re.match(rf'{stem[:2]}_', s)), stem)
    return 'Explained in ' + ' and '.join(f'{{doc}}`/{s}`' for s in dict.fromkeys((lesson, stem)))

def markdown(cell, text): return {**cell, 'cell_type': 'markdown', 'source': text}

def page(cells, notebooks):
    "A task's cells as a page: one level up, and below each example what the source says."
    out, due = [], []
    for c in cells:
        if c['cell_type'] == 'markdown':
            due = names(c)
            anchor = f'(ini-{due[0]})=\n' if due else ''
            text = HEADING.sub(f'## `{due[0]}`' if due else '', source(c))
            out.append(markdown(c, anchor + re.sub(r'^## (?!`)', '# ', text)))
            continue
        out.append(c)
        said = '\n'.join([WITHIN, *map(entry, due), explained(due[0], notebooks)])
        out.append(markdown(dict(id=f"{c['id']}-entry", metadata={}), said))
    return out

WITHIN = '```{py:currentmodule} initnotes\n```\n'

def call(name, cell):
    "What the first page shows of an example: where it first calls, sets, or mentions `ini.NAME`."
    def meant(node): return isinstance(node, ast.Attribute) and node.attr == name
    found = [n for n in nodes(cell) if isinstance(n, ast.Call) and meant(n.func)
             or isinstance(n, ast.Assign) and meant(getattr(n.targets[0], 'value', None))]
    if not found: return next(l.strip() for l in code(cell).splitlines() if f'ini.{name}' in l)
    first = min(found, key=lambda n: n.lineno)
    return ' '.join(ast.get_source_segment(source(cell), first).split())

def row(entry):
    "A line of the first page: the heading's bold sentence, and the call."
    (name, *_), text, example = entry
    want = re.search(r'\*\*(\w)(.*?)\.\*\*', source(text), re.S)
    return f'{want[1].lower()}{want[2]} | [`{call(name, example)}`](#ini-{name})'

def overview(library):
    "The first page: what a reader wants to do, and the call that does it."
    head, by_task = source(library['cells'][0]), tasks(library)
    wanted, text = 'I want to … | the call', [head, '']
    text += [table(wanted, [row(entries(cells)[0]) for cells in by_task.values()]), '']
    for task, cells in by_task.items():
        title = source(cells[0]).splitlines()[0][3:]
        text += [f'## {title}', '', f'{{doc}}`Examples, arguments and errors <api/{task}>`', '',
                 table(wanted, map(row, entries(cells))), '']
    return '\n'.join(text)

def page_of(module, library):
    "The page with the first public name of a module of the package, or None."
    for task, cells in tasks(library).items():
        if any(home(n).__name__ == f'initnotes.{module}' for ns, *_ in entries(cells) for n in ns):
            return f'api/{task}'
