"""The library's pages, in MyST Markdown, from what the lessons export.

Signature, argument comments, returns, errors, docstring, and the first lines of the lesson that use
it. Sphinx's own autodoc cannot read docments."""
import ast, importlib, inspect, re, sys, textwrap
from dataclasses import is_dataclass

from fastcore.docments import docments

from instep import code, directives, module_of, nodes
from readme import exporting, number_of, table

def md(s):
    "Plain text as Markdown: what stands between backticks is kept, all else is escaped."
    parts = re.split(r'(`[^`]*`)', s or '')
    parts[::2] = [re.sub(r'([\\*_<>\[\]$|~{}])', r'\\\1', p) for p in parts[::2]]
    return ''.join(parts)

def plain(prose): return ' '.join(md(prose).split())

def tree(x): return ast.parse(textwrap.dedent(inspect.getsource(x))).body[0]

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

def arguments(f, node):
    "Field list of a function's arguments and of what it returns."
    a, docs = node.args, docments(f, full=True)
    for arg in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]:
        if arg is None or arg.arg in ('self', 'cls') or arg.arg not in docs:
            continue
        own_line = arg.lineno > node.lineno     # else the comment is one about the whole line
        comment = docs[arg.arg].docment if own_line else None
        if comment or arg.annotation:
            yield f':param {arg.arg}: {plain(comment)}'
        if arg.annotation:
            yield f':type {arg.arg}: `{ast.unparse(arg.annotation)}`'
    if what := docs['return'].docment: yield f':returns: {plain(what)}'
    if node.returns and ast.unparse(node.returns) != 'None':
        yield f':rtype: `{ast.unparse(node.returns)}`'

def body(x, fields, shown=None):
    "What stands below a signature."
    doc = inspect.cleandoc(x.__doc__ or '')
    yield from ('', *(plain(p) + '\n' for p in doc.split('\n\n')), *fields)
    for e in errors(x) if inspect.isfunction(x) else ():
        summary = (e.__doc__ or '').partition(':')[0].rstrip('.')
        yield f':raises ~{e.__module__}.{e.__name__}: {plain(summary)}'
    if shown: yield from ('', 'In the lesson:', '', f'```python\n{shown}\n```')

def function(f, name, kind='function', shown=None):
    node = tree(f)
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    return directive(f'py:{kind}', f'{name}({signature(node)}){returns}',
                     body(f, arguments(f, node), shown))

def directive(kind, argument, lines):
    "A MyST directive, in a fence longer than any in its content."
    content = '\n'.join(lines)
    inner = map(len, re.findall(r'^ *(`{3,})', content, re.M))
    fence = '`'*(1 + max(inner, default=2))
    return f'{fence}{{{kind}}} {argument}\n{content}\n{fence}\n'

# ---- classes ---------------------------------------------------------------------------------

def fields(c):
    "Signature of a dataclass or named tuple, and the field list of its fields."
    listed, args = [], []
    src = textwrap.dedent(inspect.getsource(c)).splitlines()
    for n in (n for n in tree(c).body if isinstance(n, ast.AnnAssign)):
        args.append(n.target.id + (f'={ast.unparse(n.value)}' if n.value else ''))
        comment = src[n.end_lineno - 1].encode()[n.end_col_offset:].decode().strip(' #')
        listed += [f':param {n.target.id}: {plain(comment)}',
                   f':type {n.target.id}: `{ast.unparse(n.annotation)}`']
    return ', '.join(args), listed

def members(c):
    "The entries of a class's public properties and methods, and of a documented `__call__`."
    for name, f in vars(c).items():
        f = getattr(f, '__func__', f)
        call = (name == '__call__' and inspect.isfunction(f)
                and any(d.docment for d in docments(f, full=True).values()))
        if name.startswith('_') and not call: continue
        if isinstance(f, property):
            yield directive('py:property', name, ['', plain(f.__doc__)])
        elif inspect.isfunction(f) and (f.__doc__ or call):
            yield function(f, name, 'method')

