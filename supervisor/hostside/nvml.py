"""NVML, asked through nvidia-ml-py: the only file that knows `pynvml`. `read` runs in a child that may be killed (aside.py).

`pynvml.py` travels beside this package, in the same archive. It is never imported where a run is owned: compiling its 8000
lines takes 80-150 ms and leaves 3-6 MB behind. What the owner keeps is its text, compressed (63 kB), and from the first
look on what that compiled to (111 kB), which makes every later look 40 ms instead of 150.
"""

from __future__ import annotations

import functools
import marshal
import os
import sys
import types
import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

LIBRARY = "libnvidia-ml.so.1"
DEFAULT_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib", "/usr/lib/wsl/lib")
DEVICE = "/dev/nvidiactl"
VGPU_GUEST = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
PCI = "/sys/bus/pci/devices"
NODE_WORDS = 16  # of 64 bits: 1024 NUMA nodes, as many as Linux can have

_text = b""  # of pynvml.py, compressed; read while the archive that we run from is certainly there
_code = b""  # what it compiled to, compressed


def missing() -> str:
    """Why there is nothing to ask, without asking; "" if there is. Costs a few stat(2): most hosts of a test have no GPU."""
    if _library_exists():
        return ""
    if os.path.exists(DEVICE):
        return "there is %s, but no %s where the loader looks (set LD_LIBRARY_PATH for this login)" % (DEVICE, LIBRARY)
    return "no NVIDIA driver is installed"


def _library_exists() -> bool:
    """Where dlopen(3) looks: LD_LIBRARY_PATH, the loader's cache, its default folders."""
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    if any(os.path.exists(os.path.join(folder, LIBRARY)) for folder in (*folders, *DEFAULT_FOLDERS)):
        return True
    try:
        with open("/etc/ld.so.cache", "rb") as file:
            return LIBRARY.encode() + b"\0" in file.read()
    except OSError:
        return False


def prepare() -> str:
    """Take pynvml along: call it early, an archive may be swept away under a process that lives for weeks.

    Why that failed, else "". Does nothing on a host that has no NVIDIA driver.
    """
    global _text
    if not _text and not missing():
        loader: Any = __loader__  # type: ignore[name-defined]
        archive = getattr(loader, "archive", None)  # zipimport's; a plain folder has none
        beside = archive or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        try:
            _text = zlib.compress(loader.get_data(os.path.join(beside, "pynvml.py")), 1)
        except OSError as error:
            return "cannot read pynvml.py from %s: %s" % (beside, error)
    return ""


def remember(code: bytes) -> None:
    """What `read` compiled: the next child need not."""
    global _code
    _code = _code or code


def read(wide: bool = False) -> Tuple[Dict[str, Any], bytes]:
    """All that is asked of NVML, as plain data, and what to `remember`. Raises nothing for what NVML can answer.

    `wide`: also what placement and people want to know, and a keeper that looks every second does not.
    """
    pynvml, code = _load()
    try:
        pynvml.nvmlInit()
        driver = _text_of(pynvml.nvmlSystemGetDriverVersion())
        cards = [_card(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        found: Dict[str, Any] = {"driver": driver, "cards": cards}
        if wide:
            found.update(wide=True, cuda=_cuda(pynvml))
            _widen(pynvml, cards)
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND):
            return {"none": "the NVIDIA driver is not loaded"}, code
        return {"error": "NVML says: %s" % error}, code
    return found, code


def _load() -> Tuple[Any, bytes]:
    fresh = b""
    if _code:
        code = marshal.loads(zlib.decompress(_code))
    else:
        prepare()
        code = compile(zlib.decompress(_text), "pynvml.py", "exec", dont_inherit=True, optimize=2)
        fresh = zlib.compress(marshal.dumps(code), 1)
    module = types.ModuleType("pynvml")
    sys.modules["pynvml"] = module  # it looks itself up there
    exec(code, module.__dict__)
    return module, fresh


def _card(nvml: Any, index: int) -> Dict[str, Any]:
    card: Dict[str, Any] = {"index": index, "slices": []}
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        _ask(nvml, handle, card)
        card["mig"] = bool((_perhaps(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)) or [0])[0])
        card["vgpu"] = _perhaps(nvml, lambda: nvml.nvmlDeviceGetVirtualizationMode(handle)) == VGPU_GUEST
        for piece in _slices(nvml, handle) if card["mig"] else ():
            card["slices"].append({})
            _ask(nvml, piece, card["slices"][-1])
    except nvml.NVMLError as error:
        card["error"] = str(error)
    return card


def _ask(nvml: Any, handle: Any, device: Dict[str, Any]) -> None:
    """Into `device`, one after the other: what a failing card answered before stays known."""
    device["uuid"] = _text_of(nvml.nvmlDeviceGetUUID(handle))
    device["name"] = _text_of(nvml.nvmlDeviceGetName(handle))
    device["holders"] = _holders(nvml, handle)
    memory = _perhaps(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))  # v1: used + free = total, as nvidia-smi has it
    if memory is not None:
        device["total_mib"], device["used_mib"] = memory.total >> 20, memory.used >> 20
    # Of a slice it is the card's, and not to be had. A question that fails costs its own answer only.
    try:
        device["ecc_errors"] = _perhaps(nvml, lambda: _ecc_errors(nvml, handle))
    except nvml.NVMLError:
        device["ecc_errors"] = None


