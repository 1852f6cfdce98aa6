"""`audit` beside five public tools on the same labelled pairs, and its cost over depth.

The pairs are those of tests/audit_cases.py: a faulty net and its healthy twin, which differ in one
thing. One rule for all tools, initnotes too:

- An *alarm* is what a tool itself calls a warning or worse (WARN, ERROR, CRITICAL, ISSUES FOUND, a
  failed assertion). Remarks on speed, hardware and the optimizer's settings are none.
- A fault is *found* if the faulty net raises an alarm, of a kind and at a layer, that its twin does
  not raise. Whether it names the fault is not asked (the tests ask that of initnotes).
- A *false alarm* is a twin with any alarm.
- Faults that do not keep a net from training (initnotes calls them info) are counted apart, by
  anything that a tool reports, of whatever severity.
- A tool that raises an exception has found nothing.

Each is used as its README says: torch-audit through one training step; torchdiag's four checks;
neural_net_checklist's assertions but the two that train; model-clinic on the state_dict;
torchmortem, which watches training, through 25 steps of Adam. Install them beside, not into what
you develop in:

    pip install --no-deps torch-audit==0.3.0 torchdiag==0.1.0 neural_net_checklist==1.1.0 \
        model-clinic==0.4.2 torchmortem==0.1.1 && pip install click rich jinja2 pillow

What is not installed is left out, and said. With --store the table goes into nbs/measured.md;
--seeds N: how many of the ten; --cost: only the cost."""
import argparse, contextlib, copy, importlib.metadata, io, logging, re, statistics, sys, time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import torch
from torch import nn
from audit_cases import CASES
from ratios import into_page, seconds

torch.set_num_threads(1)
warnings.simplefilter('ignore')
INFO = 'torch-default', 'mean', 'too-deep', 'rank', 'range', 'input', 'bias-before-norm'

# ---- each tool: (kind, layer) of what it reports, and whether that is an alarm -----------------

def initnotes(make, args, loss, factory):
    from initnotes.audit import audit
    report = audit(make if factory else make(), *args, loss=loss)
    return {(f.check, f.layer): f.severity != 'info' for f in report.findings}

def torch_audit(make, args, loss, factory):
    from torch_audit.registry import RuleRegistry
    from torch_audit.runtime import Auditor
    model = make()
    auditor = Auditor(model, optimizer=torch.optim.SGD(model.parameters(), 1e-3), every_n_steps=1)
    with auditor:
        auditor.audit_static()
        auditor.audit_init()
        auditor.backward(scalar(loss, auditor.forward(*args)))
        auditor.optimizer_step()
    return {(f.rule_id, f.module_path or ''): f.severity.name != 'INFO' for f in auditor.findings
            if RuleRegistry.get(f.rule_id).category not in ('Performance', 'Optimization')}

def torchdiag(make, args, loss, factory):
    import torchdiag
    model, out = make(), io.StringIO()
    def fit(out, y): return scalar(loss, out)
    with contextlib.redirect_stdout(out):
        torchdiag.summary(model)
        if args[0].is_floating_point(): torchdiag.check_dead_neurons(model, *args)
        scalar(loss, model(*args)).backward()
        torchdiag.check_gradients(model)
        torchdiag.verify_step(model, torch.optim.Adam(model.parameters()), fit, *args, None)
    issues = re.findall(r'^  • (.*)$', out.getvalue(), re.M)
    return {(re.sub(r'[\d.e+-]*\d%?', '#', what), where): True
            for where, _, what in (i.partition(': ') for i in issues)}

def neural_net_checklist(make, args, loss, factory):
    import neural_net_checklist.torch_diagnostics as d
    model = make()
    if not loss: loss = lambda out: out.square().mean()
    y = loss.keywords['y'] if hasattr(loss, 'keywords') else torch.zeros(len(args[0]))
    given = (*args, y)
    def again(): return copy.deepcopy(model)
    def fit(out, y):          # it may ask for a part of the batch
        return loss.func(out, y) if hasattr(loss, 'func') else loss(out)
    with torch.no_grad(): shape = again()(*args).shape
    checks = dict(independent=lambda: d.assert_forward_batch_independence(again, given),
                  gradients=lambda: d.assert_non_zero_gradients(again(), given))
    if hasattr(loss, 'func'):
        checks['loss'] = lambda: d.assert_balanced_classification_cross_entropy_loss_at_init(
            again(), given, num_classes=shape[-1], loss_fn=fit)
        calibrated = d.assert_balanced_classification_cross_entropy_init_calibrated
        checks['calibrated'] = lambda: calibrated(again(), given, num_classes=shape[-1])
    if args[0].is_floating_point():
        checks['backward'] = lambda: d.assert_backward_batch_independence(again, given)
    elif len(shape) == 3:
        checks['causal'] = lambda: d.assert_forward_causal_property(again, given)
    failed, raised = {}, 0
    for name, check in checks.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()): check()
        except AssertionError as e:
            failed[name, str(e)[:40] if name == 'gradients' else ''] = True
        except Exception: raised += 1
    if raised == len(checks): raise RuntimeError('none of its checks could run')
    return failed

def model_clinic(make, args, loss, factory):
    import model_clinic
    return {(f.condition, f.param_name): f.severity != 'INFO'
            for f in model_clinic.diagnose(make().state_dict())}

