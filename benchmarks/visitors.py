"""Can 20 visitors use the app at once, on this machine? Each opens the page and moves a slider, as a browser would.

    python benchmarks/visitors.py           # 10 minutes, on a machine with 16 GB of memory that does nothing else

All visitors come in the same second. For each the time until the page is complete is measured, and from a slider to the
next picture while all others move theirs. Then nobody touches anything until Voila has ended all kernels.
Writes benchmarks/results/visitors.json and prints the numbers.
"""

import json
import os
import re
import statistics
import struct
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path

import psutil
from websocket import create_connection

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import served
from faces import processor

VISITORS, MOVES, IDLE_SECONDS = 20, 3, 300
APP = Path(__file__).parents[1] / "notebooks" / "app"
SLIDER = "all together, from a to b"
PROTOCOL = "v1.kernel.websocket.jupyter.org"
"""That of browsers. Voila 0.5 takes messages of any other protocol for this one and then allocates gigabytes."""
PARTS = ("channel", "header", "parent_header", "metadata", "content")  # then the bytes of pictures
together = threading.Barrier(VISITORS)


def packed(*parts: dict) -> bytes:
    """A message to the kernel: the number of offsets, the offsets of the parts and of the end, the parts."""
    texts = [b"shell", *(json.dumps(part).encode() for part in parts)]
    offsets = list(accumulate(map(len, texts), initial=8 * (len(texts) + 2)))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(texts)


def unpacked(message: bytes) -> list[bytes]:
    (n,) = struct.unpack("<Q", message[:8])
    offsets = struct.unpack(f"<{n}Q", message[8 : 8 * (n + 1)])
    return [message[i:j] for i, j in pairwise(offsets)]


def visit(address: str) -> dict:
    """Seconds until the page is complete, and from each move of a slider to the next picture; one failure ends all."""
    try:
        return measured(address)
    except Exception:
        together.abort()
        raise


def measured(address: str) -> dict:
    began = time.monotonic()
    with urllib.request.urlopen(address, timeout=1200) as page:
        text = page.read().decode()
    opened = time.monotonic() - began
    kernel, session, moves = re.search(r'"kernelId":\s*"([0-9a-f-]+)"', text)[1], uuid.uuid4().hex, []
    socket = create_connection(
        f"{address.replace('http', 'ws')}/api/kernels/{kernel}/channels?session_id={session}", timeout=600,
        subprotocols=[PROTOCOL],
    )  # fmt: skip

    def send(kind: str, **content: object) -> str:
        header = {"msg_id": uuid.uuid4().hex, "session": session, "username": "", "version": "5.3", "msg_type": kind}
        socket.send_binary(packed(header, {}, {"version": "1.0.0"}, content))
        return header["msg_id"]

    def picture_after(sent: str) -> dict:
        """The content of the first message that carries bytes and answers the one that was sent."""
        while True:
            parts = unpacked(socket.recv())
            answers = json.loads(parts[PARTS.index("parent_header")]).get("msg_id") == sent
            if answers and len(parts) > len(PARTS):
                return json.loads(parts[PARTS.index("content")])["data"]

    send("comm_open", comm_id="states", target_name="jupyter.widget.control", data={})
    models = picture_after(send("comm_msg", comm_id="states", data={"method": "request_states"}))
    slider = next(key for key, model in models["states"].items() if model["state"].get("description") == SLIDER)
    together.wait(1200)
    for k in range(MOVES):
        began = time.monotonic()
        moved = {"method": "update", "state": {"value": (k + 1) / 10}, "buffer_paths": []}
        picture_after(send("comm_msg", comm_id=slider, data=moved))
        moves.append(time.monotonic() - began)
    socket.close()
    return {"opened": opened, "moves": moves}


def kernels() -> list[psutil.Process]:
    """The kernels that this process's server has started and that are still alive."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends at this moment
            if "ipykernel_launcher" in " ".join(process.cmdline()):
                found.append(process)
    return found


def main() -> None:
    os.environ |= {"IDLE_SECONDS": str(IDLE_SECONDS), "VISITORS": str(VISITORS)}
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), "voila", str(APP / "mixer.ipynb"), f"--Voila.config_file_paths={APP}") as address,
        ThreadPoolExecutor(VISITORS) as visitors,
    ):
        found = list(visitors.map(visit, [address] * VISITORS))
        print(f"{found}\nwaiting until the idle kernels have ended ...", flush=True)
        began, running = time.monotonic(), kernels()
        memory = sum(p.memory_full_info().pss for p in running) / 1e6
        while left := len(kernels()):
            if time.monotonic() - began > 4 * IDLE_SECONDS:
                break
            time.sleep(1)
        ended = time.monotonic() - began
    opened = [one["opened"] for one in found]
    moves = [1000 * move for one in found for move in one["moves"]]
    numbers = {
        "visitors": len(found), "kernels": len(running), "memory_mb_each": round(memory / len(running)),
        "page_s_median": round(statistics.median(opened), 1), "page_s_slowest": round(max(opened), 1),
        "slider_ms_median": round(statistics.median(moves)), "slider_ms_slowest": round(max(moves)),
        "idle_limit_s": IDLE_SECONDS, "kernels_left": left, "kernels_ended_after_s": round(ended),
    }  # fmt: skip
    about = {"processor": processor(), "cores": os.cpu_count(), "load_before": round(load, 1)}
    path = Path(__file__).parent / "results" / "visitors.json"
    path.write_text(json.dumps({"machine": about} | numbers, indent=1) + "\n")
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()
