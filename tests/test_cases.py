"""`audit` on labelled pairs: each fault is named, and its healthy twin raises no alarm.

The pairs (audit_cases.py) were written without a look at the checks. Here is also that real
architectures of transformers and torch pass, and are afterwards as they were."""
import collections, os, warnings

os.environ['HF_HUB_OFFLINE'] = '1'
import pytest, torch, torch.nn.functional as F
from torch import nn

import audit_cases
from audit_cases import CASES, SEEDS
from initnotes.audit import audit
from conftest import hooks_on

SEED = 0
ALARMS = 'error', 'warning'
CHECKS = sorted({c.checks[0] for c in CASES})

def audited(case, seed, faulty):
    "The report of one net, and that nothing in it failed."
    model, args, loss = case.example(seed, faulty)
    report = audit(model, *args, loss=loss)
    failed = [s for s in report.skipped if 'check failed' in s.reason]
    assert not failed, f'{case} {seed}: {failed}'
    return report

def pair(case, seed):
    "Whether the fault is named, what alarms the twin raises, and whether it gets the same note."
    sick, twin = (audited(case, seed, faulty).findings for faulty in (True, False))
    seen = {(f.check, f.layer, f.severity) for f in twin}
    named = [f for f in sick if f.check in case.checks
             and (f.check, f.layer, f.severity) not in seen]
    alarms = [f'{f.check} at {f.layer}: {f.message}' for f in twin if f.severity in ALARMS]
    quiet = not any(f.severity in ALARMS for f in named)
    return bool(named), alarms, quiet and {f.check for f in twin} & {f.check for f in named}

def judged(pairs):
    "95 % of the faults are named; at most 1 % of the twins raise an alarm, or the same note."
    got = [(c, s, *pair(c, s)) for c, s in pairs]
    missed = [f'{c} {s}' for c, s, found, _, _ in got if not found]
    false = [f'{c} {s}: {alarms}' for c, s, _, alarms, _ in got if alarms]
    again = [f'{c} {s}: {sorted(names)}' for c, s, _, _, names in got if names]
    assert len(missed) <= .05*len(got), 'not named: ' + '\n'.join(missed)
    assert len(false) <= .01*len(got), 'healthy, with an alarm: ' + '\n'.join(false)
    assert len(again) <= .01*len(got), 'named on the twin, too: ' + '\n'.join(again)

def test_cases_differ():
    "A faulty net and its twin: of one kind of inputs, drawn alike; and seeds differ."
    assert len({str(c) for c in CASES}) == len(CASES)
    for c in CASES[::9]:
        a, b = c.example(0, False), c.example(0, False)
        state, again, other = ((m() if c.factory else m).state_dict()
                               for m in (a.model, b.model, c.example(1, False).model))
        if not c.factory: assert all(torch.equal(v, again[k]) for k, v in state.items()), str(c)
        assert torch.equal(a.args[0], b.args[0])
        assert list(state) != list(other) or any(
            v.shape != other[k].shape or not torch.equal(v, other[k]) for k, v in state.items())

def test_pairs_in_short():
    "One for every second check, of all families."
    of = {check: [c for c in CASES if c.checks[0] == check] for check in CHECKS[::2]}
    judged([(cases[7*i % len(cases)], SEED) for i, cases in enumerate(of.values())])

@pytest.mark.slow
@pytest.mark.parametrize('check', CHECKS)
def test_pairs(check):
    judged([(c, 1) for c in CASES if c.checks[0] == check])

@pytest.mark.proof
@pytest.mark.parametrize('check', CHECKS)
def test_pairs_of_ten_seeds(check):
    judged([(c, s) for c in CASES if c.checks[0] == check for s in SEEDS])

# ---- real architectures ------------------------------------------------------------------------

def state_of(model):
    "Everything that an audit may not change."
    copies = {n: t.detach().clone() for n, t in model.state_dict(keep_vars=True).items()}
    versions = [p._version for p in model.parameters()]
    kept = dict(grads=[p.grad for p in model.parameters()], hooks=hooks_on(model),
                modes=[m.training for m in model.modules()], versions=versions,
                asks=[p.requires_grad for p in model.parameters()],
                forwards=['forward' in vars(m) for m in model.modules()],
                where=[p.data_ptr() for p in model.parameters()])
    return copies, kept, torch.get_rng_state()

def unchanged(model, before):
    "That a model, and the random state, are as they were."
    (copies, kept, rng), (now, kept_now, rng_now) = before, state_of(model)
    assert list(copies) == list(now)
    assert all(torch.equal(v, now[n]) or v.isnan().any() for n, v in copies.items())
    assert {k: v for k, v in kept.items() if kept_now[k] != v} == {}
    assert torch.equal(rng, rng_now)

def looked_at(model, *args, loss=None, **kwargs):
    "An audit, of a model that stays as it is."
    before, modes = state_of(model), torch.are_deterministic_algorithms_enabled()
    report = audit(model, *args, loss=loss, **kwargs)
    unchanged(model, before)
    assert torch.are_deterministic_algorithms_enabled() == modes
    assert not [s for s in report.skipped if 'check failed' in s.reason], report.skipped
    return report

