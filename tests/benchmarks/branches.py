"""`branches` on real architectures, at their own start (configurations only, random weights).

What it finds, how the stream grows from the first block's input to the last block's output (as the
sum of independent branches has it, and as measured), the first loss of language models at their own
start and after `init_(…, residual='depth', embedding_std=.02, batch=…)`, and the time of `branches`
against one forward. With --readme the table goes into the README's block `branches` as well."""
import functools, math, os, re, sys, time, warnings
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'
warnings.simplefilter('ignore')
import torch, transformers as T
import torch.nn.functional as F
from initnotes import branches, init_, set_seed
from initnotes.hooks import first_tensor
from ratios import report

torch.set_num_threads(1)
T.logging.set_verbosity_error()
V, D = 1000, 64
set_seed(0)
ids, images = torch.randint(3, V, (16, 32)), torch.randn(8, 3, 32, 32)
text = dict(vocab_size=V, hidden_size=D, num_hidden_layers=6, num_attention_heads=4,
            intermediate_size=4*D)
old = dict(vocab_size=V, n_embd=D, n_layer=6, n_head=4)
ARCHITECTURES = {   # class: configuration, its options, the batch
    'GPT2LMHeadModel': ('GPT2Config', old, dict(input_ids=ids)),
    'GPTJForCausalLM': ('GPTJConfig', old | dict(rotary_dim=8), dict(input_ids=ids)),
    'LlamaForCausalLM': ('LlamaConfig', text, dict(input_ids=ids)),
    'Gemma2ForCausalLM': ('Gemma2Config', text | dict(num_key_value_heads=2, head_dim=16),
                          dict(input_ids=ids)),
    'MixtralForCausalLM': ('MixtralConfig', text | dict(num_key_value_heads=2, num_local_experts=4),
                           dict(input_ids=ids)),
    'MambaForCausalLM': ('MambaConfig', dict(vocab_size=V, hidden_size=D, num_hidden_layers=6),
                         dict(input_ids=ids)),
    'BertForMaskedLM': ('BertConfig', text, dict(input_ids=ids)),
    'T5ForConditionalGeneration': (
        'T5Config', dict(vocab_size=V, d_model=D, d_ff=4*D, d_kv=16, num_layers=3, num_heads=4,
                         decoder_start_token_id=0), dict(input_ids=ids, decoder_input_ids=ids)),
    'WhisperForConditionalGeneration': (
        'WhisperConfig', dict(vocab_size=V, num_mel_bins=8, d_model=D, encoder_layers=3,
                              decoder_layers=3, encoder_attention_heads=4,
                              decoder_attention_heads=4, encoder_ffn_dim=4*D, decoder_ffn_dim=4*D,
                              max_source_positions=20, max_target_positions=40, pad_token_id=0,
                              bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
        dict(input_features=torch.randn(16, 8, 40), decoder_input_ids=ids)),
    'ViTForImageClassification': (
        'ViTConfig', dict(hidden_size=D, num_hidden_layers=6, num_attention_heads=4,
                          intermediate_size=4*D, image_size=32, patch_size=8),
        dict(pixel_values=images)),
    'SwinForImageClassification': (
        'SwinConfig', dict(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2],
                           num_heads=[2, 2], window_size=4), dict(pixel_values=images)),
    'ResNetForImageClassification': (
        'ResNetConfig', dict(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2],
                             layer_type='basic'), dict(pixel_values=images)),
    'ConvNextForImageClassification': (
        'ConvNextConfig', dict(hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, patch_size=2),
        dict(pixel_values=images))}

def made(name):
    set_seed(1)
    config, options, batch = ARCHITECTURES[name]
    return getattr(T, name)(getattr(T, config)(**options)).eval(), batch

def pattern(writers):
    "Names with `*` for numbers, each once."
    return ', '.join(dict.fromkeys('`' + '.'.join(re.sub(r'\.\d+', '.*', w).split('.')[-2:]) + '`'
                                   for w in writers))

@torch.no_grad()
def growth(model, batch, rows):
    "Mean square of the stream, last over first: as independent branches add up, and measured."
    if any(r['skip'] != 'identity' or not r['confirmed'] for r in rows): return None
    stream, added, handles = [], [], []
    modules = dict(model.named_modules())
    def square(t): return first_tensor(t).float().square().mean().item()
    for block in dict.fromkeys(r['name'] for r in rows):
        def seen(m, args, kwargs, out): stream.append((square((args, kwargs)), square(out)))
        handles.append(modules[block].register_forward_hook(seen, with_kwargs=True))
    for r in rows:
        for name in [r['norm']] if r['norm'] else r['writers']:
            handles.append(modules[name].register_forward_hook(
                lambda m, args, out: added.append(square(out))))
    model(**batch)
    for h in handles: h.remove()
    if any(a[1] != b[0] for a, b in zip(stream, stream[1:])): return None     # several streams
    return (stream[0][0] + sum(added))/stream[0][0], stream[-1][1]/stream[0][0]

@torch.no_grad()
def first_loss(model, batch):
    "Mean cross-entropy of random targets, and half the logits' variance."
    z = model(**batch).logits.flatten(0, -2).float()
    return F.cross_entropy(z, torch.randint(V, (len(z),))).item(), z.var(1).mean().item()/2

lines = ['| architecture | branches | writers | stream: mean square, last/first | predicted | '
         'first loss (ln V = 6.91) | after `init_` |', '|---|---|---|---|---|---|---|']
for name in ARCHITECTURES:
    model, batch = made(name)
    rows = branches(model, **batch)
    two = growth(model, batch, rows) if len({r['name'].split('.')[0] for r in rows}) == 1 else None
    predicted, measured = (f'{v:.2f}' for v in two) if two else ('', '')
    before = after = ''
    if model(**batch).logits.shape[-1] == V:
        before = f'{first_loss(model, batch)[0]:.2f}'
        init_(model, 'kaiming_normal', 'gelu', residual='depth', embedding_std=.02, batch=batch)
        after = f'{first_loss(model, batch)[0]:.2f}'
    lines.append(f"| {name} | {len(rows)} | {pattern(w for r in rows for w in r['writers'])} | "
                 f'{measured} | {predicted} | {before} | {after} |')
    print(lines[-1])
if '--readme' in sys.argv:
    path = Path(__file__).resolve().parents[2]/'README.md'
    new = f'<!-- begin branches -->\n\n{chr(10).join(lines)}\n\n<!-- end branches -->'
    path.write_text(re.sub('<!-- begin branches -->.*<!-- end branches -->', lambda m: new,
                           path.read_text(encoding='utf-8'), flags=re.S), encoding='utf-8')

for width, blocks in ((256, 12), (256, 48), (512, 12)):
    model = T.GPT2LMHeadModel(T.GPT2Config(vocab_size=V, n_embd=width, n_layer=blocks, n_head=8))
    long = torch.randint(V, (8, 128))
    with torch.no_grad():
        report(f'branches of a GPT-2, {blocks} blocks of width {width}, against one forward',
               lambda: branches(model, input_ids=long), lambda: model(input_ids=long), 2.2,
               repeat=5, clock=time.process_time)