def klass(c, name, shown=None):
    init, args, listed = vars(c).get('__init__'), '', []
    if is_dataclass(c) or hasattr(c, '_fields'): args, listed = fields(c)
    elif inspect.isfunction(init):
        args, listed = signature(tree(init)), arguments(init, tree(init))
    base = c.__bases__[0]
    kind = f'Kind of `{base.__name__}`.' if base not in (object, tuple) else ''
    return directive('py:exception' if issubclass(c, BaseException) else 'py:class',
                     f'{name}({args})' if args else name,
                     ['', kind, *body(c, listed, shown), '', *members(c)])

# ---- constants, examples, pages --------------------------------------------------------------

def assigned(name, mod):
    "The value of a constant as its source says it, and the comment behind it."
    src = inspect.getsource(mod)
    node = next(n for n in ast.parse(src).body
                if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', None) == name)
    behind = src.splitlines()[node.end_lineno - 1].partition('  # ')[2]
    return ' '.join(ast.get_source_segment(src, node.value).split()), behind

def constant(name, mod):
    value, comment = assigned(name, mod)
    return directive('py:data', name, [f':value: {value}', '', plain(comment)])

def example(name, nb):
    "The first visible cell after its export that uses `name`, and nothing where there is none."
    exported = False
    for c in nb['cells']:
        said = directives(c)
        if c['cell_type'] != 'code' or 'hide' in said: continue
        if 'export' in said:
            exported |= bool(re.search(rf'\b(def|class) {name}\b|^{name} *=', code(c), re.M))
        elif exported and any(getattr(n, 'id', None) == name for n in nodes(c)):
            return code(c).strip()

def entry(name, mod, shown):
    x = getattr(mod, name)
    if isinstance(x, type): return klass(x, name, shown)
    if not inspect.isfunction(x): x = inspect.unwrap(x)     # one whose results are kept
    if inspect.isfunction(x) and x.__name__ == name:
        return function(x, name, shown=shown)
    return constant(name, mod)

def own(mod):
    "The public names that the module itself defines; some say also what was theirs and has moved."
    return [name for name in mod.__all__
            if getattr(getattr(mod, name), '__module__', mod.__name__) == mod.__name__]

def page(stem, nb):
    "The Markdown page of the module that the notebook `stem` exports."
    importlib.import_module('initnotes.all')    # a later lesson may patch an earlier one's class
    mod = importlib.import_module(f'initnotes.{module_of(nb)}')
    return '\n'.join([
        f'# {mod.__name__}', '', f'> {md(inspect.cleandoc(mod.__doc__))}', '',
        f'From {{doc}}`/{stem}`, where each of these is explained, tried and tested.', '',
        f'```{{py:module}} {mod.__name__}\n```', '',
        *(entry(name, mod, example(name, nb)) for name in own(mod))])

def overview(notebooks):
    "The library in one table: what `import initnotes as ini` offers of these, and of PyTorch."
    import initnotes
    stems = {f'initnotes.{module_of(nb)}': stem for stem, nb in exporting(notebooks).items()}
    modules = {m: importlib.import_module(m) for m in stems}
    rows = []
    for name in initnotes.__all__:
        x = getattr(initnotes, name)
        home = getattr(x, '__module__', None) or next(   # a constant does not say
            (m for m, mod in modules.items() if name in mod.__all__), 'initnotes.')
        ours = home.startswith('initnotes')
        if ours and home not in modules: continue
        if hasattr(x, '__module__'):
            summary = md(inspect.cleandoc(x.__doc__).splitlines()[0])
        else: summary = md(assigned(name, modules[home])[1])
        module = home.partition('.')[2]
        rows.append(f'{{py:obj}}`{name} <{home}.{name}>` | {summary} | {{doc}}`{module}` | '
                    + taught(stems[home], notebooks) if ours
                    else f'`{name}` | {summary} | PyTorch’s own | ')
    return table('`ini.` | what it does | module | lesson, workshop', rows)

def taught(stem, notebooks):
    "Links to the lesson and the workshop of what the notebook `stem` exports."
    lesson = next((s for s in notebooks if re.match(rf'{stem[:2]}_', s)), stem)
    return ', '.join(f'{{doc}}`{number_of(s)} </{s}>`' for s in dict.fromkeys((lesson, stem)))
