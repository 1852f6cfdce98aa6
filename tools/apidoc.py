"""The library's pages, in MyST Markdown, from what the lessons export: signature, argument comments, returns, errors,
docstring, and the first lines of the lesson that use it. Sphinx's own autodoc cannot read docments."""
import ast, importlib, inspect, re, sys, textwrap
from dataclasses import is_dataclass

from fastcore.docments import docments

from instep import module_of, source

def md(s):
    "Plain text as Markdown: what stands between backticks is kept, all else is escaped."
    return ''.join(part if k % 2 else re.sub(r'([\\*_<>\[\]$|~{}])', r'\\\1', part) for k, part in enumerate(re.split(r'(`[^`]*`)', s or '')))

def plain(prose): return ' '.join(md(prose).split())

def tree(x): return ast.parse(textwrap.dedent(inspect.getsource(x))).body[0]

def errors(x):
    "Names of the errors that `x` raises, by itself or through private helpers of its module."
    mod, found, seen, queue = sys.modules[x.__module__], set(), set(), [x]
    classes = [c for c in vars(mod).values() if isinstance(c, type) and c.__module__ == mod.__name__]
    while queue:
        f = queue.pop()
        if id(f) in seen: continue
        seen.add(id(f))
        for node in ast.walk(tree(f)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call): found.add(ast.unparse(node.exc.func))
            name = getattr(node, 'id', None) or getattr(node, 'attr', None) or ''
            if not name.startswith('_') or name.startswith('__'): continue
            queue += [g for o in ([mod] if isinstance(node, ast.Name) else classes) if inspect.isfunction(g := vars(o).get(name)) and g.__module__ == mod.__name__]
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
        if arg is None or arg.arg in ('self', 'cls') or arg.arg not in docs: continue
        own_line = arg.lineno > node.lineno     # else the comment is one about the whole line
        if not (own_line and docs[arg.arg].docment) and not arg.annotation: continue
        yield f':param {arg.arg}: {plain(docs[arg.arg].docment) if own_line else ""}'
        if arg.annotation: yield f':type {arg.arg}: `{ast.unparse(arg.annotation)}`'
    if what := docs['return'].docment: yield f':returns: {plain(what)}'
    if node.returns and ast.unparse(node.returns) != 'None': yield f':rtype: `{ast.unparse(node.returns)}`'

def body(x, fields, shown=None):
    "What stands below a signature."
    doc = inspect.cleandoc(x.__doc__ or '')
    yield from ('', *(plain(p) + '\n' for p in doc.split('\n\n')), *fields)
    for e in errors(x) if inspect.isfunction(x) else (): yield f":raises ~{e.__module__}.{e.__name__}: {plain((e.__doc__ or '').partition(':')[0].rstrip('.'))}"
    if shown: yield from ('', 'In the lesson:', '', f'```python\n{shown}\n```')

def function(f, name, kind='function', shown=None):
    node = tree(f)
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    return directive(f'py:{kind}', f'{name}({signature(node)}){returns}', body(f, arguments(f, node), shown))

def directive(kind, argument, lines):
    content = '\n'.join(lines)
    fence = '`'*max(3, 1 + max((len(m) for m in re.findall(r'^ *(`{3,})', content, re.M)), default=0))
    return f'{fence}{{{kind}}} {argument}\n{content}\n{fence}\n'

