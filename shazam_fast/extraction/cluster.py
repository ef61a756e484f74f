"""Extraction on a Ray cluster: every worker loads the models and writes the parts that it is given."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..runtime.devices import choose_device
from ..runtime.jobs.ray_jobs import ray_cluster
from .plan import Plan
from .run import Extraction, ExtractionReport, ImageParts, complete
from .sharing import Sharing

RETRIES = 3  # times that a part is tried again after its machine was lost
STOPPING_SECONDS = 10  # seconds after which a worker that does not answer is left to Ray


class Worker:
    """One copy of the models somewhere in the cluster, made when it is first asked for something."""

    def __init__(self, plan: Plan, device: str | None) -> None:
        self._plan, self._device = plan, device

    @cached_property
    def _extraction(self) -> Extraction:
        return Extraction(self._plan, choose_device(self._device))

    def store(self) -> ImageParts:
        """The part directory of the archive."""
        return self._extraction.store

    def write(self, part: int) -> None:
        """Extract one part. Raises MismatchError when this machine (versions, device) would give other features."""
        self._extraction.store.claim()
        self._extraction.write([part])


def extract_on_ray(plan: Plan, device: str | None) -> ExtractionReport:
    """Extract on a Ray cluster, see `ray_cluster`.

    One worker takes a GPU each, or `plan.workers` cores each where there is no GPU. A part whose machine is lost is
    given to another. Raises what `extract` raises.
    """
    with ray_cluster(plan.out) as ray:
        from ray.util import ActorPool

        shared = ray.put(plan)  # kept while they run: a worker that is started again reads it again
        workers = _start_workers(ray, plan, shared, device)
        try:
            store: ImageParts = ray.get(workers[0].store.remote())

            def write(missing: Sequence[int]) -> None:
                pool: Any = ActorPool(workers)
                try:
                    for _ in pool.map_unordered(lambda worker, part: worker.write.remote(part), missing):
                        pass
                except BaseException:
                    _stop_workers(ray, workers)  # now: `complete` gives up the directory, nobody may write there then
                    raise

            return complete(store, write, Sharing(plan.out))
        finally:
            _stop_workers(ray, workers)


def _start_workers(ray: Any, plan: Plan, shared: Any, device: str | None) -> list[Any]:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if device is None or device.startswith("cuda") else 0
    count = gpus or max(1, int(resources.get("CPU", 1)) // plan.workers)
    remote = ray.remote(Worker).options(
        num_cpus=plan.workers if not gpus else 1,
        num_gpus=1 if gpus else 0,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    return [remote.remote(shared, device) for _ in range(min(count, plan.parts))]


def _stop_workers(ray: Any, workers: Sequence[Any]) -> None:
    """Kill the workers and wait until Ray says so; cores and GPUs are free, though an error may still refer to them."""
    for worker in workers:
        ray.kill(worker)
    refusals = [worker.store.options(max_task_retries=0).remote() for worker in workers]
    ray.wait(refusals, num_returns=len(refusals), timeout=STOPPING_SECONDS)
