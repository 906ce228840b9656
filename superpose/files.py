"""Files of weights as named arrays: safetensors, npz, and the zip with a pickle that ``torch.save`` writes.

What the names mean is the business of those who read them. Files come from strangers, so that

- nothing in them is executed: safetensors and npz hold numbers only, and of a torch pickle a fixed list of opcodes and
  of tensor constructors is interpreted here;
- memory is bounded by the size of the file: what an archive claims to unpack to is checked before anything is unpacked,
  and no entry is unpacked beyond its claim;
- whatever is damaged, hostile, doubled or of another kind gives one ValueError that names the file.

Arrays come in the dtype that they were stored in (bfloat16 of a torch file as float32) and may be read-only.
"""

import contextlib
import io
import json
import math
import pickletools
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

MAX_HEADER = 16 * 2**20
"""Bytes of a safetensors header; an SAE's takes about 1 kB."""
MAX_PICKLE = 2**18
"""Bytes of a torch archive without its numbers; an SAE's takes about 1 kB."""
SLACK = 64 * 2**20
"""A compressed archive may unpack to this many bytes, or to 100 times its size."""
MAX_AXES = 8


def _possible(shape: Sequence[Any]) -> bool:
    """Whether an array can have this shape: few axes, none below 0, and none too long even beside an axis of 0."""
    fits = len(shape) <= MAX_AXES and all(isinstance(n, int) and n >= 0 for n in shape)
    return fits and math.prod(max(n, 1) for n in shape) < 2**56


# --------------------------------------------------------------------------------------------------------- safetensors


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}


def map_safetensors(path: Path, others: bool = False) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file as views of the mapped file: nothing is read before it is used.

    Args:
        path: the file.
        others: whether tensors that are no floats of 16, 32 or 64 bits are left out instead of refused.

    Raises:
        ValueError: the file is damaged, its header too large, or a tensor is not of floats.
    """
    with open(path, "rb") as f:
        header = int.from_bytes(f.read(8), "little")
        size = path.stat().st_size
        if header > min(MAX_HEADER, max(size - 8, 0)):
            raise ValueError(f"{path} claims a header of {header} bytes in a file of {size}: it is damaged or hostile")
        raw = f.read(header)
    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks that tensors lie in the file and don't overlap
            pass
        said = json.loads(raw)
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}): copy it again") from error
    mapped = np.memmap(path, np.uint8, mode="r")
    tensors = {}
    for name, about in said.items():
        if name == "__metadata__":
            continue
        if (dtype := about["dtype"]) not in _DTYPES:
            if others:
                continue
            raise ValueError(f"{path}: {name} is stored as {dtype}: only {', '.join(_DTYPES)} can be read")
        if not _possible(shape := about["shape"]):
            raise ValueError(f"{path}: {name} claims a shape of {len(shape)} axes that no weights have")
        start, end = (8 + header + offset for offset in about["data_offsets"])
        tensors[name] = mapped[start:end].view(_DTYPES[dtype]).reshape(shape)
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """Tensors of a safetensors file, and the dtypes other than float32 that they are stored in.

    Raises:
        ValueError: see ``map_safetensors``.
    """
    tensors = {name: np.array(part) for name, part in map_safetensors(path).items()}
    others = {str(array.dtype) for array in tensors.values()} - {"float32"}
    return tensors, ", ".join(sorted(others)) or None


# ----------------------------------------------------------------------------------------------------------------- npz


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Every trouble of Python's zip reader as one sentence."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no whole archive ({error}): copy it again") from error


def _archive(path: Path) -> zipfile.ZipFile:
    with _whole(path):
        archive = zipfile.ZipFile(path)
    return archive


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    """An entry, of which no more is unpacked than it claims: ``archive.read`` would unpack all, and then cut it."""
    with _whole(path), archive.open(info) as entry:
        raw = entry.read(info.file_size)
    return raw


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an npz file; pickled objects are refused.

    Raises:
        ValueError: the file is damaged, claims to unpack to too much, holds a name twice, or anything but floats.
    """
    with _archive(path) as archive:
        infos = archive.infolist()
        size = sum(info.file_size for info in infos)
        if size > max(SLACK, 100 * path.stat().st_size):
            raise ValueError(f"{path} would unpack to {size} bytes, as no weights do: refused unread")
        if others := {info.compress_type for info in infos} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError(f"{path} is packed by methods {sorted(others)}, which NumPy never uses: refused unread")
        names = [info.filename.removesuffix(".npy") for info in infos]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ValueError(f"{path} holds {', '.join(twice)} more than once: it is damaged or hostile")
        return {
            name: _npy(_unpacked(archive, info, path), f"{path}: {name}")
            for name, info in zip(names, infos, strict=True)
        }