def klass(c, name, shown=None):
    node, src = tree(c), textwrap.dedent(inspect.getsource(c)).splitlines()
    init, args, listed = vars(c).get('__init__'), '', []
    if is_dataclass(c) or hasattr(c, '_fields'):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        args = ', '.join(n.target.id + (f'={ast.unparse(n.value)}' if n.value else '') for n in fields)
        for n in fields:
            comment = src[n.end_lineno - 1].encode()[n.end_col_offset:].decode().strip(' #')
            listed += [f':param {n.target.id}: {plain(comment)}', f':type {n.target.id}: `{ast.unparse(n.annotation)}`']
    elif inspect.isfunction(init): args, listed = signature(tree(init)), list(arguments(init, tree(init)))
    base = c.__bases__[0]
    lines = ['', f'Kind of `{base.__name__}`.' if base not in (object, tuple) else '', *body(c, listed, shown), '']
    for member, f in vars(c).items():
        f = getattr(f, '__func__', f)
        call = member == '__call__' and inspect.isfunction(f) and any(d.docment for d in docments(f, full=True).values())
        if member.startswith('_') and not call: continue
        if isinstance(f, property): lines.append(directive('py:property', member, ['', plain(f.__doc__)]))
        elif inspect.isfunction(f) and (f.__doc__ or call): lines.append(function(f, member, 'method'))
    return directive('py:exception' if issubclass(c, BaseException) else 'py:class', f'{name}({args})' if args else name, lines)

def example(name, nb):
    "The first visible cell after its export that uses `name`, and nothing where the lesson has none."
    exported = False
    for c in nb['cells']:
        src = source(c)
        if c['cell_type'] != 'code' or re.search(r'^#\|\s*hide\b', src, re.M): continue
        code = '\n'.join(l for l in src.splitlines() if not l.startswith('#|')).strip()
        if re.search(r'^#\|\s*export', src, re.M): exported |= bool(re.search(rf'\b(def|class) {name}\b|^{name} *=', code, re.M))
        elif exported and any(getattr(n, 'id', None) == name for n in ast.walk(ast.parse(code))): return code

def assigned(name, mod):
    "The value of a constant as its source says it, and the comment behind it."
    code = inspect.getsource(mod)
    node = next(n for n in ast.parse(code).body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', None) == name)
    behind = code.splitlines()[node.end_lineno - 1].partition('  # ')[2]
    return ' '.join(ast.get_source_segment(code, node.value).split()), behind

def constant(name, mod):
    value, comment = assigned(name, mod)
    return directive('py:data', name, [f':value: {value}', '', plain(comment)])

def page(stem, nb):
    "The Markdown page of the module that the notebook `stem` exports."
    importlib.import_module('initnotes.all')    # a later lesson may patch a method into an earlier one's class
    mod = importlib.import_module(f'initnotes.{module_of(nb)}')
    out = [f'# {mod.__name__}', '', f'> {md(inspect.cleandoc(mod.__doc__))}', '', f'From {{doc}}`/{stem}`, where each of these is explained, tried and tested.', '',
           f'```{{py:module}} {mod.__name__}\n```', '']
    for name in mod.__all__:
        x, shown = getattr(mod, name), example(name, nb)
        out.append(klass(x, name, shown) if isinstance(x, type) else function(x, name, shown=shown) if inspect.isfunction(x) and x.__name__ == name else constant(name, mod))
    return '\n'.join(out)

def overview(notebooks):
    "The library in one table: what `import initnotes as ini` offers of these notebooks' modules, and of PyTorch."
    import initnotes
    modules = {m: importlib.import_module(m) for m in (f'initnotes.{module_of(nb)}' for nb in notebooks.values())}
    rows = ['| `ini.` | what it does | module |', '|---|---|---|']
    for name in initnotes.__all__:
        x = getattr(initnotes, name)
        home = getattr(x, '__module__', None) or next((m for m, mod in modules.items() if name in mod.__all__), 'initnotes.')   # a constant does not say
        ours = home.startswith('initnotes')
        if ours and home not in modules: continue
        summary = inspect.cleandoc(x.__doc__).splitlines()[0] if hasattr(x, '__module__') else assigned(name, modules[home])[1]
        rows.append(f"| {{py:obj}}`{name} <{home}.{name}>` | {md(summary)} | {{doc}}`{home.partition('.')[2]}` |" if ours
                    else f'| `{name}` | {md(summary)} | PyTorch’s own |')
    return '\n'.join(rows)
