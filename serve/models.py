"""The models of a server by name and version: loaded, replaced and unloaded while it runs."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sigcam.core.errors import SigcamError
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError, not_found
from sigcam.serve.protocol.metadata import model_config, model_metadata
from sigcam.serve.repository import ModelPlace, Repository
from sigcam.serve.served import BackendChoice, BatchRan, ServedModel

__all__ = ["Models"]


_UNLOADED = "unloaded"


@dataclass
class _State:
    """What has become of a version of a model: one of READY, UNAVAILABLE, and why."""

    ready: bool
    reason: str = ""


class Models:
    """Looks models up, and changes which are there. Methods may be called from any thread."""

    def __init__(
        self,
        repository: Repository,
        choice: BackendChoice,
        options: ServeOptions,
        batch_ran: BatchRan,
    ) -> None:
        """Loads nothing yet.

        Args:
            repository: where models lie.
            choice: how they are opened.
            options: limits and batching of each.
            batch_ran: is told of each run.
        """
        self._repository, self._choice, self._options = repository, choice, options
        self._batch_ran = batch_ran
        self._served: dict[str, dict[str, ServedModel]] = {}
        self._states: dict[tuple[str, str], _State] = {}
        self._loaded = False
        self._lock = threading.Lock()
        """Held while models change; looking one up needs no lock, as whole dicts are replaced."""

    def load_all(self, but: Collection[str] = ()) -> None:
        """Loads every version of every model.

        Args:
            but: names of models that were unloaded before, and stay so.

        Raises:
            SigcamError: as `sigcam.load`; nothing stays loaded then.
        """
        with self._lock:
            try:
                for name, places in self._repository.places().items():
                    if name in but:
                        for one in places:
                            self._states[name, one.version] = _State(ready=False, reason=_UNLOADED)
                    else:
                        self._replace(name, places)
            except BaseException:
                self._close_all()
                raise
            self._loaded = True

    @property
    def ready(self) -> bool:
        """Says whether all models have been loaded."""
        return self._loaded

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Looks a model up.

        Args:
            name: as a client wrote it.
            version: likewise; None for the newest.

        Raises:
            RequestError: there is none of that name or version, or not now.
        """
        versions = self._served.get(name)
        if not versions:
            if not self._loaded:
                raise RequestError("the server is loading its models; try again soon", 503, 1)
            if any(known == name for known, _ in self._states):
                raise RequestError(
                    f"Request for unknown model: '{name}' has no available versions", 404
                )
            raise not_found(name)
        if version is None:
            return versions[next(reversed(versions))]
        if version not in versions:
            raise not_found(name, version)
        return versions[version]

    def all(self) -> list[ServedModel]:
        """Returns all that are loaded."""
        return [one for versions in self._served.values() for one in versions.values()]

    def metadata(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Returns a model's metadata.

        Raises:
            RequestError: as `get`.
        """
        served = self.get(name, version)
        versions = list(self._served.get(name, {})) if version is None else [served.version]
        return model_metadata(name, versions, served.platform, served.inputs(), served.outputs())

    def configuration(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Returns how a model is run, as Triton words it.

        Raises:
            RequestError: as `get`.
        """
        limits = self._options
        return model_config(
            self.metadata(name, version),
            limits.request_images,
            self.get(name, version).runs.images,
            limits.batch_delay,
        )

    def chosen(self, name: str | None, version: str | None) -> list[ServedModel]:
        """Returns the loaded models of a name and a version.

        Args:
            name: None for any.
            version: likewise.

        Raises:
            RequestError: there is none of that name, or of that name and version.
        """
        if name is not None:
            self.get(name, version)
        return [
            one for one in self.all() if name in (None, one.name) and version in (None, one.version)
        ]

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """Lists the models, whether they are loaded or not.

        Args:
            ready: whether those that aren't loaded are left out.
        """
        states = dict(self._states)
        for places in self._repository.places().values():
            for place in places:
                states.setdefault((place.name, place.version), _State(ready=False))
        return [
            {
                "name": name,
                "version": version,
                "state": "READY" if state.ready else "UNAVAILABLE",
                "reason": state.reason,
            }
            for (name, version), state in sorted(states.items())
            if state.ready or not ready
        ]

    def load(self, name: str) -> None:
        """Loads a model, or loads it again; requests go to the old one until the new one is there.

        Raises:
            RequestError: there is no such model, clients may not load models, or the file can't be
                used; what was loaded before stays.
        """
        self._check_control("load")
        with self._lock:
            places = self._repository.places().get(name)
            if places is None:
                raise RequestError(f"failed to load '{name}', no such model in the repository", 404)
            try:
                self._replace(name, places)
            except SigcamError as exc:
                raise RequestError(f"failed to load '{name}': {exc}") from exc

    def unload(self, name: str) -> None:
        """Unloads a model, once the requests that use it are over.

        Raises:
            RequestError: there is no such model, or clients may not unload models.
        """
        self._check_control("unload")
        with self._lock:
            versions = self._served.get(name)
            if versions is None:
                self.get(name)  # raises
                return
            self._served = {key: one for key, one in self._served.items() if key != name}
            for one in versions.values():
                self._states[name, one.version] = _State(ready=False, reason=_UNLOADED)
        for one in versions.values():
            one.close()

    def close(self) -> None:
        """Frees all models, once the requests that use them are over."""
        with self._lock:
            self._close_all()

    def _check_control(self, what: str) -> None:
        if not (self._options.model_control and self._repository.has_folder):
            raise RequestError(
                f"explicit model {what} is not allowed: models of a folder may be loaded and "
                "unloaded, unless the server was started with --no-model-control"
            )

    def _replace(self, name: str, places: list[ModelPlace]) -> None:
        """Loads versions of a model, puts them in the place of those before, and frees these."""
        made: dict[str, ServedModel] = {}
        try:
            for place in places:
                made[place.version] = ServedModel(
                    place, self._choice, self._options, self._batch_ran
                )
        except BaseException:
            for one in made.values():
                one.close()
            raise
        before = self._served.get(name, {})
        self._served = {**self._served, name: made}
        for version in before:
            self._states[name, version] = _State(ready=False, reason=_UNLOADED)
        for version in made:
            self._states[name, version] = _State(ready=True)
        for one in before.values():
            one.close()

    def _close_all(self) -> None:
        before, self._served = self.all(), {}
        for one in before:
            one.close()