V = 97
def ids(): return torch.randint(3, V, (6, 20))
def text(): return dict(input_ids=ids())
def pairs_of_texts(): return dict(input_ids=ids(), decoder_input_ids=ids())
def pixels(): return dict(pixel_values=torch.randn(8, 3, 32, 32))
def sound(): return dict(input_features=torch.randn(4, 20, 48), decoder_input_ids=ids()[:4])

SPECIAL = dict(vocab_size=V, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SIZES = SPECIAL | dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
                       intermediate_size=96)
ARCHITECTURES = {
    'GPT-2': ('GPT2LMHeadModel', 'GPT2Config', SPECIAL | dict(n_embd=48, n_layer=3, n_head=4),
              text),
    'Llama': ('LlamaForCausalLM', 'LlamaConfig', SIZES | dict(num_key_value_heads=2), text),
    'Gemma 2': ('Gemma2ForCausalLM', 'Gemma2Config',
                SIZES | dict(num_key_value_heads=2, head_dim=16), text),
    'BERT': ('BertForMaskedLM', 'BertConfig', SIZES, text),
    'BERT pooled': ('BertForSequenceClassification', 'BertConfig', SIZES, text),
    'T5': ('T5ForConditionalGeneration', 'T5Config', dict(
        vocab_size=V, d_model=48, d_ff=96, d_kv=12, num_layers=2, num_heads=4,
        decoder_start_token_id=0), pairs_of_texts),
    'Whisper': ('WhisperForConditionalGeneration', 'WhisperConfig', SPECIAL | dict(
        d_model=48, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=96, decoder_ffn_dim=96,
        encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=20,
        max_source_positions=24, decoder_start_token_id=1, init_std=.1), sound),
    'ViT': ('ViTForImageClassification', 'ViTConfig', dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
        image_size=32, patch_size=8, num_labels=10), pixels),
    'Swin': ('SwinForImageClassification', 'SwinConfig', dict(
        image_size=32, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4,
        num_labels=10), pixels),
    'ConvNeXt': ('ConvNextForImageClassification', 'ConvNextConfig', dict(
        hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, num_labels=10), pixels),
    'ResNet': ('ResNetForImageClassification', 'ResNetConfig', dict(
        embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type='basic',
        num_labels=10), pixels),
    'ResNet bottleneck': ('ResNetForImageClassification', 'ResNetConfig', dict(
        embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], num_labels=10), pixels),
    'Mamba': ('MambaForCausalLM', 'MambaConfig', dict(
        vocab_size=V, hidden_size=48, num_hidden_layers=3, state_size=8), text),
    'Mixtral': ('MixtralForCausalLM', 'MixtralConfig', SIZES | dict(
        num_key_value_heads=2, num_local_experts=4), text),
    'GPT-NeoX': ('GPTNeoXForCausalLM', 'GPTNeoXConfig', SIZES, text),
    'OPT': ('OPTForCausalLM', 'OPTConfig', SPECIAL | dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, ffn_dim=96,
        word_embed_proj_dim=48), text),
    'ALBERT': ('AlbertForMaskedLM', 'AlbertConfig', SIZES | dict(embedding_size=24), text),
}

def quiet(name, training):
    "An architecture of transformers at its own start, and its batch."
    transformers = pytest.importorskip('transformers')
    transformers.logging.set_verbosity_error()
    cls, config, kw, batch = ARCHITECTURES[name]
    torch.manual_seed(SEED)
    model = getattr(transformers, cls)(getattr(transformers, config)(**kw)).train(training)
    return model, batch()

def token_loss(out):
    g = torch.Generator().manual_seed(1)
    z = out.logits
    return F.cross_entropy(z.flatten(0, -2), torch.randint(z.shape[-1], z.shape[:-1],
                                                           generator=g).flatten())

@pytest.mark.slow
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', ARCHITECTURES)
def test_architectures(name, training):
    model, batch = quiet(name, training)
    report = looked_at(model, loss=token_loss, **batch)
    errors = [f'{f.check} at {f.layer}: {f.message}' for f in report.findings
              if f.severity == 'error']
    assert not errors

def torch_nets():
    def encoder(**kw):
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, **kw)
        net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        return net, (torch.randn(8, 12, 48),)
    yield 'encoder', *encoder()
    yield 'encoder, norm first', *encoder(norm_first=True, dropout=0.)
    yield ('transformer', nn.Transformer(48, 4, 2, 2, 96, batch_first=True),
           (torch.randn(8, 12, 48), torch.randn(8, 9, 48)))

@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('at', range(3))
def test_transformers_of_torch(at, training):
    "Its encoder's layers are clones of one another, which is reported, and is true."
    name, model, args = list(torch_nets())[at]
    found = looked_at(model.train(training), *args).findings
    assert not [f for f in found if f.severity == 'error']
    clones = [f for f in found if f.check == 'clone']
    assert bool(clones) == name.startswith('encoder')      # nn.Transformer draws them anew