def _npy(raw: bytes, where: str) -> np.ndarray:
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"unknown version {version}")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():  # of headers by Python 2
            warnings.simplefilter("ignore")
            shape, fortran, dtype = header(stream)
    except (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError, tokenize.TokenError) as error:
        said = str(error)[:200] or type(error).__name__  # the header is a Python literal of at most 10,000 characters
        raise ValueError(f"{where} is no array ({said}): copy the file again") from error
    if dtype.kind != "f":
        raise ValueError(f"{where} holds {dtype}, not floats: it can't be read")
    if not _possible(shape) or math.prod(shape) * dtype.itemsize != len(raw) - stream.tell():
        raise ValueError(f"{where} claims shape {str(shape)[:80]} in {len(raw)} bytes: it is damaged or hostile")
    return np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


# ------------------------------------------------------------------------------------------------------- torch pickles


class _Global(str):
    """A name in a pickle that would be imported; here it stays a name."""


_STORAGES = {  # torch's storage class -> numpy dtype of its bytes
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "<u2",  # the upper half of a float32
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch BoolStorage": "?",
}
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
_ALLOWED = {*_STORAGES, _TENSOR, _PARAMETER, _DICT}


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a dict that ``torch.save`` wrote, without torch and without running its pickle.

    Raises:
        ValueError: the file is of before torch 1.6, damaged, or asks for anything but tensors.
    """
    with open(path, "rb") as f:
        magic = f.read(4)
    if magic != b"PK\x03\x04":
        raise ValueError(
            f"{path} is no zip archive, as torch.save writes since version 1.6: load it with that torch where you "
            "trust it, and save it again with torch.save or as safetensors"
        )
    with _archive(path) as archive:
        root, entries = _torch_entries(archive, path)
        known: dict[tuple[str, str], np.ndarray] = {}

        def storage(kind: str, key: str, numel: int) -> np.ndarray:
            info = entries.get(f"{root}data/{key}")
            dtype = np.dtype(_STORAGES[kind])
            if info is None or numel * dtype.itemsize != info.file_size:
                raise ValueError(f"{path}: its numbers {key:.20} don't have the size it says: it is damaged")
            if (kind, key) not in known:
                flat = np.frombuffer(_unpacked(archive, info, path), dtype)
                known[kind, key] = (flat.astype(np.uint32) << 16).view(np.float32) if "BFloat16" in kind else flat
            return known[kind, key]

        found = _unpickle(_unpacked(archive, entries[root + "data.pkl"], path), storage, path)
    if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
        raise ValueError(f"{path} holds no dict of tensors: save the state_dict of the SAE")
    return found


def _torch_entries(archive: zipfile.ZipFile, path: Path) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The folder inside an archive of ``torch.save``, and the entries by name."""
    entries = {info.filename: info for info in archive.infolist()}
    inside = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(inside) != 1 or len(entries) != len(archive.infolist()):
        raise ValueError(f"{path} is no archive of torch.save: it must hold each name, and data.pkl, once")
    packed = [name for name, info in entries.items() if info.compress_type != zipfile.ZIP_STORED]
    if packed or sum(info.file_size for info in entries.values()) > path.stat().st_size:
        raise ValueError(f"{path}: entries are packed or overlap, which torch.save never does: refused unread")
    root = inside[0].removesuffix("data.pkl")
    if entries[inside[0]].file_size > MAX_PICKLE:
        raise ValueError(f"{path}: data.pkl takes more than {MAX_PICKLE} bytes: it is no SAE's")
    order = entries.get(root + "byteorder")
    if order is not None and _unpacked(archive, order, path) != b"little":
        raise ValueError(f"{path} holds numbers of another byte order: save it again on a little-endian machine")
    return root, entries


