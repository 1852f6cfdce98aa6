"Data files: the published digits, every malformed file, and no more memory than a file warrants."
import gzip, hashlib, math, shutil, struct, tracemalloc

import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import ROOT
from initnotes.core import InputError
from initnotes.data import DataError, mnist, normalize, normalize_to, read_idx
from initnotes.idx import _SHA256
import initnotes.idx as data_module

FILES = ROOT/'initnotes'/'_mnist'
MD5 = {'train-images-idx3-ubyte': '6bbc9ace898e44ae57da46a324031adb',
       'train-labels-idx1-ubyte': 'a25bea736e30d166cdddb491f175f624',
       't10k-images-idx3-ubyte': '2646ac647ad5339dbf082846283269ea',
       't10k-labels-idx1-ubyte': '27ae3e4e09519cfbb04c329615203637'}
TYPES = {0x08: (torch.uint8, 'B'), 0x09: (torch.int8, 'b'), 0x0B: (torch.int16, 'h'),
         0x0C: (torch.int32, 'i'), 0x0D: (torch.float32, 'f'), 0x0E: (torch.float64, 'd')}

def idx(code, shape, body):
    return bytes([0, 0, code, len(shape)]) + b''.join(struct.pack('>I', n) for n in shape) + body

@pytest.mark.parametrize('name', MD5)
def test_the_published_bytes(name):
    zipped = (FILES/f'{name}.gz').read_bytes()
    assert hashlib.md5(gzip.decompress(zipped)).hexdigest() == MD5[name]
    assert hashlib.sha256(zipped).hexdigest() == _SHA256[f'{name}.gz']

def test_mnist():
    d = mnist()
    assert [tuple(t.shape) for t in d] == [(50_000, 784), (50_000,), (10_000, 784), (10_000,),
                                           (10_000, 784), (10_000,)]
    assert [t.dtype for t in d] == [torch.float32, torch.int64]*3
    assert (d.x_train.min(), d.x_train.max()) == (0, 255/256)
    assert (d.y_train.min(), d.y_train.max()) == (0, 9)
    assert d.y_train[:5].tolist() == [5, 0, 4, 1, 9] and d.y_valid.unique().numel() == 10

