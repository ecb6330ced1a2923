"""How many may use the app at once, and for how long a page that nobody touches keeps its place.

`make app` starts Voila with it: `voila notebooks/app/mixer.ipynb --Voila.config_file_paths=notebooks/app`.
Each visitor has a Python process of about 600 MB of memory. Whoever comes when all places are taken is told so.
"""

import os

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

VISITORS = int(os.environ.get("VISITORS", 24))
IDLE_SECONDS = int(os.environ.get("IDLE_SECONDS", 1200))

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a picture takes milliseconds; threads of many visitors only disturb
os.environ.setdefault("MKL_NUM_THREADS", "1")


class FewKernels(AsyncMappingKernelManager):
    """Starts no more kernels than there are places."""

    starting = frozenset()  # their ids; while it starts, a kernel may already be in the list, but has one place only

    async def start_kernel(self, **options):
        if len(self.starting.union(self.list_kernel_ids())) >= VISITORS:
            raise HTTPError(503, f"All {VISITORS} places are taken. Please come back in a few minutes.")
        mine = {options.setdefault("kernel_id", self.new_kernel_id())}
        self.starting |= mine
        try:
            return await super().start_kernel(**options)
        finally:
            self.starting -= mine


c = get_config()  # noqa: F821 (traitlets puts it here)
c.Voila.ip = "127.0.0.1"
c.VoilaConfiguration.multi_kernel_manager_class = FewKernels
c.VoilaConfiguration.show_tracebacks = False
for manager in (c.FewKernels, c.MappingKernelManager):
    manager.cull_idle_timeout = IDLE_SECONDS
    manager.cull_interval = max(1, min(60, IDLE_SECONDS // 2))
    manager.cull_connected = True  # an open page that nobody touches gives up its place, too
