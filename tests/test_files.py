"""Files of weights: views and kinds of numbers, and files that lie, are damaged or hostile."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from superpose import files

# --- safetensors ------------------------------------------------------------------------------------------------------


def safe(header_: dict | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    text = header_ if isinstance(header_, bytes) else json.dumps(header_).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def f32(start: int, stop: int, *shape: int) -> dict:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


GOOD = safetensors.numpy.save({"W_enc": np.ones((4, 6), np.float32), "b_enc": np.zeros(6, np.float32)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no whole safetensors file"),
        (GOOD[:5], "is damaged or hostile"),
        (GOOD[:100], "is damaged or hostile"),
        (GOOD[:200], "is no whole safetensors file"),
        (GOOD[:-1], "is no whole safetensors file"),
        (GOOD + b"\0", "is no whole safetensors file"),
        (safe({}, length=2**63), "claims a header of 9223372036854775808 bytes"),
        (safe(b"[" * 50_000), "is no whole safetensors file"),
        (safe({"W_enc": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"\0" * 4), "no whole"),
        (safe({"W_enc": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, b"\0" * 24), "no whole"),
        (safe({"a": f32(0, 16, 4), "b": f32(8, 24, 4)}, b"\0" * 24), "no whole"),  # overlap
        (safe({"a": f32(0, 16, 4), "b": f32(0, 16, 4)}, b"\0" * 16), "no whole"),  # the same numbers twice
        (safe({"a": f32(0, 16, 4)}, b"\0" * 8), "no whole"),  # out of range
        (safe({"a": f32(16, 0, 4)}, b"\0" * 16), "no whole"),  # backwards
        (safe({"a": f32(-4, 0, 1)}, b"\0" * 4), "no whole"),
        (safe({"a": f32(0, 4, *[1] * 100)}, b"\0" * 4), "claims a shape of 100 axes"),
        (safe({"a": f32(0, 0, 0, 2**62, 2)}), "claims a shape of 3 axes|no whole"),
        (safe({"W_enc": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), "W_enc is stored as I32"),
        (safe({"W_enc": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"\0"), "stored as F8_E4M3"),
    ],
)
def test_damaged_and_hostile_safetensors(tmp_path, content, says):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        files.read_safetensors(tmp_path / "x.safetensors")


def test_headers_that_are_too_long(tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").write_bytes(GOOD)
    assert files.read_safetensors(tmp_path / "x.safetensors")[0].keys() == {"W_enc", "b_enc"}
    monkeypatch.setattr(files, "MAX_HEADER", 50)
    with pytest.raises(ValueError, match="claims a header"):
        files.read_safetensors(tmp_path / "x.safetensors")


# --- npz --------------------------------------------------------------------------------------------------------------


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def magic(text: str, version: bytes = b"\x01\x00") -> bytes:
    """An npy file's head that says anything."""
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header((0, 10**30)), "claims shape"),
        (header((1,) * 9) + b"\0" * 4, "claims shape"),
        (magic("-" * 4000 + "1"), "is no array"),  # too deep for Python's parser
        (magic("-" * 9000 + "1"), "is no array"),
        (magic("{'descr': (), 'fortran_order': False, 'shape': (1,), }"), "is no array"),
        (magic("{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,), }"), "is no array"),
        (magic("{[]: 1}"), "is no array"),
        (magic("f()"), "is no array"),
        (
            magic("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"\x09\x09") + b"\0" * 4,
            "unknown version",
        ),
        (magic("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }") + b"\0" * 8, "holds complex64, not floats"),
        (header((10**9, 10**9)) + b"\0" * 16, "claims shape"),
        (header((3,)) + b"\0" * 16, "claims shape"),
        (header((-2, -2)) + b"\0" * 16, "claims shape"),
        (b"no array", "is no array"),
        (b"\x93NUMPY\x01\x00\x05\x00((((\n", "is no array"),
        (b"", "is no array"),
    ],
)
def test_arrays_that_lie_about_their_size(tmp_path, content, says):
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as zipped:
        zipped.writestr("W_enc.npy", content)
    with pytest.raises(ValueError, match=says):
        files.read_npz(tmp_path / "params.npz")


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_that_lies_about_its_size_is_not_unpacked(tmp_path, packing):
    """16 MiB of zeros whose directory says 100 bytes; the memory that reading takes is seen by ``tracemalloc``."""
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w", packing) as zipped:
        zipped.writestr("W_enc.npy", bytes(2**24))
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = struct.pack("<I", 100)
    path.write_bytes(raw)

    def peak(reader) -> int:
        tracemalloc.start()
        try:
            with pytest.raises((ValueError, zipfile.BadZipFile)):
                reader(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(files.read_npz) < 2**20
    assert peak(lambda path: zipfile.ZipFile(path).read("W_enc.npy")) > 2**24  # the control: it is a live one


@pytest.mark.parametrize("reader", [files.read_npz, files.read_torch])
def test_an_entry_far_outside_its_archive(tmp_path, reader):
    """A 64-bit offset that no seek can take."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr("ae/data.pkl", b"\x80\x02}.")
        zipped.filelist[0].header_offset = 2**63
    with pytest.raises(ValueError, match=r"x.zip is no whole archive \("):
        reader(tmp_path / "x.zip")


@pytest.mark.parametrize("names", [("W.npy", "W.npy"), ("W.npy", "W")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_an_archive_holds_twice(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as zipped:
        for name in names:
            zipped.writestr(name, header((1,)) + b"\0" * 4)
    with pytest.raises(ValueError, match="holds W more than once"):
        files.read_npz(tmp_path / "params.npz")


def test_archives_that_unpack_to_too_much_or_are_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SLACK", 1000)
    np.savez_compressed(tmp_path / "params.npz", W_enc=np.zeros((1000, 1000), np.float32))
    with pytest.raises(ValueError, match="would unpack to 4000"):
        files.read_npz(tmp_path / "params.npz")
    np.savez(tmp_path / "params.npz", W_enc=np.ones((4, 6), np.float32), b_enc=np.ones(6, np.float32))
    whole = (tmp_path / "params.npz").read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "params.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is no whole archive"):
            files.read_npz(tmp_path / "params.npz")


# --- torch ------------------------------------------------------------------------------------------------------------


class Name(str):
    """A global in a pickle."""


class Numbers(tuple):
    """A persistent id in a pickle: what stands for a storage."""


class Call(tuple):
    """A function's name and its arguments: REDUCE."""


STORAGES = {
    "<f4": "FloatStorage",
    "<f8": "DoubleStorage",
    "<i4": "IntStorage",
    "<i8": "LongStorage",
    "|b1": "BoolStorage",
}


def pickled(value) -> bytes:
    """Opcodes of protocol 2 that make ``value``, as torch.save writes them."""
    match value:
        case Name():
            return b"c" + value.replace(" ", "\n").encode() + b"\n"
        case Numbers():
            return pickled(tuple(value)) + b"Q"
        case Call():
            return pickled(value[0]) + pickled(tuple(value[1])) + b"R"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return b"X" + struct.pack("<I", len(value)) + value.encode()
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case dict():
            return b"}(" + b"".join(pickled(item) for pair in value.items() for item in pair) + b"u"
    raise TypeError(value)


ORDERED = Call((Name("collections OrderedDict"), ()))


def tensor(storage: Numbers, offset=0, shape=(), strides=()) -> Call:
    return Call((Name("torch._utils _rebuild_tensor_v2"), (storage, offset, shape, strides, False, ORDERED)))


def archive(path: Path, pickle_: bytes, data: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packing) as zipped:
        zipped.writestr("ae/data.pkl", b"\x80\x02" + pickle_ + b".")
        zipped.writestr("ae/byteorder", b"little")
        for key, raw in data.items():
            zipped.writestr(f"ae/data/{key}", raw)


def torch_save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    said, data = {}, {}
    for key, array in enumerate(arrays.values()):
        name = list(arrays)[key]
        kind = Name(f"torch {STORAGES[array.dtype.str]}")
        numbers = Numbers(("storage", kind, str(key), "cuda:0", array.size))
        strides = tuple(step // array.itemsize for step in array.strides)
        said[name], data[str(key)] = tensor(numbers, 0, array.shape, strides), array.tobytes("A")
    archive(path, pickled(said), data)


FLOATS = Name("torch FloatStorage")
SIX = Numbers(("storage", FLOATS, "0", "cpu", 6))


def loaded(path: Path, pickle_: bytes, data: dict[str, bytes] | None = None) -> dict[str, np.ndarray]:
    six = np.arange(6, dtype=np.float32).tobytes()
    archive(path / "ae.pt", pickle_, {"0": six} if data is None else data)
    return files.read_torch(path / "ae.pt")


def test_views_strides_and_kinds_of_numbers(tmp_path):
    halves = Numbers(("storage", Name("torch BFloat16Storage"), "1", "cpu", 2))
    asked = {
        "all": tensor(SIX, 0, (2, 3), (3, 1)),
        "transposed": tensor(SIX, 0, (3, 2), (1, 3)),
        "part": tensor(SIX, 4, (2,), (1,)),
        "one": tensor(SIX, 5),
        "none": tensor(SIX, 6, (0, 3), (3, 1)),
        "parameter": Call((Name("torch._utils _rebuild_parameter"), (tensor(SIX, 0, (1,), (1,)), True, ORDERED))),
        "half": tensor(halves, 0, (2,), (1,)),
    }
    data = {"0": np.arange(6, dtype=np.float32).tobytes(), "1": np.array([1.5, -3e38], bfloat16).tobytes()}
    found = loaded(tmp_path, pickled(asked), data)
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = {"all": grid, "transposed": grid.T, "part": [4, 5], "one": 5, "none": np.zeros((0, 3)), "parameter": [0]}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    np.testing.assert_array_equal(found["half"], np.array([1.5, -3e38], bfloat16).astype(np.float32))


def test_numbers_are_of_the_kind_that_each_tensor_says(tmp_path):
    whole = Numbers(("storage", Name("torch IntStorage"), "0", "cpu", 6))  # the same bytes as SIX
    found = loaded(tmp_path, pickled({"a": tensor(SIX, 0, (6,), (1,)), "b": tensor(whole, 0, (6,), (1,))}))
    np.testing.assert_array_equal(found["a"], np.arange(6))
    np.testing.assert_array_equal(found["b"], np.arange(6, dtype=np.float32).view(np.int32))


def test_a_state_dict_of_modules_and_a_newer_protocol(tmp_path):
    one = pickled(tensor(SIX, 1))
    ordered = pickled(ORDERED) + b"(" + pickled("w") + one + b"u"
    versions = b"}" + pickled("_metadata") + pickled(ORDERED) + b"sb"
    assert loaded(tmp_path, ordered + versions) == {"w": 1.0}
    name = b"\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x93\x94"
    one = one.replace(pickled(Name("torch._utils _rebuild_tensor_v2")), name)
    newer = b"\x95" + b"\0" * 8 + b"}\x94(" + pickled("w") + one
    assert loaded(tmp_path, newer + b"u") == {"w": 1.0}


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickle_is_executed(tmp_path, protocol):
    marker = tmp_path / "was here"
    content = pickle.dumps({"w": Evil(marker)}, protocol)
    with zipfile.ZipFile(tmp_path / "ae.pt", "w") as zipped:
        zipped.writestr("ae/data.pkl", content)
    with pytest.raises(ValueError, match=r"not run|not a name|opcode"):
        files.read_torch(tmp_path / "ae.pt")
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # the control: the pickle is a live one


@pytest.mark.parametrize(
    "name",
    ["os system", "posix system", "builtins eval", "builtins getattr", "torch._utils _rebuild_tensor", "torch load",
     "torch.storage _load_from_bytes", "collections OrderedDict.update", "numpy.core.multiarray _reconstruct"],
)  # fmt: skip
def test_globals_that_are_not_on_the_list(tmp_path, name):
    content = {"w": Call((Name(name), ("echo",)))}
    with pytest.raises(ValueError, match=f"asks for {name.replace(' ', '.')}, which is no constructor of tensors"):
        loaded(tmp_path, pickled(content))


@pytest.mark.parametrize(
    "asked",
    [
        tensor(SIX, 0, (7,), (1,)),
        tensor(SIX, 1, (6,), (1,)),
        tensor(SIX, 0, (2, 3), (4, 1)),
        tensor(SIX, 6, (), ()),
        tensor(SIX, 2**31 - 1, (1,), (1,)),
        tensor(SIX, 0, (2**30, 2**30), (0, 0)),  # one number, said a quintillion times
        tensor(SIX, 0, (7,), (0,)),
        tensor(SIX, 0, (0, 2**31 - 1, 2**31 - 1), (1, 1, 1)),  # nothing, of a size that no array can have
    ],
)
def test_views_out_of_bounds(tmp_path, asked):
    with pytest.raises(ValueError, match="reaches outside its 6 numbers"):
        loaded(tmp_path, pickled({"w": asked}))


@pytest.mark.parametrize(
    "asked",
    [
        tensor(SIX, -1, (2,), (1,)),
        tensor(SIX, 5, (2,), (-1,)),
        tensor(SIX, 0, (-1,), (1,)),
        tensor(SIX, 0, (2,), ()),
        tensor(SIX, 0, ("2",), (1,)),
        tensor(SIX, 0, ((2,),), (1,)),
        tensor(SIX, 0, (1,) * 9, (1,) * 9),
    ],
)
def test_shapes_and_strides_that_are_none(tmp_path, asked):
    with pytest.raises(ValueError, match="shape and strides are no whole numbers from 0"):
        loaded(tmp_path, pickled({"w": asked}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickled({"w": tensor(Numbers(("storage", FLOATS, "0", "cpu", 7)))}), "don't have the size"),
        (pickled({"w": tensor(Numbers(("storage", FLOATS, "9", "cpu", 6)))}), "don't have the size"),
        (pickled({"w": tensor(Numbers(("storage", Name("torch LongStorage"), "0", "cpu", 6)))}), "don't have the size"),
        (pickled({"w": tensor(Numbers(("storage", Name("collections OrderedDict"), "0", "cpu", 6)))}), "names numbers"),
        (pickled({"w": tensor(Numbers(("module", FLOATS, "0", "cpu", 6)))}), "names numbers"),
        (pickled({"w": tensor(Numbers(("storage", "torch FloatStorage", "0", "cpu", 6)))}), "names numbers"),
        (pickled({"w": tensor(Numbers(()))}), "names numbers"),
        (pickled({"w": Call((Name("torch._utils _rebuild_tensor_v2"), ()))}), "no constructor of tensors"),
        (pickled({"w": Call((Name("torch FloatStorage"), (6,)))}), "no constructor of tensors"),
        (pickled({"w": Call(("os.system", ("ls",)))}), "no constructor of tensors"),
        (pickled({"w": 3}), "holds no dict of tensors"),
        (pickled(tensor(SIX)), "holds no dict of tensors"),
        (b"}(K\x01K\x02u", "with names as keys"),
        (b"}" + pickled("w") + b"u", "its pickle is damaged"),
        (b"", "its pickle is damaged"),
        (b"0", "opcode POP"),
        (b"}}b" + b"b", "its pickle is damaged"),
        (pickled(tensor(SIX)) + b"}b", "sets the state of something that is no dict"),
        (b"}r\xff\xff\xff\x7f", None),  # a memo of 2^31 places, which C would make room for
        (b"}j\xff\xff\xff\x7f", "its pickle is damaged"),
        (b"X\xff\xff\xff\x7f", "its pickle is damaged"),
        (b"\xff", "its pickle is damaged"),
        (b"(" * 100_000 + b"t" * 100_000, "holds no dict of tensors"),
        (b")" + b"\x85" * 200_000, "holds no dict of tensors"),
        (b"0" * 300_000, "data.pkl takes more than"),
        (pickled({"w": tensor(SIX, 0, (2,), (1,))}) + b"(" + b"\x93", "its pickle is damaged"),
        (b"cos\nsystem\n(X\x02\0\0\0lstR", "asks for os.system"),
        (b"(X\x02\0\0\0lsios\nsystem\n", "opcode INST"),
        (pickled("os") + pickled("system") + b"\x93", "asks for os.system"),
        (b"\x82\x01", "opcode EXT1"),
        (b")\x81", "opcode NEWOBJ"),
        (b"U\x01a", "opcode SHORT_BINSTRING"),
        (b"S'\\q'\n", "opcode STRING"),
        (b"]", "opcode EMPTY_LIST"),
    ],
)
def test_pickles_that_no_torch_wrote(tmp_path, content, says):
    if says is None:
        assert loaded(tmp_path, content) == {}
        return
    with pytest.raises(ValueError, match=says):
        loaded(tmp_path, content)


def test_archives_that_no_torch_wrote(tmp_path):
    path, good = tmp_path / "ae.pt", pickled({"w": tensor(SIX)})
    data = {"0": np.zeros(6, np.float32).tobytes()}
    archive(path, good, data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="entries are packed or overlap"):
        files.read_torch(path)
    path.write_bytes(pickle.dumps({"w": 1}, 2))
    with pytest.raises(ValueError, match=r"is no zip archive, as torch.save writes since version 1.6"):
        files.read_torch(path)
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("ae/data.pkl", b"\x80\x02}.")
        zipped.writestr("ae/byteorder", b"big")
    with pytest.raises(ValueError, match="another byte order"):
        files.read_torch(path)
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a/data.pkl", b"\x80\x02}.")
        zipped.writestr("b/data.pkl", b"\x80\x02}.")
    with pytest.raises(ValueError, match=r"data.pkl, once"):
        files.read_torch(path)
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a/other", b"")
    with pytest.raises(ValueError, match=r"data.pkl, once"):
        files.read_torch(path)
    archive(path, good, data)
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[whole.index(data["0"]) + 5] ^= 1
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"is no whole archive .*CRC"):
        files.read_torch(path)
    broken, entry = bytearray(whole), whole.rindex(b"PK\x01\x02")
    broken[entry + 9] |= 8  # its name is UTF-8,
    broken[entry + 46] = 0xFF  # which it is not
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"is no whole archive .*utf-8"):
        files.read_torch(path)
    for size in (5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is no whole archive"):
            files.read_torch(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_pickle_with_any_byte_changed_is_read_or_refused_with_a_sentence(tmp_path_factory, data):
    content = bytearray(pickled({"w": tensor(SIX, 0, (2, 3), (3, 1)), "b": tensor(SIX, 4, (2,), (1,))}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        found, said = loaded(tmp_path_factory.getbasetemp(), bytes(content)), ""
    except ValueError as error:
        found, said = {}, str(error)
    assert not said or "ae.pt" in said
    assert all(value.size <= 6 for value in found.values())