@pytest.fixture
def small(tmp_path):
    "A data set in MNIST's format: 60 + 10 images of 5×4 bytes, one file gzipped and three not."
    for part, n in (('train', 60), ('t10k', 10)):
        (tmp_path/f'{part}-images-idx3-ubyte').write_bytes(idx(8, (n, 5, 4),
                                                               bytes(i % 256 for i in range(n*20))))
        (tmp_path/f'{part}-labels-idx1-ubyte').write_bytes(idx(8, (n,),
                                                               bytes(i % 10 for i in range(n))))
    f = tmp_path/'train-images-idx3-ubyte'
    (tmp_path/'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(f.read_bytes()))
    f.unlink()
    return tmp_path

def test_another_data_set(small):
    d = mnist(str(small))
    assert d.x_train.shape == (50, 20) and d.x_valid.shape == (10, 20)
    assert d.x_test.shape == (10, 20)
    assert d.x_train[0].tolist() == [i/256 for i in range(20)] and d.y_valid[0] == 50 % 10

@pytest.mark.parametrize(
    'name, content, words',
    [('train-labels-idx1-ubyte', None, ['train-labels', 'nothing there']),
     ('train-labels-idx1-ubyte', idx(8, (59,), bytes(59)), ['train-labels', '60 bytes', '59']),
     ('train-labels-idx1-ubyte', idx(0xD, (60,), bytes(240)), ['train-labels', 'float32']),
     ('t10k-images-idx3-ubyte', idx(8, (10, 20), bytes(200)),
      ['t10k-images', '(N, height, width)', '(10, 20)']),
     ('t10k-images-idx3-ubyte', None, ['t10k-images', 'nothing there']),
     ('t10k-labels-idx1-ubyte', b'', ['t10k-labels', 'nothing'])])
def test_a_broken_data_set(small, name, content, words):
    (small/name).unlink() if content is None else (small/name).write_bytes(content)
    with pytest.raises(DataError) as e: mnist(small)
    for w in words: assert w in str(e.value)

def test_no_folder(tmp_path):
    with pytest.raises(DataError, match='no folder'): mnist(tmp_path/'none')

def test_a_flipped_bit_in_the_package(tmp_path, monkeypatch):
    copy = tmp_path/'_mnist'; shutil.copytree(FILES, copy)
    monkeypatch.setattr(data_module, '_MNIST', copy)
    mnist()
    f = copy/'t10k-labels-idx1-ubyte.gz'
    raw = bytearray(f.read_bytes()); raw[100] ^= 1; f.write_bytes(raw)
    with pytest.raises(DataError, match='t10k-labels.*SHA-256'): mnist()
    f.unlink()
    with pytest.raises(DataError, match='t10k-labels.*no file'): mnist()

# ---- read_idx against a writer of its own, and against anything ------------------------------

@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(code=st.sampled_from(list(TYPES)), shape=st.lists(st.integers(0, 4), max_size=4),
       zipped=st.booleans(), data=st.data())
def test_every_type_and_shape(tmp_path, code, shape, zipped, data):
    dtype, fmt = TYPES[code]
    n = math.prod(shape)
    value = (st.floats(width=32, allow_nan=False) if dtype.is_floating_point
             else st.integers(torch.iinfo(dtype).min, torch.iinfo(dtype).max))
    numbers = data.draw(st.lists(value, min_size=n, max_size=n))
    raw = idx(code, shape, struct.pack(f'>{n}{fmt}', *numbers))
    f = tmp_path/('x.gz' if zipped else 'x')
    f.write_bytes(gzip.compress(raw) if zipped else raw)
    x = read_idx(f)
    assert x.dtype == dtype and x.shape == torch.Size(shape) and x.flatten().tolist() == numbers
    x.add_(1)   # the tensor owns its memory

headers = st.builds(
    lambda zeros, code, sizes, n: zeros + bytes([code, n % 256 if n is not None else len(sizes)])
    + b''.join(struct.pack('>I', s) for s in sizes),
    st.sampled_from([b'\0\0', b'\0\0', b'\0\0', b'\0\1']), st.sampled_from([*TYPES, 0, 0x0A, 0xFF]),
    st.lists(st.sampled_from([0, 1, 2, 3, 255, 65_536, 2**31, 2**32 - 1]), max_size=6),
    st.one_of(st.none(), st.none(), st.integers(0, 255)))

@settings(max_examples=400, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.one_of(st.binary(max_size=200),
                     st.builds(bytes.__add__, headers, st.binary(max_size=64))),
       wrap=st.sampled_from(['plain', 'gz', 'not gz', 'cut gz', 'flipped gz', 'two gz']),
       at=st.integers(0, 10**6))
def test_any_bytes_give_a_tensor_or_a_data_error(tmp_path, raw, wrap, at):
    f = tmp_path/('x' if wrap == 'plain' else 'x.gz')
    zipped = bytearray(gzip.compress(raw))
    if wrap == 'flipped gz': zipped[at % len(zipped)] ^= 1 << at % 8
    f.write_bytes({'plain': raw, 'not gz': raw, 'cut gz': bytes(zipped[:at % len(zipped)]),
                   'two gz': bytes(zipped) + b'\0' + bytes(zipped)}.get(wrap, bytes(zipped)))
    tracemalloc.start()
    try: x = read_idx(f)
    except DataError as e: assert str(f) in str(e)
    else:
        assert isinstance(x, torch.Tensor)
        assert x.numel()*x.element_size() <= len(raw)*(1 + (wrap == 'two gz'))
    finally: peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 2_000_000

@pytest.mark.parametrize('name', ['x', 'x.gz'])
def test_memory_is_made_only_for_what_arrives(tmp_path, name):
    "The header announces as much as a file of this size could just hold; the file ends early."
    body = torch.randint(256, (2_000_000,), dtype=torch.uint8).numpy().tobytes()
    announced = 1000*len(body) if name == 'x.gz' else len(body) + 8
    raw = idx(8, (announced,), body)
    (tmp_path/name).write_bytes(gzip.compress(raw, 1) if name == 'x.gz' else raw)
    tracemalloc.start()
    with pytest.raises(DataError, match='cut short' if name == 'x.gz' else 'at most|cut short'):
        read_idx(tmp_path/name)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 4*len(body)

def test_a_bomb_is_not_unpacked(tmp_path):
    "300 MB of zeros behind a header that announces 10: stops at the eleventh."
    (tmp_path/'x.gz').write_bytes(gzip.compress(idx(8, (10,), bytes(300_000_000)), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match='found more'): read_idx(tmp_path/'x.gz')
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 2_000_000

def test_a_folder_and_nothing(tmp_path):
    with pytest.raises(DataError, match='a folder'): read_idx(tmp_path)
    with pytest.raises(DataError, match='nothing there'):
        read_idx(tmp_path/'none')

# ---- normalising -----------------------------------------------------------------------------

def test_normalize_by_channel():
    x = torch.randn(5, 3, 4, 4)*torch.tensor([1., 2, 3]).view(3, 1, 1)
    y = normalize(x, x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True))
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(3))
    with pytest.raises(InputError):
        normalize(x, 0., torch.tensor([1., 0, 1]).view(3, 1, 1))

def test_normalize():
    x = torch.randn(100, 7, dtype=torch.float64)*3 + 5
    y, z = normalize_to(x, x[:10])
    assert abs(y.mean()) < 1e-12 and abs(y.std() - 1) < 1e-12 and torch.equal(z, y[:10])
    assert y.dtype == x.dtype
    assert torch.equal(normalize(x, 1, 2), (x - 1)/2)

@pytest.mark.parametrize(
    'call',
    [lambda: normalize(torch.arange(3), 0, 1), lambda: normalize(torch.ones(3), 0, 0),
     lambda: normalize(torch.ones(3), 0, -1), lambda: normalize(torch.ones(3), math.nan, 1),
     lambda: normalize([1., 2.], 0, 1),
     lambda: normalize(torch.zeros(2, dtype=torch.complex64), 0, 1),
     lambda: normalize_to(torch.ones(3)), lambda: normalize_to(torch.ones(1)),
     lambda: normalize_to(torch.arange(4)), lambda: normalize_to(torch.tensor([1., math.inf]))])
def test_normalize_refuses(call):
    with pytest.raises(InputError): call()