def torchmortem(make, args, loss, factory):
    from torchmortem import Autopsy, SamplingConfig
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Autopsy(model, optimizer=optimizer, sampling=SamplingConfig(expensive_interval=10)) as a:
        for _ in range(25):
            optimizer.zero_grad()
            value = scalar(loss, model(*args))
            value.backward()
            optimizer.step()
            a.step(loss=value.item())
    a._report_generated = True
    return {(f.category, where): f.severity.name != 'INFO' for f in a.get_report().findings
            for where in f.affected_layers or ['']}

TOOLS = {'initnotes': initnotes, 'torch-audit': torch_audit, 'torchdiag': torchdiag,
         'neural_net_checklist': neural_net_checklist, 'model-clinic': model_clinic,
         'torchmortem': torchmortem}

def scalar(loss, out): return loss(out) if loss else out.square().mean()

def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None

# ---- the table -------------------------------------------------------------------------------

def looked(tool, case, seed, faulty):
    "What a tool reports of one net, the seconds it took; None where it raised."
    model, args, loss = case.example(seed, faulty)
    torch.manual_seed(seed)
    def make(): return model() if case.factory else model
    start = time.perf_counter()
    try: said = TOOLS[tool](make, args, loss, case.factory)
    except Exception as e: said = None; FAILED[tool][f'{type(e).__name__}: {e}'[:90]] += 1
    return said, time.perf_counter() - start

FAILED = defaultdict(Counter)

def compare(tools, seeds, cases=CASES):
    "Counts by check and tool: found, of how many; and twins with an alarm."
    found, total, false, took = Counter(), Counter(), Counter(), defaultdict(list)
    for case in cases:
        check = case.checks[0]
        for seed in seeds:
            total[check] += 1
            for tool in tools:
                (sick, a), (twin, b) = (looked(tool, case, seed, f) for f in (True, False))
                took[tool] += [a, b]
                new = {k: loud for k, loud in (sick or {}).items() if not (twin or {}).get(k)}
                if check in INFO: new = {k: True for k in sick or () if k not in (twin or ())}
                found[check, tool] += any(new.values())
                false[tool] += any((twin or {}).values())
        print('.', end='', flush=True, file=sys.stderr)
    return found, total, false, took

def rows(tools, seeds):
    found, total, false, took = compare(tools, seeds)
    def row(name, checks):
        n = sum(total[c] for c in checks)
        return [name, str(n), *(str(sum(found[c, t] for c in checks)) for t in tools)]
    loud = [c for c in total if c not in INFO]
    quiet = [c for c in total if c in INFO]
    n = sum(total.values())
    yield from (row(f'`{c}`', [c]) for c in loud)
    yield row('**faults found**', loud)
    yield from (row(f'`{c}` (info)', [c]) for c in quiet)
    yield row('**infos found**', quiet)
    yield ['**healthy twins with an alarm**', str(n), *(str(false[t]) for t in tools)]
    yield ['nets that it could not look at', str(2*n), *(str(sum(FAILED[t].values()))
                                                          for t in tools)]
    yield ['median time, ms', '', *(f'{statistics.median(took[t])*1e3:.0f}' for t in tools)]

def table(seeds):
    tools = [t for t in TOOLS if version(t)]
    head = ['fault', 'nets', *(f'{t} {version(t)}' for t in tools)]
    lines = ['| ' + ' | '.join(r) + ' |' for r in (head, *rows(tools, seeds))]
    lines.insert(1, '|---' + '|---:'*(len(head) - 1) + '|')
    for t in TOOLS:
        if not version(t): lines.append(f'\n{t}: not installed')
        for what, times in FAILED[t].most_common(5): print(f'{t}, {times} times: {what}')
    return '\n'.join(lines)

# ---- cost over depth -------------------------------------------------------------------------

def cost(depths=(10, 40, 160), width=256, B=256, repeat=5):
    "Medians of the audit's processor time over that of one forward and backward."
    from initnotes.audit import audit
    for depth in depths:
        layers = [nn.Linear(width, width) for _ in range(depth)]
        for m in layers: nn.init.orthogonal_(m.weight, 2**.5), nn.init.zeros_(m.bias)
        net = nn.Sequential(*(f for m in layers for f in (m, nn.ReLU())), nn.Linear(width, 10))
        x, y = torch.randn(B, width), torch.randint(10, (B,))
        def loss(out): return nn.functional.cross_entropy(out, y)
        def once(): loss(net(x)).backward(); net.zero_grad()
        def whole(): audit(net, x, loss=loss)
        once(), whole()
        pairs = [(seconds(whole, time.process_time), seconds(once, time.process_time))
                 for _ in range(repeat)]
        ours, theirs = (statistics.median(t)*1e3 for t in zip(*pairs))
        low, mid, high = statistics.quantiles([a/b for a, b in pairs], n=4)
        print(f'audit of {depth} layers, against one forward and backward: {mid:.1f}× '
              f'({low:.1f} to {high:.1f}; {ours:,.0f} ms against {theirs:,.1f} ms)')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='audit beside other tools, and its cost')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--store', action='store_true')
    parser.add_argument('--cost', action='store_true')
    given = parser.parse_args()
    logging.disable(logging.ERROR)
    if not given.cost:
        text = table(range(given.seeds))
        print(text)
        if given.store: into_page('audit', text)
    cost()
