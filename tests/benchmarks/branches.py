"""What `branches` finds in transformers' architectures, and what `init_` makes of it (one thread).

A row for each: its branches, its writers, how the stream's rms grows from the first block's input
to the last block's output, and the first loss on random tokens or labels, before (`init_` without
options) and after `init_(residual='depth', embedding_std=.02, batch=…)`. And the time of
`branches` against a bare forward. With --store the table goes into nbs/measured.md.

The growth that theory predicts: in a pre-norm net what the branches add does not depend on the
stream's size, and independent terms add up in the mean square: √(1 + Σ branch²/first²). A norm on
the stream itself leaves an rms of 1. A ResNet's stream goes through ReLUs: neither holds of it."""
import math, os, re, sys, warnings

os.environ['HF_HUB_OFFLINE'] = '1'
import torch, transformers
import torch.nn.functional as F
from initnotes import branches, init_
from ratios import into_page, report

torch.set_num_threads(1)
warnings.simplefilter('ignore')
transformers.logging.set_verbosity_error()
V = 1000
SIZES = dict(vocab_size=V, hidden_size=192, num_hidden_layers=12, num_attention_heads=6,
             intermediate_size=768, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT = dict(vocab_size=V, n_embd=192, n_layer=12, n_head=6, bos_token_id=1, eos_token_id=2)

def ids(): return torch.randint(3, V, (8, 64))
def text(): return dict(input_ids=ids())
def pairs(): return dict(input_ids=ids(), decoder_input_ids=ids())
def pixels(): return dict(pixel_values=torch.randn(16, 3, 64, 64))
def sound(): return dict(input_features=torch.randn(8, 80, 128), decoder_input_ids=ids())

# Name, class, configuration, batch, and the stream: the blocks' path, or None where there is none
# of one size; True where a norm stands on the stream.
ARCHITECTURES = [
    ('GPT-2', 'GPT2LMHeadModel', 'GPT2Config', GPT, text, 'transformer.h', False),
    ('GPT-J', 'GPTJForCausalLM', 'GPTJConfig', GPT | dict(rotary_dim=16), text, 'transformer.h',
     False),
    ('Llama', 'LlamaForCausalLM', 'LlamaConfig', SIZES | dict(num_key_value_heads=2), text,
     'model.layers', False),
    ('Gemma 2', 'Gemma2ForCausalLM', 'Gemma2Config',
     SIZES | dict(num_key_value_heads=2, head_dim=32), text, 'model.layers', False),
    ('Mixtral', 'MixtralForCausalLM', 'MixtralConfig',
     SIZES | dict(num_key_value_heads=2, num_local_experts=4), text, 'model.layers', False),
    ('Mamba', 'MambaForCausalLM', 'MambaConfig', dict(vocab_size=V, hidden_size=192,
     num_hidden_layers=12), text, 'backbone.layers', False),
    ('BERT', 'BertForMaskedLM', 'BertConfig', SIZES, text, 'bert.encoder.layer', True),
    ('ALBERT', 'AlbertForMaskedLM', 'AlbertConfig', SIZES | dict(embedding_size=64), text,
     'albert.encoder.albert_layer_groups', True),
    ('T5', 'T5ForConditionalGeneration', 'T5Config',
     dict(vocab_size=V, d_model=192, d_ff=768, d_kv=32, num_layers=6, num_heads=6,
          decoder_start_token_id=0), pairs, 'decoder.block', False),
    ('Whisper', 'WhisperForConditionalGeneration', 'WhisperConfig',
     dict(vocab_size=V, d_model=192, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=768,
          encoder_attention_heads=6, decoder_attention_heads=6, decoder_ffn_dim=768,
          max_source_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
          decoder_start_token_id=1), sound, 'model.decoder.layers', False),
    ('ViT', 'ViTForImageClassification', 'ViTConfig',
     SIZES | dict(image_size=64, patch_size=8, num_labels=V), pixels, 'vit.layers', False),
    ('Swin', 'SwinForImageClassification', 'SwinConfig',
     dict(image_size=64, patch_size=2, embed_dim=48, depths=[2, 2, 6], num_heads=[2, 4, 8],
          window_size=4, num_labels=V), pixels, 'swin.encoder.layers.2.blocks', False),
    ('ConvNeXt', 'ConvNextForImageClassification', 'ConvNextConfig',
     dict(hidden_sizes=[48, 96, 192], depths=[2, 2, 6], num_stages=3, num_labels=V), pixels,
     'convnext.encoder.stages.2.layers', False),
    ('ResNet-18', 'ResNetForImageClassification', 'ResNetConfig',
     dict(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type='basic', num_labels=V),
     pixels, None, False),
]

def made(cls, config, kw):
    return getattr(transformers, cls)(getattr(transformers, config)(**kw)).eval()

def loss(model, batch):
    "On random targets, in nats; ln V where the model knows nothing and says so."
    with torch.no_grad(): z = model(**batch).logits
    generator = torch.Generator().manual_seed(1)
    return F.cross_entropy(z.flatten(0, -2), torch.randint(V, z.shape[:-1], generator=generator)
                           .flatten()).item()

def first(out):
    return out if isinstance(out, torch.Tensor) else next(iter(
        out.values() if isinstance(out, dict) else out))

def growth(model, batch, rows, path, normed):
    "Of the stream's rms from the first block to the last: as predicted, and as measured."
    blocks, seen, added = model.get_submodule(path), {}, {}
    modules, params = dict(model.named_modules()), dict(model.named_parameters())
    def square(t): return t.detach().double().square().mean().item()
    def before(m, args, kw): seen.setdefault('in', square(first(args or list(kw.values()))))
    def after(m, args, out): seen['out'] = square(first(out))
    hooks = [blocks[0].register_forward_pre_hook(before, with_kwargs=True),
             blocks[-1].register_forward_hook(after)]
    for r in rows:
        if not r['name'].startswith(path): continue
        scale = math.prod(params[n].detach().double().square().mean().item() for n in r['scales'])
        for name in [r['norm']] if r['norm'] else r['writers']:
            def add(m, args, out, name=name, scale=scale): added[name] = scale*square(first(out))
            hooks.append(modules[name].register_forward_hook(add))
    try:
        with torch.no_grad(): model(**batch)
    finally:
        for h in hooks: h.remove()
    last = 1. if normed else seen['in'] + sum(added.values())
    return (last/seen['in'])**.5, (seen['out']/seen['in'])**.5

def writers(rows):
    "The writers' last two names, each once; with the norm behind, if there is one."
    def short(w): return re.sub(r'^(\d+\.)+', '', '.'.join(w.split('.')[-2:]))
    names = dict.fromkeys(' + '.join(map(short, r['writers'])) for r in rows)
    return ', '.join(f'`{n}`' for n in names) + (', norm behind' if all(r['norm'] for r in rows)
                                                 else '')

def row(name, cls, config, kw, batch, path, normed):
    torch.manual_seed(0)
    model, batch = made(cls, config, kw), batch()
    init_(model)
    start = loss(model, batch)
    init_(model, residual='depth', embedding_std=.02, batch=batch)
    rows = branches(model, **batch)
    grown = growth(model, batch, rows, path, normed) if path else ('', '')
    shown = [g and f'{g:,.{2 if g < 10 else 0}f}' for g in grown]
    cells = [name, str(len(rows)), writers(rows), *shown, f'{start:.2f}',
             f'{loss(model, batch):.2f}']
    print('  '.join(cells), flush=True)
    return cells

def times():
    "At the size of GPT-2 small and of ViT small. It runs a model twice: to find, and to confirm."
    big = dict(vocab_size=5000, n_embd=768, n_layer=12, n_head=12, bos_token_id=1, eos_token_id=2)
    vit = SIZES | dict(hidden_size=384, intermediate_size=1536, image_size=224, patch_size=16)
    for what, model, batch in (
            ('GPT-2 small, 4 × 128 tokens', made('GPT2LMHeadModel', 'GPT2Config', big),
             dict(input_ids=torch.randint(5000, (4, 128)), use_cache=False)),
            ('ViT small, 4 images', made('ViTForImageClassification', 'ViTConfig', vit),
             dict(pixel_values=torch.randn(4, 3, 224, 224)))):
        def bare():
            with torch.no_grad(): model(**batch)
        report(f'branches of {what}, against a bare forward', lambda: branches(model, **batch),
               bare, 2.5, 7)

head = ['architecture', 'branches', 'writers', 'growth predicted', 'measured', 'first loss before',
        'after']
rows = [row(*a) for a in ARCHITECTURES]
table = '\n'.join(['| ' + ' | '.join(r) + ' |' for r in (head, *rows)])
table = table.replace('\n', '\n' + '|---'*len(head) + '|\n', 1)
print(table)
times()
if '--store' in sys.argv:
    into_page('branches', table)