def _unpickle(data: bytes, storage: Callable[[str, str, int], np.ndarray], path: Path) -> Any:
    """What a pickle of plain values and tensors means. Nothing is imported or called but what stands here."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def store(target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise ValueError(f"{path} does not hold a dict with names as keys: save the state_dict of the SAE")
        target.update(zip(items[::2], items[1::2], strict=True))

    try:
        for op, arg in _opcodes(data, path):
            match op.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    marks.append(len(stack))
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[op.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(arg)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    items = [stack.pop() for _ in range(int(op.name[-1]))]
                    stack.append(tuple(reversed(items)))
                case "BINPUT" | "LONG_BINPUT":
                    memo[arg] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    store(stack[-1], [key, value])
                case "SETITEMS":
                    items = since_mark()
                    store(stack[-1], items)
                case "GLOBAL" | "STACK_GLOBAL":
                    if op.name == "STACK_GLOBAL":
                        name, module = stack.pop(), stack.pop()
                        arg = f"{module} {name}" if isinstance(name, str) and isinstance(module, str) else "?"
                    stack.append(_named(arg, path))
                case "BINPERSID":
                    stack.append(_numbers(stack.pop(), storage, path))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(_reduce(function, arguments, path))
                case "BUILD":  # the versions of modules, which torch hangs on a state_dict
                    stack.pop()
                    if not isinstance(stack[-1], dict):
                        raise ValueError(f"{path} sets the state of something that is no dict: it was not run")
                case _:
                    raise ValueError(f"{path} uses the pickle opcode {op.name}, which no file of tensors does: not run")
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: its pickle is damaged ({type(error).__name__}): copy it again") from error
    raise ValueError(f"{path}: its pickle has no end: copy it again")


def _named(name: str, path: Path) -> _Global:
    """A global of the fixed list."""
    if name not in _ALLOWED:
        raise ValueError(
            f"{path} asks for {name.replace(' ', '.'):.80}, which is no constructor of tensors: it was not run; if you "
            "trust the file, load it with torch and save its state_dict as safetensors"
        )
    return _Global(name)


def _numbers(asked: Any, storage: Callable[[str, str, int], np.ndarray], path: Path) -> np.ndarray:
    """The storage that a persistent id stands for."""
    match asked:
        case ("storage", _Global() as kind, str() as key, _, int() as numel) if kind in _STORAGES:
            return storage(kind, key, numel)
    raise ValueError(f"{path} names numbers in a way that torch.save does not: refused")


def _opcodes(data: bytes, path: Path) -> list[tuple[Any, Any]]:
    try:
        with warnings.catch_warnings():  # of strings with unknown escapes, in opcodes that are refused anyway
            warnings.simplefilter("ignore")
            return [(op, arg) for op, arg, _ in pickletools.genops(data)]
    except ValueError as error:
        raise ValueError(f"{path}: its pickle is damaged ({error}): copy it again") from error


def _reduce(function: Any, arguments: Any, path: Path) -> Any:
    """What one of torch's constructors makes of its arguments: a view of the numbers, within their bounds."""
    match function, arguments:
        case _Global(), () if function == _DICT:
            return {}
        case _Global(), (np.ndarray() as tensor, *_) if function == _PARAMETER:
            return tensor
        case _Global(), (np.ndarray() as flat, offset, tuple() as shape, tuple() as strides, *_) if function == _TENSOR:
            numbers = (offset, *shape, *strides)
        case _:
            raise ValueError(f"{path} calls something that is no constructor of tensors: it was not run")
    if len(shape) != len(strides) or len(shape) > MAX_AXES or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"{path}: a tensor's shape and strides are no whole numbers from 0: it is damaged or hostile")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) > flat.size or (0 not in shape and last >= flat.size) or not _possible(shape):
        raise ValueError(f"{path}: a tensor of shape {shape} reaches outside its {flat.size} numbers: refused")
    if 0 in shape:
        return np.zeros(shape, flat.dtype)
    return np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [step * flat.itemsize for step in strides], writeable=False
    )
