"""Makes a checked request's graph, and checks that this ComfyUI can run it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ...ltx.errors import InputError
from ..applications import Application
from ..applications.inputs import CheckedRequest
from ..graph.graph import Prompt
from ..graph.model_files import ModelMissing
from ..host import Host
from ..settings import SUBFOLDER, Settings

SAFETY_FIELD, CAMERA_FIELD = "enable_safety_checker", "camera_lora"


class Preparation:
    """host: the ComfyUI whose models folders and installation are checked."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host, self._settings = host, settings

    async def admit(self, application: Application, body: Any) -> CheckedRequest:
        """Checks a body and whether this ComfyUI can run it. Errors: Invalid; ModelMissing."""
        checked = application.check(body)
        if self._host.is_known(application.find_models):
            self.check(application, checked)
        else:
            await asyncio.to_thread(self.check, application, checked)
        return checked

    def check(self, application: Application, checked: CheckedRequest) -> None:
        """Checks that the request can run here. Errors: Invalid; ModelMissing."""
        try:
            # the graph is not used, so the names of the files need not exist
            application.compose(checked, self._host.models(application.find_models), checked.files, SUBFOLDER)
        except ModelMissing:
            raise
        except InputError as error:
            raise application.invalid_from(error) from None
        try:
            if checked.request.camera_lora != "none":
                self._host.check_camera(checked.request.camera_lora)
        except InputError as error:
            raise application.invalid_from(error, CAMERA_FIELD) from None
        self._check_safety(application, checked)

    def _check_safety(self, application: Application, checked: CheckedRequest) -> None:
        request, required = checked.request, self._settings.require_safety
        wanted = self._host.safety_missing()
        if required and not request.enable_safety_checker:
            error = InputError("enable_safety_checker: this server requires the safety checker; leave it on.")
            raise application.invalid_from(error)
        named = request.enable_safety_checker and SAFETY_FIELD in request.given
        if wanted and (named or required):
            error = InputError(f"enable_safety_checker: none is installed in models/safety_checker; {wanted}.")
            raise application.invalid_from(error)

    def safety(self, checked: CheckedRequest) -> str:
        """The value of the header x-ltx-safety for the request's result."""
        if not checked.request.enable_safety_checker:
            return "off"
        return "not-installed" if self._host.safety_missing() else "checked"

    def compose(
        self, application: Application, checked: CheckedRequest, files: Mapping[str, str], prefix: str
    ) -> Prompt:
        """The request's graph. files: field → name in the input folder. Errors: InputError."""
        models = self._host.models(application.find_models)
        paths = {field: self._settings.input / name for field, name in files.items()}
        return application.compose(application.settle(checked, paths, self._settings), models, files, prefix)