def _slices(nvml: Any, handle: Any) -> List[Any]:
    found = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        piece = _perhaps(nvml, functools.partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number))
        if piece is not None:
            found.append(piece)
    return found


def _holders(nvml: Any, handle: Any) -> Optional[List[Dict[str, Any]]]:
    """Both lists, by pid; None if this card does not tell who computes on it."""
    found: Dict[int, Dict[str, Any]] = {}
    for kind in ("Compute", "Graphics"):
        listed = _running(nvml, "nvmlDeviceGet%sRunningProcesses" % kind, handle)
        if listed is None and kind == "Compute":
            return None
        for process in listed or ():
            mib = None if process.usedGpuMemory is None else process.usedGpuMemory >> 20
            # who stands in both lists computes
            found.setdefault(process.pid, {"pid": process.pid, "mib": mib, "kind": kind.lower()})
    return sorted(found.values(), key=lambda holder: int(holder["pid"]))


def _cuda(nvml: Any) -> Optional[str]:
    """The newest CUDA that this driver runs; None where it does not say."""
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return None
    return "%d.%d" % (version // 1000, version % 1000 // 10)


def _widen(nvml: Any, cards: List[Dict[str, Any]]) -> None:
    """What one of these questions fails at costs its own answer, and never the card: `unsaid` has the reason.

    None without a reason: this card, driver or library has no such thing.
    """
    handles = dict(_handles(nvml, cards))
    for card in cards:
        handle = handles.get(card["index"])
        for name, ask in _questions(nvml, handle, handles).items() if handle is not None else ():
            try:
                card[name] = _perhaps(nvml, ask)
            except nvml.NVMLError as error:
                card.setdefault("unsaid", {})[name] = str(error)


def _handles(nvml: Any, cards: List[Dict[str, Any]]) -> Iterator[Tuple[int, Any]]:
    for card in cards:
        try:
            yield card["index"], nvml.nvmlDeviceGetHandleByIndex(card["index"])
        except nvml.NVMLError:
            pass  # its `error` says so


def _questions(nvml: Any, handle: Any, handles: Dict[int, Any]) -> Dict[str, Callable[[], Any]]:
    return {
        "numa": lambda: _numa(nvml, handle),
        "nvlink": lambda: _nvlink(nvml, handle, handles),
        "util_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "temp_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "ecc": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
        "ecc_errors": lambda: _ecc_errors(nvml, handle),
    }


def _ecc_errors(nvml: Any, handle: Any) -> int:
    """Uncorrected, since the driver was loaded."""
    kind = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    return int(nvml.nvmlDeviceGetTotalEccErrors(handle, *kind))


def _numa(nvml: Any, handle: Any) -> Optional[int]:
    """The node of the host's memory that is nearest. Not nvmlDeviceGetNumaNodeId: that is a card's own memory, where it is
    a node itself (Grace Hopper), and not supported elsewhere. Several nearest ones are as good as none."""
    try:
        words = nvml.nvmlDeviceGetMemoryAffinity(handle, NODE_WORDS, nvml.NVML_AFFINITY_SCOPE_NODE)
        nodes = [64 * n + bit for n, word in enumerate(words) for bit in range(64) if word >> bit & 1]
        if len(nodes) == 1:
            return nodes[0]
    except nvml.NVMLError:
        pass  # the kernel knows it too
    at = nvml.nvmlDeviceGetPciInfo(handle)
    try:
        with open("%s/%04x:%02x:%02x.0/numa_node" % (PCI, at.domain, at.bus, at.device)) as file:
            node = int(file.read())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _nvlink(nvml: Any, handle: Any, handles: Dict[int, Any]) -> List[int]:
    """The cards it reaches over NVLink, by links of its own or a switch. One that cannot be asked about is none of them."""
    found, failed, asked = [], None, 0
    for index, other in handles.items():
        if other is handle:
            continue
        try:
            status = nvml.nvmlDeviceGetP2PStatus(handle, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
            asked += 1
            if status == nvml.NVML_P2P_STATUS_OK:
                found.append(index)
        except nvml.NVMLError as error:
            failed = error
    if failed is not None and not asked:
        raise failed
    return found


def _running(nvml: Any, function: str, handle: Any) -> Optional[List[Any]]:
    """By versioned names, the newest that the library has: pynvml's unversioned one refuses every older library."""
    listed = _perhaps(nvml, lambda: getattr(nvml, function + "_v3")(handle))
    return listed if listed is not None else _perhaps(nvml, lambda: getattr(nvml, function + "_v2")(handle))


def _perhaps(nvml: Any, ask: Callable[[], Any]) -> Optional[Any]:
    """None where this card, driver or library has no such thing."""
    try:
        return ask()
    except nvml.NVMLError as error:
        unable = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NOT_FOUND)
        if error.value in unable:
            return None
        raise


def _text_of(said: Any) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
